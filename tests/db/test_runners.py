"""What the two runners promise: the same statements, results and round trips, blocking and async."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from haive_persistence.db import Database, Db, Query, RoundTrip, Statement, run_sync, session_setup
from haive_persistence.db.exchange import MAX_PREPARED
from haive_persistence.errors import (
    ConflictError,
    DatabaseError,
    InvalidIdentifierError,
    InvalidInputError,
)
from tests.db.helpers import ADD, ALL, COUNT, ONE, WHO, add

Run = Callable[[Callable[[Db], Awaitable[Any]]], Any]


@pytest.fixture(params=["blocking", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def runner(database: Database, kind: str) -> Run:
    """Runs `work(db)` to its end, the way `kind` says."""

    def run(work: Callable[[Db], Awaitable[Any]]) -> Any:
        if kind == "blocking":
            return run_sync(work(database.blocking))
        return asyncio.run(work(database.asynchronous))

    return run


@pytest.fixture
def run(notes: Database, kind: str) -> Run:
    return runner(notes, kind)


def test_rows_come_back_as_python_values(run: Run) -> None:
    query = Query(
        "SELECT 1::int4, 2::int8, 1.5::float8, 'é'::text, '\\x00ff'::bytea, ARRAY[1, 2]::int8[], NULL::text,"
        " '{\"a\": [1]}'::jsonb, true, '00000000-0000-0000-0000-000000000001'::uuid"
    )
    (row,) = run(lambda db: db.fetch_all(query))
    assert type(row) is tuple
    assert row[:7] == (1, 2, 1.5, "é", b"\x00\xff", [1, 2], None)
    assert (row[7], row[8], row[9].int) == ({"a": [1]}, True, 1)


def test_parameters_by_name_by_place_and_twice(run: Run) -> None:
    assert run(lambda db: db.fetch_all(ONE, {"a": "x", "b": 5, "unused": 1})) == [("x", 5)]
    assert run(lambda db: db.fetch_all(Query("SELECT %s::text, %s::int8"), ("x", 5))) == [("x", 5)]
    twice = Query("SELECT %(a)s::int8 + %(a)s, 7 %% 4")
    assert run(lambda db: db.fetch_one(twice, {"a": 2})) == (4, 3)


def test_fetch_one_takes_the_first_row_or_none(run: Run) -> None:
    assert run(lambda db: db.fetch_one(Query("SELECT generate_series(1, 3)"))) == (1,)
    assert run(lambda db: db.fetch_one(Query("SELECT 1 WHERE false"))) is None


def test_execute_counts_the_rows_it_touched(run: Run, tenant: str) -> None:
    assert run(lambda db: db.execute(*add(tenant, "a"))) == 1
    assert run(lambda db: db.execute(Query("UPDATE haive.note SET body = 'y' WHERE id = 'none'"))) == 0


def test_batch_answers_in_order(run: Run, tenant: str) -> None:
    answers = run(lambda db: db.batch([add(tenant, "a"), Statement(ALL), Statement(COUNT)]))
    assert answers == [[], [(tenant, "a", "text")], [(1,)]]
    assert run(lambda db: db.batch([])) == []


def test_batch_is_one_transaction(run: Run, tenant: str) -> None:
    with pytest.raises(ConflictError):
        run(lambda db: db.batch([add(tenant, "a"), add(tenant, "b"), add(tenant, "a")]))
    assert run(lambda db: db.fetch_all(ALL)) == []


def test_batch_that_fails_at_commit_keeps_nothing(notes: Database, run: Run, tenant: str) -> None:
    with notes.connect() as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS haive.late (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        conn.execute("GRANT ALL ON haive.late TO PUBLIC")
    late = Statement(Query("INSERT INTO haive.late VALUES (1), (1)"))
    with pytest.raises(ConflictError) as caught:
        run(lambda db: db.batch([add(tenant, "a"), late]))
    assert caught.value.sqlstate == "23505"
    assert run(lambda db: db.fetch_all(ALL)) == []


def test_each_operation_is_one_round_trip(
    notes: Database, kind: str, tenant: str, trips: list[RoundTrip]
) -> None:
    other = notes.for_tenant(tenant + "2")
    for work in (
        lambda db: db.fetch_all(ONE, {"a": "x", "b": 1}),
        lambda db: db.execute(*add(db.tenant, "a")),  # prepared for the first time
        lambda db: db.execute(*add(db.tenant, "b")),
        lambda db: db.batch([add(db.tenant, "c"), Statement(ALL), Statement(COUNT)]),
    ):
        for view in (notes, other):  # the tenant changes each time
            trips.clear()
            runner(view, kind)(work)
            assert len(trips) == 1


def test_transaction_sends_begin_with_the_first_statement(
    run: Run, tenant: str, trips: list[RoundTrip]
) -> None:
    async def work(db: Db) -> None:
        async with db.transaction() as tx:
            await tx.execute(*add(tenant, "a"))
            await tx.execute(*add(tenant, "b"))

    run(work)
    assert [trip.statements[0] for trip in trips] == ["BEGIN", ADD, "COMMIT"]


def test_empty_transaction_sends_nothing(run: Run, trips: list[RoundTrip]) -> None:
    async def work(db: Db) -> None:
        async with db.transaction():
            pass

    run(work)
    assert trips == []


def test_transaction_rolls_back_what_raises(run: Run, tenant: str) -> None:
    async def work(db: Db) -> None:
        with pytest.raises(KeyError):
            async with db.transaction() as tx:
                await tx.execute(*add(tenant, "a"))
                assert await tx.fetch_one(COUNT) == (1,)
                raise KeyError("mine")
        assert await db.fetch_one(COUNT) == (0,)

    run(work)


def test_transaction_with_a_swallowed_error_says_that_it_kept_nothing(run: Run, tenant: str) -> None:
    async def work(db: Db) -> None:
        with pytest.raises(DatabaseError, match="nothing was committed") as caught:
            async with db.transaction() as tx:
                await tx.execute(*add(tenant, "a"))
                with pytest.raises(ConflictError):
                    await tx.execute(*add(tenant, "a"))
                with pytest.raises(DatabaseError, match="run the transaction again"):
                    await tx.fetch_one(COUNT)
        assert caught.value.sqlstate == "25P02"
        assert await db.fetch_one(COUNT) == (0,)

    run(work)


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_transaction_isolation_and_read_only(run: Run, tenant: str, isolation: str) -> None:
    levels = Query(
        "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
    )

    async def work(db: Db) -> None:
        async with db.transaction(isolation=isolation, read_only=True) as tx:
            assert await tx.fetch_one(levels) == (isolation, "on")
            with pytest.raises(DatabaseError, match="read-only"):
                await tx.execute(*add(tenant, "a"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(work)


def test_transaction_refuses_an_isolation_it_does_not_know(notes: Database) -> None:
    with pytest.raises(InvalidInputError, match="repeatable read"):
        notes.blocking.transaction(isolation="chaos; DROP TABLE x")


def test_integers_of_any_size_share_a_plan(notes: Database, run: Run) -> None:
    for number in (1, 40_000, 5_000_000_000, -1):
        assert run(lambda db, n=number: db.fetch_one(ONE, {"a": "x", "b": n})) == ("x", number)
    with pytest.raises(InvalidInputError, match="cannot be sent"):
        run(lambda db: db.fetch_one(ONE, {"a": "x", "b": 2**63}))


@pytest.mark.parametrize("bad", ["nul\0", "\ud800", object()], ids=["NUL", "surrogate", "object"])
def test_value_that_cannot_be_sent_changes_nothing(run: Run, tenant: str, bad: object) -> None:
    with pytest.raises(InvalidInputError):
        run(
            lambda db: db.batch(
                [add(tenant, "a"), Statement(ADD, {"tenant": tenant, "id": "b", "body": bad})]
            )
        )
    assert run(lambda db: db.fetch_one(COUNT)) == (0,)


def test_missing_and_misplaced_parameters_are_named(notes: Database) -> None:
    db = notes.blocking
    with pytest.raises(TypeError, match="'b'"):
        run_sync(db.fetch_all(ONE, {"a": "x"}))
    with pytest.raises(TypeError, match="by name"):
        run_sync(db.fetch_all(ONE, ("x", 1)))
    with pytest.raises(TypeError, match="2 parameters"):
        run_sync(db.fetch_all(Query("SELECT %s::text, %s::text"), ("x",)))
    with pytest.raises(ValueError, match="%%"):
        run_sync(db.fetch_all(Query("SELECT 10 % 3")))


def test_statements_beyond_the_limit_are_forgotten_on_the_server_too(
    connected: Callable[..., Database],
) -> None:
    database = connected(pool_size=1, max_overflow=0)
    run = runner(database, "blocking")
    for n in range(MAX_PREPARED + 20):
        run(lambda db, n=n: db.fetch_one(Query(f"SELECT {n}::int8 + %(a)s"), {"a": 1}))
    (kept,) = run(lambda db: db.fetch_one(Query("SELECT count(*) FROM pg_prepared_statements")))
    assert kept <= MAX_PREPARED + 1
    assert run(lambda db: db.fetch_one(Query("SELECT 0::int8 + %(a)s"), {"a": 1})) == (1,)


def test_a_statement_that_fails_is_prepared_once(connected: Callable[..., Database]) -> None:
    run = runner(connected(pool_size=1, max_overflow=0, prepare_threshold=0), "blocking")
    divide = Query("SELECT 1 / %(by)s::int8")
    for _ in range(5):
        with pytest.raises(DatabaseError, match="division by zero"):
            run(lambda db: db.batch([Statement(ONE, {"a": "x", "b": 1}), Statement(divide, {"by": 0})]))
    assert run(lambda db: db.fetch_one(divide, {"by": 1})) == (1,)
    look = Query("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT 1 / %%'")
    assert run(lambda db: db.fetch_one(look)) == (1,)


@pytest.mark.parametrize(("threshold", "uses", "prepared"), [(None, 9, 0), (0, 1, 1), (3, 3, 0), (3, 4, 1)])
def test_prepare_threshold(
    connected: Callable[..., Database], threshold: int | None, uses: int, prepared: int
) -> None:
    run = runner(connected(pool_size=1, max_overflow=0, prepare_threshold=threshold), "blocking")
    for _ in range(uses):
        run(lambda db: db.fetch_one(ONE, {"a": "x", "b": 1}))
    look = Query("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT $1::text%%'")
    assert run(lambda db: db.fetch_one(look)) == (prepared,)


def test_plan_overtaken_by_ddl_is_made_anew(notes: Database, run: Run) -> None:
    star = Query("SELECT * FROM haive.changing")
    with notes.connect() as conn:
        conn.execute("DROP TABLE IF EXISTS haive.changing")
        conn.execute("CREATE TABLE haive.changing AS SELECT 1 AS a")
        conn.execute("GRANT SELECT ON haive.changing TO PUBLIC")
        assert run(lambda db: db.fetch_all(star)) == [(1,)]
        conn.execute("ALTER TABLE haive.changing ADD COLUMN b int DEFAULT 2")
        assert run(lambda db: db.fetch_all(star)) == [(1, 2)]


def test_many_threads_share_a_pool(connected: Callable[..., Database]) -> None:
    database = connected(pool_size=3, max_overflow=2)
    together = threading.Barrier(16)

    def work(n: int) -> list[Any]:
        together.wait()
        return [run_sync(database.blocking.fetch_one(ONE, {"a": str(n), "b": i})) for i in range(30)]

    with ThreadPoolExecutor(16) as threads:
        for n, rows in enumerate(threads.map(work, range(16))):
            assert rows == [(str(n), i) for i in range(30)]
    assert database._core.pools.blocking().slots.open <= 5


async def test_many_tasks_share_a_pool(connected: Callable[..., Database]) -> None:
    db = connected(pool_size=3, max_overflow=2).asynchronous
    rows = await asyncio.gather(*(db.fetch_one(ONE, {"a": "x", "b": n}) for n in range(100)))
    assert rows == [("x", n) for n in range(100)]


async def test_blocking_works_inside_a_running_loop(notes: Database) -> None:
    assert run_sync(notes.blocking.fetch_one(ONE, {"a": "x", "b": 1})) == ("x", 1)


async def test_blocking_driver_refuses_what_really_suspends(notes: Database) -> None:
    with pytest.raises(RuntimeError, match="asynchronous"):
        run_sync(notes.asynchronous.fetch_one(ONE, {"a": "x", "b": 1}))


def test_hook_is_told_what_time_and_rows(run: Run, tenant: str, trips: list[RoundTrip]) -> None:
    run(lambda db: db.batch([add(tenant, "a"), Statement(Query("SELECT generate_series(1, 3)"))]))
    (trip,) = trips
    assert {ADD, "SELECT generate_series(1, 3)"} <= set(trip.statements)
    assert trip.rows == 3
    assert 0 < trip.milliseconds < 10_000


def test_tenant_views_share_pools_and_check_the_name(notes: Database) -> None:
    other = notes.for_tenant("someone")
    assert (other.tenant, other.blocking.tenant) == ("someone", "someone")
    assert other.blocking.for_tenant("third").tenant == "third"
    assert run_sync(other.blocking.fetch_one(WHO))[0] == "someone"
    for bad in ("", "a\0b", "x" * 256, "\ud800", 5):
        with pytest.raises(InvalidIdentifierError):
            notes.for_tenant(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("tenant", ["o'brien", "a\\b", 'quo"te', "ünïcode ☃", "%s", "; DROP TABLE x", " "])
def test_any_text_may_be_a_tenant(notes: Database, kind: str, tenant: str) -> None:
    run = runner(notes.for_tenant(tenant), kind)
    run(lambda db: db.execute(*add(tenant, kind)))
    assert (tenant, kind, "text") in run(lambda db: db.fetch_all(ALL))
    assert run(lambda db: db.fetch_one(WHO))[0] == tenant


def test_transaction_goes_on_after_a_value_that_could_not_be_sent(run: Run, tenant: str) -> None:
    async def work(db: Db) -> None:
        async with db.transaction() as tx:
            for _ in range(2):  # before anything was sent, and after
                with pytest.raises(InvalidInputError):
                    await tx.execute(ADD, {"tenant": tenant, "id": "nul\0", "body": ""})
                await tx.execute(ADD, {"tenant": tenant, "id": str(_), "body": ""})
            assert await db.fetch_one(COUNT) == (0,)
        assert await db.fetch_one(COUNT) == (2,)

    run(work)


async def test_transaction_does_one_thing_at_a_time(notes: Database) -> None:
    async with notes.asynchronous.transaction() as tx:
        with pytest.raises(RuntimeError, match="one by one"):
            await asyncio.gather(tx.fetch_one(WHO), tx.fetch_one(WHO))


async def test_dropped_transaction_keeps_nothing(notes: Database, tenant: str) -> None:
    async def work() -> None:
        async with notes.asynchronous.transaction() as tx:
            await tx.execute(*add(tenant, "a"))
            await asyncio.sleep(60)

    coroutine = work()
    pool = await notes.asynchronous.pool()  # type: ignore[attr-defined]
    coroutine.send(None)
    before = pool.slots.open
    coroutine.close()
    assert pool.slots.open <= before
    assert await notes.asynchronous.fetch_one(COUNT) == (0,)


@pytest.mark.parametrize("megabytes", [1, 8])
def test_large_values_go_both_ways_at_once(run: Run, tenant: str, megabytes: int) -> None:
    """A pipeline that is written without being read deadlocks when both directions are full."""
    body = "x" * (megabytes << 20)
    back = Query("SELECT %(body)s::text")
    statements = [Statement(back, {"body": body}), add(tenant, "a", body), Statement(ALL)] * 1
    answers = run(lambda db: db.batch([*statements, *statements[::2]]))
    assert [len(rows) for rows in answers] == [1, 0, 1, 1, 1]
    assert answers[2] == [(tenant, "a", body)]


def test_copy_is_refused_and_leaves_the_pool_whole(notes: Database, run: Run) -> None:
    with pytest.raises(psycopg.NotSupportedError):
        run(lambda db: db.execute(Query("COPY haive.note TO STDOUT")))
    assert run(lambda db: db.fetch_one(ONE, {"a": "x", "b": 1})) == ("x", 1)


def test_citus_is_told_in_every_transaction(
    connected: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    look = session_setup._look
    monkeypatch.setattr(session_setup, "_look", lambda *given: look(*given)._replace(citus=True))
    database = connected()
    trips: list[RoundTrip] = []
    database.hooks.append(trips.append)
    assert run_sync(database.blocking.fetch_one(WHO))[0] == "default"
    begin, propagate, search_path, role, tenant, _, commit = trips[0].statements
    assert (begin, propagate, commit) == (
        "BEGIN",
        "SET LOCAL citus.propagate_set_commands = 'local'",
        "COMMIT",
    )
    assert search_path == "SET LOCAL search_path = pg_catalog, pg_temp"
    assert role.startswith("SET LOCAL ROLE ")
    assert tenant == "SET LOCAL haive.tenant = 'default'"


@pytest.mark.parametrize("numbers", [[0], [2**60, 0], [-1], [1, None, -(2**62)]])
def test_lists_of_any_numbers_follow_one_another(database: Database, numbers: list[int | None]) -> None:
    query = Query("SELECT %(numbers)s::bigint[]")
    for sent in ([0], numbers, [2**40], numbers):
        assert run_sync(database.blocking.fetch_all(query, {"numbers": sent})) == [(sent,)]
