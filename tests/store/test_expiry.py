"""Items expire to the second, are not shown from then on, and are swept."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest
from langgraph.store.base import GetOp, PutOp, SearchOp, TTLConfig

from haive_persistence.db import Database
from haive_persistence.store import PostgresStore

Sql = Callable[..., list[tuple[Any, ...]]]

LEFT = """
SELECT key, extract(epoch FROM expires_at - updated_at)::float8
FROM haive.store_item WHERE tenant_id = %(tenant)s
"""
AGE = """
UPDATE haive.store_item SET expires_at = now() + %(by)s::interval
WHERE tenant_id = %(tenant)s AND key = ANY(%(keys)s)
"""
EXPIRES = """
SELECT expires_at > now() + interval '5 minutes'
FROM haive.store_item WHERE tenant_id = %(tenant)s AND key = %(key)s
"""


@pytest.mark.parametrize("minutes", [0.4, 1 / 3, 1, 1e-6, 60 * 24 * 365, 1e10])
def test_minutes_are_kept_exactly(store: PostgresStore, sql: Sql, minutes: float) -> None:
    """The incumbent rounds to whole minutes: an item of 0.4 minutes expired when it was first read."""
    store.put(("n",), "k", {}, ttl=minutes)
    ((_, seconds),) = sql(LEFT)
    assert seconds == pytest.approx(minutes * 60, abs=2e-6, rel=1e-9)


def test_reading_refreshes_to_the_same_time_again(store: PostgresStore, sql: Sql) -> None:
    store.put(("n",), "k", {}, ttl=0.4)
    sql(AGE, by="10 seconds", keys=["k"])
    assert store.get(("n",), "k") is not None
    ((_, seconds),) = sql(LEFT.replace("updated_at", "now()"))
    assert 20 < seconds <= 24


@pytest.fixture
def aged(store: PostgresStore, sql: Sql) -> PostgresStore:
    """Items 'live' and 'lasting' (an hour each, about to end), 'gone' and 'for ever'."""
    store.batch([PutOp(("n",), key, {"k": key}, ttl=60) for key in ("live", "lasting", "gone")])
    store.put(("n",), "for ever", {"k": "for ever"})
    sql(AGE, by="1 minute", keys=["live", "lasting"])
    sql(AGE, by="-1 second", keys=["gone"])
    return store


def test_what_has_expired_is_not_there(aged: PostgresStore) -> None:
    assert aged.get(("n",), "gone") is None
    assert {item.key for item in aged.search(("n",))} == {"live", "lasting", "for ever"}
    assert aged.search(("n",), filter={"k": "gone"}) == []


@pytest.mark.parametrize("ttl", [{"omit_expired": False}, {"omit_expired": True}, {}])
def test_it_is_there_until_swept_for_who_wants_it(aged: PostgresStore, ttl: TTLConfig) -> None:
    """LangGraph's `omit_expired` defaults to False; ours has to be said."""
    store = PostgresStore(aged.database, ttl=ttl)
    shown = ttl.get("omit_expired") is False
    assert (store.get(("n",), "gone", refresh_ttl=False) is not None) is shown
    assert (len(store.search(("n",), filter={"k": "gone"}, refresh_ttl=False)) == 1) is shown
    store.put(("old",), "k", {}, ttl=0)
    assert (("old",) in store.list_namespaces()) is shown
    assert store.sweep_ttl() == 2
    assert store.get(("n",), "gone") is None


def test_pages_are_full_without_it(aged: PostgresStore, sql: Sql) -> None:
    sql("UPDATE haive.store_item SET updated_at = now() WHERE tenant_id = %(tenant)s AND key = 'gone'")
    assert len(aged.search(("n",), limit=3)) == 3


@pytest.mark.parametrize("read", ["get", "search", "batch"])
def test_reads_refresh_what_they_return(aged: PostgresStore, sql: Sql, read: str) -> None:
    if read == "get":
        aged.get(("n",), "live")
        aged.get(("n",), "gone")
    elif read == "search":
        aged.search(("n",), filter={"k": {"$ne": "lasting"}})
    else:
        aged.batch(
            [
                GetOp(("n",), "live"),
                GetOp(("n",), "lasting", False),
                GetOp(("n",), "gone"),
                GetOp(("n",), "?"),
            ]
        )
    assert sql(EXPIRES, key="live") == [(True,)]
    assert sql(EXPIRES, key="lasting") == [(False,)]
    assert sql(EXPIRES, key="gone") == [(False,)]
    assert sql(EXPIRES, key="for ever") == [(None,)]


def test_reads_need_not_refresh(aged: PostgresStore, database: Database, sql: Sql) -> None:
    aged.get(("n",), "live", refresh_ttl=False)
    aged.search(("n",), refresh_ttl=False)
    PostgresStore(database, ttl={"refresh_on_read": False}).search(("n",))
    assert sql(EXPIRES, key="live") == [(False,)]
    PostgresStore(database, ttl={"refresh_on_read": False}).get(("n",), "live", refresh_ttl=True)
    assert sql(EXPIRES, key="live") == [(True,)]


def test_defaults_and_no_expiry(database: Database, sql: Sql) -> None:
    store = PostgresStore(database, ttl={"default_ttl": 10})
    assert store.supports_ttl
    store.put(("n",), "default", {})
    store.put(("n",), "own", {}, ttl=2.5)
    store.put(("n",), "none", {}, ttl=None)
    assert dict(sql(LEFT)) == {"default": 600, "own": 150, "none": None}
    store.put(("n",), "own", {}, ttl=None)
    assert dict(sql(LEFT))["own"] is None


