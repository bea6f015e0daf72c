"""Messages that were decoded once and are handed out as copies. Pure: no database.

Decoding a message takes several times as long as copying it, and what two snapshots hand out must share
nothing that can be changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

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
from pydantic import BaseModel

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
_new = object.__new__
_IMMUTABLE = frozenset({str, int, float, bool, type(None), bytes})


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
    if all(type(p) in _IMMUTABLE for p in parts):
        return kind.copy
    if all(type(p) in _IMMUTABLE or _copier(p) is not None for p in parts):
        return _copy_plain
    return None


class Original:
    """A decoded message that is handed out as copies only."""

    __slots__ = ("recipe",)

    def __init__(self, message: BaseMessage, mutable: Mapping[str, Callable[[Any], Any]]) -> None:
        fields = vars(message)
        names = frozenset(message.__pydantic_fields_set__)
        self.recipe: _Recipe = (
            type(message),
            fields,
            tuple(name for name in mutable if fields[name] == {}),
            tuple(name for name in mutable if fields[name] == []),
            tuple((name, copier) for name, copier in mutable.items() if fields[name]),
            _interned.setdefault(names, names),
            names >= type(message).model_fields.keys(),
            message.__pydantic_extra__,
        )

    @classmethod
    def of(cls, message: Any) -> Original | None:
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


# Class, fields, names of empty dicts, of empty lists, other mutable fields and how to copy them, names of
# the fields that are set, whether that is all of them, extra attributes.
_Recipe = tuple[
    type[BaseMessage],
    dict[str, Any],
    tuple[str, ...],
    tuple[str, ...],
    tuple[tuple[str, Callable[[Any], Any]], ...],
    frozenset[str],
    bool,
    "dict[str, Any] | None",
]
_interned: dict[frozenset[str], frozenset[str]] = {}  # one for each class: looking it up compares nothing
Sets = dict[frozenset[str], set[str]]


def copies(
    originals: Iterable[Original], given: Iterable[tuple[str, int] | None], sets: Sets
) -> Iterator[Any]:
    """Copies that share nothing with other values, with the ids they are given.

    A history of 50 snapshots of 2000 messages is 100,000 copies: this loop is most of its time. The
    messages of one list share `sets`, which have the names of the fields that are set. Where that is all
    of them nothing a message does can change what the set says of another, and a set for each would
    take as long as all the rest.
    """
    for original, id_ in zip(originals, given, strict=True):
        cls, fields, dicts, lists, others, names, complete, extra = original.recipe
        copy = _new(cls)
        fields = fields.copy()
        if id_ is not None:
            fields["id"] = id_[0]
        for name in dicts:
            fields[name] = {}
        for name in lists:
            fields[name] = []
        for name, copier in others:
            fields[name] = copier(fields[name])
        _SET_FIELDS(copy, fields)
        if not complete:
            _SET_FIELDS_SET(copy, set(names))
        elif names in sets:
            _SET_FIELDS_SET(copy, sets[names])
        else:
            _SET_FIELDS_SET(copy, sets.setdefault(names, set(names)))
        _SET_EXTRA(copy, _copy_plain(extra) if extra else extra if extra is None else {})
        _SET_PRIVATE(copy, None)
        yield copy


_SET_FIELDS = BaseModel.__dict__["__dict__"].__set__
_SET_FIELDS_SET = BaseModel.__dict__["__pydantic_fields_set__"].__set__
_SET_EXTRA = BaseModel.__dict__["__pydantic_extra__"].__set__
_SET_PRIVATE = BaseModel.__dict__["__pydantic_private__"].__set__
