"""Values whose class this process may not build: plain data that carries its stored bytes.

A state type may be unknown where its state is read: its module was never imported, an allow-list
refuses it, its constructor would have to run. What comes back then behaves as the plain data it was
stored as (a dict, a list, text, a message, …) and is stored again as the object it was.
Unchanged it goes back byte for byte; changed in place, with the changed data under the same class.
`docs/design/0005-unbuilt-values.md` says why.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import ormsgpack
from langchain_core.messages.ai import AIMessage
from langchain_core.messages.base import BaseMessage
from langchain_core.messages.human import HumanMessage
from langchain_core.messages.system import SystemMessage
from langchain_core.messages.tool import ToolMessage
from langgraph.checkpoint.serde.jsonplus import EXT_NUMPY_ARRAY, EXT_PYDANTIC_V2
from pydantic import ConfigDict, PrivateAttr

from haive_persistence.codec.model_builder import SET_EXTRA, SET_FIELDS, SET_FIELDS_SET, SET_PRIVATE


class Slice:
    """A part of other bytes, which it keeps alive; compared, copied and pickled as the bytes it is."""

    __slots__ = ("_start", "_stop", "_whole")

    def __init__(self, whole: bytes, start: int, stop: int) -> None:
        self._whole, self._start, self._stop = whole, start, stop

    def __bytes__(self) -> bytes:
        return self._whole[self._start : self._stop]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (bytes, Slice)) and bytes(self) == bytes(other)

    def __hash__(self) -> int:
        return hash(bytes(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Slice:
        return self

    def __reduce__(self) -> Any:
        return bytes, (bytes(self),)


Stored = tuple[int, bytes | Slice]
"""An extension's code and data."""

_OPTIONS = ormsgpack.OPT_NON_STR_KEYS


class _Seen(threading.local):
    count: int = 0


_seen = _Seen()


def unbuilt_count() -> int:
    """The number of values that reads of this thread left unbuilt so far.

    A value read while this number stayed the same holds nothing unbuilt, at any depth.
    """
    return _seen.count


def count_unbuilt(count: int) -> None:
    """Add values that another thread left unbuilt for this one."""
    _seen.count += count


