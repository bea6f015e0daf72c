"""What a user of the saver relies on, operation by operation; among it each defect known of its peers."""

from __future__ import annotations

import asyncio
import enum
import gc
import itertools
import math
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.base import CipherProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from haive_persistence import errors
from haive_persistence.checkpointer import CheckpointConfig, Checkpointer, writes
from haive_persistence.checkpointer.ids import decode_id, encode_id, thread_key
from haive_persistence.checkpointer.storage import piece_numbers
from haive_persistence.codec import Codec, SafeSerializer
from haive_persistence.db import Database
from haive_persistence.db.batching.group_commit import GroupCommit
from tests.builders import RoundTrips, make_checkpoint, store, thread


class Colour(str, enum.Enum):
    RED = "red"


def values_of(saver: Checkpointer, config: Any = None) -> dict[str, Any]:
    found = saver.get_tuple(config or thread())
    assert found is not None
    return found.checkpoint["channel_values"]


# --- values


@pytest.mark.parametrize(
    "value",
    [
        "a\x00b",
        "lone \ud800 surrogate",
        float("inf"),
        float("-inf"),
        -0.0,
        Colour.RED,
        2**63,
        2**70,
        b"\x00\xff",
        "",
    ],
)
def test_values_that_break_other_savers_come_back(saver: Checkpointer, new_saver: Any, value: Any) -> None:
    store(
        saver,
        {"plain": value, "inside": {"deep": [value]}, "message": [HumanMessage(str(value)[:5], id="m")]},
    )
    for reader in (saver, new_saver()):
        found = values_of(reader)
        for read in (found["plain"], found["inside"]["deep"][0]):
            assert type(read) is type(value)
            assert read == value
            assert math.copysign(1, read) == math.copysign(1, value) if isinstance(value, float) else True


def test_nan_comes_back(saver: Checkpointer) -> None:
    store(saver, {"n": float("nan"), "in": [float("nan")]})
    found = values_of(saver)
    assert math.isnan(found["n"])
    assert math.isnan(found["in"][0])


def test_metadata_keeps_every_character(saver: Checkpointer) -> None:
    store(saver, {"a": 1}, note="with \x00 NUL", nested={"n": [1, 2.5, None]}, flag=True)
    found = saver.get_tuple(thread())
    assert found is not None
    assert found.metadata["note"] == "with \x00 NUL"  # type: ignore[typeddict-item]
    assert found.metadata["nested"] == {"n": [1, 2.5, None]}  # type: ignore[typeddict-item]


def test_a_value_that_cannot_be_stored_is_refused_and_nothing_is_kept(saver: Checkpointer) -> None:
    with pytest.raises(errors.EncodeError):
        store(saver, {"bad": object()})
    assert saver.get_tuple(thread()) is None


def test_a_constant_value_is_stored_once(saver: Checkpointer, database: Database, dsn: str) -> None:
    """The incumbent writes a 100 kB string into every checkpoint."""
    constant = "".join(chr(33 + i * 7 % 90) for i in range(100_000))
    config = thread()
    for step in range(20):
        config = store(saver, {"prompt": constant, "step": step}, config)
    with psycopg.connect(dsn) as conn:
        size = conn.execute(
            "SELECT (SELECT sum(octet_length(payload)) FROM haive.piece WHERE tenant_id = %(t)s)"
            " + (SELECT sum(octet_length(body)) FROM haive.checkpoint WHERE tenant_id = %(t)s)",
            {"t": database.tenant},
        ).fetchone()[0]
    assert size < 130_000


# --- ids


@pytest.mark.parametrize("thread_id", ["t", 7, -1, uuid.UUID(int=3), "with space/and:signs%_", "ü" * 100])
def test_thread_ids_that_users_pass(saver: Checkpointer, thread_id: Any) -> None:
    config = store(saver, {"a": 1}, thread(thread_id))
    assert config["configurable"]["thread_id"] == thread_id
    saver.put_writes(config, [("a", 2)], "task")
    assert values_of(saver, thread(thread_id)) == {"a": 1}
    assert values_of(saver, thread(str(thread_id))) == {"a": 1}
    assert len(list(saver.list(thread(thread_id)))) == 1
    listed = list(saver.list(thread(thread_id)))
    assert [type(t.config["configurable"]["thread_id"]) for t in listed] == [type(thread_id)]
    assert [t.config for t in listed] == [config]
    saver.copy_thread(thread_id, "copy")
    saver.prune([thread_id])
    saver.delete_thread(thread_id)
    assert saver.get_tuple(thread(thread_id)) is None
    assert values_of(saver, thread("copy")) == {"a": 1}


@pytest.mark.parametrize(
    "thread_id", ["", "a\x00b", "\ud800", None, 1.5, True, {"$gt": ""}, ["t"], b"t", "x" * 2000]
)
def test_thread_ids_that_are_refused(saver: Checkpointer, thread_id: Any) -> None:
    with pytest.raises(errors.InvalidIdentifierError):
        saver.get_tuple(thread(thread_id))
    with pytest.raises(errors.InvalidIdentifierError):
        store(saver, {"a": 1}, thread(thread_id))
    with pytest.raises(errors.InvalidIdentifierError):
        saver.delete_thread(thread_id)


