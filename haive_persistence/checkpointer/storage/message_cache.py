"""What was decoded once and is handed out again: messages as copies, immutable values as they are.

Pure: no database. Decoding a message takes several times as long as copying it, and what two snapshots
hand out must share nothing that can be changed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

import ormsgpack
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    ChatMessageChunk,
    FunctionMessage,
    FunctionMessageChunk,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    SystemMessageChunk,
    ToolMessage,
    ToolMessageChunk,
)

from haive_persistence.codec.model_builder import SET_EXTRA, SET_FIELDS, SET_FIELDS_SET, SET_PRIVATE

MESSAGE_CLASSES: frozenset[type] = frozenset(
    {
        AIMessage,
        AIMessageChunk,
        ChatMessage,
        ChatMessageChunk,
        FunctionMessage,
        FunctionMessageChunk,
        HumanMessage,
        HumanMessageChunk,
        RemoveMessage,
        SystemMessage,
        SystemMessageChunk,
        ToolMessage,
        ToolMessageChunk,
    }
)
_IMMUTABLE = frozenset({str, int, float, bool, type(None), bytes})


# Exact for everything msgpack knows by itself; anything else makes packb raise, and the message is
# then compared by its whole serialised form.
_EXACT = (
    ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_UUID
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_TUPLE
)


def message_key(message: BaseMessage, *, without_id: bool = False) -> bytes | None:
    """The exact contents of a message's fields, type by type; None if it holds foreign objects.

    `without_id`: as they would be without an id.
    """
    extra = message.__pydantic_extra__
    fields = {**message.__dict__, "id": None} if without_id else message.__dict__
    try:
        return ormsgpack.packb([fields, extra] if extra else fields, option=_EXACT)
    except (TypeError, ValueError):
        return None


def are_immutable(values: Iterable[Any]) -> bool:
    """Whether values may be handed out again and again as they are."""
    return all(type(value) in _IMMUTABLE for value in values)


def _copy_plain(value: Any) -> Any:
    kind = type(value)
    if kind is list:
        return [_copy_plain(v) for v in value]
    if kind is dict:
        return {k: _copy_plain(v) for k, v in value.items()}
    return value


def _copier(value: Any) -> Callable[[Any], Any] | None:
    """How to copy a field so that the copy shares nothing mutable; None if there is no safe way."""
    kind = type(value)
    if kind is not list and kind is not dict:
        return None
    parts = list(value) if kind is list else list(value.values())
    if are_immutable(parts):
        return kind.copy
    if all(type(p) in _IMMUTABLE or _copier(p) is not None for p in parts):
        return _copy_plain
    return None


class _Shape:
    """What messages have in common that are copied together."""

    __slots__ = ("cls", "complete", "dicts", "lists")

    def __init__(
        self, cls: type[BaseMessage], dicts: tuple[str, ...], lists: tuple[str, ...], complete: bool
    ) -> None:
        self.cls = cls
        self.dicts = dicts  # names of the fields that are empty dicts
        self.lists = lists  # and empty lists
        self.complete = complete  # whether all fields are set, and no others


_shapes: dict[tuple[Any, ...], _Shape] = {}


class CachedMessage:
    """A decoded message that is handed out as copies only."""

    __slots__ = ("extra", "fields", "others", "shape", "special", "was_set")

    def __init__(self, message: BaseMessage, mutable: Mapping[str, Callable[[Any], Any]]) -> None:
        self.fields = fields = vars(message)
        self.was_set = message.__pydantic_fields_set__
        self.extra = message.__pydantic_extra__
        self.others = [(name, copier) for name, copier in mutable.items() if fields[name]]
        shape = (
            type(message),
            tuple(name for name in mutable if fields[name] == {}),
            tuple(name for name in mutable if fields[name] == []),
            self.was_set == type(message).model_fields.keys(),
        )
        self.shape = _shapes.get(shape) or _shapes.setdefault(shape, _Shape(*shape))
        self.special = bool(self.others or self.extra or self.extra is None or not self.shape.complete)

    @classmethod
    def of(cls, message: Any) -> CachedMessage | None:
        """None when the message holds something that cannot be copied safely."""
        if type(message) not in MESSAGE_CLASSES or message.__pydantic_private__ is not None:
            return None
        mutable: dict[str, Callable[[Any], Any]] = {}
        for name, value in message.__dict__.items():
            if type(value) in _IMMUTABLE:
                continue
            copier = _copier(value)
            if copier is None:
                return None
            mutable[name] = copier
        extra = message.__pydantic_extra__
        if extra and (_copier(extra) is None):
            return None
        return cls(message, mutable)


class _Group:
    """The messages of one shape in a run: where they stand, and their fields."""

    __slots__ = ("fields", "places", "shape", "special")

    def __init__(self, shape: _Shape) -> None:
        self.shape = shape
        self.places: list[int] = []
        self.fields: list[dict[str, Any]] = []
        self.special: list[tuple[int, CachedMessage]] = []  # place in this group

    def add(self, place: int, original: CachedMessage) -> None:
        if original.special:
            self.special.append((len(self.places), original))
        self.places.append(place)
        self.fields.append(original.fields)


class Run:
    """A run of messages, to be copied again and again: whole, or its beginning.

    A history of 50 snapshots of 2000 messages is 100,000 copies, most of its time. They are made field by
    field for all messages of a shape, so that most of the work is done outside of Python's interpreter.
    """

    def __init__(self, messages: Sequence[CachedMessage]) -> None:
        self.length = len(messages)
        groups: dict[_Shape, _Group] = {}
        for place, original in enumerate(messages):
            group = groups.get(original.shape)
            if group is None:
                group = groups[original.shape] = _Group(original.shape)
            group.add(place, original)
        self._groups = list(groups.values())

    def copies(self, ids: Sequence[str | None] | None = None, length: int | None = None) -> list[Any]:
        """Copies that share nothing with other values, with the ids passed for them, which replace their own.

        Messages of one list share the set with the names of the fields that are set, where that is all of
        them: nothing a message does can change what the set says of another.
        """
        length = self.length if length is None else length
        out: list[Any] = [None] * length
        for group in self._groups:
            count = bisect_left(group.places, length)
            if count:
                _copy_group(group, count, ids, out)
        return out


def _copy_group(group: _Group, count: int, ids: Sequence[str | None] | None, out: list[Any]) -> None:
    shape = group.shape
    whole = count == len(group.places)
    places = group.places if whole else group.places[:count]
    fields = list(map(dict.copy, group.fields if whole else group.fields[:count]))
    for name in shape.dicts:
        for own in fields:
            own[name] = {}
    for name in shape.lists:
        for own in fields:
            own[name] = []
    if ids is not None:
        for own, place in zip(fields, places, strict=True):
            if (id_ := ids[place]) is not None:
                own["id"] = id_
    copies = list(map(_NEW, repeat(shape.cls, count)))
    _each(map(SET_FIELDS, copies, fields))
    _each(map(SET_FIELDS_SET, copies, repeat(set(shape.cls.model_fields))))
    _each(map(SET_EXTRA, copies, [{} for _ in fields]))
    _each(map(SET_PRIVATE, copies, repeat(None)))
    for at, original in group.special:
        if at >= count:
            break
        for name, copier in original.others:
            fields[at][name] = copier(fields[at][name])
        if not shape.complete:
            SET_FIELDS_SET(copies[at], set(original.was_set))
        if original.extra or original.extra is None:
            SET_EXTRA(copies[at], _copy_plain(original.extra))
    for place, copy in zip(places, copies, strict=True):
        out[place] = copy


_NEW = object.__new__
_each = deque[None](maxlen=0).extend
