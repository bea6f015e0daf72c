"""What the values of a state come back as."""

from __future__ import annotations

import enum
import gc
import math
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.checkpoint.serde.base import CipherProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.types import Send

from haive_persistence import errors
from haive_persistence.checkpointer import Checkpointer
from haive_persistence.codec import Codec, SafeSerializer
from haive_persistence.db import Database
from tests.builders import make_checkpoint, store, thread, values_of
from tests.codec.same import same


class Colour(str, enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    "value",
    [
        "a\x00b",
        "lone \ud800 surrogate",
        float("inf"),
        float("-inf"),
        -0.0,
        Colour.RED,
        *(2**63, 2**64 - 1, 2**64, 2**70, -(2**63), -(2**63) - 1, -(2**70)),
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
    found = list(Checkpointer(database).list(thread()))
    assert [t.checkpoint["channel_values"] for t in found] == [
        {"prompt": constant, "step": step} for step in reversed(range(20))
    ]


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


@pytest.mark.parametrize("inside", [dict, list])
def test_deep_states_are_stored(saver: Checkpointer, new_saver: Any, inside: type) -> None:
    value: Any = HumanMessage("at the bottom")
    for _ in range(100):
        value = [value] if inside is list else {"child": value}
    store(saver, {"tree": value})
    assert values_of(new_saver())["tree"] == value


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


def test_a_large_value_and_many_large_values(saver: Checkpointer, new_saver: Any) -> None:
    """The incumbent's pipeline mode hangs at 1 MiB."""
    big = {
        "one": "x" * 3_000_000,
        "many": ["y" * 100_000 + str(i) for i in range(40)],
        "bytes": b"\x00" * 2_000_000,
    }
    store(saver, big)
    assert values_of(new_saver()) == big


def test_inherited_values_keep_their_pieces_whoever_writes_next(
    new_saver: Callable[..., Checkpointer],
) -> None:
    """Each saver numbers its pieces in a block of its own, below or above those that a value has."""
    text = "".join(map(chr, range(200, 700)))
    inherited: dict[str, Any] = {
        "text": text,
        "list": [text, *range(100), HumanMessage(text, id="m"), [text * 2]],
        "dict": {"a": text, "b": {str(n): text + str(n) for n in range(70)}, "c": [text] * 3},
        "snapshot": _DeltaSnapshot([HumanMessage(text, id="n"), text]),
        "send": Send("node", {"text": text}),
        "sends": [Send("node", [text]), Send("other", {"a": [text, {"b": text}]})],
        "number": 2**70,
        "ids": [HumanMessage(text) for _ in range(5)],
    }
    config = store(new_saver(), {**inherited, "changed": 0})
    for turn in range(8):
        saver = new_saver()
        values = values_of(saver, config)
        if turn == 2:
            for number, message in enumerate(values["ids"]):
                message.id = f"id-{number}"
            inherited["ids"] = values["ids"]
        new = {"changed": f"{turn} {text}", **({"ids": values["ids"]} if turn == 2 else {})}
        left_out = turn % 2 and ("snapshot", "text")  # LangGraph leaves out what a DeltaChannel did not write
        checkpoint = make_checkpoint({**values, **new})
        for channel in left_out or ():
            del checkpoint["channel_values"][channel]
        checkpoint["channel_versions"] = dict.fromkeys([*inherited, "changed"], 1) | dict.fromkeys(
            new, turn + 2
        )
        config = saver.put(config, checkpoint, {}, dict.fromkeys(new, turn + 2))  # type: ignore[arg-type,assignment,typeddict-item]
        expected = {**inherited, **new}
        for reader in (saver, new_saver()):
            assert same({key: values_of(reader, config).get(key) for key in expected}, expected)