@pytest.mark.parametrize(
    "bad",
    [
        {"checkpoint_ns": 5},
        {"checkpoint_ns": "a\x00"},
        {"checkpoint_id": {"$ne": 1}},
        {"checkpoint_id": "\ud800"},
    ],
)
def test_other_ids_that_are_refused(saver: Checkpointer, bad: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidIdentifierError):
        saver.get_tuple({"configurable": {"thread_id": "t", **bad}})


def test_a_config_without_a_thread_is_refused(saver: Checkpointer) -> None:
    with pytest.raises(errors.InvalidInputError, match="thread_id"):
        saver.get_tuple({"configurable": {}})


@pytest.mark.parametrize(
    "id_",
    [
        "1",
        "checkpoint-00001",
        "0123456789abcde",
        "ff" * 8,
        "1F1E5379-6e1b-61e6-8001-b6e4016293c2",
        str(uuid6()),
    ],
)
def test_checkpoint_ids_of_any_text(saver: Checkpointer, id_: str) -> None:
    assert decode_id(encode_id(id_)) == id_
    checkpoint = make_checkpoint({"a": 1}, id=id_)
    config = saver.put(thread(checkpoint_id="parent-1"), checkpoint, {}, {})  # type: ignore[arg-type]
    found = saver.get_tuple(config)
    assert found is not None
    assert found.checkpoint["id"] == id_
    assert found.parent_config == thread(checkpoint_id="parent-1")


def test_ids_sort_as_text_does(saver: Checkpointer) -> None:
    ids = sorted(str(uuid6(clock_seq=i)) for i in range(20))
    assert sorted(ids, key=encode_id) == ids
    words = sorted(["1", "10", "2", "a", "b", "checkpoint-00001", "checkpoint-000011", "ü"])
    assert sorted(words, key=encode_id) == words


# --- reading


def test_snapshots_share_nothing(saver: Checkpointer, new_saver: Any) -> None:
    config = thread()
    messages: list[Any] = []
    for i in range(6):
        messages = [
            *messages,
            AIMessage(f"m{i} " + "x" * 100, id=f"m{i}", additional_kwargs={"k": {"deep": [1]}}),
        ]
        config = store(saver, {"messages": messages, "files": {"a": "x" * 2000, "b": ["y" * 2000]}}, config)
    for reader in (saver, new_saver()):
        first, *rest = list(reader.list(thread()))
        broken = first.checkpoint["channel_values"]
        for message in broken["messages"]:
            message.content = "changed"
            message.additional_kwargs["k"]["deep"].append(2)
            message.response_metadata["x"] = 1
            message.tool_calls.append({"name": "n", "args": {}, "id": "i", "type": "tool_call"})
            message.mood = "good"  # LangChain's messages take any attribute
        broken["messages"].clear()
        broken["files"]["b"].append("changed")
        for found in (*rest, reader.get_tuple(thread())):
            assert found is not None
            seen = found.checkpoint["channel_values"]
            assert seen["messages"] == messages[: len(seen["messages"])]
            assert seen["files"] == {"a": "x" * 2000, "b": ["y" * 2000]}
            assert not any(hasattr(message, "mood") for message in seen["messages"])


def test_no_mutable_object_is_in_two_snapshots(saver: Checkpointer, new_saver: Any) -> None:
    config, messages = thread(), list[Any]()
    for i in range(4):
        messages = [
            *messages,
            HumanMessage(f"{i} " + "x" * 100, id=str(uuid.uuid4())),
            AIMessage([{"type": "text", "text": "y" * 100}], id=str(uuid.uuid4()), extra={"k": [i]}),
        ]
        config = store(saver, {"messages": messages, "n": {"deep": [{"er": [i]}] * 3}}, config)
    for reader in (saver, new_saver()):
        for _ in range(3):
            seen: dict[int, Any] = {}
            for found in reader.list(thread()):
                parts = mutable_parts(found.checkpoint)
                assert not seen.keys() & parts.keys()
                seen |= parts
            assert len(seen) > 100


def mutable_parts(value: Any) -> dict[int, Any]:
    """Every list, dict, set and message within a value, by identity."""
    found: dict[int, Any] = {}
    todo = [value]
    while todo:
        part = todo.pop()
        if id(part) not in found and isinstance(part, (list, dict, set, tuple, BaseMessage)):
            if not isinstance(part, tuple):
                found[id(part)] = part
            todo += gc.get_referents(part)
    return found


def test_a_message_edited_in_place_is_saved(saver: Checkpointer, new_saver: Any) -> None:
    """Messages are mutable: their identity says nothing."""
    messages = [HumanMessage(f"m{i}", id=f"m{i}") for i in range(5)]
    config = store(saver, {"messages": messages})
    messages[2].content = "edited"
    store(saver, {"messages": messages}, config)
    assert [m.content for m in values_of(new_saver())["messages"]] == ["m0", "m1", "edited", "m3", "m4"]
    assert values_of(new_saver(), config)["messages"][2].content == "m2"


def test_a_channel_that_did_not_change_keeps_its_value(saver: Checkpointer, new_saver: Any) -> None:
    """Only channels in `new_versions` changed, says LangGraph: others are what the parent has."""
    first = make_checkpoint({"a": ["x" * 2000], "b": 1})
    config = saver.put(thread(), first, {}, first["channel_versions"])  # type: ignore[arg-type]
    second = make_checkpoint({"a": ["x" * 2000], "b": 2}, {**first["channel_versions"], "b": 10**6})
    saver.put(config, second, {}, {"b": 10**6})  # type: ignore[arg-type]
    assert values_of(new_saver()) == {"a": ["x" * 2000], "b": 2}


