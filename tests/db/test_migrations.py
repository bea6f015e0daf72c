"""Migrations: numbered, checked, applied once, by one process at a time, and finished after an accident."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from haive_persistence.checkpointer import Checkpointer
from haive_persistence.config import PersistenceConfig
from haive_persistence.db import Database, migrate, run_sync
from haive_persistence.db.migrate import Migration, migrations
from haive_persistence.db.sql import in_schema, sql_root
from haive_persistence.errors import ConfigError, MigrationError
from tests.builders import store
from tests.builders import thread as thread_config
from tests.db.helpers import WHO, finish, in_process

BASE = migrations()[0]


def connector(dsn: str) -> Callable[[], Connection[Any]]:
    return lambda: psycopg.connect(dsn, autocommit=True)


def apply(dsn: str, *more: str, schema: str = "haive") -> list[Migration]:
    """Apply the base and made-up migrations after it."""
    known = [BASE, *(Migration(n, f"made_up_{n}", text) for n, text in enumerate(more, 2))]
    return migrate.migrate(connector(dsn), schema, known)


def ask(dsn: str, sql: str, *params: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        return conn.execute(sql, params).fetchall()


# -- the files ----------------------------------------------------------------------------------


def test_files_are_numbered_without_gaps_and_named() -> None:
    names = sorted(path.name for path in (sql_root() / "migrations").iterdir())
    assert all(re.fullmatch(r"\d{4}_[a-z0-9_]+\.sql", name) for name in names)
    assert [m.version for m in migrations()] == list(range(1, len(names) + 1))


def test_sum_of_migrations_and_readable_schema_end_equal(empty_dsn: str) -> None:
    migrate.migrate(connector(empty_dsn), "by_migrations")
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA by_schema")
        conn.execute(in_schema((sql_root() / "schema.sql").read_text(), "by_schema").encode())
        migrated, written = (describe(conn, schema) for schema in ("by_migrations", "by_schema"))
    assert written == migrated, "sql/schema.sql and the migrations disagree: change both"


def describe(conn: Connection[Any], schema: str) -> dict[str, list[tuple[Any, ...]]]:
    """Everything in a schema, as the catalog has it, without the schema's own name."""
    parts = {
        "tables": "SELECT relname, relkind, relrowsecurity, relforcerowsecurity, reloptions, relpersistence"
        " FROM pg_class WHERE relnamespace = {s} AND relkind IN ('r', 'p', 'v', 'm', 'S')",
        "columns": "SELECT t.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,"
        " pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated, a.attstorage, a.attcompression, c.collname"
        " FROM pg_class t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0"
        " LEFT JOIN pg_attrdef d ON d.adrelid = t.oid AND d.adnum = a.attnum"
        " LEFT JOIN pg_collation c ON c.oid = a.attcollation WHERE t.relnamespace = {s} AND t.relkind IN ('r', 'p', 'v')",
        "constraints": "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)"
        " FROM pg_constraint WHERE connamespace = {s}",
        "indexes": "SELECT pg_get_indexdef(indexrelid), indisvalid FROM pg_index"
        " JOIN pg_class c ON c.oid = indexrelid WHERE c.relnamespace = {s}",
        "policies": "SELECT polrelid::regclass::text, polname, polcmd, polpermissive, polroles,"
        " pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)"
        " FROM pg_policy JOIN pg_class c ON c.oid = polrelid WHERE c.relnamespace = {s}",
        "routines": "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = {s}",
        "types": "SELECT typname, typtype FROM pg_type WHERE typnamespace = {s}",
        "triggers": "SELECT tgrelid::regclass::text, pg_get_triggerdef(g.oid) FROM pg_trigger g"
        " JOIN pg_class c ON c.oid = tgrelid WHERE c.relnamespace = {s}",
    }
    found = {
        name: conn.execute(q.format(s=f"'{schema}'::regnamespace").encode()) for name, q in parts.items()
    }
    return {
        name: sorted(eval(repr(rows.fetchall()).replace(schema, "haive"))) for name, rows in found.items()
    }


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE by_migrations.schema_migration ADD COLUMN extra int",
        "ALTER TABLE by_migrations.schema_migration ALTER COLUMN name DROP NOT NULL",
        "ALTER TABLE by_migrations.schema_migration NO FORCE ROW LEVEL SECURITY",
        "CREATE INDEX extra ON by_migrations.schema_migration (name)",
        "DROP POLICY everyone ON by_migrations.schema_migration",
        "ALTER TABLE by_migrations.schema_migration ADD CHECK (version > 0)",
        "DROP PROCEDURE by_migrations.isolate_tenants",
    ],
)
def test_comparison_notices_a_difference(empty_dsn: str, change: str) -> None:
    apply(empty_dsn, schema="by_migrations")
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        before = describe(conn, "by_migrations")
        assert before == describe(conn, "by_migrations")
        conn.execute(change.encode())
        assert describe(conn, "by_migrations") != before


