"""Msgpack to values, without importing anything and without calling anything but data types.

A stored object names its class. The name is looked up in modules that are already loaded; what it
finds there is built only if it is a data type, of which `kinds.py` has the list, or one of
LangGraph's safe types. Anything else comes back as its plain payload, with a warning once per type
and LangGraph's `msgpack_blocked` event, as LangGraph's strict mode does.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
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

from haive_persistence.codec import kinds
from haive_persistence.errors import DecodeError

logger = logging.getLogger("haive_persistence.codec")

AllowList = set[tuple[str, ...]] | Literal[True] | None
"""Classes that may be built beside the safe ones: those listed, any loaded data type (True), or none."""

_MAX_WARNINGS = 1000
_warned: set[tuple[str, str, str]] = set()
_failure = threading.local()  # ormsgpack drops what a hook raises; here it is kept for `decode`


class Reader:
    """Reads msgpack under one allow-list; the object is the ext hook it gives to ormsgpack."""

    def __init__(self, allowed: AllowList) -> None:
        self.allowed = allowed

    def decode(self, data: bytes) -> Any:
        """Read a value; DecodeError if the bytes are damaged."""
        try:
            return ormsgpack.unpackb(data, ext_hook=self, option=ormsgpack.OPT_NON_STR_KEYS)
        except ormsgpack.MsgpackDecodeError as exc:
            cause = _failure.__dict__.pop("error", None)
            if isinstance(cause, MemoryError):
                raise cause from None
            if isinstance(cause, DecodeError):
                raise cause from None
            raise DecodeError(f"stored bytes are damaged: {cause or exc}") from (cause or exc)

    def __call__(self, code: int, data: bytes) -> Any:
        parts = ormsgpack.unpackb(data, ext_hook=self, option=ormsgpack.OPT_NON_STR_KEYS)
        try:
            return _EXTENSIONS[code](self, code, parts)
        except KeyError:
            error = DecodeError(f"extension {code} is unknown: written by a newer version of the serialiser")
        except BaseException as exc:
            error = exc
        _failure.error = error
        raise error

    def build(self, code: int, parts: Any) -> Any:
        """The object that `parts` (module, name, payload, …) describes, or its payload."""
        module, name, payload, extras = _read_parts(parts)
        builder = self.find(code, module, name, extras)
        if builder is None:
            return payload
        try:
            return builder(code, payload, extras)
        except MemoryError:
            raise
        except Exception as exc:
            _warn(
                "unbuilt",
                module,
                name,
                "Could not restore %s.%s from stored data (%s); its plain data is returned instead.",
                type(exc).__name__,
            )
            return payload

    def find(self, code: int, module: str, name: str, extras: dict[str, str]) -> kinds.Builder | None:
        """What builds `module.name`, or None (with the reason logged once) if nothing may."""
        key = (module, name)
        builder = kinds.OWN.get(key)
        if builder is not None:
            return builder
        listed = self.allowed is not True and self.allowed is not None and key in self.allowed
        safe = key in _langgraph.SAFE_MSGPACK_TYPES
        if not (safe or listed or self.allowed is True):
            return self._refuse(key, "is not in allowed_msgpack_modules: add it there")
        if module not in sys.modules:
            return self._refuse(key, f"belongs to a module that is not loaded: import {module} first")
        cls = kinds.lookup(module, extras.get("qualname", name))
        if cls is None:
            return self._refuse(key, "is not a class that its module has under that name")
        builder = kinds.builder(cls, code, trusted=safe or listed)
        if builder is None:
            return self._refuse(
                key, "is not a data type: to build it anyway, list it in allowed_msgpack_modules"
            )
        return builder

    def _refuse(self, key: tuple[str, str], reason: str) -> None:
        emit_serde_event({"kind": "msgpack_blocked", "module": key[0], "name": key[1]})
        _warn(
            "blocked",
            *key,
            "Not restoring %s.%s: it %s. Its plain data is returned instead.",
            reason,
        )


def _read_parts(parts: Any) -> tuple[str, str, Any, dict[str, str]]:
    match parts:
        case [str(module), str(name), payload, *rest]:
            extras = rest[-1] if rest and isinstance(rest[-1], dict) else {}
            return module, name, payload, extras
        case _:
            raise DecodeError("stored bytes are damaged: an object without module, name and payload")


def _warn(kind: str, module: str, name: str, text: str, detail: str) -> None:
    """Log once per kind and type; best effort between threads, bounded for made-up names."""
    key = (kind, module, name)
    if key in _warned or len(_warned) >= _MAX_WARNINGS:
        return
    _warned.add(key)
    logger.warning(text, module, name, detail)


def _call_method(reader: Reader, code: int, parts: Any) -> Any:
    module, name, payload, _ = _read_parts(parts)
    method = parts[3] if len(parts) > 3 else None
    if (module, name, method) == ("datetime", "datetime", "fromisoformat"):
        try:
            return kinds.datetime_from_iso(payload)
        except Exception:
            return payload
    emit_serde_event(
        {"kind": "msgpack_method_blocked", "module": module, "name": name, "method": str(method)}
    )
    _warn("method", module, name, "Not calling a method of %s.%s: %s is not on the safe list.", str(method))
    return payload


def _array(reader: Reader, code: int, parts: Any) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return (
            reader._refuse(("numpy", "ndarray"), "belongs to a module that is not loaded: import numpy first")
            or parts
        )
    match parts:
        case [kind, list(shape), str(order), bytes(buffer)]:
            return kinds.array(numpy, kind, shape, order, buffer)
        case _:
            raise DecodeError("stored bytes are damaged: not a numpy array")


_EXTENSIONS: dict[int, Callable[[Reader, int, Any], Any]] = {
    EXT_CONSTRUCTOR_SINGLE_ARG: Reader.build,
    EXT_CONSTRUCTOR_POS_ARGS: Reader.build,
    EXT_CONSTRUCTOR_KW_ARGS: Reader.build,
    EXT_METHOD_SINGLE_ARG: _call_method,
    EXT_PYDANTIC_V1: Reader.build,
    EXT_PYDANTIC_V2: Reader.build,
    EXT_NUMPY_ARRAY: _array,
    EXT_DELTA_SNAPSHOT: lambda reader, code, parts: _DeltaSnapshot(parts),
}
