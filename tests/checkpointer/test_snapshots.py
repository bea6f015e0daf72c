"""Small checkpoints that are read again and again: what comes back is what is stored, and shares nothing."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import psycopg
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from pydantic import BaseModel

from haive_persistence import CheckpointConfig
from haive_persistence.checkpointer import Checkpointer
from haive_persistence.checkpointer.ids import thread_key
from haive_persistence.checkpointer.storage.copies import Uncopyable
from haive_persistence.checkpointer.storage.piece_index import MAX_SNAPSHOTS, ThreadLog
from haive_persistence.checkpointer.storage.snapshots import Content
from haive_persistence.codec import compress
from haive_persistence.codec.compress import decompress
from haive_persistence.db import Database
from haive_persistence.errors import DecodeError
from tests.builders import make_checkpoint, store, thread, values_of

CONFIGS = {"clear": CheckpointConfig(), "sealed": CheckpointConfig(encryption_key=bytes(range(32)))}


class Model(BaseModel):
    name: str
    parts: list[dict[str, Any]] = []


@dataclasses.dataclass
class Data:
    name: str
    models: list[Model] = dataclasses.field(default_factory=list)


class Pair(NamedTuple):
    left: int
    right: list[int]


VALUES: dict[str, Any] = {
    "messages": [HumanMessage("a", id="1"), AIMessage("b", id="2", tool_calls=[])],
    "model": Model(name="m", parts=[{"deep": [1, {"er": []}]}]),
    "data": Data("d", [Model(name=f"m{n}") for n in range(20)]),
    "pair": Pair(1, [2, 3]),
    "json": {"rows": [{"id": n, "tags": ["x"]} for n in range(12)], "none": None, "text": "text"},
    "number": 2.5,
    "bytes": b"\x00\xff",
    "empty": [],
}


def log_of(saver: Checkpointer) -> ThreadLog:
    log = saver._parts.context.cache.get(thread_key(saver._parts.context.tenant, "t").bytes)
    assert log is not None
    return log


def contents(saver: Checkpointer) -> int:
    return sum(s.content is not None for s in log_of(saver).snapshots.values())


def change(value: Any) -> None:
    """Change everything that can be changed, at any depth."""
    if isinstance(value, dict):
        for part in value.values():
            change(part)
        value["changed"] = True
    elif isinstance(value, list):
        for part in value:
            change(part)
        value.append("changed")
    elif isinstance(value, tuple):
        for part in value:
            change(part)
    elif isinstance(value, (BaseModel, Data)):
        for part in vars(value).values():
            change(part)
        value.__dict__["name"] = "changed"


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_a_reader_changes_no_other_reader_sees(database: Database, config: CheckpointConfig) -> None:
    writer, saver = (Checkpointer(database, config=config) for _ in range(2))
    first = store(writer, VALUES)
    writer.put_writes(first, [("messages", [HumanMessage("c")]), ("json", {"more": [1]})], "task")
    store(writer, {**VALUES, "number": 3}, first)
    expected = list(Checkpointer(database, config=config).list(thread()))
    for _ in range(4):
        found = list(saver.list(thread()))
        assert found == expected
        assert [list(f.checkpoint["channel_values"]) for f in found] == [list(VALUES)] * 2
        for one in found:
            change(one.checkpoint)
            change(one.metadata)
            change(one.pending_writes)
        latest = saver.get_tuple(thread())
        assert latest == expected[0]
        change(latest.checkpoint if latest else None)
    assert contents(saver) == 2


def test_pending_writes_that_come_later_are_read(saver: Checkpointer, new_saver: Callable[[], Any]) -> None:
    config = store(saver, {"n": [1]})
    for number in range(4):
        new_saver().put_writes(config, [("n", [number])], f"task {number}")
        for _ in range(3):
            found = saver.get_tuple(thread())
            assert found is not None
            assert found.pending_writes == [(f"task {n}", "n", [n]) for n in range(number + 1)]
            change(found.pending_writes)


def test_a_checkpoint_that_is_put_again_is_read_again(
    saver: Checkpointer, new_saver: Callable[[], Any]
) -> None:
    checkpoint: Any = make_checkpoint({"n": [1]})
    for n in range(3):
        checkpoint["channel_values"] = {"n": [n]}
        new_saver().put(thread(), checkpoint, {"source": "loop", "step": n}, {"n": n + 1})
        for _ in range(3):
            assert values_of(saver) == {"n": [n]}


def test_damage_is_noticed_in_what_was_read_before(
    database: Database, saver: Checkpointer, admin: psycopg.Connection[Any]
) -> None:
    store(saver, {"n": [1]})
    for _ in range(3):
        values_of(saver)
    assert contents(saver) == 1
    key = thread_key(database.tenant, "t")
    row: Any = admin.execute("SELECT body FROM haive.checkpoint WHERE thread_key = %s", [key]).fetchone()
    body = compress(decompress(row[0])[:-1], None)
    admin.execute("UPDATE haive.checkpoint SET body = %s WHERE thread_key = %s", [body, key])
    with pytest.raises(DecodeError):
        saver.get_tuple(thread())


def test_a_class_that_is_replaced_or_comes_later(saver: Checkpointer, new_saver: Callable[[], Any]) -> None:
    module = types.ModuleType("comes_later")
    source = "from pydantic import BaseModel\nclass Later(BaseModel):\n    name: str\n"
    sys.modules["comes_later"] = module
    try:
        exec(source, module.__dict__)
        store(new_saver(), {"later": module.Later(name="a")})
        del sys.modules["comes_later"]
        for _ in range(3):
            assert values_of(saver)["later"] == {"name": "a"}
        for _ in range(2):
            exec(source, module.__dict__)  # a reload: another class of the same name
            sys.modules["comes_later"] = module
            for _ in range(3):
                assert type(values_of(saver)["later"]) is module.Later
    finally:
        sys.modules.pop("comes_later", None)


def test_large_checkpoints_and_too_many_are_not_kept(saver: Checkpointer) -> None:
    config = store(saver, {"rows": [{"n": n} for n in range(1000)]})
    for _ in range(3):
        values_of(saver)
    assert contents(saver) == 0
    for n in range(MAX_SNAPSHOTS + 20):
        config = store(saver, {"n": n}, config)
    for _ in range(3):
        assert len(list(saver.list(thread()))) == MAX_SNAPSHOTS + 21
    log = log_of(saver)
    assert len(log.snapshots) == MAX_SNAPSHOTS
    assert log.bytes_held >= sum(s.size for s in log.snapshots.values())


def test_snapshots_are_evicted_with_the_pieces(saver: Checkpointer) -> None:
    store(saver, VALUES)
    for _ in range(3):
        values_of(saver)
    log = log_of(saver)
    assert contents(saver) == 1
    log.evict_payloads()
    assert not log.snapshots
    assert values_of(saver) == VALUES
    with pytest.raises(Uncopyable):
        Content({"channel_values": {"a": object()}}, {}, [], [])