# -- applying -----------------------------------------------------------------------------------


def test_each_migration_runs_once(empty_dsn: str) -> None:
    make = "CREATE TABLE haive.thing (id int)"
    assert [m.version for m in apply(empty_dsn, make)] == [1, 2]
    assert apply(empty_dsn, make) == []
    assert [m.version for m in apply(empty_dsn, make, "ALTER TABLE haive.thing ADD COLUMN more int")] == [3]
    rows = ask(empty_dsn, "SELECT version, name, length(checksum) FROM haive.schema_migration ORDER BY 1")
    assert rows == [(1, "base", 64), (2, "made_up_2", 64), (3, "made_up_3", 64)]


def test_setup_is_idempotent_and_first_use_is_enough(empty_dsn: str) -> None:
    database = Database(empty_dsn)
    run_sync(database.blocking.fetch_one(WHO))
    database.setup()
    database.setup()
    database.close()
    assert ask(empty_dsn, "SELECT count(*) FROM haive.schema_migration") == [(len(migrations()),)]


@pytest.mark.parametrize("schema", ["tenant_7", "MixedCase", "select", "public", "x" * 40])
def test_any_schema_and_none_of_them_on_the_search_path(empty_dsn: str, schema: str) -> None:
    options = make_conninfo(empty_dsn, options="-c search_path=pg_catalog")
    database = Database(PersistenceConfig(connection_string=options, schema=schema))
    assert run_sync(database.blocking.fetch_one(WHO))[0] == "default"
    count = database.queries  # the same loader that every room uses
    assert count is not None
    database.close()
    tables = ask(empty_dsn, "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename = 'schema_migration'")
    assert tables == [(schema,)]


def test_migration_that_fails_leaves_nothing_and_can_be_mended(empty_dsn: str) -> None:
    with pytest.raises(MigrationError, match="0002_made_up_2 failed"):
        apply(empty_dsn, "CREATE TABLE haive.a (id int); SELECT 1/0;")
    assert ask(empty_dsn, "SELECT to_regclass('haive.a')") == [(None,)]
    assert [m.version for m in apply(empty_dsn, "CREATE TABLE haive.a (id int);")] == [2]


def test_changed_file_is_refused(empty_dsn: str) -> None:
    apply(empty_dsn, "CREATE TABLE haive.a (id int)")
    with pytest.raises(MigrationError, match="changed since"):
        apply(empty_dsn, "CREATE TABLE haive.a (id bigint)")


def test_newer_schema_is_refused(empty_dsn: str) -> None:
    Database(empty_dsn).setup()
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute("INSERT INTO haive.schema_migration VALUES (9999, 'future', 'x')")
    with pytest.raises(MigrationError, match=r"version 9999 .* upgrade"):
        Database(empty_dsn).setup()


# -- one at a time ------------------------------------------------------------------------------