def test_list_limits_before_and_filters(saver: Checkpointer) -> None:
    configs = [thread()]
    for step in range(150):
        configs.append(
            store(saver, {"n": step}, configs[-1], source="loop" if step % 2 else "input", score=step * 1.0)
        )
    assert [t.checkpoint["channel_values"]["n"] for t in saver.list(thread(), limit=3)] == [149, 148, 147]
    assert len(list(saver.list(thread()))) == 150
    assert [t.checkpoint["channel_values"]["n"] for t in saver.list(thread(), before=configs[3])] == [1, 0]
    assert len(list(saver.list(None, filter={"source": "loop"}))) == 75
    assert [
        t.checkpoint["channel_values"]["n"] for t in saver.list(thread(), filter={"source": "loop"}, limit=2)
    ] == [149, 147]
    assert len(list(saver.list(None, filter={"score": 9}))) == 1
    assert list(saver.list(None, filter={"source' OR 1=1 --": "x"})) == []
    assert list(saver.list(thread(), limit=0)) == []


def test_reads_of_one_thread_need_no_other(saver: Checkpointer) -> None:
    store(saver, {"a": 1}, thread("x"))
    store(saver, {"a": 2}, thread("xy"))
    store(saver, {"a": 3}, thread("x", ns="sub"))
    assert values_of(saver, thread("x")) == {"a": 1}
    assert len(list(saver.list({"configurable": {"thread_id": "x"}}))) == 2


# --- writes


def test_a_retried_write_counts_once_and_a_special_one_replaces(saver: Checkpointer, new_saver: Any) -> None:
    config = store(saver, {"a": 1})
    saver.put_writes(config, [("a", 1), ("b", 2)], "task-1", "~p, 1")
    new_saver().put_writes(config, [("a", 9), ("b", 9), ("c", 3)], "task-1", "~p, 1")
    saver.put_writes(config, [("__interrupt__", "first")], "task-2", "~p, 0")
    saver.put_writes(config, [("__interrupt__", "second")], "task-2", "~p, 0")
    found = new_saver().get_tuple(thread())
    assert found.pending_writes == [
        ("task-2", "__interrupt__", "second"),
        ("task-1", "a", 1),
        ("task-1", "b", 2),
        ("task-1", "c", 3),
    ]


def test_writes_need_a_checkpoint(saver: Checkpointer) -> None:
    with pytest.raises(errors.InvalidInputError):
        saver.put_writes(thread(), [("a", 1)], "task")


def test_writes_may_come_before_their_checkpoint(saver: Checkpointer, new_saver: Any) -> None:
    checkpoint = make_checkpoint({"a": 1})
    saver.put_writes(thread(checkpoint_id=checkpoint["id"]), [("a", ["x" * 100])], "task")
    assert saver.get_tuple(thread()) is None
    saver.put(thread(), checkpoint, {}, {})  # type: ignore[arg-type]
    found = new_saver().get_tuple(thread())
    assert found.pending_writes == [("task", "a", ["x" * 100])]


def test_a_snapshot_that_did_not_change_is_inherited(saver: Checkpointer, new_saver: Any) -> None:
    """LangGraph leaves an unwritten DeltaChannel out of the values; its version says it is the parent's."""
    first = make_checkpoint({"items": _DeltaSnapshot(["a", "b"]), "n": 1})
    config = saver.put(thread(), first, {}, first["channel_versions"])  # type: ignore[arg-type]
    second = make_checkpoint({"n": 2}, {**first["channel_versions"], "n": 10**6})
    new_saver().put(config, second, {}, {"n": 10**6})
    assert values_of(new_saver()) == {"items": _DeltaSnapshot(["a", "b"]), "n": 2}
    written = make_checkpoint({"n": 3}, {"items": 10**6 + 1, "n": 10**6 + 1})
    saver.put(thread(checkpoint_id=second["id"]), written, {}, written["channel_versions"])  # type: ignore[arg-type]
    assert values_of(new_saver()) == {"n": 3}


def test_a_serialiser_of_the_users_sees_every_value(database: Database, dsn: str) -> None:
    """It may encrypt: nothing is stored around it, however short."""
    serde = EncryptedSerializer(_Rot(), SafeSerializer())
    store(
        Checkpointer(database, serde=serde),
        {"pin": "1234secret", "list": ["1234secret"], "m": [HumanMessage("1234secret")]},
    )
    found = Checkpointer(database, serde=serde).get_tuple(thread())
    assert found is not None
    assert found.checkpoint["channel_values"]["pin"] == "1234secret"
    with psycopg.connect(dsn) as conn:
        for table, column in (("checkpoint", "body"), ("piece", "payload"), ("pending_write", "payload")):
            query = f"SELECT {column} FROM haive.{table} WHERE tenant_id = %s"
            for (data,) in conn.execute(query, (database.tenant,)):  # type: ignore[arg-type]
                assert b"1234secret" not in Codec().unpack(data, b"")


