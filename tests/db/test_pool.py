"""Pools: lazy, bounded, fair, and gone without a trace when they should be."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from haive_persistence.db import Database, Query, run_sync, slots
from haive_persistence.db.slots import Slots
from haive_persistence.errors import ClosedError, TimedOutError, TooManyConnectionsError
from tests.builders import until
from tests.db.helpers import MOMENTS, ONE, SLEEP, WHO, finish, in_process, reach

OPEN = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()"


@pytest.fixture
def named(connected: Callable[..., Database], dsn: str, tenant: str) -> Callable[..., Database]:
    """Like `connected`, its connections recognisable by the tenant's name."""
    return lambda **settings: connected(
        connection_string=psycopg.conninfo.make_conninfo(dsn, application_name=tenant), **settings
    )


def count_open(admin: Connection[Any], name: str, expected: int) -> int:
    """Return `expected` once the server counts that many connections: it notices closed ones late."""
    until(lambda: admin.execute(OPEN, (name,)).fetchone() == (expected,))
    return expected


def wait_until_busy(admin: Connection[Any], name: str, how_many: int = 1) -> None:
    """Return when so many connections of that name are at work in pg_sleep."""
    sleeping = OPEN + " AND wait_event = 'PgSleep'"
    until(lambda: admin.execute(sleeping, (name,)).fetchone() == (how_many,))


# -- opening ------------------------------------------------------------------------------------


def test_nothing_is_opened_before_it_is_needed(
    named: Callable[..., Database], admin: Connection[Any], tenant: str
) -> None:
    database = named()
    assert database.blocking.tenant == "default"
    assert count_open(admin, tenant, 0) == 0
    run_sync(database.blocking.fetch_one(WHO))
    assert count_open(admin, tenant, 1) == 1


