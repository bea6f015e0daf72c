"""What is handed out again is a copy: equal to what decoding gives, and sharing nothing that can be changed."""

from __future__ import annotations

import copy
import dataclasses
import sys
import types
from collections import deque
from datetime import datetime, timezone
from enum import Enum
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from pydantic import BaseModel, ConfigDict, PrivateAttr

from haive_persistence.checkpointer import Checkpointer
from haive_persistence.checkpointer.storage.copies import CachedPiece, Run
from haive_persistence.checkpointer.storage.snapshots import Content
from tests.builders import store, thread


class Inner(BaseModel):
    name: str
    values: list[float] = []
    more: dict[str, Any] = {}


class Outer(BaseModel):
    inner: Inner
    inners: list[Inner] = []
    at: datetime | None = None
    note: str | None = None


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str


class Private(BaseModel):
    name: str
    _hidden: list[int] = PrivateAttr(default_factory=list)


@dataclasses.dataclass
class Data:
    name: str
    parts: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Frozen:
    names: list[str]


@dataclasses.dataclass
class Alias:
    """Its constructor keeps one object twice, and counts."""

    items: list[int]
    made = 0

    def __post_init__(self) -> None:
        type(self).made += 1
        self.same = self.items


class Point(NamedTuple):
    x: float
    parts: Any


class Colour(Enum):
    RED = "red"


leaves = (
    st.none()
    | st.integers()
    | st.text(max_size=5)
    | st.just(datetime.now(timezone.utc))
    | st.just(Colour.RED)
)
inners = st.builds(Inner, name=st.text(max_size=3), values=st.lists(st.floats(allow_nan=False), max_size=2))
values = st.recursive(
    leaves
    | inners
    | st.builds(Outer, inner=inners, inners=st.lists(inners, max_size=2))
    | st.builds(HumanMessage, content=st.text(max_size=5), id=st.none() | st.text(min_size=1, max_size=3))
    | st.builds(lambda: AIMessage("x", tool_calls=[{"name": "f", "args": {"a": [1]}, "id": "1"}])),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(st.text(max_size=3), inside, max_size=3)
        | st.builds(Data, name=st.text(max_size=3), parts=st.lists(inside, max_size=3))
        | st.builds(Point, x=st.integers(), parts=inside)
        | st.tuples(inside, inside)
    ),
    max_leaves=8,
)


def mutables(value: Any) -> set[int]:
    """The ids of all objects inside that can be changed."""
    if isinstance(value, (str, int, float, type(None), datetime, Enum)):
        return set()
    parts = value if isinstance(value, (list, tuple)) else value.values() if isinstance(value, dict) else None
    own = set() if isinstance(value, tuple) else {id(value)}
    if parts is None:
        own |= {id(vars(value))}
        parts = vars(value).values()
    return own.union(*map(mutables, parts))


def run_of(*elements: list[Any]) -> Run:
    pieces = [CachedPiece.of([], part, b"stored") for part in elements]
    assert all(pieces)
    run = Run()
    assert run.extend(list(range(len(pieces))), pieces)  # type: ignore[arg-type]
    return run


def test_a_run_grows_while_another_thread_looks_at_its_classes() -> None:
    run = run_of([HumanMessage("a")])
    looked_at = iter(run.classes)
    more = CachedPiece.of([], [AIMessage("b")], b"stored")
    assert more is not None
    assert run.extend([0, 1], [more])
    assert list(looked_at) == [HumanMessage]
    assert set(run.classes) == {HumanMessage, AIMessage}


@settings(deadline=None)
@given(st.lists(st.lists(values, min_size=1, max_size=3), min_size=1, max_size=5), st.data())
def test_copies_are_equal_and_share_nothing(parts: list[list[Any]], data: st.DataObject) -> None:
    parts = copy.deepcopy(parts, {})  # hypothesis shares what it draws
    run = run_of(*(copy.deepcopy(part) for part in parts))
    count = data.draw(st.integers(0, len(parts)))
    for numbers in (list(range(count)), list(range(len(parts)))):
        expected = [element for part in parts[: len(numbers)] for element in part]
        first, second = run.copies(numbers, {})[1], run.copies(numbers, {})[1]
        assert first == second == expected
        assert list(map(repr, first)) == list(map(repr, expected))
        assert not mutables(first) & mutables(second)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=3), values, max_size=4), st.lists(values, max_size=2))
def test_copies_of_a_checkpoint_are_equal_and_share_nothing(
    state: dict[str, Any], written: list[Any]
) -> None:
    state, written = copy.deepcopy((state, written), {})
    pending = [("task", "channel", value) for value in written]
    expected = {"id": "1", "channel_values": state}, {"step": 1}, pending
    content = Content(*copy.deepcopy(expected, {}), [])
    first, second = content.copy(), content.copy()
    assert first == second == expected
    assert repr(first) == repr(expected)
    assert not mutables(first) & mutables(second)


