"""Behind the real pgbouncer in transaction mode, where no session lasts longer than a transaction."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from haive_persistence.checkpointer import Checkpointer
from haive_persistence.config import PersistenceConfig
from haive_persistence.db import Database, Query, RoundTrip, Statement, run_sync, session_setup
from haive_persistence.db.migrate import migrations
from haive_persistence.errors import ConfigError, ConflictError, DatabaseError, TimedOutError
from tests.builders import store, until
from tests.builders import thread as thread_config
from tests.db.helpers import ALL, COUNT, ONE, WHO, add

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")

INI = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = {mode}
default_pool_size = 3
max_client_conn = 200
logfile = {log}
"""


@pytest.fixture(scope="module", params=["transaction", "session"])
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pooled_dsn(dsn: str, mode: str, _notes: None) -> Iterator[str]:
    """The module's database, through a pgbouncer with three server connections."""
    if PGBOUNCER is None:
        missing = "pgbouncer is missing: apt-get install pgbouncer"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    given = conninfo_to_dict(dsn)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = probe.getsockname()[1]
    directory = Path(tempfile.mkdtemp(prefix="haive-bouncer-"))
    (directory / "users.txt").write_text(f'"{given["user"]}" "{given.get("password", "")}"\n')
    names = {"users": directory / "users.txt", "log": directory / "log", "listen": listen, "mode": mode}
    (directory / "ini").write_text(INI.format(host=given["host"], port=given["port"], **names))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # it does not run as root, as Postgres does not
        user = {
            "user": Path(str(given["host"])).stat().st_uid,
            "group": Path(str(given["host"])).stat().st_gid,
        }
        for path in (directory, *directory.iterdir()):
            os.chown(path, user["user"], user["group"])
    process = subprocess.Popen(
        [PGBOUNCER, str(directory / "ini")], cwd="/", stderr=subprocess.DEVNULL, **user
    )
    pooled = make_conninfo(dsn, host="127.0.0.1", port=listen)
    until(lambda: _answers(pooled), why=(directory / "log").read_text)
    yield pooled
    process.terminate()
    process.wait(20)
    shutil.rmtree(directory)


def _answers(dsn: str) -> bool:
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture
def pooled(pooled_dsn: str, mode: str, connected: Callable[..., Database], tenant: str) -> Database:
    """A database that is told nothing about the pooler but, in session mode, that it may trust it."""
    settings = {"pooler": "session"} if mode == "session" else {}
    return connected(connection_string=pooled_dsn, tenant=tenant, pool_size=8, **settings)


def test_pooler_is_noticed_and_taken_for_one_of_transactions(pooled_dsn: str, dsn: str) -> None:
    found, direct = (
        Database(PersistenceConfig(connection_string=each, pooler="auto", prepare_threshold="auto"))
        for each in (pooled_dsn, dsn)
    )
    assert found._core.pools.plan().on_connect == ()
    assert found._core.pools.plan().prepares_after is None
    assert direct._core.pools.plan().on_connect != ()
    assert direct._core.pools.plan().prepares_after == 0
    found.close()
    direct.close()


def test_statements_batches_and_transactions_work(pooled: Database, tenant: str) -> None:
    trips: list[RoundTrip] = []
    db = pooled.blocking
    run_sync(db.fetch_one(WHO))
    pooled.hooks.append(trips.append)
    assert run_sync(db.execute(*add(tenant, "a"))) == 1
    assert run_sync(db.batch([add(tenant, "b"), Statement(COUNT)])) == [[], [(2,)]]
    with pytest.raises(ConflictError):
        run_sync(db.batch([add(tenant, "c"), add(tenant, "a")]))
    assert run_sync(db.fetch_one(COUNT)) == (2,)
    assert len(trips) == 4

    async def transaction() -> None:
        async with db.transaction() as tx:
            await tx.execute(*add(tenant, "d"))
            await tx.execute(*add(tenant, "e"))

    run_sync(transaction())
    assert [row[1] for row in run_sync(db.fetch_all(ALL))] == ["a", "b", "d", "e"]