def test_eight_processes_start_together(empty_dsn: str) -> None:
    code = """
import asyncio, sys
from haive_persistence.db import Database, Query, run_sync
database = Database(sys.argv[1])
one = Query("SELECT count(*) FROM haive.schema_migration")
print("ready", flush=True)
sys.stdin.readline()
if sys.argv[2] == "0":
    print(run_sync(database.blocking.fetch_one(one)))
else:
    print(asyncio.run(database.asynchronous.fetch_one(one)))
"""
    import subprocess

    processes = [in_process(code, empty_dsn, str(n % 2), stdin=subprocess.PIPE) for n in range(8)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert {finish(process) for process in processes} == {f"({len(migrations())},)\n"}


def test_eight_threads_start_together(empty_dsn: str) -> None:
    together = threading.Barrier(8)
    answers: list[object] = []

    def work() -> None:
        together.wait()
        database = Database(empty_dsn)
        answers.append(run_sync(database.blocking.fetch_one(WHO))[0])
        database.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["default"] * 8


def test_lock_goes_when_its_holder_dies(empty_dsn: str) -> None:
    code = """
import os, sys, psycopg
from haive_persistence.db.migrate import advisory_lock
with advisory_lock(lambda: psycopg.connect(sys.argv[1], autocommit=True), "haive"):
    print("holding", flush=True)
    os.kill(os.getpid(), 9)
"""
    process = in_process(code, empty_dsn)
    assert process.communicate(timeout=30)[0] == "holding\n"
    assert apply(empty_dsn) == [BASE]


def test_waiting_for_too_long_is_an_error(empty_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "LOCK_WAIT_S", 0.05)
    with (
        migrate.advisory_lock(connector(empty_dsn), "haive"),
        pytest.raises(MigrationError, match="another process"),
    ):
        apply(empty_dsn)


def test_table_in_use_is_waited_for_and_then_left_alone(
    empty_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT_S", 0.05)
    make, change = "CREATE TABLE haive.busy (id int)", "ALTER TABLE haive.busy ADD COLUMN more int"
    apply(empty_dsn, make)
    with psycopg.connect(empty_dsn) as reader:
        reader.execute("SELECT * FROM haive.busy")
        monkeypatch.setattr(migrate, "LOCK_TRIES", 2)
        with pytest.raises(MigrationError, match="in constant use"):
            apply(empty_dsn, make, change)
        monkeypatch.setattr(migrate, "LOCK_TRIES", 200)
        later = threading.Timer(0.2, reader.rollback)
        later.start()
        assert [m.version for m in apply(empty_dsn, make, change)] == [3]
        later.join()


# -- outside a transaction ----------------------------------------------------------------------

TABLE = "CREATE TABLE haive.big (id int, other int); INSERT INTO haive.big SELECT 1, n FROM generate_series(1, 9) n"
INDEX = "-- no-transaction\nCREATE {unique} INDEX CONCURRENTLY IF NOT EXISTS big_id ON haive.big (id);\n"


def test_concurrent_index_is_built_while_others_wait_for_their_turn(empty_dsn: str) -> None:
    apply(empty_dsn, TABLE)
    answers: list[int] = []
    work = [threading.Thread(target=lambda: answers.append(len(apply(empty_dsn, TABLE, INDEX.format(unique=""))))) for _ in range(4)]  # fmt: skip
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert sorted(answers) == [0, 0, 0, 1]
    assert ask(empty_dsn, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'haive.big_id'::regclass") == [
        (True,)
    ]


def test_index_left_unfinished_is_built_again(empty_dsn: str) -> None:
    apply(empty_dsn, TABLE)
    with pytest.raises(MigrationError, match="could not create unique index"):
        apply(empty_dsn, TABLE, INDEX.format(unique="UNIQUE"))  # there are duplicates
    look = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'haive.big_id'::regclass"
    assert ask(empty_dsn, look) == [(False,)]
    assert [m.version for m in apply(empty_dsn, TABLE, INDEX.format(unique=""))] == [3]
    assert ask(empty_dsn, look) == [(True,)]


def test_statements_outside_a_transaction_run_one_by_one() -> None:
    text = "-- no-transaction\nSELECT 1;  \n-- a comment; with a semicolon\nSELECT 'a;b'\n  FROM x;\nSELECT 3"
    assert migrate.statements(text) == ["SELECT 1", "SELECT 'a;b'\n  FROM x", "SELECT 3"]


# -- rights -------------------------------------------------------------------------------------


@pytest.fixture
def limited(empty_dsn: str) -> str:
    """A login without any right in an empty database."""
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        name = f"limited_{conn.info.dbname}"
        conn.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    yield make_conninfo(empty_dsn, user=name, password="secret")
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_login_that_may_not_create_a_schema_is_told_what_to_do(limited: str) -> None:
    with pytest.raises(MigrationError, match=r"setup\(\) once"):
        Database(limited).setup()


def test_few_connections_are_enough_to_start(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        name = f"few_{conn.info.dbname}"
        conn.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret' CONNECTION LIMIT 1")
        conn.execute(f"GRANT CREATE ON DATABASE {conn.info.dbname} TO {name}")
    few = make_conninfo(empty_dsn, user=name, password="secret")
    failed: list[Exception] = []

    def start() -> None:
        try:
            Database(few).setup()
        except Exception as error:
            failed.append(error)

    starting = [threading.Thread(target=start) for _ in range(4)]
    for one in starting:
        one.start()
    for one in starting:
        one.join()
    assert not failed
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_functions_are_nobodys_by_default(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC")
    saver = Checkpointer(empty_dsn)
    store(saver, {"n": 1})
    saver.close()


def test_a_schema_in_which_others_have_tables(empty_dsn: str, limited: str) -> None:
    name = conninfo_to_dict(limited)["user"]
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(f"GRANT CREATE ON SCHEMA public TO {name}")
        conn.execute(f"GRANT CREATE ON DATABASE {conn.info.dbname} TO {name}")
        conn.execute(f"ALTER ROLE {name} BYPASSRLS CREATEROLE")
        conn.execute("CREATE TABLE public.others (id int)")
    saver = Checkpointer(PersistenceConfig(connection_string=limited, schema="public"))
    store(saver, {"n": 1})
    saver.close()
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        assert conn.execute("SELECT relacl FROM pg_class WHERE relname = 'others'").fetchone() == (None,)
        role = conn.execute(
            "SELECT 'haive_public_' || oid FROM pg_database WHERE datname = current_database()"
        )
        (made,) = role.fetchone()
        conn.execute(f"DROP OWNED BY {made}; DROP ROLE {made}")


def test_a_server_that_does_not_tell_of_its_log(empty_dsn: str, limited: str) -> None:
    """As those that keep it elsewhere."""
    name = conninfo_to_dict(limited)["user"]
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute("REVOKE EXECUTE ON FUNCTION pg_walfile_name(pg_lsn) FROM PUBLIC")
        conn.execute(f"GRANT CREATE ON DATABASE {conn.info.dbname} TO {name}")
    saver = Checkpointer(limited)
    store(saver, {"n": 1})
    assert saver.get_tuple(thread_config()).checkpoint["channel_values"] == {"n": 1}
    saver.close()


def test_login_without_ddl_rights_works_on_a_schema_that_is_there(empty_dsn: str, limited: str) -> None:
    Database(empty_dsn).setup()
    with pytest.raises(ConfigError, match="USAGE"):
        Database(limited).setup()
    name = conninfo_to_dict(limited)["user"]
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(f"GRANT USAGE ON SCHEMA haive TO {name}")
        conn.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA haive TO {name}")
    database = Database(limited)
    database.setup()
    assert run_sync(database.blocking.fetch_one(WHO))[:2] == ("default", name)
    database.close()


# -- a schema that others use ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "table",
    [
        "thread (id int)",
        "store_item (id int)",
        "schema_migration (id int)",
        "schema_migration (version text, applied boolean)",
    ],
)
def test_tables_of_another_program_are_left_alone(empty_dsn: str, table: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(f"CREATE TABLE public.{table}".encode())
        database = Database(PersistenceConfig(connection_string=empty_dsn, schema="public"))
        with pytest.raises(MigrationError, match=f"another program.*{table.split()[0]}.*schema"):
            database.setup()
        database.close()
        columns = "SELECT count(*) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
        assert conn.execute(columns, (f"public.{table.split()[0]}",)).fetchone() == (table.count(",") + 1,)
