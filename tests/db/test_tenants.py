"""No connection ever serves one tenant with another's setting, whatever happened on it before."""

from __future__ import annotations

import asyncio
import random
import threading
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import make_conninfo

from haive_persistence.config import PersistenceConfig, PoolerMode
from haive_persistence.db import Database, Query, RoundTrip, Statement, run_sync
from haive_persistence.errors import ConfigError, DatabaseError, PersistenceError
from haive_persistence.store import PostgresStore
from tests.db.helpers import ALL, COUNT, MOMENTS, SLEEP, WHO, add, reach

MINE = Query("SELECT DISTINCT tenant_id FROM haive.note")
TENANTS = [f"load-{n}" for n in range(6)]


@pytest.fixture(params=["session", "transaction"])
def pooled(request: pytest.FixtureRequest, notes: Database, connected: Callable[..., Database]) -> Database:
    """A database with few connections for many tenants, in both modes."""
    return connected(pool_size=2, max_overflow=1, pooler=request.param)


@pytest.fixture
def filled(notes: Database) -> Database:
    for tenant in TENANTS:
        upsert = Query("INSERT INTO haive.note VALUES (%(tenant)s, 'seed', '') ON CONFLICT DO NOTHING")
        run_sync(notes.for_tenant(tenant).blocking.execute(upsert, {"tenant": tenant}))
    return notes


# -- the rule -----------------------------------------------------------------------------------


def test_rows_of_others_are_neither_seen_nor_touched(notes: Database, tenant: str) -> None:
    run_sync(notes.blocking.execute(*add(tenant, "a")))
    other = notes.for_tenant(tenant + "-other").blocking
    assert run_sync(other.fetch_one(COUNT)) == (0,)
    assert run_sync(other.execute(Query("UPDATE haive.note SET body = 'stolen'"))) == 0
    assert run_sync(other.execute(Query("DELETE FROM haive.note"))) == 0
    with pytest.raises(DatabaseError) as caught:
        run_sync(other.execute(*add(tenant, "b")))
    assert caught.value.sqlstate == "42501"
    moved = Query("UPDATE haive.note SET tenant_id = %(to)s")
    with pytest.raises(DatabaseError) as caught:
        run_sync(notes.blocking.execute(moved, {"to": tenant + "-other"}))
    assert caught.value.sqlstate == "42501"
    assert run_sync(notes.blocking.fetch_all(ALL)) == [(tenant, "a", "text")]


def test_without_a_tenant_there_are_no_rows(filled: Database, admin: Connection[Any]) -> None:
    role = run_sync(filled.blocking.fetch_one(WHO))[1]
    admin.execute(f'SET ROLE "{role}"')
    for setting in (
        None,
        "SET haive.tenant = ''",
        "RESET haive.tenant",
        "BEGIN; SET LOCAL haive.tenant = 'x'; COMMIT",
    ):
        if setting:
            admin.execute(setting)
        assert admin.execute("SELECT count(*) FROM haive.note").fetchone() == (0,)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        admin.execute("INSERT INTO haive.note VALUES ('', 'a', '')")


def test_session_tells_the_tenant_only_when_it_changes(
    notes: Database, connected: Callable[..., Database], tenant: str
) -> None:
    database = connected(pool_size=1, max_overflow=0, pooler="session")
    trips: list[RoundTrip] = []
    database.hooks.append(trips.append)
    for view in (tenant, tenant, "b", tenant):
        run_sync(database.for_tenant(view).blocking.fetch_one(COUNT))
    assert [len(trip.statements) for trip in trips] == [2, 1, 2, 2]


def test_transaction_mode_leaves_nothing_on_the_connection(
    pooled: Database, notes: Database, tenant: str
) -> None:
    database = notes if pooled.config.pooler == "session" else pooled
    run_sync(database.for_tenant(tenant).blocking.fetch_one(COUNT))
    if pooled.config.pooler == "transaction":
        connection = run_sync(database._core.pools.blocking().acquire())
        row = connection.driver.execute(
            "SELECT current_setting('haive.tenant', true), current_user"
        ).fetchone()
        database._core.pools.blocking().release(connection)
        assert row == ("", "postgres")


# -- after whatever may happen ------------------------------------------------------------------


def test_tenant_is_told_again_after_an_error(pooled: Database, tenant: str) -> None:
    db = pooled.for_tenant(tenant).blocking
    run_sync(db.execute(*add(tenant, "a")))
    for _ in range(5):
        with pytest.raises(PersistenceError):
            run_sync(db.execute(*add(tenant, "a")))
        with pytest.raises(PersistenceError):
            run_sync(pooled.for_tenant("b").blocking.fetch_one(Query("SELECT 1/0")))
        assert run_sync(db.fetch_all(MINE)) == [(tenant,)]
        assert run_sync(db.fetch_one(WHO))[0] == tenant