class _Rot(CipherProtocol):
    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "rot", bytes(b ^ 0x55 for b in plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        return bytes(b ^ 0x55 for b in ciphertext)


# --- round trips


def test_round_trip_budgets(saver: Checkpointer, new_saver: Any, round_trips: RoundTrips) -> None:
    messages = [HumanMessage(f"m{i} " + "x" * 300, id=f"m{i}") for i in range(100)]
    config = store(saver, {"messages": messages})
    assert round_trips.of(lambda: store(saver, {"messages": [*messages, HumanMessage("next")]}, config)) == 1
    assert round_trips.of(lambda: saver.put_writes(config, [("messages", [AIMessage("y" * 300)])], "t")) == 1
    assert round_trips.of(lambda: saver.get_tuple(thread())) == 1
    cold = new_saver()
    assert round_trips.of(lambda: cold.get_tuple(thread())) == 2
    assert round_trips.of(lambda: cold.put_writes(config, [("messages", [AIMessage("y" * 300)])], "t")) == 1
    assert round_trips.of(lambda: store(new_saver(), {"messages": messages}, thread("new"))) == 1
    assert round_trips.of(lambda: list(new_saver().list(thread(), limit=10))) == 2


def test_round_trips_of_delta_history(saver: Checkpointer, new_saver: Any, round_trips: RoundTrips) -> None:
    config = store(
        saver, {"messages": _DeltaSnapshot([HumanMessage(f"m{i} " + "x" * 99) for i in range(50)])}
    )
    for i in range(60):
        saver.put_writes(config, [("messages", [HumanMessage(f"w{i} " + "x" * 99)])], "task")
        config = store(saver, {"other": i}, config)
    history: dict[str, Any] = {}

    def read(reader: Checkpointer) -> None:
        history.update(reader.get_delta_channel_history(config=thread(), channels=["messages"]))

    assert round_trips.of(lambda: read(new_saver())) == 2
    assert len(history["messages"]["seed"].value) == 50
    assert [w[2][0].content.split()[0] for w in history["messages"]["writes"]] == [f"w{i}" for i in range(60)]
    saver.get_tuple(thread())
    assert round_trips.of(lambda: read(saver)) == 1


def test_fragmented_lists_read_in_two_round_trips(
    saver: Checkpointer, new_saver: Any, round_trips: RoundTrips
) -> None:
    messages = [HumanMessage(f"m{i} " + "x" * 100, id=f"m{i}") for i in range(300)]
    config = store(saver, {"messages": messages})
    for i in range(0, 300, 2):
        messages[i] = HumanMessage(f"edited {i} " + "x" * 100, id=f"m{i}")
        config = store(saver, {"messages": messages}, config)
    cold = new_saver()
    assert round_trips.of(lambda: cold.get_tuple(thread())) == 2
    assert values_of(cold)["messages"] == messages


@pytest.mark.parametrize("kind", [list, dict])
def test_an_empty_value_that_is_filled_in_place_is_not_what_was_put(
    saver: Checkpointer, new_saver: Any, kind: type
) -> None:
    """The channel's version did not move, so it is what it was: as with LangGraph's own savers."""
    empty: Any = kind()
    checkpoint = make_checkpoint({"notes": empty})
    config = saver.put(thread(), checkpoint, {"step": 0}, checkpoint["channel_versions"])  # type: ignore[arg-type]
    if kind is list:
        empty.append("filled")
    else:
        empty["filled"] = HumanMessage("in place")
    again = make_checkpoint({"notes": empty}, checkpoint["channel_versions"])
    saver.put(config, again, {"step": 1}, {})  # type: ignore[arg-type]
    for reader in (saver, new_saver()):
        assert [t.checkpoint["channel_values"]["notes"] for t in reader.list(thread())] == [kind()] * 2


def test_a_value_that_fills_its_part_of_the_lane_goes_on_in_another(
    saver: Checkpointer, new_saver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(piece_numbers, "_ROOM", 4)  # or it would take 65,536 parts
    config = store(saver, {"messages": [HumanMessage("without its id " * 9)]})
    config = store(saver, {"messages": [HumanMessage("without its id " * 9, id="1")]}, config)
    log = saver._parts.context.cache.get(thread_key(saver._parts.context.tenant, "t").bytes)
    assert log is not None and log.block is not None  # noqa: PT018
    log.next_numbers[piece_numbers.OTHER] = log.block + (1 << 18) - 10
    files = {f"file {i}": f"{i} " * 100 for i in range(50)}
    store(saver, {"files": files, "messages": [HumanMessage("without its id " * 9, id="1")]}, config)
    for reader in (saver, new_saver()):
        assert values_of(reader)["files"] == files
        assert [m.id for m in values_of(reader)["messages"]] == ["1"]


def test_what_a_failed_put_made_is_forgotten(saver: Checkpointer, new_saver: Any) -> None:
    config = store(saver, {"n": 1})
    messages = [HumanMessage(f"m{i} " * 50, id=str(i)) for i in range(100)]
    for _ in range(3):
        with pytest.raises(errors.EncodeError):
            store(saver, {"messages": messages, "bad": (i for i in ())}, config)
    log = saver._parts.context.cache.get(thread_key(saver._parts.context.tenant, "t").bytes)
    assert log is not None
    assert not log.unacknowledged
    store(saver, {"messages": messages}, config)
    assert values_of(new_saver())["messages"] == messages


def test_an_answer_is_later_than_the_answers_it_knows_of(
    saver: Checkpointer, new_saver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the first worker is ahead of the second's."""
    config = store(saver, {"n": 1})
    usual = time.time_ns
    monkeypatch.setattr(writes.time, "time_ns", lambda: usual() + 5_000_000_000)
    saver.put_writes(config, [("__resume__", ["one"])], "task")
    monkeypatch.undo()
    other = new_saver()
    assert other.get_tuple(config).pending_writes == [("task", "__resume__", ["one"])]
    other.put_writes(config, [("__resume__", ["one", "two"])], "task")
    assert new_saver().get_tuple(config).pending_writes == [("task", "__resume__", ["one", "two"])]


@pytest.mark.parametrize("inside", [dict, list])
def test_deep_states_are_stored(saver: Checkpointer, new_saver: Any, inside: type) -> None:
    value: Any = HumanMessage("at the bottom")
    for _ in range(100):
        value = [value] if inside is list else {"child": value}
    store(saver, {"tree": value})
    assert values_of(new_saver())["tree"] == value


def test_keys_that_are_no_utf8_and_long_namespaces(saver: Checkpointer, new_saver: Any) -> None:
    ns = "|".join(f"research_subagent:{uuid.uuid4()}" for _ in range(40))
    values = {"odd": {"\ud800": [HumanMessage("x" * 100)]}}
    store(saver, values, thread(ns=ns))
    assert new_saver().get_tuple(thread(ns=ns)).checkpoint["channel_values"] == values


def test_one_long_thread_stays_within_the_memory_it_may_have(database: Database, new_saver: Any) -> None:
    saver = Checkpointer(database, config=CheckpointConfig(cache_bytes=1_000_000))
    config = store(saver, {"n": 0})
    for i in range(200):
        text = f"{i} ".ljust(20_000, chr(97 + i % 26))
        config = store(saver, {"text": text, "messages": [HumanMessage(text, id=str(i))]}, config)
        if i % 20 == 0:
            assert values_of(saver)["text"] == text
    log = saver._parts.context.cache.get(thread_key(saver._parts.context.tenant, "t").bytes)
    assert log is not None
    assert log.bytes_taken() < 4_000_000  # it looks every 64 operations
    assert len(list(saver.list(thread()))) == 201
    assert values_of(saver) == values_of(new_saver())


def test_threads_that_made_room_for_others_are_not_stored_again(database: Database, dsn: str) -> None:
    saver = Checkpointer(database, config=CheckpointConfig(cache_bytes=0))
    messages = [HumanMessage(f"{i} ".ljust(200, "x"), id=str(i)) for i in range(100)]
    configs = [store(saver, {"messages": messages}, thread(t)) for t in "abc"]
    for n in range(50):
        configs = [store(saver, {"messages": messages, "n": n}, config) for config in configs]
    with psycopg.connect(dsn) as conn:
        sql = "SELECT count(*) FROM haive.piece WHERE tenant_id = %s AND length(payload) > 40"
        assert conn.execute(sql, [database.tenant]).fetchone() <= (3 * 110,)


def test_what_could_not_be_sent_stays_within_the_memory_it_may_have(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Checkpointer(database, config=CheckpointConfig(cache_bytes=1_000_000))
    config = store(saver, {"n": 0})
    config = store(saver, {"n": 1}, config)  # from here on it knows where it may write

    async def unreachable(*_: Any, **__: Any) -> Any:
        raise errors.UnavailableError("the database is away", sqlstate=None)

    with monkeypatch.context() as patch:
        patch.setattr(GroupCommit, "fetch_all", unreachable)
        for i in range(100):
            with pytest.raises(errors.UnavailableError):
                store(saver, {"text": f"{i} ".ljust(50_000, "x")}, config)
    for n in range(100):
        config = store(saver, {"n": n}, config)
    assert saver._parts.context.cache.get(thread_key(database.tenant, "t").bytes).bytes_taken() < 4_000_000
    assert values_of(saver) == {"n": 99}


def test_pieces_that_are_gone_are_told_of(saver: Checkpointer, new_saver: Any, dsn: str) -> None:
    config = store(saver, {"messages": [HumanMessage("x" * 200, id="m")]})
    with psycopg.connect(dsn) as conn:
        conn.execute("DELETE FROM haive.piece WHERE tenant_id = %s", [saver.database.tenant])
    for read in (
        lambda: new_saver().get_tuple(config),
        lambda: list(new_saver().list(config)),
    ):
        with pytest.raises(errors.DecodeError, match="its data is damaged"):
            read()


def test_a_channel_changed_in_place_keeps_its_value(saver: Checkpointer, new_saver: Any) -> None:
    """Whatever became of the object meanwhile, and whether or not this process knows the parent."""
    value = {"a": 1}
    for other in (saver, new_saver()):
        parent = store(saver, {"x": value})
        checkpoint = make_checkpoint({"x": {"a": "changed in place"}})
        checkpoint["channel_versions"] = saver.get_tuple(parent).checkpoint["channel_versions"]
        child = other.put(parent, checkpoint, {}, {})
        assert values_of(new_saver(), child) == {"x": value}


def test_what_cannot_be_stored_is_named_with_its_channel(saver: Checkpointer) -> None:
    itself: list[Any] = []
    itself.append(itself)
    for value in (itself, {"a": [lambda: 1]}, HumanMessage):
        with pytest.raises(errors.EncodeError, match="channel 'draft': cannot store value"):
            store(saver, {"draft": value})
    config = store(saver, {"n": 1})
    with pytest.raises(errors.EncodeError, match="channel 'draft'"):
        saver.put_writes(config, [("draft", itself)], "task")


def test_a_namespace_of_none_is_none_given(saver: Checkpointer) -> None:
    store(saver, {"n": 1}, thread(ns="inner"))
    config = store(saver, {"n": 2})
    config["configurable"]["checkpoint_ns"] = None
    assert values_of(saver, config) == {"n": 2}
    assert len(list(saver.list({"configurable": {"thread_id": "t", "checkpoint_ns": None}}))) == 2


# --- several at once


def test_a_first_put_that_is_sent_again_when_others_know_the_thread_it_made(
    saver: Checkpointer, new_saver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer is lost; before it is sent again the thread is read, added to, and deleted."""
    usual = GroupCommit.fetch_all
    messages = [HumanMessage("x" * 200, id=str(i)) for i in range(5)]
    other = new_saver()

    async def twice(self: GroupCommit, *args: Any, **options: Any) -> Any:
        monkeypatch.setattr(GroupCommit, "fetch_all", usual)
        await usual(self, *args, **options)
        store(other, {"n": 1, "messages": messages})
        new_saver().delete_thread("t")
        return await usual(self, *args, **options)

    monkeypatch.setattr(GroupCommit, "fetch_all", twice)
    store(saver, {"n": 1})
    assert values_of(new_saver()) == {"n": 1}
    store(other, {"n": 1, "messages": messages})
    assert values_of(new_saver())["messages"] == messages


def test_a_thread_made_twice_with_a_deletion_in_between(
    saver: Checkpointer, new_saver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of two first puts is slow on its way; the other made the thread, which is deleted meanwhile."""
    usual = GroupCommit.fetch_all
    held, go, calls = threading.Event(), threading.Event(), itertools.count()

    async def slow(self: GroupCommit, *args: Any, **options: Any) -> Any:
        if next(calls) == 0:
            held.set()
            go.wait(10)
        return await usual(self, *args, **options)

    monkeypatch.setattr(GroupCommit, "fetch_all", slow)
    messages = [HumanMessage("x" * 200, id=str(i)) for i in range(5)]
    first = threading.Thread(target=store, args=(saver, {"n": 1}))
    first.start()
    held.wait(10)
    store(saver, {"messages": messages})
    new_saver().delete_thread("t")
    go.set()
    first.join()
    store(saver, {"messages": messages})
    assert values_of(new_saver())["messages"] == messages


def test_a_copy_holds_the_thread_it_goes_to(saver: Checkpointer, database: Database, dsn: str) -> None:
    store(saver, {"n": 1}, thread("target"))
    key = thread_key(database.tenant, "target")
    params = {"target": key, "epoch": 1, "tenant": database.tenant, "thread_id": "target"}
    with psycopg.connect(dsn) as copying, psycopg.connect(dsn) as deleting:
        copying.execute(database.queries("checkpointer")["lock_target"].encode(), params)
        deleting.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            deleting.execute("DELETE FROM haive.thread WHERE thread_key = %s", (key,))


def test_parallel_tasks_of_one_run(saver: Checkpointer, new_saver: Any) -> None:
    config = store(saver, {"a": 1})

    def write(i: int) -> None:
        saver.put_writes(config, [("messages", [HumanMessage(f"result {i} " + "x" * 200)])], f"task-{i:02}")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(48)))
    found = new_saver().get_tuple(thread())
    assert [w[2][0].content.split()[1] for w in found.pending_writes] == [str(i) for i in range(48)]


def test_two_processes_on_one_thread(new_saver: Any) -> None:
    """Both write checkpoints and name each other's messages; neither waits for nor overwrites the other."""
    a, b = new_saver(), new_saver()
    config = store(a, {"messages": [HumanMessage("start")]})
    for i in range(30):
        writer = a if i % 2 else b
        found = writer.get_tuple(thread())
        messages = [*found.checkpoint["channel_values"]["messages"], HumanMessage(f"m{i}", id=str(i))]
        config = store(writer, {"messages": messages}, found.config)
    assert [m.content for m in values_of(new_saver(), config)["messages"]] == [
        "start",
        *(f"m{i}" for i in range(30)),
    ]


def test_writers_racing_with_prune_and_delete(new_saver: Any) -> None:
    """Whatever interleaves, a checkpoint that was acknowledged and not deleted reads back whole."""
    writer, pruner = new_saver(), new_saver()
    stop = threading.Event()
    failures: list[BaseException] = []

    def prune() -> None:
        try:
            while not stop.is_set():
                pruner.prune(["t"])
        except BaseException as exc:
            failures.append(exc)

    background = threading.Thread(target=prune)
    background.start()
    messages: list[Any] = []
    config = thread()
    try:
        for i in range(60):
            messages = [*messages, HumanMessage(f"m{i} " + "x" * 200, id=str(i))]
            config = store(writer, {"messages": messages}, config)
            writer.put_writes(config, [("messages", [AIMessage(f"w{i} " + "y" * 200)])], "task")
            found = new_saver().get_tuple(thread())
            assert found.checkpoint["channel_values"]["messages"] == messages
            assert found.pending_writes[0][2][0].content.startswith(f"w{i}")
    finally:
        stop.set()
        background.join()
    assert not failures


def test_a_thread_somebody_holds_holds_up_no_other(saver: Checkpointer, database: Database, dsn: str) -> None:
    """Writers share round trips (and the incumbent's share a lock): one that must wait does so by itself."""
    started = [store(saver, {"n": i}, thread(str(i))) for i in range(8)]

    def write(i: int) -> None:
        store(saver, {"n": -1}, started[i])
        saver.put_writes(started[i], [("n", 1)], "task")

    with ThreadPoolExecutor(12) as pool, held(dsn, database, "0") as release:
        waiting = [pool.submit(write, 0) for _ in range(3)]
        for _ in range(5):
            for done in [pool.submit(write, i) for i in range(1, 8)]:
                done.result(timeout=20)
        assert not any(one.done() for one in waiting)
        assert values_of(saver, thread("0")) == {"n": 0}
        release()
        for one in waiting:
            one.result(timeout=20)
    assert values_of(saver, thread("0")) == {"n": -1}


async def test_nor_the_tasks_of_a_loop(saver: Checkpointer, database: Database, dsn: str) -> None:
    started = [store(saver, {"n": i}, thread(str(i))) for i in range(8)]

    async def write(i: int) -> None:
        new = make_checkpoint({"n": -1})
        await saver.aput(started[i], new, {}, new["channel_versions"])  # type: ignore[arg-type]

    with held(dsn, database, "0") as release:
        waiting = [asyncio.create_task(write(0)) for _ in range(3)]
        for _ in range(5):
            await asyncio.wait_for(asyncio.gather(*(write(i) for i in range(1, 8))), 20)
        assert not any(one.done() for one in waiting)
        release()
        await asyncio.wait_for(asyncio.gather(*waiting), 20)
    assert values_of(saver, thread("0")) == {"n": -1}


@contextmanager
def held(dsn: str, database: Database, thread_id: str) -> Iterator[Callable[[], None]]:
    """Another session has locked a thread's row, as prune does."""
    with psycopg.connect(dsn) as holder:
        key = thread_key(database.tenant, thread_id)
        holder.execute("SELECT FROM haive.thread WHERE thread_key = %s FOR UPDATE", (key,))
        yield holder.rollback


def test_first_puts_of_a_thread_race(new_saver: Any) -> None:
    """Several processes make the same thread at the same moment."""
    savers = [new_saver() for _ in range(8)]
    barrier = threading.Barrier(8)

    def first(i: int) -> None:
        barrier.wait()
        store(savers[i], {"messages": [HumanMessage(f"from {i} " + "x" * 100)]}, thread(checkpoint_id=None))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(first, range(8)))
    found = list(new_saver().list(thread()))
    assert sorted(t.checkpoint["channel_values"]["messages"][0].content[:6] for t in found) == [
        f"from {i}" for i in range(8)
    ]


def test_many_threads_read_one_thread_id(new_saver: Any, switching: None) -> None:
    """They share what the process knows of it, which changes while they read and write."""
    messages = [HumanMessage(f"m{i} " + "x" * 100, id=f"m{i}") for i in range(200)]
    elsewhere = new_saver()
    config = store(elsewhere, {"messages": messages})
    for _ in range(70):  # more than a process remembers
        config = store(elsewhere, {"messages": messages}, config)
    for round in range(5):
        saver = new_saver()
        for i in range(
            round, 200, 7
        ):  # a list in many ranges: frozen, and looked through by who puts it again
            messages[i] = HumanMessage(f"edited in {round} " + "x" * 100, id=f"m{i}")
        config = store(elsewhere, {"messages": messages}, config)
        barrier = threading.Barrier(6)

        def work(number: int, saver: Checkpointer = saver, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            for _ in range(4):
                found = list(saver.list(thread()))
                assert all(len(t.checkpoint["channel_values"]["messages"]) == 200 for t in found)
                assert found[-1].checkpoint["channel_values"]["messages"][-1].content.startswith("m199")
                values = {"messages": found[0].checkpoint["channel_values"]["messages"][number:]}
                store(saver, values, thread(ns=f"task:{number}"))

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))


@pytest.fixture
def switching() -> Iterator[None]:
    """The interpreter goes from thread to thread as often as it can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def test_one_object_serves_blocking_and_async_code_together(saver: Checkpointer) -> None:
    async def both() -> None:
        config = store(saver, {"a": 1})  # blocking, inside a running loop
        found = await saver.aget_tuple(config)
        assert found is not None
        await asyncio.gather(*(saver.aput_writes(config, [("a", i)], f"task-{i}") for i in range(20)))
        assert len([t async for t in saver.alist(config)]) == 1
        await asyncio.to_thread(saver.put_writes, config, [("a", 1)], "from a thread")
        found = saver.get_tuple(config)
        assert found is not None
        assert len(found.pending_writes or []) == 21

    asyncio.run(both())
    asyncio.run(both())  # another loop, the same object


FORKS = """
import os, signal, sys, threading
from haive_persistence import Checkpointer
from tests.builders import store, thread

saver = Checkpointer(sys.argv[1])
messages = ["x" * 2000]
store(saver, {"messages": messages}, thread("shared"))
stop = threading.Event()


def write(i):
    config = thread(str(i))
    while not stop.is_set():
        config = store(saver, {"n": "y" * 100}, config)


writers = [threading.Thread(target=write, args=(i,)) for i in range(8)]
[one.start() for one in writers]
failed = 0
for i in range(15):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        config = store(saver, {"messages": [*messages, f"{i}" * 2000]}, thread("shared"))
        found = Checkpointer(sys.argv[1]).get_tuple(config)
        os._exit(found.checkpoint["channel_values"]["messages"][1] != f"{i}" * 2000)
    failed += os.waitpid(pid, 0)[1] != 0
stop.set()
[one.join() for one in writers]
print(failed)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forked_children_of_a_busy_parent(database: Database, dsn: str) -> None:
    """They write in number blocks of their own, and wait neither for the parent's locks nor for its leaders."""
    environment = {**os.environ, "HAIVE_TENANT": database.tenant}
    command = [sys.executable, "-W", "ignore", "-c", FORKS, dsn]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "0", done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="calls the C library")
