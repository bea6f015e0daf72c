"""Msgpack to values, without importing anything and without calling anything but data types.

A stored object names its class. The name is looked up in modules that are already loaded; what it
finds there is built only if it is a data type, of which `data_types.py` has the list, or one of
LangGraph's safe types. Anything else comes back as its plain payload that carries its stored bytes
(`unbuilt.py`), with a warning once per type and LangGraph's `msgpack_blocked` event.
"""

from __future__ import annotations

import logging
import secrets
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import ormsgpack
from langgraph.checkpoint.serde import _msgpack as _langgraph
from langgraph.checkpoint.serde.event_hooks import emit_serde_event
from langgraph.checkpoint.serde.jsonplus import (
    EXT_CONSTRUCTOR_KW_ARGS,
    EXT_CONSTRUCTOR_POS_ARGS,
    EXT_CONSTRUCTOR_SINGLE_ARG,
    EXT_DELTA_SNAPSHOT,
    EXT_METHOD_SINGLE_ARG,
    EXT_NUMPY_ARRAY,
    EXT_PYDANTIC_V1,
    EXT_PYDANTIC_V2,
)
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from haive_persistence.codec import data_types, standard_types
from haive_persistence.codec.core_schema import CodeNeededError
from haive_persistence.codec.describing import FIELDS
from haive_persistence.codec.fast_messages import BUILDERS as _MESSAGES
from haive_persistence.codec.fast_messages import begin_value, build_all, split_messages
from haive_persistence.codec.hash_flooding import MAX_ALIKE, check_maps
from haive_persistence.codec.limits import MAX_READ_BYTES
from haive_persistence.codec.msgpack_guard import MUST_CHECK, check_counts, check_depth, is_suspicious
from haive_persistence.codec.stack import is_large
from haive_persistence.codec.standard_types import Builder, attribute
from haive_persistence.codec.unbuilt import Slice, carry
from haive_persistence.errors import DecodeError

logger = logging.getLogger("haive_persistence.codec")

AllowList = set[tuple[str, ...]] | Literal[True] | None
"""Classes that may be built beside the safe ones: those listed, any loaded data type (True), or none."""

_OPTIONS = ormsgpack.OPT_NON_STR_KEYS
_MAX_WARNINGS = 1000
_MAX_FOUND = 4096
_LARGE = 64 * 1024
_NESTABLE = 1024  # bytes; what is shorter cannot be nested deeply
_FLOODING = 2 * MAX_ALIKE  # bytes; what is shorter has no map with so many keys
_DEEP, _MAX_LISTS = 4, 32  # from this level of extensions on, only so many levels of lists in each
_MAX_LEVELS = 100  # of extensions; each takes up to 17 kB of stack
_MAX_LEVELS_IN_LARGE_STACK = 1000
_MAX_COPIES = 4  # of an extension, held while others inside it are read; or what `max_bytes` allows
_NOT_ENTERED = "ext_hook failed"  # ormsgpack's words; as the first error: no stack was left to call it

_INSTEAD = "Its plain data is returned instead, and stored again as what it was."
_TUPLE = ["builtins", "tuple"]
#: An `Item` with a score; LangGraph's safe list has `Item` only.
_SEARCH_ITEM = ("langgraph.store.base", "SearchItem")

_warned: set[tuple[str, str, str]] = set()


class Plain:
    """The payload of something that was not built."""

    __slots__ = ("payload",)

    def __init__(self, payload: Any) -> None:
        self.payload = payload


class DeepValueError(DecodeError):
    """The value needs more stack than this thread may have: read it with a large one."""


class _Frame:
    """An extension that is being read, and the place of what it holds in the outermost one."""

    __slots__ = ("carried", "cursor", "data", "start")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.cursor = 0  # what is inside it comes in order: the next one begins here or later
        self.start: int | None = 0  # in the outermost extension; None if not looked for yet
        self.carried = 0  # of the outermost: bytes of which values that were left unbuilt have copies


class _State(threading.local):
    error: BaseException | None = None  # ormsgpack drops what a hook raises: held here for `decode`
    open_bytes: int = 0  # large extensions being read, each a copy of a part of the one around it
    limit: int = 0
    any_key: bool = False  # a dict in the value that is being read has a key that is no text

    def __init__(self) -> None:
        self.frames: list[_Frame] = []  # extensions of some length being read; `decode` clears it