def test_what_takes_the_place_of_an_expired_item_is_new(aged: PostgresStore, sql: Sql) -> None:
    before = dict(sql("SELECT key, created_at FROM haive.store_item WHERE tenant_id = %(tenant)s"))
    aged.batch([PutOp(("n",), "gone", {}), PutOp(("n",), "live", {})])
    after = dict(sql("SELECT key, created_at FROM haive.store_item WHERE tenant_id = %(tenant)s"))
    assert after["live"] == before["live"]
    assert after["gone"] > before["gone"]


def test_a_read_does_not_wait_for_a_writer(aged: PostgresStore, dsn: str, tenant: str) -> None:
    with psycopg.connect(dsn) as holder:
        holder.execute("SELECT FROM haive.store_item WHERE tenant_id = %s FOR UPDATE", (tenant,))
        assert aged.get(("n",), "live") is not None
        assert len(aged.search(("n",))) == 3


def test_sweeping(aged: PostgresStore, sql: Sql, trips: list[Any]) -> None:
    assert aged.sweep_ttl() == 1
    assert len(trips) == 1
    assert sql("SELECT count(*) FROM haive.store_item WHERE tenant_id = %(tenant)s") == [(3,)]
    assert aged.sweep_ttl() == 0


async def test_sweeping_asynchronously(aged: PostgresStore) -> None:
    assert await aged.asweep_ttl() == 1
    assert await aged.sweep_ttl() == 0


def test_sweeping_in_parts_and_by_several(store: PostgresStore, database: Database, sql: Sql) -> None:
    store.batch([PutOp(("n",), str(no), {}, ttl=1) for no in range(3500)])
    sql("UPDATE haive.store_item SET expires_at = now() WHERE tenant_id = %(tenant)s")
    swept: list[int] = []
    threads = [
        threading.Thread(target=lambda: swept.append(PostgresStore(database).sweep_ttl())) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(swept) + store.sweep_ttl() == 3500


def test_a_sweep_leaves_other_tenants_alone(aged: PostgresStore) -> None:
    assert aged.for_tenant("somebody else").sweep_ttl() == 0
    assert aged.sweep_ttl() == 1


def _wait_for(swept: threading.Event) -> None:
    assert swept.wait(20)


class Watched(PostgresStore):
    """Tells when it sweeps."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.swept = threading.Event()

    def sweep_ttl(self) -> Any:
        deleted = super().sweep_ttl()
        self.swept.set()
        return deleted


def test_the_sweeper_sweeps_until_it_is_stopped(database: Database, aged: PostgresStore, sql: Sql) -> None:
    store = Watched(database, ttl={"sweep_interval_minutes": 0.0005})  # type: ignore[typeddict-item]
    handle = store.start_ttl_sweeper()
    assert isinstance(handle, Future)
    assert store.start_ttl_sweeper() is handle
    _wait_for(store.swept)
    assert sql("SELECT count(*) FROM haive.store_item WHERE tenant_id = %(tenant)s") == [(3,)]
    assert store.stop_ttl_sweeper(timeout=20)
    assert handle.result(timeout=1) is None
    assert store.stop_ttl_sweeper()
    again = store.start_ttl_sweeper(sweep_interval_minutes=0.0005)
    assert again is not handle
    store.swept.clear()
    _wait_for(store.swept)
    store.close()
    assert again.done()


def test_cancelling_stops_the_sweeper(database: Database) -> None:
    store = Watched(database, ttl={})
    assert store.start_ttl_sweeper().done()  # without ttl= there is nothing to do
    store = Watched(database, ttl={"default_ttl": 1})
    handle = store.start_ttl_sweeper(sweep_interval_minutes=100)
    assert handle.cancel()
    assert store.stop_ttl_sweeper(timeout=20)


def test_the_sweeper_survives_a_server_that_is_away(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Watched(database, ttl={"default_ttl": 1})
    fails = iter([OSError("away")])

    def sweep(way: Any) -> Any:
        for error in fails:
            raise error
        return real(way)

    real = store._engine.sweep
    monkeypatch.setattr(store._engine, "sweep", sweep)
    with caplog.at_level(logging.ERROR, "haive_persistence.store"):
        store.start_ttl_sweeper(sweep_interval_minutes=0.0005)
        _wait_for(store.swept)
    store.close()
    assert "could not sweep" in caplog.text


def test_the_sweeper_ends_with_its_store(database: Database) -> None:
    store = Watched(database, ttl={"default_ttl": 1})
    handle = store.start_ttl_sweeper(sweep_interval_minutes=100)
    del store
    gc.collect()
    assert handle.result(timeout=20) is None


async def test_the_sweeper_may_be_awaited(database: Database) -> None:
    async with Watched(database, ttl={"default_ttl": 1}) as store:
        handle = await store.start_ttl_sweeper(sweep_interval_minutes=100)
        assert not handle.done()
        assert await store.stop_ttl_sweeper()


def test_two_batches_that_refresh_the_same_items_do_not_deadlock(aged: PostgresStore, sql: Sql) -> None:
    aged.batch([PutOp(("n",), str(no), {}, ttl=60) for no in range(50)])
    forward = [GetOp(("n",), str(no)) for no in range(50)]
    errors: list[BaseException] = []

    def read(ops: list[Any]) -> None:
        try:
            for _ in range(30):
                assert None not in aged.batch(ops)
        except BaseException as error:
            errors.append(error)

    works = [forward, forward[::-1], [SearchOp(("n",), limit=100)]]
    threads = [threading.Thread(target=read, args=(ops,)) for ops in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]


def test_closing_a_store_stops_its_views_sweepers(database: Database) -> None:
    store = PostgresStore(database, ttl={"default_ttl": 1})
    view = store.for_tenant("another")
    sweeping = view.start_ttl_sweeper(60)
    store.close()
    assert sweeping.done()
