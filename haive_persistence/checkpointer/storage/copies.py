"""Copies of decoded values, which share nothing that can be changed.

Pure: no database. Decoding a message or a model takes several times as long as copying it. No code of the
copied classes runs: an object's state is its slots of pydantic, its `__dict__` or its items, which are copied
as they are. What is none of these, or holds one object twice, is decoded each time.

Values are copied column by column: all dicts of a run at once, all objects of a class at once, so that most
of the work is done outside of Python's interpreter.
"""

from __future__ import annotations

import dataclasses
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from itertools import repeat
from operator import itemgetter
from types import GetSetDescriptorType
from typing import Any, NamedTuple
from uuid import UUID

from pydantic import BaseModel

from haive_persistence.checkpointer.storage.messages import MESSAGE_CLASSES
from haive_persistence.codec.model_builder import SET_EXTRA, SET_FIELDS, SET_FIELDS_SET, SET_PRIVATE

_IMMUTABLE = frozenset(
    {str, int, float, bool, type(None), bytes, complex, Decimal, UUID}
    | {datetime, date, time, timedelta, timezone}
)
_MAX_KINDS = 4096
_MAX_KEYS = 16  # whose parts are copied together; those of all others are too
MAX_DEPTH = 24  # containers in containers; what is deeper is decoded each time

_FIRST = itemgetter(0)


class Kind(NamedTuple):
    """A way to copy the objects of a class. `state` gives the dict or list that is all they are made of."""

    state: Callable[[Any], Any]
    make: Callable[[list[Any], Any], list[Any]]  # of copied states and what the values have in common
    common: Callable[[Any], Any] = lambda value: None


class Uncopyable(Exception):
    """A value that must be decoded each time."""


class Group:
    """The values of one kind in a column."""

    __slots__ = (
        "_common",
        "_elements",
        "_empty",
        "_kind",
        "_other_at",
        "_others",
        "_parts",
        "_spans",
        "places",
        "states",
    )

    def __init__(self, kind: Kind, common: Any, empty: tuple[tuple[Any, type], ...]) -> None:
        self._kind = kind
        self._common = common
        self._empty = empty  # keys of empty dicts and lists, in all of these values
        self._parts: dict[Any, Children] = {}  # by key, or index; of the first keys only
        self._others = Column()
        self._other_at: list[tuple[int, Any]] = []  # which state, and the key or index in it
        self._elements = Column()  # of lists that have nothing else
        self._spans: list[tuple[int, int, int]] = []  # which state, and where its elements begin and end
        self.places: list[int] = []
        self.states: list[Any] = []

    def add(self, place: int, value: Any) -> None:
        state = self._kind.state(value)
        number = len(self.states)
        if type(state) is list and state and not any(map(is_immutable, state)):
            start = self._elements.length
            for child in state:
                self._elements.add(child)
            self._spans.append((number, start, self._elements.length))
        else:
            empty = {key for key, _ in self._empty}
            for key, child in state.items() if type(state) is dict else enumerate(state):
                if key not in empty and not is_immutable(child):
                    self._add_part(number, key, child)
        self.states.append(state)
        self.places.append(place)

    def _add_part(self, number: int, key: Any, child: Any) -> None:
        if key not in self._parts and len(self._parts) < _MAX_KEYS:
            self._parts = {**self._parts, key: Children()}  # others iterate over it
        if key in self._parts:
            self._parts[key].add(number, child)
        else:
            self._others.add(child)
            self._other_at.append((number, key))

    def copies(self, count: int) -> list[Any]:
        states = list(map(type(self.states[0]).copy, self.states[:count]))
        for key, kind in self._empty:  # literals: a call of the class takes half as long again
            if kind is dict:
                for state in states:
                    state[key] = {}
            else:
                for state in states:
                    state[key] = []
        for key, children in self._parts.items():
            children.put_into(states, key)
        if self._other_at:
            others = self._others.copies(bisect_left(self._other_at, count, key=_FIRST))
            for (number, key), child in zip(self._other_at, others, strict=False):
                states[number][key] = child
        if self._spans:
            spans = self._spans[: bisect_left(self._spans, count, key=_FIRST)]
            elements = self._elements.copies(spans[-1][2]) if spans else []
            for number, start, stop in spans:
                states[number] = elements[start:stop]
        return self._kind.make(states, self._common)