_state = _State()


def _enter(data: bytes, max_bytes: int) -> None:
    """Bounds what nested extensions take: each is a copy of a part of the one around it.

    Each may also hold 1,024 levels of lists, and every level takes some of the stack.
    """
    frames = _state.frames
    frames.append(_Frame(data))
    depth = len(frames)
    if depth > 1:
        frames[-1].start = None
    if depth > _DEEP:
        check_depth(data, _MAX_LISTS)
    if depth > _MAX_LEVELS:
        if not is_large():
            raise DeepValueError("stored value is nested deeply")
        if depth > _MAX_LEVELS_IN_LARGE_STACK:
            raise DecodeError(f"stored value has more than {_MAX_LEVELS_IN_LARGE_STACK} objects in objects")
    if len(data) >= _LARGE:
        if not _state.open_bytes:
            _state.limit = max(_MAX_COPIES * len(data), max_bytes)
        if _state.open_bytes + len(data) > _state.limit:
            raise DecodeError(
                f"objects in objects would take more than {_state.limit:,} bytes while they are read: "
                "if the data is not damaged, raise CheckpointConfig.max_read_bytes"
            )
        _state.open_bytes += len(data)


def _allow_any_key(data: bytes) -> None:
    """Some dict has other keys than text: from now on they are allowed, and checked, within this value."""
    _state.any_key = True
    if _state.frames:
        _state.frames[-1].cursor = 0  # it is read from its start again
    check_maps(data)


def _leave(data: bytes) -> None:
    _state.frames.pop()
    if len(data) >= _LARGE:
        _state.open_bytes -= len(data)


def _shared(data: bytes) -> bytes | Slice:
    """The bytes of an extension that is left unbuilt; a part of the outermost one's where copies add up."""
    frames = _state.frames
    if not frames or len(data) < _NESTABLE:
        return data
    outermost = frames[0]
    if outermost.carried + len(data) <= len(outermost.data):
        outermost.carried += len(data)
        return data
    start = _place(len(frames) - 1, data)
    return data if start < 0 else Slice(outermost.data, start, start + len(data))


def _place(level: int, data: bytes) -> int:
    """The place of an extension in the outermost one, or -1. The frame at `level` is the one around it."""
    frame = _state.frames[level]
    if frame.start is None:
        frame.start = _place(level - 1, frame.data)
    found = frame.data.find(data, frame.cursor)
    if found < 0 or frame.start < 0:  # something that was read while this was read
        return -1
    frame.cursor = found  # not its end: what is read just now is looked for again when it is left
    return frame.start + found