def test_more_clients_than_server_connections_never_see_each_other(pooled: Database) -> None:
    wrong: list[object] = []

    def work(n: int) -> None:
        tenant = f"client-{n}"
        db = pooled.for_tenant(tenant).blocking
        for i in range(40):
            if i % 7 == 3:
                with pytest.raises(ConflictError):
                    run_sync(db.batch([add(tenant, "x"), add(tenant, "x")]))
            row = run_sync(db.fetch_one(WHO))
            if row[0] != tenant or not row[1].startswith("haive_haive_"):
                wrong.append((n, row))

    # In session mode there are only as many sessions as there are server connections.
    clients = range(3 if pooled.config.pooler == "session" else 8)
    threads = [threading.Thread(target=work, args=(n,)) for n in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


async def test_tasks_work_through_it_too(pooled: Database, tenant: str) -> None:
    db = pooled.asynchronous
    clients = 3 if pooled.config.pooler == "session" else 20
    rows = await asyncio.gather(*(db.fetch_one(ONE, {"a": tenant, "b": n}) for n in range(clients)))
    assert rows == [(tenant, n) for n in range(clients)]
    await pooled.aclose()


def test_settings_hold_although_startup_options_are_refused(
    pooled_dsn: str, mode: str, connected: Callable[..., Database]
) -> None:
    database = connected(
        connection_string=pooled_dsn,
        statement_timeout="50ms",
        work_mem="7MB",
        pooler="auto" if mode == "transaction" else "session",
    )
    assert run_sync(database.blocking.fetch_one(Query("SELECT current_setting('work_mem')"))) == ("7MB",)
    with pytest.raises(TimedOutError, match="statement_timeout"):
        run_sync(database.blocking.fetch_one(Query("SELECT pg_sleep(5)")))
    assert run_sync(database.blocking.fetch_one(ONE, {"a": "x", "b": 1})) == ("x", 1)


def test_nothing_stays_behind_on_the_server_connections(pooled: Database, pooled_dsn: str, mode: str) -> None:
    for _ in range(5):
        run_sync(pooled.blocking.fetch_one(WHO))
    if mode == "session":
        pooled.close()  # a session is ours until then; pgbouncer resets it
    with psycopg.connect(pooled_dsn, autocommit=True) as conn:
        for _ in range(5):
            row = conn.execute(
                "SELECT current_setting('haive.tenant', true), current_user,"
                " (SELECT count(*) FROM pg_prepared_statements)",
                prepare=False,
            ).fetchone()
            assert row in [("", "postgres", 0), (None, "postgres", 0)]


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_first_use_migrates_through_it(pooled_dsn: str, mode: str, kind: str) -> None:
    schema = f"made_through_{mode}_{kind}"
    config = PersistenceConfig(connection_string=pooled_dsn, schema=schema)
    databases = [Database(config) for _ in range(4)]
    count = Query(f"SELECT count(*) FROM {schema}.schema_migration")
    answers: list[object] = []

    def work(database: Database) -> None:
        if kind == "blocking":
            answers.append(run_sync(database.blocking.fetch_one(count)))
        else:
            answers.append(asyncio.run(database.asynchronous.fetch_one(count)))
        database.close()

    if mode == "session":  # three sessions are too few for four first uses at once
        for database in databases:
            work(database)
    else:
        threads = [threading.Thread(target=work, args=(database,)) for database in databases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [(len(migrations()),)] * 4


def test_killed_server_connections_are_survived(pooled: Database, dsn: str, tenant: str) -> None:
    run_sync(pooled.blocking.execute(*add(tenant, "a")))
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND client_port IS NOT NULL"
        )
    assert run_sync(pooled.blocking.fetch_one(COUNT, idempotent=True)) == (1,)


def test_prepared_statements_of_others_are_never_run(pooled_dsn: str) -> None:
    """Told to prepare behind a pooler that may not know of it: an error at worst."""
    settings = PersistenceConfig(connection_string=pooled_dsn, prepare_threshold=0)
    one, two, holder = (Database(settings) for _ in range(3))

    def ask(database: Database, text: str) -> None:
        query = Query(f"SELECT '{text}', %(x)s::text")
        with contextlib.suppress(DatabaseError):
            assert run_sync(database.blocking.fetch_one(query, {"x": "1"})) == (text, "1")

    async def while_a_connection_is_taken() -> None:
        async with holder.blocking.transaction() as tx:
            await tx.fetch_one(Query("SELECT 1"))
            ask(two, "of two")
            ask(one, "of one")

    ask(one, "of one")
    run_sync(while_a_connection_is_taken())
    for database in (one, two, holder):
        database.close()


def test_a_pooler_of_transactions_that_was_said_to_pool_sessions_is_noticed(
    pooled_dsn: str, mode: str, connected: Callable[..., Database]
) -> None:
    database = connected(connection_string=pooled_dsn, pooler="session")
    if mode == "session":
        assert run_sync(database.blocking.fetch_one(ONE, {"a": "x", "b": 1})) == ("x", 1)
        return
    with pytest.raises(ConfigError, match='pooler="transaction"'):
        run_sync(database.blocking.fetch_one(ONE, {"a": "x", "b": 1}))


def test_sessions_that_are_mixed_up_after_all_show_no_other_tenants_rows(
    pooled_dsn: str, mode: str, connected: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the pooler was not found out: the tenant is a predicate of every statement."""
    if mode == "session":
        pytest.skip("sessions are not mixed up")
    monkeypatch.setattr(session_setup, "_shares_sessions", lambda *_: False)
    wrong = {"connection_string": pooled_dsn, "pooler": "session", "prepare_threshold": None}
    savers = {}
    for tenant in ("mixed-a", "mixed-b"):
        plain = connected(connection_string=pooled_dsn, pooler="transaction", tenant=tenant)
        store(Checkpointer(plain), {"mine": tenant})
        savers[tenant] = Checkpointer(connected(**wrong, tenant=tenant))
    for _ in range(6):  # each remembers what it set, and the pooler gives the session to the other in between
        for tenant, saver in savers.items():
            found = [*saver.list(None), saver.get_tuple(thread_config())]
            assert {f.checkpoint["channel_values"]["mine"] for f in found if f} <= {tenant}
