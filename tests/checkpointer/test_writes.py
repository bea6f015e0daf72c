"""Pending writes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from haive_persistence import errors
from haive_persistence.checkpointer import Checkpointer, writes
from haive_persistence.checkpointer.ids import thread_key
from haive_persistence.checkpointer.storage import piece_numbers
from tests.builders import make_checkpoint, store, thread, values_of


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


def test_a_task_may_have_no_id(saver: Checkpointer, new_saver: Any) -> None:
    config = store(saver, {"a": 1})
    saver.put_writes(config, [("a", 2)], "")
    assert new_saver().get_tuple(config).pending_writes == [("", "a", 2)]


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


def test_a_value_that_fills_its_part_of_the_block_goes_on_in_another(
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


def test_a_checkpoint_that_is_put_again_beside_others_is_replaced(saver: Checkpointer) -> None:
    """Statements that share a round trip insert without ON CONFLICT: whoever finds its row stored is sent again alone."""
    configs = [store(saver, {"n": 0}, thread(f"t{number}")) for number in range(12)]
    found = [saver.get_tuple(config) for config in configs]

    def put_again(number: int) -> None:
        checkpoint: Any = found[number].checkpoint  # type: ignore[union-attr]
        changed = {**checkpoint, "channel_values": {"n": number}}
        saver.put(thread(f"t{number}"), changed, {"step": number}, checkpoint["channel_versions"])  # type: ignore[arg-type]
        store(saver, {"n": -number}, configs[number])

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(put_again, range(12)))
    for number, config in enumerate(configs):
        again = saver.get_tuple(config)
        assert again is not None
        assert again.checkpoint["channel_values"] == {"n": number}
        assert again.metadata["step"] == number  # type: ignore[typeddict-item]
        assert len(list(saver.list(thread(f"t{number}")))) == 2