def test_children_forked_without_pythons_knowledge(database: Database, dsn: str) -> None:
    """As by uWSGI, unless it is told otherwise."""
    code = """
import ctypes, os, sys
from langchain_core.messages import HumanMessage
from haive_persistence.checkpointer import Checkpointer
from tests.builders import store
saver = Checkpointer(sys.argv[1])
config = store(saver, {"n": 0})
child = ctypes.PyDLL(None).fork() == 0
who = "child" if child else "parent"
if not child:
    os.wait()
store(saver, {"messages": [HumanMessage(who * 50, id=f"{who} {i}") for i in range(6)]}, config)
os._exit(0)
"""
    environment = {**os.environ, "HAIVE_TENANT": database.tenant}
    subprocess.run([sys.executable, "-c", code, dsn], env=environment, check=True, timeout=120)
    newest, before, _ = Checkpointer(database).list(thread())
    for found, who in ((newest, "parent"), (before, "child")):
        ids = [message.id for message in found.checkpoint["channel_values"]["messages"]]
        assert ids == [f"{who} {i}" for i in range(6)]


# --- maintenance


def test_prune_keeps_what_a_paused_run_needs(saver: Checkpointer, new_saver: Any) -> None:
    config = thread()
    for i in range(10):
        config = store(
            saver, {"messages": [HumanMessage(f"m{j} " + "x" * 200, id=str(j)) for j in range(i + 1)]}, config
        )
    saver.put_writes(config, [("messages", [AIMessage("pending " + "x" * 200)])], "task")
    new_saver().prune(["t"])
    found = new_saver().get_tuple(thread())
    assert len(found.checkpoint["channel_values"]["messages"]) == 10
    assert found.pending_writes[0][2][0].content.startswith("pending")
    assert found.parent_config is None
    assert len(list(saver.list(thread()))) == 1