async def test_pool_size_stays_open_and_overflow_does_not(
    named: Callable[..., Database], admin: Connection[Any], tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = named(pool_size=2, max_overflow=3)
    work = [asyncio.create_task(database.asynchronous.fetch_one(SLEEP, {"seconds": 0.5})) for _ in range(9)]
    await asyncio.to_thread(wait_until_busy, admin, tenant, 5)
    assert count_open(admin, tenant, 5) == 5
    await asyncio.gather(*work)
    assert count_open(admin, tenant, 5) == 5  # the next burst may be near
    monkeypatch.setattr(slots, "OVERFLOW_IDLE_S", 0.0)
    await database.asynchronous.fetch_one(WHO)
    assert count_open(admin, tenant, 2) == 2


def test_exhausted_pool_times_out_and_says_what_to_raise(connected: Callable[..., Database]) -> None:
    database = connected(pool_size=1, max_overflow=0, pool_timeout=0.1)
    run_sync(database.blocking.fetch_one(WHO))

    async def two() -> None:
        async with database.blocking.transaction() as tx:
            await tx.fetch_one(WHO)
            await database.blocking.fetch_one(WHO)

    with pytest.raises(TimedOutError, match="pool_size"):
        run_sync(two())
    run_sync(database.blocking.fetch_one(WHO))


async def test_exhausted_async_pool_times_out_too(connected: Callable[..., Database]) -> None:
    db = connected(pool_size=1, max_overflow=0, pool_timeout=0.1).asynchronous
    async with db.transaction() as tx:
        await tx.fetch_one(WHO)
        with pytest.raises(TimedOutError, match="pool_size"):
            await db.fetch_one(WHO)
    assert await db.fetch_one(ONE, {"a": "x", "b": 1}) == ("x", 1)


async def test_who_waits_longest_is_served_first(connected: Callable[..., Database]) -> None:
    db = connected(pool_size=1, max_overflow=0).asynchronous
    served: list[int] = []

    async def work(n: int) -> None:
        await db.fetch_one(ONE, {"a": "x", "b": n})
        served.append(n)
        await db.fetch_one(ONE, {"a": "x", "b": n})  # must queue again, behind the others

    await db.fetch_one(WHO)
    await asyncio.gather(*(work(n) for n in range(10)))
    assert served == list(range(10))


async def test_waiters_that_are_cancelled_lose_no_slot(
    connected: Callable[..., Database], admin: Connection[Any]
) -> None:
    db = connected(pool_size=2, max_overflow=0).asynchronous
    for moment in MOMENTS * 2:
        tasks = [asyncio.create_task(db.fetch_one(SLEEP, {"seconds": 5})) for _ in range(8)]
        for cancelled in (tasks[::2], tasks[1::2]):  # of the slots and of the queue; then who got those slots
            await reach(moment, admin, asleep=2)
            for task in cancelled:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert await asyncio.wait_for(asyncio.gather(*(db.fetch_one(WHO) for _ in range(4))), 10)


async def test_cancelled_statement_leaves_a_connection_that_works(
    named: Callable[..., Database], admin: Connection[Any], tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    db = named(pool_size=1, max_overflow=0).asynchronous
    await db.fetch_one(WHO)
    task = asyncio.create_task(db.fetch_one(SLEEP, {"seconds": 30}))
    await asyncio.to_thread(wait_until_busy, admin, tenant)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await db.fetch_one(ONE, {"a": "x", "b": 1}) == ("x", 1)
    assert time.monotonic() - began < 5
    assert caplog.records == []


# -- dead, old and idle connections -------------------------------------------------------------


def test_all_dead_connections_are_replaced(
    named: Callable[..., Database], admin: Connection[Any], tenant: str
) -> None:
    database = named(pool_size=4)

    async def spread() -> None:
        async with database.blocking.transaction() as a, database.blocking.transaction() as b:
            await a.fetch_one(WHO)
            await b.fetch_one(WHO)

    run_sync(spread())
    assert count_open(admin, tenant, 2) == 2
    admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s", (tenant,)
    )
    run_sync(spread())
    assert count_open(admin, tenant, 2) == 2


def test_connections_are_replaced_when_old_and_closed_when_idle(
    named: Callable[..., Database], admin: Connection[Any], tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = named(pool_size=4)
    pid = run_sync(database.blocking.fetch_one(WHO))[2]
    assert run_sync(database.blocking.fetch_one(WHO))[2] == pid
    monkeypatch.setattr(slots, "MAX_LIFETIME_S", 0.0)
    run_sync(database.blocking.fetch_one(WHO))
    assert count_open(admin, tenant, 0) == 0
    monkeypatch.undo()

    async def spread() -> None:
        async with database.blocking.transaction() as a, database.blocking.transaction() as b:
            await a.fetch_one(WHO)
            await b.fetch_one(WHO)

    run_sync(spread())
    monkeypatch.setattr(slots, "MAX_IDLE_S", 0.0)
    run_sync(database.blocking.fetch_one(WHO))
    assert count_open(admin, tenant, 0) == 0


# -- fewer connections than the pool wants -------------------------------------------------------


@pytest.fixture
def limited(admin: Connection[Any], login: str, _module_database: Database) -> str:
    """The connection string of a login that may have three connections."""
    user = psycopg.conninfo.conninfo_to_dict(login)["user"]
    admin.execute(f"GRANT USAGE ON SCHEMA haive TO {user}")
    admin.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA haive TO {user}")
    admin.execute(f"ALTER ROLE {user} CONNECTION LIMIT 3")
    return login


def test_threads_share_what_the_server_allows(connected: Callable[..., Database], limited: str) -> None:
    database = connected(connection_string=limited, pool_size=40, pool_timeout=20)
    answers: list[Any] = []

    def work() -> None:
        answers.extend(run_sync(database.blocking.fetch_one(SLEEP, {"seconds": 0.02})) for _ in range(3))

    threads = [threading.Thread(target=work) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 120
    assert database._core.pools.blocking().slots.open <= 3


async def test_tasks_share_what_the_server_allows(connected: Callable[..., Database], limited: str) -> None:
    database = connected(connection_string=limited, pool_size=40, pool_timeout=20)
    work = [database.asynchronous.fetch_one(SLEEP, {"seconds": 0.02}) for _ in range(120)]
    assert len(await asyncio.gather(*work)) == 120


def test_a_caller_that_others_leave_no_connection_says_so(
    connected: Callable[..., Database], limited: str
) -> None:
    database = connected(connection_string=limited, pool_timeout=0.5)
    run_sync(database.blocking.fetch_one(WHO))
    with psycopg.connect(limited), psycopg.connect(limited):
        other = connected(connection_string=limited, pool_timeout=0.5)
        with pytest.raises(TooManyConnectionsError) as caught:
            other.setup()
        assert caught.value.is_transient


def test_a_pool_that_others_leave_no_connection_says_so(
    connected: Callable[..., Database], limited: str, admin: Connection[Any]
) -> None:
    database = connected(connection_string=limited, pool_timeout=0.5)
    backend = run_sync(database.blocking.fetch_one(WHO))[2]  # type: ignore[index]
    admin.execute("SELECT pg_terminate_backend(%s, 5000)", (backend,))
    with ExitStack() as others:
        for _ in range(3):
            others.enter_context(psycopg.connect(limited))
        with pytest.raises(TooManyConnectionsError):
            run_sync(database.blocking.fetch_one(WHO))
    assert run_sync(database.blocking.fetch_one(WHO))[2] != backend  # type: ignore[index]


# -- closing ------------------------------------------------------------------------------------


def test_close_ends_what_is_idle_and_lets_work_finish(
    named: Callable[..., Database], admin: Connection[Any], tenant: str
) -> None:
    database = named()
    answers: list[Any] = []
    run_sync(database.blocking.fetch_one(WHO))
    busy = threading.Thread(
        target=lambda: answers.append(run_sync(database.blocking.fetch_one(SLEEP, {"seconds": 0.3})))
    )
    busy.start()
    wait_until_busy(admin, tenant)
    database.close()
    database.close()
    busy.join()
    assert len(answers) == 1
    assert count_open(admin, tenant, 0) == 0


async def test_a_closed_database_is_closed_for_every_view(connected: Callable[..., Database]) -> None:
    used, unused = connected(), connected()
    db, other = used.blocking, used.for_tenant("other")
    run_sync(db.fetch_one(WHO))
    used.close()
    unused.close()
    for use in (
        lambda: run_sync(db.fetch_one(WHO)),
        lambda: run_sync(other.blocking.fetch_one(WHO)),
        used.setup,
        used.connect,
        unused.setup,
    ):
        with pytest.raises(ClosedError, match="make a new one"):
            use()
    with pytest.raises(ClosedError):
        await other.asynchronous.fetch_one(WHO)


async def test_aclose_ends_the_connections_of_the_loop(
    named: Callable[..., Database], admin: Connection[Any], tenant: str
) -> None:
    database = named()
    await asyncio.gather(*(database.asynchronous.fetch_one(WHO) for _ in range(3)))
    await database.aclose()
    assert count_open(admin, tenant, 0) == 0


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_dropped_database_closes_its_connections(
    dsn: str, admin: Connection[Any], tenant: str, kind: str
) -> None:
    database = Database(psycopg.conninfo.make_conninfo(dsn, application_name=tenant))
    if kind == "blocking":
        run_sync(database.blocking.fetch_one(WHO))
    else:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(database.asynchronous.fetch_one(WHO))
    assert count_open(admin, tenant, 1) == 1
    del database
    gc.collect()
    if kind == "async":
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    assert count_open(admin, tenant, 0) == 0


# -- event loops --------------------------------------------------------------------------------


def test_every_asyncio_run_has_its_own_connections_and_leaves_none(
    named: Callable[..., Database], admin: Connection[Any], tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = named()

    async def work() -> None:
        await asyncio.gather(*(database.asynchronous.fetch_one(ONE, {"a": "x", "b": n}) for n in range(5)))

    with caplog.at_level(logging.DEBUG, "asyncio"):
        for _ in range(4):
            asyncio.run(work())
            assert count_open(admin, tenant, 0) == 0
    assert database._core.pools._loops == {}
    gc.collect()
    assert [r for r in caplog.records if r.levelno > logging.DEBUG] == []


def test_loop_that_is_closed_without_notice_is_cleaned_up_after(
    named: Callable[..., Database], admin: Connection[Any], tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = named()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(database.asynchronous.fetch_one(WHO))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    asyncio.run(database.asynchronous.fetch_one(WHO))
    assert database._core.pools._loops == {}
    gc.collect()
    assert count_open(admin, tenant, 0) == 0
    assert caplog.records == []


def test_loops_of_several_threads_at_once(connected: Callable[..., Database]) -> None:
    database = connected()
    answers: list[Any] = []

    async def work(n: int) -> None:
        rows = await asyncio.gather(
            *(database.asynchronous.fetch_one(ONE, {"a": "x", "b": n * 100 + i}) for i in range(20))
        )
        answers.append([row[1] - n * 100 for row in rows] == list(range(20)))

    threads = [threading.Thread(target=lambda n=n: asyncio.run(work(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 4


def test_use_in_a_process_leaves_no_warnings(dsn: str) -> None:
    code = """
import asyncio, logging, sys
logging.basicConfig()
from haive_persistence.db import Database, Query, run_sync
database = Database(sys.argv[1])
one = Query("SELECT 1")
async def work():
    return await asyncio.gather(*(database.asynchronous.fetch_one(one) for _ in range(5)))
for _ in range(3):
    assert asyncio.run(work()) == [(1,)] * 5
assert run_sync(database.blocking.fetch_one(one)) == (1,)
another = Database(sys.argv[1])
loop = asyncio.new_event_loop()
loop.run_until_complete(another.asynchronous.fetch_one(one))
loop.close()
print("done")
"""
    assert finish(in_process(code, dsn)) == "done\n"


# -- forks --------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("leave", ["os._exit(0)", "sys.exit()"])
def test_forked_child_has_its_own_pool_and_leaves_the_parents_alone(dsn: str, leave: str) -> None:
    code = f"""
import gc, os, sys, warnings
warnings.filterwarnings("ignore", "This process")  # it has threads, as pools of others might
from haive_persistence.db import Database, Query, run_sync
database = Database(sys.argv[1])
who = Query("SELECT pg_backend_pid()")
mine = run_sync(database.blocking.fetch_one(who))
import asyncio
async def work(): return await database.asynchronous.fetch_one(who)
loop = asyncio.new_event_loop()
mine_async = loop.run_until_complete(work())
if os.fork() == 0:
    theirs = run_sync(database.blocking.fetch_one(who))
    assert theirs != mine
    assert asyncio.run(work()) not in (mine, mine_async)
    database.close()
    del database
    gc.collect()
    {leave}
_, status = os.wait()
assert status == 0
assert run_sync(database.blocking.fetch_one(who)) == mine
assert loop.run_until_complete(work()) == mine_async
loop.run_until_complete(loop.shutdown_asyncgens())
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
print("done")
"""
    assert finish(in_process(code, dsn)) == "done\n"


# -- the slots themselves -----------------------------------------------------------------------


class _Waiter:
    def __init__(self) -> None:
        self.connection = None
        self.woken = False

    def notify(self) -> bool:
        self.woken = True
        return True


def test_slot_without_a_connection_goes_to_whoever_waits() -> None:
    slots = Slots(1, 0)
    first, second, third = _Waiter(), _Waiter(), _Waiter()
    assert slots.claim(first)
    assert not slots.claim(second)
    assert not slots.claim(third)
    assert slots.cancel_wait(third)
    slots.release(None)  # its connection broke
    assert second.woken
    assert not slots.cancel_wait(second)  # it has the slot, and must give it back
    assert second.connection is None
    assert slots.open == 1


def test_no_lock_is_held_while_the_server_works(
    named: Callable[..., Database], admin: Connection[Any], tenant: str
) -> None:
    database = named(pool_size=4)
    run_sync(database.blocking.fetch_one(WHO))
    slow = threading.Thread(target=lambda: run_sync(database.blocking.fetch_one(SLEEP, {"seconds": 2})))
    slow.start()
    wait_until_busy(admin, tenant)
    run_sync(database.blocking.fetch_one(Query("SELECT 1")))
    wait_until_busy(admin, tenant)  # it is still at it
    slow.join()


def test_the_connection_that_looked_at_the_database_is_the_first_of_the_pool(
    named: Callable[..., Database], admin: Connection[Any], tenant: str
) -> None:
    """A process that serves one request opens no other, and works on it as the role that is kept apart."""
    named().setup()
    database = named(pooler="session")
    opened: list[Any] = []
    connect = database._core.server.connect
    database._core.server.connect = lambda: opened.append(connect()) or opened[-1]  # type: ignore[method-assign]
    row = run_sync(database.blocking.fetch_one(Query("SELECT current_user, pg_backend_pid()")))
    assert row is not None
    assert (
        row[0]
        == f"haive_haive_{admin.execute('SELECT oid FROM pg_database WHERE datname = current_database()').fetchone()[0]}"
    )  # type: ignore[index]
    assert [conn.info.backend_pid for conn in opened] == [row[1]]
    assert database._core.pools.blocking().slots.open == 1
    database.close()
    assert count_open(admin, tenant, 0) == 0


def test_that_connection_may_be_gone_by_then(named: Callable[..., Database], admin: Connection[Any]) -> None:
    named().setup()
    database = named()
    connect = database._core.server.connect

    def killed() -> Connection[Any]:
        conn = connect()
        real = conn.execute

        def execute(query: Any, *args: Any, **options: Any) -> Any:
            if isinstance(query, bytes) and b"ROLE" in query:
                admin.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))
            return real(query, *args, **options)

        conn.execute = execute  # type: ignore[method-assign]
        return conn

    database._core.server.connect = killed  # type: ignore[method-assign]
    assert run_sync(database.blocking.fetch_one(Query("SELECT 1"))) == (1,)
    assert database._core.pools.blocking().slots.open == 1


@pytest.mark.parametrize("settings", [{}, {"lock_timeout": "7s"}])
def test_a_database_is_found_out_about_in_few_round_trips(
    connected: Callable[..., Database], monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
) -> None:
    """Far away from its server, a process that starts for each request waits for every one of them."""
    connected().setup()
    trips = 0
    wait = Connection.wait

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal trips
        trips += 1
        return wait(*args, **kwargs)

    monkeypatch.setattr(Connection, "wait", counted)
    assert run_sync(connected(**settings).blocking.fetch_one(Query("SELECT 1"))) is not None
    # The columns of schema_migration, its rows, the login, the session's settings, the statement.
    assert trips == 5 + len(settings)