class Unbuilt:
    """Base of every class here but the messages. `stored` is the extension it was read from."""

    stored: Stored

    def plain(self) -> Any:
        """The data without the class it belongs to."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{type(self).__name__!r} has no attribute {name!r}: it is plain data of an object whose class "
            'was not restored; a warning of the logger "haive_persistence.codec" names it and says what to do'
        )

    def __copy__(self) -> Any:
        return _carry(type(self), self.stored, self.plain())

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made = _carry(type(self), self.stored, deepcopy(self.plain(), memo))
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _carry, (type(self), self.stored, self.plain())


class UnbuiltDict(Unbuilt, dict[Any, Any]):
    """The fields of an object whose class was not built."""

    def plain(self) -> dict[Any, Any]:
        return dict(self)

    def copy(self) -> Any:
        """A shallow copy that is stored as this one is; `dict(…)` gives plain data."""
        return self.__copy__()


class UnbuiltList(Unbuilt, list[Any]):
    """The items of an object whose class was not built."""

    def plain(self) -> list[Any]:
        return list(self)

    def copy(self) -> Any:
        """A shallow copy that is stored as this one is; `list(…)` gives plain data."""
        return self.__copy__()


class UnbuiltTuple(Unbuilt, tuple[Any, ...]):
    """The items of an object whose class was not built."""

    def plain(self) -> tuple[Any, ...]:
        return tuple(self)


class UnbuiltStr(Unbuilt, str):
    """The text of an object whose class was not built."""

    def plain(self) -> str:
        return str.__str__(self)


class UnbuiltBytes(Unbuilt, bytes):
    """The bytes of an object whose class was not built."""

    def plain(self) -> bytes:
        return bytes.__getitem__(self, slice(None))


class UnbuiltInt(Unbuilt, int):
    """The number of an object whose class was not built."""

    def plain(self) -> int:
        return int.__int__(self)


class UnbuiltFloat(Unbuilt, float):
    """The number of an object whose class was not built."""

    def plain(self) -> float:
        return float.__float__(self)


class UnbuiltValue(Unbuilt):
    """Any other value of an object whose class was not built; equal to `value`."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def plain(self) -> Any:
        return self.value

    def __eq__(self, other: object) -> bool:
        return bool(self.value == (other.value if isinstance(other, UnbuiltValue) else other))

    def __hash__(self) -> int:
        return hash(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __repr__(self) -> str:
        return repr(self.value)


# add_messages makes messages of LangChain's out of dicts: what was a message stays one. Their validators,
# which few processes need, take 10 ms to build.
_DEFERRED = ConfigDict(defer_build=True)


class UnbuiltMessage(BaseMessage):
    """A message whose own class was not built."""

    model_config = _DEFERRED
    _stored: Stored | None = PrivateAttr(None)


class UnbuiltHumanMessage(HumanMessage):
    """A human message whose own class was not built."""

    model_config = _DEFERRED
    _stored: Stored | None = PrivateAttr(None)


class UnbuiltAIMessage(AIMessage):
    """An AI message whose own class was not built."""

    model_config = _DEFERRED
    _stored: Stored | None = PrivateAttr(None)


class UnbuiltSystemMessage(SystemMessage):
    """A system message whose own class was not built."""

    model_config = _DEFERRED
    _stored: Stored | None = PrivateAttr(None)


class UnbuiltToolMessage(ToolMessage):
    """A tool message whose own class was not built."""

    model_config = _DEFERRED
    _stored: Stored | None = PrivateAttr(None)


_MESSAGES: dict[Any, type[BaseMessage]] = {
    "human": UnbuiltHumanMessage,
    "ai": UnbuiltAIMessage,
    "system": UnbuiltSystemMessage,
    "tool": UnbuiltToolMessage,
}
_MESSAGE_CLASSES = frozenset({*_MESSAGES.values(), UnbuiltMessage})
_CLASSES: dict[type, type[Unbuilt]] = {
    dict: UnbuiltDict,
    list: UnbuiltList,
    tuple: UnbuiltTuple,
    str: UnbuiltStr,
    bytes: UnbuiltBytes,
    int: UnbuiltInt,
    float: UnbuiltFloat,
}


def carry(code: int, data: bytes | Slice, payload: Any) -> Any:
    """The payload of an extension, as data that is stored as this extension again."""
    _seen.count += 1
    stored = code, data
    if code == EXT_PYDANTIC_V2 and type(payload) is dict and (message := _message(stored, payload)):
        return message
    return _carry(_CLASSES.get(type(payload), UnbuiltValue), stored, payload)


def _carry(cls: Callable[[Any], Any], stored: Stored, payload: Any) -> Any:
    made = cls(payload)
    made.stored = stored
    return made


def _message(stored: Stored, payload: dict[Any, Any]) -> BaseMessage | None:
    kind = payload.get("type")
    cls = _MESSAGES.get(kind, UnbuiltMessage) if type(kind) is str else UnbuiltMessage
    names = cls.model_fields.keys()
    if not (names <= payload.keys() and isinstance(payload["content"], (str, list))):
        return None
    message = object.__new__(cls)
    SET_FIELDS(message, {name: payload[name] for name in names})
    SET_FIELDS_SET(message, set(payload))
    SET_EXTRA(message, {name: value for name, value in payload.items() if name not in names})
    SET_PRIVATE(message, {"_stored": stored})
    return message


# --- and back to what is stored ----------------------------------------------------------------


def is_unbuilt(value: Any) -> bool:
    """True if `value` itself (not a part of it) was left unbuilt."""
    return isinstance(value, Unbuilt) or type(value) in _MESSAGE_CLASSES


def extension(value: Any, encode: Callable[[Any], bytes]) -> Any:
    """The extension that an unbuilt value is stored as; `encode` serialises plain data."""
    stored, plain = _parts(value)
    code, data = stored[0], bytes(stored[1])
    parts = ormsgpack.unpackb(data, ext_hook=ormsgpack.Ext, option=_OPTIONS)
    whole = code == EXT_NUMPY_ARRAY
    current = encode(plain)
    if current == _pack(parts if whole else parts[2]):
        return ormsgpack.Ext(code, data)
    now = ormsgpack.unpackb(current, ext_hook=ormsgpack.Ext, option=_OPTIONS)
    return ormsgpack.Ext(code, _pack(now if whole else [*parts[:2], now, *parts[3:]]))


def _parts(value: Any) -> tuple[Stored, Any]:
    if isinstance(value, Unbuilt):
        return value.stored, value.plain()
    stored = value.__pydantic_private__["_stored"]
    fields = value.__dict__ | (value.__pydantic_extra__ or {})
    return stored, fields


def _pack(value: Any) -> bytes:
    return ormsgpack.packb(value, option=_OPTIONS)
