"""One process that serves many threads and many tenants: memory stays bounded, and views share it."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from langchain_core.messages import HumanMessage

from haive_persistence.checkpointer import CheckpointConfig, Checkpointer
from haive_persistence.checkpointer.ids import thread_key
from haive_persistence.checkpointer.reads import Reads
from haive_persistence.checkpointer.storage.piece_cache import ProcessCache
from haive_persistence.checkpointer.storage.piece_index import (
    MAX_CHECKPOINTS,
    Batch,
    KnownCheckpoint,
    ThreadLog,
)
from haive_persistence.codec import SafeSerializer
from haive_persistence.db import Database
from tests.builders import RoundTrips, make_checkpoint, store, thread, values_of


def test_memory_is_bounded_whatever_is_done(database: Database) -> None:
    most = 200_000
    saver = Checkpointer(database, config=CheckpointConfig(cache_bytes=most))
    cache = saver._parts.context.cache
    for number in range(150):
        config = store(saver, {"text": f"{number} " * 300}, thread(f"many {number}"))
        saver.put_writes(config, [("text", "written " * 50)], str(uuid.uuid4()))
        assert saver.get_tuple(thread(f"many {number // 2}"))
        assert cache.charged_bytes <= most
    assert 1 < len(cache) < 150
    assert cache.charged_bytes == sum(log.bytes_taken() for log in cache._logs.values())
    assert all(saver.get_tuple(thread(f"many {number}")) for number in range(150))


def test_threads_used_last_stay() -> None:
    cache = ProcessCache(10_000_000)
    logs = {key: cache.at_epoch(key, 1) for key in (b"a", b"b", b"c")}
    cache.get(b"a")
    cache.max_bytes = 2 * logs[b"a"].bytes_taken()
    cache.settle(b"c", logs[b"c"])
    assert cache.get(b"b") is None
    assert cache.get(b"a") is logs[b"a"]


def test_a_thread_with_pieces_on_their_way_is_spared_once() -> None:
    cache = ProcessCache(10_000_000)
    sending = cache.for_new_thread(b"sending")
    Batch(sending).put(sending.next_numbers[0], b"on its way")
    idle = cache.at_epoch(b"idle", 1)
    used = cache.at_epoch(b"used", 1)
    cache.max_bytes = 2 * idle.bytes_taken() + 300
    cache.settle(b"used", used)
    assert cache.get(b"idle") is None
    assert cache.get(b"sending") is sending


def test_dropping_a_thread_gives_its_memory_back() -> None:
    cache = ProcessCache(10_000_000)
    log: ThreadLog = cache.at_epoch(b"a", 1)
    log.record_pieces({1: b"x" * 1000})
    cache.settle(b"a", log)
    cache.at_epoch(b"a", 2)
    cache.drop(b"a")
    assert cache.charged_bytes == 0


def test_a_view_per_request_knows_what_the_last_one_knew(saver: Checkpointer, trips: RoundTrips) -> None:
    store(saver.for_tenant("acme"), {"messages": [HumanMessage("hello " * 100)]})
    assert trips.of(lambda: saver.for_tenant("acme").get_tuple(thread())) == 1
    assert trips.of(lambda: saver.for_tenant("acme").get_tuple(thread())) == 1
    assert saver.for_tenant("acme").for_tenant("globex").get_tuple(thread()) is None
    assert saver.get_tuple(thread()) is None


def test_views_share_one_budget_of_memory(saver: Checkpointer) -> None:
    caches = {id(saver.for_tenant(f"tenant {n}")._parts.context.cache) for n in range(50)}
    assert caches == {id(saver._parts.context.cache)}


def test_a_stricter_serialiser_shares_nothing(saver: Checkpointer) -> None:
    before = saver.for_tenant("acme")._parts.context.cache
    strict = copy.copy(saver)
    strict.serde = SafeSerializer(allowed_msgpack_modules=None)
    assert strict.for_tenant("acme")._parts.context.cache is not before
    assert saver.for_tenant("acme")._parts.context.cache is before


def test_a_process_for_each_turn_stores_no_templates_of_its_own(
    new_saver: Callable[..., Checkpointer], admin: psycopg.Connection[Any], database: Database
) -> None:
    """Each turn has one new value; the names of channels and nodes are stored by the first few processes."""
    config = thread("turns")
    counts = []
    for number in range(12):
        saver = new_saver()
        saver.get_tuple(thread("turns"))
        config = store(saver, {"text": f"{number} " * 30, "n": number}, config)
        saver.put_writes(config, [("text", "w" * 10), ("n", 1)], str(uuid.uuid4()), "~__pregel_pull, a node")
        query = "SELECT count(*) FROM haive.piece WHERE tenant_id = %s"
        counts.append(admin.execute(query, (database.tenant,)).fetchone()[0])  # type: ignore[index]
    assert counts[-1] - counts[2] <= 12


def test_a_small_thread_is_read_in_one_round_trip(
    saver: Checkpointer, new_saver: Callable[..., Checkpointer], trips: RoundTrips
) -> None:
    messages = [HumanMessage(f"{n} " * 50, id=f"m{n}") for n in range(8)]
    config = store(saver, {"messages": messages, "note": "x" * 100})
    saver.put_writes(config, [("messages", [HumanMessage("more " * 20)])], str(uuid.uuid4()))
    expected = saver.get_tuple(thread())
    for wanted in (thread(), config):
        cold = new_saver()
        assert trips.of(lambda: cold.get_tuple(wanted)) == 1  # noqa: B023
        assert cold.get_tuple(wanted) == expected


def test_listing_threads_not_read_before_takes_two_round_trips(
    saver: Checkpointer, new_saver: Callable[..., Checkpointer], trips: RoundTrips
) -> None:
    for number in range(12):
        store(saver, {"text": f"{number} " * 50}, thread(f"t{number}"))
    cold = new_saver()
    assert trips.of(lambda: list(cold.list(None, limit=10))) == 2
    assert list(cold.list(None)) == list(saver.list(None))


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_parent_that_others_push_out_of_memory_is_read_again(
    database: Database, monkeypatch: pytest.MonkeyPatch, is_stored: bool
) -> None:
    """As where a hundred subgraphs of one thread save their checkpoints at once."""
    saver = Checkpointer(database)
    parent = store(saver, {"left": "out", "n": 1})
    if not is_stored:
        parent = thread(checkpoint_id="never stored")
    get_tuple = Reads.get_tuple
    pushed: list[None] = []

    async def get_tuple_then_push(self: Reads, db: Any, config: Any) -> Any:
        found = await get_tuple(self, db, config)
        log = self._context.cache.get(thread_key(database.tenant, "t").bytes)
        if not pushed and log is not None:
            pushed.append(None)
            for no in range(MAX_CHECKPOINTS):
                log.record_checkpoint(no, b"another", KnownCheckpoint({}, {}, 0))
        return found

    monkeypatch.setattr(Reads, "get_tuple", get_tuple_then_push)
    checkpoint = make_checkpoint({"n": 2}, {"left": _version(saver, parent), "n": 10**6})
    saver = Checkpointer(database)
    pushed.clear()
    saver.put(parent, checkpoint, {}, {"n": 10**6})  # type: ignore[arg-type]
    expected = {"n": 2, "left": "out"} if is_stored else {"n": 2}
    assert values_of(Checkpointer(database)) == expected


def _version(saver: Checkpointer, config: Any) -> Any:
    found = saver.get_tuple(config)
    return found.checkpoint["channel_versions"]["left"] if found else 1
