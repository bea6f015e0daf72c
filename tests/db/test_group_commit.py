"""Group commit: many writers, few round trips, and an error is only the writer's who made it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from haive_persistence import errors
from haive_persistence.db import Database
from haive_persistence.db.batching.group_commit import SLOW_ROUND_S, GroupCommit
from haive_persistence.db.protocol import Query, run_sync
from tests.builders import until

WRITERS = 32
INSERT = Query(
    "INSERT INTO haive.thread (thread_key, epoch, tenant_id, thread_id)"
    " VALUES (md5(%(id)s)::uuid, %(epoch)s, %(tenant)s, %(id)s) RETURNING thread_id"
)


def params(database: Database, id_: str, epoch: int = 1) -> dict[str, Any]:
    return {"id": f"{database.tenant}-{id_}", "epoch": epoch, "tenant": database.tenant}


def ask(group_commit: GroupCommit, database: Database, id_: str, epoch: int = 1) -> str:
    statement = group_commit.fetch_all(
        database.blocking, INSERT, params(database, id_, epoch), fallback=INSERT, key=id_.encode(), size=100
    )
    return run_sync(statement)[0][0]


@pytest.fixture
def blocked(database: Database, dsn: str) -> Any:
    """A table lock by another session: whoever writes waits until it is released, and others gather."""
    database.blocking  # noqa: B018 - nothing is opened yet
    run_sync(database.blocking.fetch_all(Query("SELECT 1")))
    conn = psycopg.connect(dsn)
    conn.execute("LOCK TABLE haive.thread IN SHARE MODE")
    yield conn.rollback
    conn.close()


def waiting(dsn: str) -> int:
    with psycopg.connect(dsn) as conn:
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        return int(conn.execute(query).fetchone()[0])  # type: ignore[index]


class Interrupted(BaseException):
    """As Ctrl-C, but pytest goes on."""


def test_a_thread_that_is_interrupted_while_it_waits_holds_up_nobody(
    database: Database, dsn: str, blocked: Callable[[], None]
) -> None:
    def interrupt(*_: Any) -> None:
        raise Interrupted

    group_commit = GroupCommit(patience=0)
    usual = signal.signal(signal.SIGALRM, interrupt)
    try:
        with ThreadPoolExecutor(8) as pool:
            first = [pool.submit(ask, group_commit, database, f"first-{i}") for i in range(2)]
            until(lambda: waiting(dsn) >= 2)
            for i in range(3):  # this thread is the next to lead
                signal.setitimer(signal.ITIMER_REAL, 0.2)
                with pytest.raises(Interrupted):
                    ask(group_commit, database, f"interrupted-{i}")
            then = [pool.submit(ask, group_commit, database, f"then-{i}") for i in range(6)]
            until(lambda: len(group_commit._blocking._queue) == 6)
            blocked()
            for asked in (*first, *then):
                asked.result(timeout=20)
    finally:
        signal.signal(signal.SIGALRM, usual)
    assert group_commit._blocking._leading == 0


def test_threads_share_round_trips(database: Database, dsn: str, blocked: Callable[[], None]) -> None:
    trips: list[Any] = []
    group_commit = GroupCommit(patience=0)
    database.hooks.append(trips.append)
    try:
        with ThreadPoolExecutor(WRITERS) as pool:
            asked = [pool.submit(ask, group_commit, database, str(i)) for i in range(WRITERS)]
            until(lambda: waiting(dsn) >= 2 and len(group_commit._blocking._queue) >= WRITERS - 4)
            blocked()
            assert [a.result() for a in asked] == [f"{database.tenant}-{i}" for i in range(WRITERS)]
    finally:
        database.hooks.remove(trips.append)
    assert len(trips) <= 6


def test_tasks_share_round_trips(database: Database) -> None:
    async def main() -> int:
        trips: list[Any] = []
        group_commit = GroupCommit(patience=0)
        await database.asynchronous.fetch_all(Query("SELECT 1"))
        database.hooks.append(trips.append)
        db = database.asynchronous
        rows = await asyncio.gather(
            *(
                group_commit.fetch_all(
                    db, INSERT, params(database, str(i)), fallback=INSERT, key=b"%d" % i, size=100
                )
                for i in range(WRITERS)
            )
        )
        database.hooks.clear()
        assert [r[0][0] for r in rows] == [f"{database.tenant}-{i}" for i in range(WRITERS)]
        return len(trips)

    assert asyncio.run(main()) <= 4


def test_an_error_is_only_its_writers(database: Database, dsn: str, blocked: Callable[[], None]) -> None:
    group_commit = GroupCommit(patience=0)
    with ThreadPoolExecutor(WRITERS) as pool:
        asked = [
            pool.submit(ask, group_commit, database, str(i), 2**70 if i == 20 else 1) for i in range(WRITERS)
        ]
        until(lambda: waiting(dsn) >= 2)
        blocked()
        outcomes = [a.exception() for a in asked]
    assert [i for i, outcome in enumerate(outcomes) if outcome is not None] == [20]
    assert isinstance(outcomes[20], (errors.DatabaseError, errors.InvalidInputError))


def test_a_cancelled_task_takes_nobody_along(database: Database) -> None:
    async def main() -> list[Any]:
        group_commit = GroupCommit(patience=0)
        db = database.asynchronous
        tasks = [
            asyncio.ensure_future(
                group_commit.fetch_all(
                    db, INSERT, params(database, f"c{i}"), fallback=INSERT, key=b"%d" % i, size=100
                )
            )
            for i in range(8)
        ]
        await asyncio.sleep(0)
        tasks[3].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    done = asyncio.run(main())
    assert isinstance(done[3], asyncio.CancelledError)
    assert all(isinstance(d, list) for i, d in enumerate(done) if i != 3)


def test_two_groupings_never_wait_for_each_other(database: Database) -> None:
    """Two processes that make the same threads in different orders: rounds take them in one order."""
    groupings = [GroupCommit(patience=0), GroupCommit(patience=0)]
    upsert = Query(INSERT.replace("RETURNING", "ON CONFLICT (thread_key) DO UPDATE SET epoch = 2 RETURNING"))

    def write(group_commit: GroupCommit, i: int) -> None:
        statement = group_commit.fetch_all(
            database.blocking, upsert, params(database, f"d{i}"), fallback=upsert, key=b"%03d" % i, size=100
        )
        run_sync(statement)

    with ThreadPoolExecutor(WRITERS) as pool:
        forwards = [pool.submit(write, groupings[0], i % 16) for i in range(320)]
        backwards = [pool.submit(write, groupings[1], 15 - i % 16) for i in range(320)]
        for done in (*forwards, *backwards):
            done.result(timeout=60)


def test_a_process_that_serves_one_request_opens_one_connection(
    database: Database, connected: Callable[..., Database]
) -> None:
    """Another one would cost it more than to wait for the writer that is on its way."""
    other = connected().for_tenant(database.tenant)
    group_commit = GroupCommit()
    with ThreadPoolExecutor(4) as pool:
        for number in range(5):
            asked = [pool.submit(ask, group_commit, other, f"{number}-{i}") for i in range(4)]
            assert [a.result() for a in asked] == [f"{database.tenant}-{number}-{i}" for i in range(4)]
    assert other._core.pools.blocking().slots.open == 1


def test_a_slow_round_is_not_waited_for(database: Database, dsn: str, blocked: Callable[[], None]) -> None:
    group_commit = GroupCommit()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, group_commit, database, "0")]
        until(lambda: waiting(dsn) == 1)
        until(lambda: time.monotonic() - group_commit._blocking._led_since > SLOW_ROUND_S)
        asked.append(pool.submit(ask, group_commit, database, "1"))
        until(lambda: waiting(dsn) == 2)
        blocked()
        assert len([a.result() for a in asked]) == 2
