"""What each operation costs in round trips, and that nothing waits for another's."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from langgraph.store.base import GetOp, ListNamespacesOp, PutOp, SearchOp

from haive_persistence.db import Database, Query
from haive_persistence.db.protocol import run_sync
from haive_persistence.errors import DatabaseError, InvalidIdentifierError, UnavailableError
from haive_persistence.store import PostgresStore
from tests.builders import LETTERS

GETS = [GetOp((f"n{no}", "deep"), f"k{no}") for no in range(100)]
PUTS = [PutOp((f"n{no}", "deep"), f"k{no}", {"no": no}, ttl=10) for no in range(100)]
DELETES = [PutOp((f"m{no}",), f"k{no}", None) for no in range(100)]
SEARCHES = [SearchOp((f"n{no}",), {"no": no}) for no in range(10)]
LISTS = [ListNamespacesOp(), ListNamespacesOp(max_depth=1)]


async def test_a_put_that_nobody_waits_for_is_not_done_later(
    connected: Callable[..., Database], tenant: str
) -> None:
    database = connected(pool_size=1, max_overflow=0).for_tenant(tenant)
    store = PostgresStore(database)
    await store.aput(("n",), "k", {"v": "first"})
    async with database.asynchronous.transaction() as all_there_are:
        await all_there_are.fetch_one(Query("SELECT 1"))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(store.aput(("n",), "k", {"v": "given up"}), 0.1)
    await store.aput(("n",), "other", {})
    found = await store.aget(("n",), "k")
    assert found is not None
    assert found.value == {"v": "first"}


def find_nothing(store: PostgresStore) -> None:
    """The first read that finds nothing asks whether the tenant has a key."""
    assert store.get(("nothing",), "here") is None


@pytest.mark.parametrize(
    "ops",
    [
        GETS[:1],
        GETS,
        PUTS[:1],
        PUTS,
        DELETES,
        PUTS + DELETES,
        SEARCHES,
        LISTS,
        GETS + PUTS + DELETES + SEARCHES + LISTS,
    ],
    ids=[
        "get",
        "100 gets",
        "put",
        "100 puts",
        "deletes",
        "puts and deletes",
        "searches",
        "listings",
        "everything",
    ],
)
@pytest.mark.parametrize("blocking", [True, False])
async def test_a_batch_is_one_round_trip(
    store: PostgresStore, trips: list[Any], ops: list[Any], blocking: bool
) -> None:
    store.batch(PUTS)  # items with a ttl, so that reads refresh
    find_nothing(store)
    await store.abatch(GETS[:1])  # connects
    trips.clear()
    results = store.batch(ops) if blocking else await store.abatch(ops)
    assert len(results) == len(ops)
    assert len(trips) == 1


def test_statements_do_not_grow_with_the_batch(store: PostgresStore, trips: list[Any]) -> None:
    find_nothing(store)
    store.batch(GETS + PUTS + DELETES)
    about_the_session = ("BEGIN", "SET ", "COMMIT")
    assert len([text for text in trips[-1].statements if not text.startswith(about_the_session)]) == 3


def test_vectors_cost_no_more_than_two(database: Database, trips: list[Any]) -> None:
    store = PostgresStore(database, index=LETTERS)  # type: ignore[arg-type]
    store.put(("n",), "first", {"text": "looks for the table"})
    find_nothing(store)
    trips.clear()
    store.batch([PutOp(("n",), str(no), {"text": f"text {no}"}) for no in range(50)])
    assert len(trips) == 1
    trips.clear()
    store.batch([SearchOp(("n",), query=f"text {no}") for no in range(10)] + GETS)
    assert len(trips) == 1
    trips.clear()
    store.batch([SearchOp(("n",), query="text"), PutOp(("n",), "new", {"text": "x"}), GetOp(("n",), "first")])
    assert len(trips) == 2
    trips.clear()
    store.put(("n",), "k", {"no text": 1})
    store.search(("n",))
    store.get(("n",), "k")
    assert len(trips) == 3


async def test_calls_of_one_tick_share_a_round_trip(store: PostgresStore, trips: list[Any]) -> None:
    await store.aput(("n",), "k", {"v": 0})
    find_nothing(store)
    trips.clear()
    await asyncio.gather(*(store.aput(("n",), f"k{no}", {"v": no}) for no in range(50)))
    assert len(trips) == 1
    trips.clear()
    items = await asyncio.gather(*(store.aget(("n",), f"k{no}") for no in range(-1, 50)))
    assert items[0] is None
    assert [item.value["v"] for item in items[1:] if item] == list(range(50))
    assert len(trips) == 1
    trips.clear()
    results = await asyncio.gather(
        store.aget(("n",), "k1"),
        store.asearch(("n",), filter={"v": 7}),
        store.abatch([GetOp(("n",), "k2"), PutOp(("n",), "k2", {"v": 200}), GetOp(("n",), "nope")]),
        store.alist_namespaces(),
        store.aput(("n",), "k3", {"v": 300}),
    )
    assert len(trips) == 2  # what only reads waits for no writer
    assert results[0].value == {"v": 1}  # type: ignore[union-attr]
    assert [item.key for item in results[1]] == ["k7"]
    assert results[2][0].value == {"v": 2}  # type: ignore[union-attr]
    assert results[3] == [("n",)]


async def test_the_last_put_of_a_tick_counts(store: PostgresStore) -> None:
    await asyncio.gather(*(store.aput(("n",), "k", {"v": no}) for no in range(1200)))
    item = await store.aget(("n",), "k")
    assert item is not None
    assert item.value == {"v": 1199}


@pytest.fixture
def refusing(sql: Callable[..., Any]) -> Iterator[None]:
    """The server refuses one key."""
    sql("ALTER TABLE haive.store_item ADD CONSTRAINT refused CHECK (key <> 'bad')")
    yield
    sql("ALTER TABLE haive.store_item DROP CONSTRAINT refused")


async def test_one_calls_error_is_not_anothers(store: PostgresStore, refusing: None) -> None:
    await store.aput(("n",), "before", {})
    results = await asyncio.gather(
        store.aput(("n",), "good", {"v": 1}),
        store.aput(("n",), "bad", {}),
        store.aget(("n",), "before"),
        store.aget(("n",), "no key\0"),
        return_exceptions=True,
    )
    assert results[0] is None
    assert isinstance(results[1], DatabaseError)
    assert results[1].sqlstate == "23514"
    assert getattr(results[2], "key", None) == "before"
    assert isinstance(results[3], InvalidIdentifierError)
    assert store.get(("n",), "good") is not None
    assert store.get(("n",), "bad") is None


async def test_a_server_that_is_away_is_asked_once(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    async def away(way: Any, batch: Any) -> Any:
        asked.append(len(batch.results))
        raise UnavailableError("away")

    monkeypatch.setattr(store._engine, "run", away)
    results = await asyncio.gather(*(store.aget(("n",), str(no)) for no in range(9)), return_exceptions=True)
    assert all(isinstance(result, UnavailableError) for result in results)
    assert asked == [9]


async def test_who_gives_up_does_not_keep_others(store: PostgresStore) -> None:
    await store.aput(("n",), "k", {"v": 1})
    gone = asyncio.ensure_future(store.aget(("n",), "k"))
    kept = asyncio.ensure_future(store.aget(("n",), "k"))
    await asyncio.sleep(0)
    gone.cancel()
    assert (await kept) is not None
    with pytest.raises(asyncio.CancelledError):
        await gone


def test_stores_work_in_loop_after_loop(store: PostgresStore) -> None:
    for no in range(3):
        asyncio.run(store.aput(("n",), str(no), {"no": no}))
    assert len(asyncio.run(store.asearch(("n",)))) == 3


def test_sweeping_is_one_round_trip(store: PostgresStore, trips: list[Any]) -> None:
    store.sweep_ttl()
    trips.clear()
    run_sync(store._engine.sweep(store._engine.blocking))
    assert len(trips) == 1


async def test_a_locked_item_holds_up_no_other_call_of_the_tick(
    database: Database, dsn: str, tenant: str
) -> None:
    config = dataclasses.replace(database.config, lock_timeout=0.3)
    patient = Database(config).for_tenant(tenant)
    store = PostgresStore(patient)
    await asyncio.gather(*(store.aput(("n",), key, {"n": 1}) for key in ("locked", "other")))
    with psycopg.connect(dsn) as conn:
        conn.execute(
            "SELECT FROM haive.store_item WHERE tenant_id = %s AND key = 'locked' FOR UPDATE", (tenant,)
        )
        read = asyncio.create_task(store.aget(("n",), "other"))
        writes = [asyncio.create_task(store.aput(("n",), key, {"n": 2})) for key in ("locked", "other")]
        await asyncio.wait([read], timeout=0.25)
        assert read.done(), "a read waited for a writer"
        results = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["TimedOutError", "NoneType"]
    assert (await store.aget(("n",), "other")).value == {"n": 2}  # type: ignore[union-attr]
    await patient.aclose()