def test_a_dict_with_many_keys() -> None:
    rows = [{f"key {n}": {"parts": [n, [n]], "none": None} for n in range(count)} for count in (3, 100, 50)]
    run = run_of(*([row] for row in rows))
    for count in (1, 2, 3):
        first, second = (run.copies(list(range(count)), {})[1] for _ in range(2))
        assert first == second == rows[:count]
        assert not mutables(first) & mutables(second)


def test_what_is_set_and_extra_is_copied() -> None:
    (made,) = run_of([Inner(name="x")]).copies([0], {})[1]
    assert made.model_fields_set == {"name"}
    made.values = [1.0]
    (again,) = run_of([Inner(name="x")]).copies([0], {})[1]
    assert again.model_fields_set == {"name"}
    assert CachedPiece.of([], [Open(name="x", other=[1])], b"") is None
    (made,) = run_of([Open(name="x")]).copies([0], {})[1]
    made.other = 1
    assert made.model_extra == {"other": 1}
    first, second = run_of([Inner(name=name, values=[1.0], more={}) for name in "ab"]).copies([0], {})[1]
    first.model_fields_set.discard("name")
    assert second.model_dump(exclude_unset=True) == {"name": "b", "values": [1.0], "more": {}}


@pytest.mark.parametrize(
    "value", [Private(name="x"), deque([1]), {1, 2}, Alias([1]), object(), Exception("x"), bytearray(b"x")]
)
def test_what_has_other_state_is_decoded_each_time(value: Any) -> None:
    assert CachedPiece.of([], [value], b"") is None
    assert CachedPiece.of([], [{"a": [value]}], b"") is None


def test_snapshots_are_independent(saver: Checkpointer) -> None:
    state: dict[str, Any] = {
        "models": [Outer(inner=Inner(name=f"{n}"), note="x" * 90) for n in range(20)],
        "data": {f"k{n}": Data("y" * 90, [Point(n, [n])]) for n in range(20)},
        "one": Data("z" * 200, [Frozen(["a"])]),
        "alias": Alias([1, 2, 3] * 30),
    }
    store(saver, state)
    for _ in range(4):
        found = saver.get_tuple(thread())
        assert found is not None
        values = found.checkpoint["channel_values"]
        assert values == state
        values["models"][0].inner.values.append(1.0)
        values["models"].pop()
        values["data"]["k1"].parts[0].parts.append("changed")
        values["one"].parts[0].names.append("changed")
        values["alias"].items.append(0)


def test_a_class_that_was_replaced_is_not_handed_out(saver: Checkpointer) -> None:
    module = types.ModuleType("reloaded_for_the_test")
    source = (
        "import dataclasses\n@dataclasses.dataclass\nclass Thing:\n    n: int\n    text: str\n"
        "    __module__ = 'reloaded_for_the_test'\n"
    )
    sys.modules[module.__name__] = module
    try:
        exec(source, module.__dict__)
        store(
            saver,
            {"things": [module.Thing(n, "x" * 100) for n in range(20)], "one": module.Thing(1, "y" * 100)},
        )
        for _ in range(3):
            assert saver.get_tuple(thread())
        exec(source, module.__dict__)
        found = saver.get_tuple(thread())
        assert found is not None
        values = found.checkpoint["channel_values"]
        assert {type(thing) for thing in (*values["things"], values["one"])} == {module.Thing}
    finally:
        del sys.modules[module.__name__]


def test_a_run_is_not_extended_by_what_follows_elsewhere() -> None:
    run = run_of([1], [2])
    other = CachedPiece.of([], [3], b"")
    assert other is not None
    assert not run.extend([0, 7], [other])
    assert not run.extend([0, 1, 2, 3], [other])
    assert run.shared_with([0, 7]) == 1
    assert run.extend([0], [])
    assert run.extend([0, 1, 7], [other])
    assert run.copies([0, 1, 7], {})[1] == [1, 2, 3]


def test_interleaved_and_edited_lists_are_copied(saver: Checkpointer) -> None:
    """Pieces of several number ranges in one list, with edits at the front, the middle and the end."""
    config = None
    texts = [f"{n} " * 40 for n in range(70)]
    states = []
    for step, place in enumerate((0, 35, 69, 20, 21)):
        texts[place] = f"edited {step} " * 20
        states.append(
            [Data(text, [{"step": [step]}] if at == place else []) for at, text in enumerate(texts)]
        )
        config = store(saver, {"data": states[-1], "texts": list(texts)}, config)
    for _ in range(4):
        found = [t.checkpoint["channel_values"] for t in saver.list(thread())]
        assert [values["data"] for values in reversed(found)] == states
        for values in found:
            values["data"][35].parts.append("changed")
            values["data"].pop(0)
