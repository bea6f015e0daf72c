"""Ids of threads, namespaces and checkpoints: which are taken, and how they sort."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base.id import uuid6

from haive_persistence import errors
from haive_persistence.checkpointer import Checkpointer
from haive_persistence.checkpointer.ids import decode_id, encode_id
from tests.builders import make_checkpoint, store, thread, values_of


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


def test_keys_that_are_no_utf8_and_long_namespaces(saver: Checkpointer, new_saver: Any) -> None:
    ns = "|".join(f"research_subagent:{uuid.uuid4()}" for _ in range(40))
    values = {"odd": {"\ud800": [HumanMessage("x" * 100)]}}
    store(saver, values, thread(ns=ns))
    assert new_saver().get_tuple(thread(ns=ns)).checkpoint["channel_values"] == values


def test_a_namespace_of_none_is_none_given(saver: Checkpointer) -> None:
    store(saver, {"n": 1}, thread(ns="inner"))
    config = store(saver, {"n": 2})
    config["configurable"]["checkpoint_ns"] = None
    assert values_of(saver, config) == {"n": 2}
    assert len(list(saver.list({"configurable": {"thread_id": "t", "checkpoint_ns": None}}))) == 2


@pytest.mark.parametrize("length", range(13, 18))
def test_an_id_sorts_before_what_it_begins(saver: Checkpointer, length: int) -> None:
    short = "checkpoint-00000000"[:length]
    ids = [short, short + "\x01", short + "0", short + "00", short + "ü"]
    assert [decode_id(encode_id(id_)) for id_ in ids] == ids
    for no, id_ in enumerate(ids):
        checkpoint = make_checkpoint({"n": no}, id=id_)
        saver.put(thread(), checkpoint, {}, checkpoint["channel_versions"])  # type: ignore[arg-type]
    assert values_of(saver) == {"n": len(ids) - 1}
    assert [t.checkpoint["id"] for t in saver.list(thread())] == ids[::-1]