def test_error_in_the_round_trip_that_changes_the_tenant(pooled: Database, tenant: str) -> None:
    one, other = pooled.for_tenant(tenant).blocking, pooled.for_tenant("b").blocking
    run_sync(one.fetch_one(WHO))
    with pytest.raises(PersistenceError):  # the SET is rolled back with it
        run_sync(other.fetch_one(Query("SELECT 1/0")))
    assert run_sync(other.fetch_one(WHO))[0] == "b"
    assert run_sync(one.fetch_one(WHO))[0] == tenant


def test_tenant_of_a_transaction_ends_with_it(pooled: Database, tenant: str) -> None:
    async def work(fail: bool) -> None:
        async with pooled.for_tenant("b").blocking.transaction() as tx:
            assert (await tx.fetch_one(WHO))[0] == "b"
            if fail:
                raise KeyError

    db = pooled.for_tenant(tenant).blocking
    for fail in (False, True):
        run_sync(db.fetch_one(WHO))
        if fail:
            with pytest.raises(KeyError):
                run_sync(work(fail))
        else:
            run_sync(work(fail))
        assert run_sync(db.fetch_one(WHO))[0] == tenant


def test_connection_given_back_dirty_is_not_used_again(pooled: Database, tenant: str) -> None:
    pool = pooled._core.pools.blocking()
    connection = run_sync(pool.acquire())
    connection.driver.execute("BEGIN")
    connection.driver.execute("SET LOCAL haive.tenant = 'b'")
    pool.release(connection)
    assert connection.driver.pgconn.status == psycopg.pq.ConnStatus.BAD
    assert run_sync(pooled.for_tenant(tenant).blocking.fetch_one(WHO))[0] == tenant