class Reader:
    """Reads msgpack under one allow-list; the object itself is the ext hook that ormsgpack calls."""

    def __init__(self, allowed: AllowList, max_bytes: int = MAX_READ_BYTES) -> None:
        self.allowed: AllowList = allowed
        self.max_bytes = max_bytes
        self._found: dict[tuple[Any, ...], tuple[Any, Builder]] = {}

    def decode(self, data: bytes) -> Any:
        """Read a value. Raises DecodeError if it is damaged, DeepValueError if it needs a large stack."""
        begin_value()
        try:
            if MUST_CHECK and is_suspicious(data):
                check_counts(data)
            if len(data) <= _FLOODING:
                return ormsgpack.unpackb(data, ext_hook=self, option=_OPTIONS)
            _state.any_key = False
            try:
                return ormsgpack.unpackb(data, ext_hook=self)
            except ormsgpack.MsgpackDecodeError:
                if _state.error is not None:
                    raise
                _allow_any_key(data)
                return ormsgpack.unpackb(data, ext_hook=self, option=_OPTIONS)
        except ormsgpack.MsgpackDecodeError as exc:
            error, _state.error = _state.error, None
            _state.open_bytes = 0
            _state.frames.clear()
            if isinstance(error, (DecodeError, MemoryError)):
                raise error from None
            if isinstance(error, RecursionError) or str(error) == _NOT_ENTERED:
                raise DecodeError("stored value is nested deeper than Python can follow") from error
            if isinstance(error, Exception) or error is None:
                raise DecodeError(f"stored bytes are damaged: {error or exc}") from (error or exc)
            raise error from None  # KeyboardInterrupt

    def decode_messages(self, parts: Sequence[bytes], prefix: bytes) -> list[Any] | None:
        """The messages of lists with one message each, read at once; None if one is anything else.

        Each part begins with `prefix`. Raises DecodeError if one is damaged.
        """
        messages: list[Any] = [None] * len(parts)
        groups = split_messages(parts, prefix)
        if groups is None:
            return None
        for places, cls, fields in groups:
            made = build_all(cls, self._separate(fields))
            if made is None:
                return None
            for place, message in zip(places, made, strict=True):
                messages[place] = message
        return messages

    def _separate(self, values: Sequence[bytes]) -> list[Any]:
        """Read many values as one array. Raises DecodeError if the bytes of one are not one value.

        After each stands a random number: were one missing where it belongs, a value would not end there.
        """
        nonce = secrets.randbits(63) | 1 << 62
        separator = b"\xd3" + nonce.to_bytes(8, "big")
        array = b"\xdd" + (2 * len(values)).to_bytes(4, "big") + separator.join([*values, b""])
        found = self.decode(array)
        if set(map(type, found[1::2])) != {int} or set(found[1::2]) != {nonce}:
            raise DecodeError("stored bytes are damaged: they are not one value each")
        return list(found[::2])

    def __call__(self, code: int, data: bytes) -> Any:
        try:
            if MUST_CHECK and is_suspicious(data):
                check_counts(data)
            if len(data) < _NESTABLE:
                parts = ormsgpack.unpackb(data, ext_hook=self, option=_OPTIONS)
            else:
                _enter(
                    data, self.max_bytes
                )  # not around the next call: that would be one frame more per level
                if len(data) <= _FLOODING:
                    parts = ormsgpack.unpackb(data, ext_hook=self, option=_OPTIONS)
                elif _state.any_key:
                    check_maps(data)
                    parts = ormsgpack.unpackb(data, ext_hook=self, option=_OPTIONS)
                else:
                    try:
                        parts = ormsgpack.unpackb(data, ext_hook=self)
                    except ormsgpack.MsgpackDecodeError:
                        if _state.error is not None:
                            raise
                        _allow_any_key(data)
                        parts = ormsgpack.unpackb(data, ext_hook=self, option=_OPTIONS)
                _leave(data)
            if code == EXT_PYDANTIC_V2:
                if len(parts) > 3 and parts[3] == FIELDS:
                    code = data_types.EXT_FIELDS
                else:
                    build = _MESSAGES.get((parts[0], parts[1]))
                    if build is not None and (message := build(parts[2])) is not None:
                        return message
            elif code == EXT_CONSTRUCTOR_SINGLE_ARG and parts[:2] == _TUPLE:
                return tuple(parts[2])
            value = (_EXTENSIONS.get(code) or _unknown)(self, code, parts)
            return value if type(value) is not Plain else carry(abs(code), _shared(data), value.payload)
        except BaseException as exc:
            # ormsgpack's own error, passing through the hooks around it, says less than the first
            if _state.error is None or type(exc) is not ormsgpack.MsgpackDecodeError:
                _state.error = exc
            raise

    def build(self, code: int, parts: Any) -> Any:
        """The object that `parts` (module, name, payload, …) describes, or its `Plain` payload."""
        module, name, payload, extras = _read_parts(parts)
        known = self._found.get((code, module, name)) if not extras else None
        try:
            if known is not None and attribute(module, name) is known[0]:
                return known[1](code, payload, extras)
            builder = self._find(code, module, name, extras)
            return Plain(payload) if builder is None else builder(code, payload, extras)
        except (MemoryError, RecursionError):
            raise
        except CodeNeededError as exc:
            text = "Not restoring %s.%s: %s (what allowed_msgpack_modules lists may build itself). "
            _warn("unbuilt", module, name, text + _INSTEAD, str(exc))
            return Plain(payload)
        except Exception as exc:  # of a builder that got other parts than it writes: nothing is lost
            text = "Could not restore %s.%s from stored data (%s). "
            _warn("unbuilt", module, name, text + _INSTEAD, type(exc).__name__)
            return Plain(payload)

    def _find(self, code: int, module: str, name: str, extras: Mapping[str, Any]) -> Builder | None:
        """`find`, remembered for as long as the module has the same thing under that name."""
        builder = self.find(code, module, name, extras)
        if not extras and builder is not None and (found := attribute(module, name)) is not None:
            if len(self._found) >= _MAX_FOUND:
                self._found.clear()
            self._found[code, module, name] = found, builder
        return builder

    def find(self, code: int, module: str, name: str, extras: Mapping[str, Any]) -> Builder | None:
        """The builder of `module.name`, or None (with the reason logged once) if nothing may."""
        key = (module, name)
        if own := standard_types.OWN.get(key):
            return own
        listed = isinstance(self.allowed, set) and key in self.allowed
        safe = key in _langgraph.SAFE_MSGPACK_TYPES or key == _SEARCH_ITEM
        if not (safe or listed or self.allowed is True):
            return _refuse(module, name, "it is not in allowed_msgpack_modules: add it there")
        if module not in sys.modules:
            return _refuse(module, name, f"its module is not loaded: import {module} before reading")
        cls = data_types.lookup(module, name, extras.get("qualname", name))
        if cls is None:
            return _refuse(
                module, name, "its module has no class of that name: define it there, at the top level"
            )
        builder = data_types.builder(cls, code, trusted=safe or listed)
        return builder or _refuse(
            module, name, "it is not a data type: list it in allowed_msgpack_modules if it is to be built"
        )