def test_prune_takes_the_space_of_what_it_deletes(saver: Checkpointer, database: Database, dsn: str) -> None:
    config = thread()
    for i in range(20):
        config = store(saver, {"draft": f"draft {i} " + chr(65 + i) * 5000}, config)
    saver.prune(["t"])
    with psycopg.connect(dsn) as conn:
        count = conn.execute(
            "SELECT count(*) FROM haive.piece WHERE tenant_id = %s", (database.tenant,)
        ).fetchone()[0]
    assert count <= 2


def test_wrong_arguments_are_told_apart(saver: Checkpointer) -> None:
    with pytest.raises(errors.InvalidInputError):
        saver.prune("t")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidInputError):
        saver.prune(["t"], strategy="keep_everything")
    with pytest.raises(errors.InvalidInputError):
        saver.delete_for_runs("run")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidInputError):
        saver.copy_thread("t", "t")
    with pytest.raises(errors.ConfigError):
        Checkpointer(42)  # type: ignore[arg-type]


def test_threads_of_other_tenants_do_not_exist(saver: Checkpointer) -> None:
    store(saver, {"secret": 1})
    other = saver.for_tenant("somebody else")
    assert other.get_tuple(thread()) is None
    assert list(other.list(None)) == []
    other.delete_thread("t")
    other.prune(["t"], strategy="delete")
    other.delete_for_runs(["r"])
    with pytest.raises(errors.NotFoundError):
        other.copy_thread("t", "mine")
    assert other.get_tuple(thread("mine")) is None
    assert values_of(saver) == {"secret": 1}