async def test_tenant_is_set_again_after_a_cancellation(
    pooled: Database, tenant: str, admin: Connection[Any]
) -> None:
    one, other = pooled.for_tenant(tenant).asynchronous, pooled.for_tenant("b").asynchronous
    for moment in MOMENTS:
        tasks = [asyncio.create_task(other.fetch_one(SLEEP, {"seconds": 5})) for _ in range(3)]
        await reach(moment, admin, asleep=3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for row in await asyncio.gather(*(one.fetch_one(WHO) for _ in range(3))):
            assert row[0] == tenant


async def test_cancelled_transactions_keep_nothing(
    pooled: Database, tenant: str, admin: Connection[Any]
) -> None:
    db = pooled.for_tenant(tenant).asynchronous

    async def work() -> None:
        async with db.transaction() as tx:
            await tx.execute(*add(tenant, uuid.uuid4().hex))
            await tx.fetch_one(SLEEP, {"seconds": 5})

    for moment in MOMENTS:
        task = asyncio.create_task(work())
        await reach(moment, admin, asleep=1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert await db.fetch_one(COUNT) == (0,)


# -- under load ---------------------------------------------------------------------------------


def _statement(rng: random.Random, tenant: str) -> list[Statement]:
    check = [Statement(WHO), Statement(MINE)]
    return [
        check,
        check,
        [*check, Statement(Query("SELECT 1/0"))],
        [*check, add(tenant, "seed")],  # a unique violation
        [add("somebody else", "x"), *check],  # against the policy
    ][rng.randrange(5)]


def _check(tenant: str, answers: list[Any]) -> None:
    assert answers[0][0][0] == tenant
    assert answers[1] == [(tenant,)]


def test_parallel_load_of_threads_never_leaks(filled: Database, pooled: Database) -> None:
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            tenant = rng.choice(TENANTS)
            try:
                _check(tenant, run_sync(pooled.for_tenant(tenant).blocking.batch(_statement(rng, tenant))))
            except PersistenceError:
                pass
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


async def test_parallel_load_of_tasks_that_fail_and_are_cancelled_never_leaks(
    filled: Database, pooled: Database
) -> None:
    checked = 0

    async def work(seed: int) -> None:
        nonlocal checked
        rng = random.Random(seed)
        for _ in range(40):
            tenant = rng.choice(TENANTS)
            db = pooled.for_tenant(tenant).asynchronous
            attempt = asyncio.create_task(db.batch(_statement(rng, tenant)))
            if rng.random() < 0.3:
                asyncio.get_running_loop().call_later(rng.random() * 0.01, attempt.cancel)
            try:
                _check(tenant, await attempt)
                checked += 1
            except (PersistenceError, asyncio.CancelledError):
                pass

    await asyncio.gather(*(work(seed) for seed in range(12)))
    assert checked > 50


# -- who we are ---------------------------------------------------------------------------------


def test_superuser_works_as_a_role_that_cannot_bypass(notes: Database, admin: Connection[Any]) -> None:
    role = run_sync(notes.blocking.fetch_one(WHO))[1]
    row = admin.execute(
        "SELECT rolsuper, rolbypassrls, rolcanlogin FROM pg_roles WHERE rolname = %s", (role,)
    ).fetchone()
    assert row == (False, False, False)
    with pytest.raises(DatabaseError) as caught:
        run_sync(notes.blocking.execute(Query("TRUNCATE haive.note")))
    assert caught.value.sqlstate == "42501"
    with pytest.raises(DatabaseError) as caught:
        run_sync(notes.blocking.execute(Query("DELETE FROM haive.schema_migration")))
    assert caught.value.sqlstate == "42501"


def test_login_that_bypasses_but_is_no_superuser_works_as_the_role(
    admin: Connection[Any], login: str, empty_dsn: str
) -> None:
    name = psycopg.conninfo.conninfo_to_dict(login)["user"]
    admin.execute(f"ALTER ROLE {name} BYPASSRLS CREATEROLE")
    with psycopg.connect(empty_dsn, autocommit=True) as owner:
        owner.execute(f"ALTER DATABASE {owner.info.dbname} OWNER TO {name}")
    database = Database(make_conninfo(empty_dsn, user=name, password="secret"))
    assert run_sync(database.blocking.fetch_one(WHO))[1].startswith("haive_haive_")
    database.close()
    with psycopg.connect(empty_dsn, autocommit=True) as owner:
        owner.execute(f"ALTER DATABASE {owner.info.dbname} OWNER TO postgres")
        role = f"haive_haive_{owner.execute('SELECT oid FROM pg_database WHERE datname = current_database()').fetchone()[0]}"
        owner.execute(f"REASSIGN OWNED BY {name} TO postgres")
        owner.execute(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"; DROP OWNED BY {name}')


def test_login_that_bypasses_and_may_not_change_role_is_refused(
    notes: Database, admin: Connection[Any], login: str
) -> None:
    name = psycopg.conninfo.conninfo_to_dict(login)["user"]
    admin.execute(f"ALTER ROLE {name} BYPASSRLS")
    admin.execute(f"GRANT USAGE ON SCHEMA haive TO {name}")
    admin.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA haive TO {name}")
    with pytest.raises(ConfigError, match="bypasses row-level security"):
        Database(login).setup()


def test_owner_without_special_rights_is_subject_to_the_policies_too(
    empty_dsn: str, login: str, admin: Connection[Any]
) -> None:
    name = psycopg.conninfo.conninfo_to_dict(login)["user"]
    with psycopg.connect(empty_dsn, autocommit=True) as owner:
        owner.execute(f"GRANT CREATE ON DATABASE {owner.info.dbname} TO {name}")
    database = Database(make_conninfo(empty_dsn, user=name, password="secret"))
    database.setup()
    with database.connect() as conn:
        conn.execute('CREATE TABLE haive.mine (tenant_id text COLLATE "C" NOT NULL PRIMARY KEY)')
        conn.execute("CALL haive.isolate_tenants('mine')")
    assert run_sync(database.blocking.fetch_one(WHO))[1] == name
    run_sync(database.blocking.execute(Query("INSERT INTO haive.mine VALUES ('default')")))
    assert run_sync(
        database.for_tenant("b").blocking.fetch_one(Query("SELECT count(*) FROM haive.mine"))
    ) == (0,)
    database.close()
    with psycopg.connect(empty_dsn, autocommit=True) as owner:
        owner.execute(f"DROP OWNED BY {name} CASCADE")


@pytest.mark.parametrize("pooler", ["session", "transaction"])
def test_functions_that_others_put_on_the_search_path_are_not_called(
    empty_dsn: str, login: str, pooler: PoolerMode
) -> None:
    """Such a function would run with our rights, on the tenant whose turn it is."""
    name = psycopg.conninfo.conninfo_to_dict(login)["user"]
    database = Database(PersistenceConfig(connection_string=empty_dsn, pooler=pooler))
    dbname = psycopg.conninfo.conninfo_to_dict(empty_dsn)["dbname"]
    text = "BEGIN RAISE 'called as %', current_user; END"
    with psycopg.connect(empty_dsn, autocommit=True) as owner:
        owner.execute(f"GRANT ALL ON SCHEMA public TO {name}")
    with psycopg.connect(make_conninfo(login, dbname=dbname), autocommit=True) as other:
        for parameters in ("text, integer", "bytea, integer"):  # these fit better than Postgres's own
            other.execute(
                f"CREATE FUNCTION hashtextextended({parameters}) RETURNS bigint LANGUAGE plpgsql AS $${text}$$"
            )
        other.execute(
            f"CREATE FUNCTION count_attribute(text[], text) RETURNS text[] LANGUAGE plpgsql AS $${text}$$"
        )
        other.execute("CREATE AGGREGATE array_agg(text) (SFUNC = count_attribute, STYPE = text[])")
    database.setup()
    store = PostgresStore(database)
    store.put(("a",), "k", {"b": 1})
    assert store.get(("a",), "k") is not None
    database.close()
    with psycopg.connect(empty_dsn, autocommit=True) as owner:
        owner.execute(f"DROP OWNED BY {name} CASCADE")


def test_schemas_and_databases_of_one_cluster_do_not_share_a_role(
    notes: Database, connected: Callable[..., Database], empty_dsn: str
) -> None:
    databases = [notes, connected(schema="Other_1"), connected(connection_string=empty_dsn)]
    roles = [run_sync(database.blocking.fetch_one(WHO))[1] for database in databases]
    assert len(set(roles)) == 3
    with pytest.raises(DatabaseError) as caught:
        run_sync(databases[1].blocking.fetch_one(COUNT))
    assert caught.value.sqlstate == "42501"


def test_role_that_lost_its_rights_gets_them_back(notes: Database, admin: Connection[Any]) -> None:
    role = run_sync(notes.blocking.fetch_one(WHO))[1]
    admin.execute(f'REVOKE ALL ON haive.note FROM "{role}"')
    again = Database(notes.config)
    assert run_sync(again.for_tenant(notes.tenant).blocking.fetch_one(COUNT)) == (0,)
    again.close()


@pytest.mark.parametrize("encoding", ["GBK", "BIG5", "SJIS"])
def test_another_connections_encoding_changes_no_tenants_name(dsn: str, encoding: str) -> None:
    """psycopg quotes for the encoding of the connection that the process opened last."""
    with psycopg.connect(dsn, client_encoding=encoding):
        for tenant in ("中' --", "あ'", "back\\slash", "'", "\\'"):
            database = Database(PersistenceConfig(connection_string=dsn, tenant=tenant))
            assert run_sync(database.blocking.fetch_one(WHO))[0] == tenant
            database.close()


# -- the role is not trusted for its name ---------------------------------------------------------


FLAWS = {
    "superuser": ('ALTER ROLE "{role}" SUPERUSER', 'ALTER ROLE "{role}" NOSUPERUSER'),
    "bypasses": ('ALTER ROLE "{role}" BYPASSRLS', 'ALTER ROLE "{role}" NOBYPASSRLS'),
    "log in": ('ALTER ROLE "{role}" LOGIN', 'ALTER ROLE "{role}" NOLOGIN'),
    "member of a role that bypasses": ('GRANT {other} TO "{role}"', 'REVOKE {other} FROM "{role}"'),
    "used by {user}": ('GRANT "{role}" TO {user}', 'REVOKE "{role}" FROM {user}'),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_role_that_would_not_keep_tenants_apart_is_refused(
    notes: Database, admin: Connection[Any], login: str, dsn: str, flaw: str
) -> None:
    names = {
        "role": run_sync(notes.blocking.fetch_one(WHO))[1],
        "user": psycopg.conninfo.conninfo_to_dict(login)["user"],
        "other": f"other_{uuid.uuid4().hex[:8]}",
    }
    admin.execute(f"CREATE ROLE {names['other']} BYPASSRLS")
    spoil, mend = (statement.format(**names).encode() for statement in FLAWS[flaw])
    database = Database(dsn)
    admin.execute(spoil)
    try:
        with pytest.raises(ConfigError, match=flaw.format(**names)):
            run_sync(database.blocking.fetch_one(WHO))
    finally:
        admin.execute(mend)
        admin.execute(f"DROP ROLE {names['other']}")
    assert run_sync(database.blocking.fetch_one(WHO))[1] == names["role"]
    database.close()


def test_role_that_somebody_made_before_is_not_adopted(
    admin: Connection[Any], login: str, empty_dsn: str
) -> None:
    user = psycopg.conninfo.conninfo_to_dict(login)["user"]
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        (oid,) = conn.execute("SELECT oid FROM pg_database WHERE datname = current_database()").fetchone()
    admin.execute(f'CREATE ROLE "haive_haive_{oid}" NOLOGIN')
    admin.execute(f'GRANT "haive_haive_{oid}" TO {user} WITH ADMIN OPTION')
    database = Database(empty_dsn)
    with pytest.raises(ConfigError, match=f"used by {user}"):
        database.setup()
    database.close()
    admin.execute(f'DROP ROLE "haive_haive_{oid}"')


@pytest.mark.usefixtures("_module_database")
def test_a_login_without_rights_is_told_which_to_ask_for(
    connected: Callable[..., Database], login: str
) -> None:
    with pytest.raises(ConfigError, match=r"'haive'.*must grant it USAGE.*SELECT, INSERT, UPDATE and DELETE"):
        connected(connection_string=login).setup()