class Children:
    """The parts under one key of the values in a group."""

    __slots__ = ("_column", "_numbers")

    def __init__(self) -> None:
        self._column = Column()
        self._numbers: list[int] = []  # of the values that have such a part

    def add(self, number: int, child: Any) -> None:
        self._column.add(child)
        self._numbers.append(number)

    def put_into(self, states: list[Any], key: Any) -> None:
        """Copy the parts of the first values into their copied states."""
        count = bisect_left(self._numbers, len(states))
        copied = self._column.copies(count)
        if count == len(states):
            for state, child in zip(states, copied, strict=True):
                state[key] = child
        else:
            for number, child in zip(self._numbers, copied, strict=False):
                states[number][key] = child


class Column:
    """A sequence of copyable values, to be copied again and again: whole, or its beginning.

    A history of 50 snapshots of 2000 messages is 100,000 copies, most of its time. Values may be added while
    others are copied: what is not counted yet is not looked at.
    """

    __slots__ = ("_groups", "_shared", "_values")

    def __init__(self) -> None:
        self._groups: dict[Any, Group] = {}
        self._values: list[Any] = []  # the immutable ones; None where a group has the value
        self._shared = False  # whether there are immutable ones

    @property
    def length(self) -> int:
        return len(self._values)

    def add(self, value: Any) -> None:
        if is_immutable(value):
            self._shared = True
            self._values.append(value)
            return
        kind = kind_of(type(value))
        assert kind is not None  # see `check_copyable`
        shape = (type(value), kind.common(value), _empty_parts(kind.state(value)))
        group = self._groups.get(shape)
        if group is None:
            group = self._groups[shape] = Group(kind, *shape[1:])
        group.add(self.length, value)
        self._values.append(None)

    def copies(self, length: int) -> list[Any]:
        """Copies of the first `length` values."""
        groups = list(self._groups.values())
        if len(groups) == 1 and not self._shared:
            return groups[0].copies(length) if length else []
        out = self._values[:length]
        for group in groups:
            count = bisect_left(group.places, length)
            if count:
                for place, copied in zip(group.places, group.copies(count), strict=False):
                    out[place] = copied
        return out


class CachedPiece:
    """A decoded piece: its elements (of a dict, with their keys), handed out as copies only."""

    __slots__ = ("_column", "classes", "given", "keys", "size", "stored", "values")

    def __init__(
        self,
        keys: list[Any],
        values: list[Any],
        stored: bytes,
        classes: frozenset[type],
        given: tuple[str, int] | None,
    ) -> None:
        self.keys = keys
        self.values = values
        self.given = given  # the id that the message in it got, which is not in what is stored
        self.size = len(stored)
        self.stored = stored if classes else b""  # to decode it again once they are other classes
        self.classes = classes
        self._column: Column | None = None

    @classmethod
    def of(
        cls, keys: list[Any], values: list[Any], stored: bytes, given: tuple[str, int] | None = None
    ) -> CachedPiece | None:
        """None if the values cannot be copied."""
        classes: set[type] = set()
        try:
            check_copyable(values, classes, set())
        except Uncopyable:
            return None
        return cls(keys, values, stored, frozenset(classes), given)

    def copy(self) -> Any:
        """A copy of the first value."""
        column = self._column
        if column is None:
            column = Column()
            column.add(self.values[0])
            self._column = column
        return column.copies(1)[0]


