"""Values of many types, generated; and an independent idea of what is equal."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict, deque
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from pydantic import BaseModel, PrivateAttr

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    " ",
    "\n",
    ".",
    "\u4e2d\u6587",
    "\x00",
    "\ud800",
    "$type",
    "/",
    "~",
]


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Shade(str, Enum):
    RED = "red"


class Point(NamedTuple):
    x: Any
    y: Any = 0


@dataclasses.dataclass
class Item:
    name: str
    parts: Any = None


@dataclasses.dataclass
class Slotted:
    __slots__ = ("id", "value")
    id: str
    value: Any


class Model(BaseModel):
    model_config = {"extra": "allow"}
    a: Any = None
    _hidden: Any = PrivateAttr(None)

    def __eq__(self, other: object) -> bool:
        raise AssertionError("code of a state's class ran")


class Text(str):
    """A subclass with attributes of its own."""


def hidden(value: Any) -> Model:
    made = Model()
    made._hidden = value
    return made


texts = st.lists(st.sampled_from(WORDS), max_size=6).map("".join)
numbers = st.one_of(
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.0, -0.0, 1.0, math.nan, -math.nan, math.inf, -math.inf, 1 << 70, 1 << 9000, 2.0]),
)
scalars = st.one_of(
    st.none(),
    numbers,
    texts,
    st.sampled_from(
        [
            b"",
            b"abc",
            Color.RED,
            Color.BLUE,
            Shade.RED,
            Text("red"),
            Decimal("1"),
            Decimal("1.0"),
            Decimal("NaN"),
            UUID(int=1),
            UUID(int=2),
            date(2026, 1, 1),
            datetime(2026, 1, 1),
            datetime(2026, 1, 1, tzinfo=timezone.utc),
            datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
            datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
            timedelta(seconds=1),
            1 + 0j,
            range(3),
        ]
    ),
)
keys = st.one_of(
    st.sampled_from(["a", "b", "id", "$type", "1", "/~", ""]), st.integers(0, 2), st.just((1, "a"))
)
hashables = st.one_of(st.none(), st.integers(-1, 3), texts, st.sampled_from([1.5, b"x", Color.RED, (1, 2)]))


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    items = st.lists(inner, max_size=4)
    return st.one_of(
        items,
        items.map(tuple),
        items.map(deque),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(OrderedDict),
        st.frozensets(hashables, max_size=4),
        st.sets(hashables, max_size=4),
        st.builds(Point, inner, inner),
        st.builds(Item, texts, inner),
        st.builds(Slotted, texts, inner),
        st.builds(Model, a=inner),
        st.builds(Model, a=inner, b=inner),
        st.builds(hidden, inner),
    )


values = st.recursive(scalars, containers, max_leaves=12)


@st.composite
def messages(draw: st.DrawFn) -> BaseMessage:
    """A message out of few ids, kinds and words."""
    own = draw(st.sampled_from(["m1", "m2", "m3", "m4", "m5", "m6", None]))
    content = draw(st.one_of(texts, st.just([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])))
    kind = draw(st.integers(0, 2))
    if kind == 0:
        return HumanMessage(content, id=own)
    if kind == 1:
        return ToolMessage(content, id=own, tool_call_id="c1")
    call = {"name": "f", "args": {"x": draw(st.integers(0, 1))}, "id": draw(st.sampled_from(["c1", "c2"]))}
    return AIMessage(content, id=own, tool_calls=[call] * draw(st.integers(0, 2)))


rows = st.fixed_dictionaries({"id": st.integers(0, 5), "value": st.one_of(scalars, st.just([1, 2]))})
lists = st.one_of(
    st.lists(st.one_of(messages(), messages(), rows), max_size=8),
    st.lists(st.sampled_from([0, 1, True, "a", "b", (1,), (2,)]), max_size=12),
    st.lists(st.one_of(rows, values), max_size=6),
)
states = st.dictionaries(
    st.sampled_from(["messages", "x", "y", "a/b~c", "$type"]), st.one_of(values, lists), max_size=4
)


def strictly_equal(one: Any, other: Any) -> bool:
    """Equality of types and parts, written without a look at the code under test."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (one == other and math.copysign(1, one) == math.copysign(1, other)) or (
            one != one and other != other
        )
    if isinstance(one, Decimal):
        return str(one) == str(other)
    if isinstance(one, datetime):
        return repr(one) == repr(other)
    if isinstance(one, dict):
        return same_parts(tagged(one), tagged(other))
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(map(strictly_equal, one, other))
    if isinstance(one, (set, frozenset)):
        return same_parts(dict.fromkeys(map(tag, one)), dict.fromkeys(map(tag, other)))
    if isinstance(one, BaseModel):
        return all(
            strictly_equal(part(one), part(other))
            for part in (
                lambda m: m.__dict__,
                lambda m: m.__pydantic_extra__ or None,
                lambda m: m.__pydantic_private__ or None,
            )
        )
    if dataclasses.is_dataclass(one):
        return all(
            strictly_equal(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one)
        )
    return bool(one == other)


def tag(key: Any) -> Any:
    return (type(key), tuple(map(tag, key))) if isinstance(key, tuple) else (type(key), key)


def tagged(value: dict[Any, Any]) -> dict[Any, Any]:
    return {tag(key): item for key, item in value.items()}


def same_parts(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    return one.keys() == other.keys() and all(strictly_equal(one[key], other[key]) for key in one)