# --- drop-in


def test_from_conn_string_and_setup(dsn: str) -> None:
    with Checkpointer.from_conn_string(dsn) as saver:
        saver.setup()
        saver.setup()
        config = store(saver, {"a": 1}, thread("drop-in"))
        assert values_of(saver, config) == {"a": 1}

    async def asynchronous() -> None:
        async with Checkpointer.from_conn_string(dsn, pipeline=True) as saver:
            await saver.setup()
            found = await saver.aget_tuple(thread("drop-in"))
            assert found is not None

    asyncio.run(asynchronous())


def test_versions_go_on_from_an_imported_thread(saver: Checkpointer) -> None:
    assert saver.get_next_version(None, None) == 1
    assert saver.get_next_version(41, None) == 42
    imported = "00000000000000000000000000000003.0.2440990277421464"
    following = saver.get_next_version(imported, None)
    assert following > imported
    assert following.startswith("00000000000000000000000000000004.")


def test_a_large_value_and_many_large_values(saver: Checkpointer, new_saver: Any) -> None:
    """The incumbent's pipeline mode hangs at 1 MiB."""
    big = {
        "one": "x" * 3_000_000,
        "many": ["y" * 100_000 + str(i) for i in range(40)],
        "bytes": b"\x00" * 2_000_000,
    }
    store(saver, big)
    assert values_of(new_saver()) == big


def test_with_allowlist_keeps_the_database_and_hides_decoded_objects(saver: Checkpointer) -> None:
    store(saver, {"messages": [HumanMessage("x" * 100, id="m")]})
    saver.get_tuple(thread())
    clone = saver.with_allowlist([("some.module", "Type")])
    assert values_of(clone)["messages"][0].content == "x" * 100
    assert clone.database is saver.database