class Run:
    """Cached pieces that follow one another in a value, copied together."""

    def __init__(self) -> None:
        self.classes: frozenset[type] = frozenset()  # another one takes its place: readers iterate over it
        self._numbers: list[int] = []
        self._lock = threading.Lock()
        self._keys: list[Any] = []
        self._column = Column()
        self._ends: list[int] = []  # of each piece's values in the column
        self._given: list[tuple[str, int] | None] = []  # the id that each piece's message has here

    @property
    def pieces(self) -> int:
        return len(self._ends)

    def shared_with(self, numbers: list[int]) -> int:
        """Count the pieces of this run that these begin with."""
        own = self._numbers[: len(numbers)]
        if own == numbers[: len(own)]:
            return min(len(own), self.pieces)
        first = next(at for at, (a, b) in enumerate(zip(own, numbers, strict=False)) if a != b)
        return min(first, self.pieces)

    def extend(self, numbers: list[int], pieces: Sequence[CachedPiece]) -> bool:
        """Add what this run lacks; `pieces` are the last of these numbers. False if others follow in it."""
        with self._lock:
            known = self.pieces
            before = len(numbers) - len(pieces)
            if known < before or self._numbers[: len(numbers)] != numbers[:known]:
                return False
            self._numbers += numbers[known:]
            for piece in pieces[known - before :]:
                if not piece.classes <= self.classes:
                    self.classes |= piece.classes
                self._keys += piece.keys
                self._given.append(piece.given)
                for value in piece.values:
                    self._column.add(value)
                self._ends.append(self._column.length)
            return True

    def copies(
        self, numbers: Sequence[int], ids: Mapping[int, tuple[str, int]]
    ) -> tuple[list[Any], list[Any]]:
        """Keys and copies of the first pieces, which have these numbers; messages get their `ids`."""
        if not numbers:
            return [], []
        length = self._ends[len(numbers) - 1]
        values = self._column.copies(length)
        known = self._given[: len(numbers)]
        given = list(map(ids.get, numbers))
        if given != known:
            for end, one, other in zip(self._ends, given, known, strict=False):
                if one != other:
                    values[end - 1].__dict__["id"] = one and one[0]
        return self._keys[:length], values


# --- what can be copied


def check_copyable(value: Any, classes: set[type], seen: set[int], depth: int = 0) -> None:
    """Raise Uncopyable if a copy would run code, share something that can be changed, or need much stack.

    Adds the classes of its objects to `classes`.
    """
    cls = type(value)
    if cls in _IMMUTABLE:
        return
    if issubclass(cls, Enum):
        classes.add(cls)
        return
    kind = kind_of(cls)
    if kind is None or depth > MAX_DEPTH or id(value) in seen:  # one object twice: copies would be two
        raise Uncopyable
    if cls not in _tuples:
        seen.add(id(value))
    if cls not in _PLAIN:
        classes.add(cls)
    state = kind.state(value)
    if type(state) is dict and not all(map(is_immutable, state)):
        raise Uncopyable
    for part in state.values() if type(state) is dict else state:
        check_copyable(part, classes, seen, depth + 1)


def is_immutable(value: Any) -> bool:
    """True if a value may be handed out again and again as it is."""
    cls = type(value)
    if cls in _IMMUTABLE or issubclass(cls, Enum):
        return True
    return cls in _tuples and all(map(is_immutable, value))


def _empty_parts(state: Any) -> tuple[tuple[Any, type], ...]:
    if type(state) is not dict:
        return ()
    return tuple([(key, type(v)) for key, v in state.items() if type(v) in _EMPTY and not v])


# --- how each class is copied

_FIELDS_OF: Callable[[Any], dict[str, Any]] = BaseModel.__dict__["__dict__"].__get__
_new = object.__new__
_each = deque[None](maxlen=0).extend
_EMPTY = frozenset({list, dict})
_PLAIN = frozenset({list, dict, tuple})
_kinds: dict[type, Kind | None] = {}
_tuples: set[type] = {tuple}  # and named tuples


