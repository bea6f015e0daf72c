"""Messages read at once are those that are read one by one, and damage is found by that."""

from __future__ import annotations

import random
from typing import Any

import ormsgpack
import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage

from haive_persistence.codec import Codec, fast_messages
from haive_persistence.errors import DecodeError, PersistenceError

CODEC = Codec(None)
CLASSES = (HumanMessage, SystemMessage, AIMessage, ToolMessage)


def dump(*messages: Any) -> list[bytes]:
    return [CODEC.dump([message]) for message in messages]


def state(message: AnyMessage) -> Any:
    return (
        type(message),
        list(vars(message).items()),
        message.__pydantic_fields_set__,
        message.__pydantic_extra__,
        message.__pydantic_private__,
    )


def one_by_one(parts: list[bytes]) -> list[Any]:
    return [CODEC.load(part)[0] for part in parts]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_form_of_a_message(cls: Any) -> None:
    parts = [
        *dump(*(cls(**fields) for fields in fast_messages._samples(cls))),
        *dump(HumanMessage("x" * 70_000)),
    ]
    for at in range(len(parts)):
        found = CODEC.load_messages(parts[at : at + 1])
        expected = one_by_one(parts[at : at + 1])
        assert found is None or list(map(state, found)) == list(map(state, expected))
    plain = dump(*(cls(**fields) for fields in [next(iter(fast_messages._samples(cls)))] * 3))
    found = CODEC.load_messages(plain)
    assert found is not None
    assert list(map(state, found)) == list(map(state, one_by_one(plain)))


def test_many_of_several_classes() -> None:
    rng = random.Random(1)
    samples = {cls: list(fast_messages._samples(cls)) for cls in CLASSES}
    for _ in range(200):
        chosen = rng.choices(CLASSES, k=rng.randrange(1, 20))
        parts = dump(*(cls(**rng.choice(samples[cls])) for cls in chosen))
        found = CODEC.load_messages(parts)
        assert found is not None
        assert list(map(state, found)) == list(map(state, one_by_one(parts)))


def test_messages_share_nothing() -> None:
    first, second = CODEC.load_messages(dump(AIMessage("a"), AIMessage("a"))) or []
    first.tool_calls.append("changed")
    first.additional_kwargs["a"] = 1
    first.__pydantic_extra__["b"] = 2
    assert second.tool_calls == []
    assert second.additional_kwargs == {}
    assert second.__pydantic_extra__ == {}


@pytest.mark.parametrize(
    "value",
    [
        ["text"],
        [1],
        [HumanMessage("a"), HumanMessage("b")],
        [],
        {},
        HumanMessage("a"),
        None,
        b"bytes",
        [{1: 2}],
    ],
    ids=repr,
)
def test_anything_else_is_left_to_the_ordinary_way(value: Any) -> None:
    assert CODEC.load_messages([*dump(HumanMessage("a")), CODEC.dump(value)]) is None


@pytest.mark.parametrize("seed", range(30))
def test_damaged_parts_are_never_read_as_others(seed: int) -> None:
    """They give what one by one they give, or None; never an error, which would not say which part it is."""
    rng = random.Random(seed)
    parts = dump(*(rng.choice(CLASSES[:3])(f"text {i}", id=f"{i}") for i in range(8)))
    for _ in range(100):
        damaged = list(parts)
        at = rng.randrange(len(parts))
        data = bytearray(parts[at])
        where = rng.randrange(len(data))
        data[where : where + rng.randrange(2)] = rng.randbytes(rng.randrange(3))
        damaged[at] = bytes(data)
        found = CODEC.load_messages(damaged)
        if found is None:
            continue
        try:
            expected = one_by_one(damaged)
        except PersistenceError as error:
            raise AssertionError("damage was not noticed") from error
        assert list(map(state, found)) == list(map(state, expected))


def test_parts_that_make_up_for_each_other() -> None:
    """One with two objects and one with none are as many as two with one each."""
    one, other = (CODEC.dump([HumanMessage(text)])[6:] for text in ("a" * 300, "b" * 300))
    ext = extension(one + other), extension(b"")
    assert CODEC.load_messages(list(ext)) is None
    with pytest.raises(DecodeError):
        one_by_one(list(ext))


@pytest.mark.parametrize("swallowed", [False, True], ids=["two and none", "one inside another"])
def test_fields_that_make_up_for_each_other(swallowed: bool) -> None:
    """Messages whose fields hold two values in one and none, or the beginning of one, in another."""
    head = b"\x94" + b"".join(map(ormsgpack.packb, (HumanMessage.__module__, HumanMessage.__name__)))
    method = ormsgpack.packb("model_validate_json")
    fields = [ormsgpack.packb(vars(HumanMessage(text * 200))) for text in "abc"]
    begun = fields[1][: -len(b"\xa2id\xc0")] + b"\xa2id"  # what stands next is the id
    bodies = [fields[0] + fields[1], begun if swallowed else b"", fields[2]]
    parts = [extension(head + body + method) for body in bodies]
    with pytest.raises(PersistenceError):
        one_by_one(parts)
    assert CODEC.load_messages(parts) is None


def extension(payload: bytes) -> bytes:
    tag = CODEC.dump([HumanMessage("a")])[:1]
    return tag + ormsgpack.packb([ormsgpack.Ext(CODEC.dump([HumanMessage("a" * 300)])[5], payload)])


def test_a_class_without_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    key = (HumanMessage.__module__, HumanMessage.__name__)
    monkeypatch.delitem(fast_messages.BUILDERS, key)
    assert CODEC.load_messages(dump(HumanMessage("a"))) is None


def test_the_fast_way_is_proven_once(monkeypatch: pytest.MonkeyPatch) -> None:
    key = (HumanMessage.__module__, HumanMessage.__name__)
    proofs: list[Any] = []
    real = fast_messages._reason
    monkeypatch.setattr(fast_messages, "_reason", lambda *args: proofs.append(args) or real(*args))
    first = fast_messages._prove_first(key, HumanMessage, fast_messages._human)
    monkeypatch.setitem(fast_messages.BUILDERS, key, first)
    found = CODEC.load_messages(dump(*map(HumanMessage, "abc")))
    assert [message.content for message in found or []] == ["a", "b", "c"]
    assert len(proofs) == 1