def _refuse(module: str, name: str, reason: str) -> Builder | None:
    emit_serde_event({"kind": "msgpack_blocked", "module": module, "name": name})
    _warn("blocked", module, name, "Not restoring %s.%s: %s. " + _INSTEAD, reason)
    return None


def _warn(kind: str, module: str, name: str, text: str, detail: str) -> None:
    """Log once per kind and type; best effort between threads, bounded for made-up names."""
    key = (kind, module, name)
    if key not in _warned and len(_warned) < _MAX_WARNINGS:
        _warned.add(key)
        logger.warning(text, module, name, detail)


_NO_EXTRAS: Mapping[str, Any] = {}


def _read_parts(parts: Any) -> tuple[str, str, Any, Mapping[str, Any]]:
    if type(parts) is not list or len(parts) < 3 or type(parts[0]) is not str or type(parts[1]) is not str:
        raise DecodeError("stored bytes are damaged: an object without module, name and payload")
    extras = parts[-1] if len(parts) > 3 and type(parts[-1]) is dict else _NO_EXTRAS
    return parts[0], parts[1], parts[2], extras


# --- one function per extension code ----------------------------------------------------------


def _call_method(reader: Reader, code: int, parts: Any) -> Any:
    module, name, payload, _ = _read_parts(parts)
    method = parts[3] if len(parts) > 3 else None
    if (module, name, method) == standard_types.FROM_ISO:
        return reader.build(EXT_CONSTRUCTOR_SINGLE_ARG, [module, "datetime.fromisoformat", payload])
    emit_serde_event(
        {"kind": "msgpack_method_blocked", "module": module, "name": name, "method": str(method)}
    )
    _warn("method", module, name, "Not calling a method of %s.%s: %r is not on the safe list.", str(method))
    return Plain(payload)


def _array(reader: Reader, code: int, parts: Any) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        _refuse("numpy", "ndarray", "its module is not loaded: import numpy before reading")
        return Plain(parts)
    try:
        return standard_types.array(numpy, *parts)
    except (TypeError, ValueError) as exc:
        _warn(
            "unbuilt",
            "numpy",
            "ndarray",
            "Could not restore a %s.%s from stored data (%s). " + _INSTEAD,
            str(exc),
        )
        return Plain(parts)


def _delta(reader: Reader, code: int, parts: Any) -> Any:
    return _DeltaSnapshot(parts)


def _unknown(reader: Reader, code: int, parts: Any) -> Any:
    raise DecodeError(f"extension code {code} is unknown: written by a newer version of the serialiser")


_EXTENSIONS: dict[int, Callable[[Reader, int, Any], Any]] = {
    EXT_CONSTRUCTOR_SINGLE_ARG: Reader.build,
    EXT_CONSTRUCTOR_POS_ARGS: Reader.build,
    EXT_CONSTRUCTOR_KW_ARGS: Reader.build,
    EXT_METHOD_SINGLE_ARG: _call_method,
    EXT_PYDANTIC_V1: Reader.build,
    EXT_PYDANTIC_V2: Reader.build,
    data_types.EXT_FIELDS: Reader.build,
    EXT_NUMPY_ARRAY: _array,
    EXT_DELTA_SNAPSHOT: _delta,
}