def kind_of(cls: type) -> Kind | None:
    try:
        return _kinds[cls]
    except KeyError:
        if len(_kinds) >= _MAX_KINDS:
            _kinds.clear()
        kind = _kinds[cls] = _classify(cls)
        return kind


def _classify(cls: type) -> Kind | None:
    if cls is list or cls is dict:
        return _CONTAINER
    if cls is tuple or (issubclass(cls, tuple) and hasattr(cls, "_fields") and not cls.__dictoffset__):
        _tuples.add(cls)
        return _tuple(cls)
    if not _is_plain_object(cls):
        return None
    if issubclass(cls, BaseModel):
        return _model(cls)
    return _dataclass(cls) if dataclasses.is_dataclass(cls) else None


def _itself(value: Any) -> Any:
    return value


def _as_they_are(states: list[Any], _: Any) -> list[Any]:
    return states


_CONTAINER = Kind(_itself, _as_they_are)


def _tuple(cls: type[tuple[Any, ...]]) -> Kind:
    def make(states: list[Any], _: Any) -> list[Any]:
        return [tuple.__new__(cls, state) for state in states]

    return Kind(list, make)


def _is_plain_object(cls: type) -> bool:
    """True if an object of the class is made of its `__dict__` (and pydantic's slots) alone."""
    new: Any = cls.__new__
    if new is not object.__new__ or hasattr(cls, "__del__"):
        return False
    slots = {name for base in cls.__mro__ if base is not BaseModel for name in _slots(base)}
    return slots <= {"__dict__", "__weakref__"} and cls.__base__ is not None and _starts_as_object(cls)


def _slots(cls: type) -> Sequence[str]:
    slots = cls.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _starts_as_object(cls: type) -> bool:
    """True unless a built-in type other than `object` is among its bases: that keeps state of its own."""
    return all(base is object or base.__flags__ & _HEAP_TYPE for base in cls.__mro__)


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement


def _dataclass(cls: type) -> Kind | None:
    slots = [base.__dict__["__dict__"] for base in cls.__mro__ if "__dict__" in base.__dict__]
    if not slots or not isinstance(slots[-1], GetSetDescriptorType):
        return None
    fields_of, set_fields = slots[-1].__get__, slots[-1].__set__

    def make(states: list[Any], _: Any) -> list[Any]:
        made: list[Any] = list(map(_new, repeat(cls, len(states))))
        _each(map(set_fields, made, states))
        return made

    return Kind(fields_of, make)


def _model(cls: type[BaseModel]) -> Kind:
    names = set(cls.model_fields)
    # A set takes as much memory as all else of a short message, so the messages of one list share it.
    # It is full: an assignment adds at most an extra's name, which `model_fields_set` of the others has too.
    share = cls in MESSAGE_CLASSES and not cls.model_config.get("validate_assignment")
    allows_extra = cls.model_config.get("extra") == "allow"

    def state(value: Any) -> dict[str, Any]:
        if value.__pydantic_private__ is not None:
            raise Uncopyable
        if (value.__pydantic_extra__ != {}) if allows_extra else (value.__pydantic_extra__ is not None):
            raise Uncopyable
        return _FIELDS_OF(value)

    def common(value: Any) -> frozenset[str] | None:
        """The fields that are set, None if all are."""
        return None if value.__pydantic_fields_set__ == names else frozenset(value.__pydantic_fields_set__)

    def make(states: list[Any], fields_set: frozenset[str] | None) -> list[Any]:
        made = list(map(_new, repeat(cls, len(states))))
        _each(map(SET_FIELDS, made, states))
        is_set: Iterator[set[str]] = repeat(set(names if fields_set is None else fields_set))
        _each(map(SET_FIELDS_SET, made, is_set if share and fields_set is None else map(set, is_set)))
        _each(map(SET_EXTRA, made, [{} for _ in states] if allows_extra else repeat(None)))
        _each(map(SET_PRIVATE, made, repeat(None)))
        return made

    return Kind(state, make, common)
