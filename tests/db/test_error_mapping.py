"""Every failure is one of our errors, says what to do, and is repeated only when that is safe."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from haive_persistence.config import PersistenceConfig
from haive_persistence.db import Database, Db, Query, Statement, error_mapping, run_sync, session_setup
from haive_persistence.db.server import with_defaults
from haive_persistence.errors import (
    AmbiguousCommitError,
    ConfigError,
    ConflictError,
    DatabaseError,
    LoginError,
    NoDatabaseError,
    PersistenceError,
    TimedOutError,
    UnavailableError,
)
from tests.builders import until
from tests.db.helpers import ADD, ALL, COUNT, ONE, SLEEP, WHO, Proxy, add

Do = Callable[[Callable[[Db], Awaitable[Any]]], Any]


@pytest.fixture(params=["blocking", "async"])
def do(request: pytest.FixtureRequest) -> Callable[[Database], Do]:
    """`do(database)(work)` runs `work(db)`, async code in one loop for the whole test."""
    loop = asyncio.new_event_loop()

    def bind(database: Database) -> Do:
        if request.param == "blocking":
            return lambda work: run_sync(work(database.blocking))
        return lambda work: loop.run_until_complete(work(database.asynchronous))

    yield bind
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


# -- what Postgres says -------------------------------------------------------------------------


def test_unique_violation_is_a_conflict_that_names_its_constraint(
    notes: Database, do: Callable[[Database], Do], tenant: str
) -> None:
    run = do(notes)
    run(lambda db: db.execute(*add(tenant, "a")))
    with pytest.raises(ConflictError, match="Another row has this key") as caught:
        run(lambda db: db.execute(*add(tenant, "a")))
    assert caught.value.sqlstate == "23505"
    assert isinstance(caught.value.__cause__, psycopg.errors.UniqueViolation)
    assert error_mapping.constraint(caught.value) == "note_pkey"


@pytest.mark.parametrize(
    ("sql", "kind", "sqlstate", "advice"),
    [
        ("SELECT * FROM haive.missing", DatabaseError, "42P01", r"setup\(\)"),
        ("SELECT 1/0", DatabaseError, "22012", "does not fit"),
        ("SELEKT", DatabaseError, "42601", "syntax"),
        ("INSERT INTO haive.note VALUES ('other', 'a', '')", DatabaseError, "42501", "another tenant"),
        ("INSERT INTO haive.note VALUES (%(t)s, NULL, '')", DatabaseError, "23502", "constraint"),
        (
            "SELECT pg_sleep(9) FROM set_config('statement_timeout', '20', true)",
            TimedOutError,
            "57014",
            "timeout",
        ),
    ],
)
def test_refusals_keep_their_sqlstate_and_advise(
    notes: Database,
    do: Callable[[Database], Do],
    tenant: str,
    sql: str,
    kind: type[DatabaseError],
    sqlstate: str,
    advice: str,
) -> None:
    run = do(notes)
    if sqlstate == "57014":
        run = do(_with(notes, statement_timeout="50ms"))
    with pytest.raises(kind, match=advice) as caught:
        run(lambda db: db.fetch_all(Query(sql), {"t": tenant}))
    assert caught.value.sqlstate == sqlstate
    assert run(lambda db: db.fetch_one(ONE, {"a": "x", "b": 1})) == ("x", 1)


def test_lock_timeout(notes: Database, do: Callable[[Database], Do], tenant: str) -> None:
    run_sync(notes.blocking.execute(*add(tenant, "a")))
    impatient = do(_with(notes, lock_timeout="50ms", tenant=tenant))
    with notes.connect() as holder, holder.transaction():
        holder.execute("SELECT * FROM haive.note FOR UPDATE")
        with pytest.raises(TimedOutError, match="lock_timeout") as caught:
            impatient(lambda db: db.execute(Query("UPDATE haive.note SET body = 'y'")))
    assert caught.value.sqlstate == "55P03"


def test_deadlock_is_tried_again(notes: Database, tenant: str) -> None:
    run_sync(notes.blocking.batch([add(tenant, "a"), add(tenant, "b")]))
    together = threading.Barrier(2)
    update = Query("UPDATE haive.note SET body = body || 'x' WHERE id = %(id)s")
    pause = Statement(SLEEP, {"seconds": 0.2})
    outcomes: list[Any] = []

    def work(first: str, second: str) -> None:
        together.wait()
        statements = [Statement(update, {"id": first}), pause, Statement(update, {"id": second})]
        outcomes.append(run_sync(notes.blocking.batch(statements)))

    threads = [threading.Thread(target=work, args=ids) for ids in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 2
    assert [row[2] for row in run_sync(notes.blocking.fetch_all(ALL))] == ["textxx", "textxx"]


def test_lost_race_of_a_serializable_transaction_is_a_conflict(notes: Database, tenant: str) -> None:
    run_sync(notes.blocking.execute(*add(tenant, "a")))
    update = Query("UPDATE haive.note SET body = body || 'x'")

    async def work() -> None:
        async with notes.blocking.transaction(isolation="repeatable read") as tx:
            await tx.fetch_all(ALL)
            run_sync(notes.blocking.execute(update))
            await tx.execute(update)

    with pytest.raises(ConflictError, match="run it again") as caught:
        run_sync(work())
    assert caught.value.sqlstate == "40001"


# -- connections that die -----------------------------------------------------------------------


def _with(database: Database, **settings: Any) -> Database:
    return Database(PersistenceConfig(connection_string=database.config.connection_string, **settings))


def _terminate(admin: Connection[Any], pid: int) -> None:
    admin.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


def test_idle_connection_that_died_is_replaced_unseen(
    notes: Database, admin: Connection[Any], do: Callable[[Database], Do], tenant: str
) -> None:
    run = do(notes)
    pid = run(lambda db: db.fetch_one(WHO))[2]
    _terminate(admin, pid)
    assert run(lambda db: db.execute(*add(tenant, "a"))) == 1
    assert run(lambda db: db.fetch_one(WHO))[2] != pid


def test_statement_that_was_ended_by_the_server_did_not_happen_and_is_repeated(
    notes: Database, admin: Connection[Any], do: Callable[[Database], Do], tenant: str
) -> None:
    seen: list[int] = []

    def terminate_once() -> bool:
        query = "SELECT pid FROM pg_stat_activity WHERE query LIKE %s AND pid <> pg_backend_pid() AND state = 'active'"
        for (pid,) in admin.execute(query, (f"%slow-{tenant}%",)).fetchall():
            seen.append(pid)
            _terminate(admin, pid)
        return bool(seen)

    killer = threading.Thread(target=until, args=(terminate_once,))
    killer.start()
    slow = Query(f"SELECT 'slow-{tenant}' FROM pg_sleep(0.5)")
    answers = do(notes)(lambda db: db.batch([add(tenant, "a"), Statement(slow)]))
    killer.join()
    assert len(seen) == 1
    assert answers[1] == [(f"slow-{tenant}",)]
    assert run_sync(notes.blocking.fetch_one(COUNT)) == (1,)


def test_lost_answer_is_ambiguous_and_the_work_may_have_been_done(
    notes: Database, proxy: Proxy, do: Callable[[Database], Do], tenant: str
) -> None:
    run = do(Database(PersistenceConfig(connection_string=proxy.dsn, tenant=tenant)))
    run(lambda db: db.fetch_one(COUNT))
    proxy.cut_after = lambda data: b"the needle" in data
    with pytest.raises(AmbiguousCommitError, match="Read it back"):
        run(lambda db: db.execute(*add(tenant, "a", "the needle")))
    until(lambda: run(lambda db: db.fetch_one(COUNT)) == (1,))  # the server may still be at it


def test_lost_answer_of_something_idempotent_is_repeated(
    notes: Database, proxy: Proxy, do: Callable[[Database], Do], tenant: str
) -> None:
    run = do(Database(PersistenceConfig(connection_string=proxy.dsn, tenant=tenant)))
    run(lambda db: db.fetch_one(COUNT))
    cuts = iter([True, False])
    proxy.cut_after = lambda data: b"the needle" in data and next(cuts)
    upsert = Query(f"{ADD} ON CONFLICT (tenant_id, id) DO UPDATE SET body = excluded.body")
    params = {"tenant": tenant, "id": "a", "body": "the needle"}
    assert run(lambda db: db.execute(upsert, params, idempotent=True)) == 1
    assert sum(b"the needle" in data for data in proxy.sent) == 2
    assert run(lambda db: db.fetch_one(COUNT)) == (1,)


def test_server_that_always_hangs_up_is_not_asked_for_ever(
    proxy: Proxy, notes: Database, do: Callable[[Database], Do]
) -> None:
    run = do(Database(PersistenceConfig(connection_string=proxy.dsn)))
    run(lambda db: db.fetch_one(COUNT))
    proxy.cut_before = lambda data: b"the needle" in data
    with pytest.raises(AmbiguousCommitError):
        run(lambda db: db.fetch_one(Query("SELECT 'the needle'"), idempotent=True))
    assert sum(b"the needle" in data for data in proxy.sent) == 4


def test_transaction_that_loses_its_connection_kept_nothing_and_says_so(
    notes: Database, admin: Connection[Any], do: Callable[[Database], Do], tenant: str
) -> None:
    async def work(db: Db) -> None:
        async with db.transaction() as tx:
            await tx.execute(*add(tenant, "a"))
            _terminate(admin, (await tx.fetch_one(WHO))[2])
            await tx.execute(*add(tenant, "b"))

    with pytest.raises(UnavailableError):
        do(notes)(work)
    assert run_sync(notes.blocking.fetch_one(COUNT)) == (0,)


def test_transaction_whose_first_statement_finds_a_dead_connection_starts_on_another(
    notes: Database, admin: Connection[Any], do: Callable[[Database], Do], tenant: str
) -> None:
    run = do(notes)
    _terminate(admin, run(lambda db: db.fetch_one(WHO))[2])

    async def work(db: Db) -> None:
        async with db.transaction() as tx:
            await tx.execute(*add(tenant, "a"))

    run(work)
    assert run(lambda db: db.fetch_one(COUNT)) == (1,)


def test_lost_answer_to_commit_is_ambiguous(
    notes: Database, proxy: Proxy, do: Callable[[Database], Do], tenant: str
) -> None:
    database = Database(PersistenceConfig(connection_string=proxy.dsn, tenant=tenant))
    database.setup()  # commits too
    run = do(database)
    proxy.cut_after = lambda data: b"COMMIT" in data

    async def work(db: Db) -> None:
        async with db.transaction() as tx:
            await tx.execute(*add(tenant, "a"))

    with pytest.raises(AmbiguousCommitError):
        run(work)
    proxy.cut_after = lambda _: False
    until(lambda: run(lambda db: db.fetch_one(COUNT)) == (1,))  # the server may still be at it


# -- servers that cannot be reached -------------------------------------------------------------


def test_wrong_password_says_so_at_once(login: str) -> None:
    with contextlib.suppress(psycopg.OperationalError), psycopg.connect(login, password="wrong"):
        pytest.skip("this server asks for no password")
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="password"):
        Database(make_conninfo(login, password="wrong")).setup()
    assert time.monotonic() - began < 5


def test_missing_server_and_database_say_so_at_once(dsn: str) -> None:
    for broken in (make_conninfo(dsn, port=1), make_conninfo(dsn, dbname="nowhere")):
        with pytest.raises(UnavailableError, match="reached"):
            Database(broken).setup()


def test_nonsense_is_a_configuration_error() -> None:
    for nonsense in ("hots=localhost", "postgresql://[", "just words", "mysql://host/db"):
        with pytest.raises(ConfigError, match=r'connection string.* write "postgresql://'):
            Database(nonsense).setup()


def test_setting_that_postgres_refuses_is_a_configuration_error(
    dsn: str, do: Callable[[Database], Do]
) -> None:
    with pytest.raises(ConfigError, match="work_mem"):
        do(Database(PersistenceConfig(connection_string=dsn, work_mem="much")))(lambda db: db.fetch_one(WHO))


def test_server_away_for_a_while_is_waited_for(
    notes: Database, proxy: Proxy, do: Callable[[Database], Do]
) -> None:
    database = Database(PersistenceConfig(connection_string=proxy.dsn, pool_timeout=20))
    run = do(database)
    run(lambda db: db.fetch_one(WHO))
    proxy.go_away()
    back = threading.Timer(0.5, proxy.come_back)
    back.start()
    assert run(lambda db: db.fetch_one(ONE, {"a": "x", "b": 1})) == ("x", 1)
    back.join()


def test_server_away_for_good_is_given_up(
    notes: Database, proxy: Proxy, do: Callable[[Database], Do]
) -> None:
    run = do(Database(PersistenceConfig(connection_string=proxy.dsn, pool_timeout=0.3)))
    run(lambda db: db.fetch_one(WHO))
    proxy.go_away()
    with pytest.raises(UnavailableError, match="cannot be reached"):
        run(lambda db: db.fetch_one(WHO))


def test_defaults_leave_room_for_what_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PersistenceConfig(pool_timeout=7)
    assert "connect_timeout=7" in with_defaults("host=h", config)
    assert "connect_timeout=1 " in with_defaults("host=h connect_timeout=1", config) + " "
    assert "connect_timeout=2" in with_defaults("host=h", PersistenceConfig(pool_timeout=0.1))
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "5")
    assert "connect_timeout" not in with_defaults("host=h", config)
    assert "fallback_application_name=haive-persistence" in with_defaults("postgresql://h/d", config)


def test_old_servers_are_refused(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_setup, "OLDEST_SERVER", 990000)
    with pytest.raises(ConfigError, match="Postgres 99 or newer is needed"):
        Database(dsn).setup()


# -- what a retry loop can tell -----------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
def test_failures_to_connect_have_codes_of_their_own(
    dsn: str, login: str, admin: Connection[Any], asynchronous: bool
) -> None:
    user = conninfo_to_dict(login)["user"]
    cases = {
        make_conninfo(login, password="wrong"): (LoginError, False),
        make_conninfo(login, user="nobody_knows"): (LoginError, False),
        make_conninfo(dsn, dbname="not_there"): (NoDatabaseError, False),
        make_conninfo(dsn, host="127.0.0.1", port=1): (UnavailableError, True),
    }
    for given, (kind, transient) in cases.items():
        with pytest.raises(UnavailableError) as caught:
            if asynchronous:
                asyncio.run(Database(given).asynchronous.fetch_one(Query("SELECT 1")))
            else:
                run_sync(Database(given).blocking.fetch_one(Query("SELECT 1")))
        assert type(caught.value) is kind, given
        assert caught.value.is_transient is transient
    assert len({kind.code for kind, _ in cases.values()}) == 3
    assert user


@pytest.mark.parametrize(
    "secret",
    [
        "postgresql://me:s3cr@t/x@host/db",
        "postgresql://me:a/s3cret@host/db",
        "postgresql://me:a s3cret@host/db",
        "postgresql://me:s3cret%zz@host/db",
        "host=h password=a s3cret",
        'host=h password=a "s3cret" b',
        "mysql://me:s3cret@host/db",
    ],
)
def test_an_error_about_a_connection_string_shows_no_password(secret: str) -> None:
    with pytest.raises(PersistenceError) as caught:
        Database(secret).setup()
    assert isinstance(caught.value, ConfigError | UnavailableError)  # older libpqs take a blank in a URL
    assert "s3cr" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "postgresql+asyncpg", "postgres+psycopg2"])
def test_connection_strings_of_sqlalchemy_will_do(dsn: str, scheme: str) -> None:
    parts = conninfo_to_dict(dsn)
    query = urlencode({name: value for name, value in parts.items() if name != "dbname"})
    database = Database(f"{scheme}:///{parts['dbname']}?{query}")
    assert run_sync(database.blocking.fetch_one(Query("SELECT current_database()::text"))) == (
        parts["dbname"],
    )
    database.close()
