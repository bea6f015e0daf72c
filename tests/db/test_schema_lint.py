"""Every table is closed to other tenants and fit for Citus, and these tests would notice if not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from haive_persistence.db import Database, load_queries, run_sync
from haive_persistence.db.schema_lint import distribution_findings, isolation_findings, upsert_findings
from haive_persistence.db.sql import sql_root
from tests.db.helpers import WHO


@pytest.fixture
def broken(_module_database: Database, admin: Connection[Any]) -> Iterator[Connection[Any]]:
    """The schema, to be broken: whatever is done to it is undone afterwards."""
    with admin.transaction(force_rollback=True):
        yield admin


@pytest.fixture
def role(_module_database: Database) -> str:
    return run_sync(_module_database.blocking.fetch_one(WHO))[1]


def test_every_table_is_isolated(database: Database, admin: Connection[Any], role: str) -> None:
    assert isolation_findings(admin, "haive", role) == []
    tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'haive'::regnamespace AND relkind = 'r'"
    assert admin.execute(tables).fetchone()[0] > 3  # it did look at something


POLICY = "tenant_id = NULLIF(current_setting('haive.tenant', true), '')"
BREAKING = {
    "row security off": "ALTER TABLE haive.store_item DISABLE ROW LEVEL SECURITY",
    "owner exempt": "ALTER TABLE haive.store_item NO FORCE ROW LEVEL SECURITY",
    "no policy": "DROP POLICY tenant_isolation ON haive.store_item",
    "a second, open policy": "CREATE POLICY all_of_it ON haive.store_item USING (true)",
    "an open check": "DROP POLICY tenant_isolation ON haive.store_item;"
    f" CREATE POLICY tenant_isolation ON haive.store_item USING ({POLICY}) WITH CHECK (true)",
    "only reads": "DROP POLICY tenant_isolation ON haive.store_item;"
    f" CREATE POLICY tenant_isolation ON haive.store_item FOR SELECT USING ({POLICY})",
    "a default tenant": "DROP POLICY tenant_isolation ON haive.store_item; CREATE POLICY tenant_isolation"
    " ON haive.store_item USING (tenant_id = COALESCE(current_setting('haive.tenant', true), tenant_id))",
    "an error instead of no rows": "DROP POLICY tenant_isolation ON haive.store_item; CREATE POLICY tenant_isolation"
    " ON haive.store_item USING (tenant_id = current_setting('haive.tenant'))",
    "a table without tenants": "CREATE TABLE haive.shared (id int PRIMARY KEY)",
    "a tenant that may be null": 'CREATE TABLE haive.shared (tenant_id text COLLATE "C");'
    " CALL haive.isolate_tenants('shared')",
    "a tenant of another type": "CREATE TABLE haive.shared (tenant_id varchar NOT NULL)",
    "a tenant of another collation": "CREATE TABLE haive.shared (tenant_id text NOT NULL);"
    " CALL haive.isolate_tenants('shared')",
    "a view of the owner's": "CREATE VIEW haive.seen AS SELECT * FROM haive.store_item",
    "a copy": "CREATE MATERIALIZED VIEW haive.copied AS SELECT * FROM haive.store_item",
    "a function of the owner's": "CREATE FUNCTION haive.peek() RETURNS bigint LANGUAGE sql SECURITY DEFINER"
    " AS 'SELECT count(*) FROM haive.store_item'",
    "truncate": 'GRANT TRUNCATE ON haive.store_item TO "{role}"',
    "a role that bypasses": 'ALTER ROLE "{role}" BYPASSRLS',
    "a role that can log in": 'ALTER ROLE "{role}" LOGIN',
}


@pytest.mark.parametrize("name", BREAKING)
def test_broken_isolation_is_noticed(broken: Connection[Any], role: str, name: str) -> None:
    broken.execute(BREAKING[name].format(role=role).encode())
    assert isolation_findings(broken, "haive", role) != []


def test_what_is_allowed_beside_the_policy(broken: Connection[Any], role: str) -> None:
    broken.execute("CREATE POLICY narrower ON haive.store_item AS RESTRICTIVE USING (key <> 'hidden')")
    broken.execute("CREATE VIEW haive.seen WITH (security_invoker = true) AS SELECT * FROM haive.store_item")
    assert isolation_findings(broken, "haive", role) == []


def test_schema_could_be_distributed(database: Database, admin: Connection[Any]) -> None:
    assert distribution_findings(admin, "haive") == []


UNFIT = {
    "no primary key": 'CREATE TABLE haive.bad (tenant_id text COLLATE "C" NOT NULL)',
    "a key that leads nowhere": "CREATE TABLE haive.bad (id uuid PRIMARY KEY)",
    "a unique index of its own": "CREATE TABLE haive.bad (thread_key uuid, n int UNIQUE, PRIMARY KEY (thread_key, n))",
    "a foreign key beside the key": "CREATE TABLE haive.a (thread_key uuid PRIMARY KEY); CREATE TABLE haive.bad"
    " (thread_key uuid, other uuid REFERENCES haive.a, PRIMARY KEY (thread_key, other))",
    "a foreign key that clears the key": "CREATE TABLE haive.a (thread_key uuid PRIMARY KEY); CREATE TABLE haive.bad"
    " (thread_key uuid PRIMARY KEY REFERENCES haive.a ON UPDATE CASCADE)",
    "a foreign key to a plain table": "CREATE TABLE haive.bad (thread_key uuid PRIMARY KEY,"
    " version int REFERENCES haive.schema_migration)",
    "a trigger": "CREATE TABLE haive.bad (thread_key uuid PRIMARY KEY); CREATE FUNCTION haive.f() RETURNS trigger"
    " LANGUAGE plpgsql AS 'BEGIN RETURN new; END'; CREATE TRIGGER t BEFORE INSERT ON haive.bad"
    " FOR EACH ROW EXECUTE FUNCTION haive.f()",
    "a serial": "CREATE TABLE haive.bad (thread_key uuid, n bigserial, PRIMARY KEY (thread_key, n))",
    "an identity": "CREATE TABLE haive.bad (thread_key uuid, n int GENERATED ALWAYS AS IDENTITY,"
    " PRIMARY KEY (thread_key, n))",
}


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_schema_is_noticed(broken: Connection[Any], name: str) -> None:
    broken.execute(UNFIT[name].encode())
    assert distribution_findings(broken, "haive") != []


@pytest.mark.parametrize("room", sorted(path.stem for path in (sql_root() / "queries").glob("*.sql")))
def test_upserts_could_be_distributed(room: str) -> None:
    assert upsert_findings(dict(load_queries(room))) == []


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("INSERT INTO t VALUES (now()) ON CONFLICT (a) DO UPDATE SET b = excluded.b", False),
        ("INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET b = now()", True),
        ("WITH x AS (INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET b = 1) SELECT now()", False),
        ("INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET b = 1 WHERE t.c < random()", True),
        ("UPDATE t SET b = now()", False),
    ],
)
def test_upsert_lint(text: str, bad: bool) -> None:
    assert bool(upsert_findings({"q": text})) is bad


def test_mutations_are_undone(admin: Connection[Any], role: str) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        admin.execute("SELECT FROM haive.bad")
    assert isolation_findings(admin, "haive", role) == []
