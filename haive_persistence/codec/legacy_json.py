"""Reads the 'json' type that LangGraph wrote before msgpack, without its way of naming constructors.

Such JSON holds objects as dicts marked `lc`: 1 (LangChain's form: messages, documents) or 2
(LangGraph's: standard values). Only LangGraph's safe types are built from either, LangChain's other
data classes too unless an allow-list is set; every other dict, marked or not, stays a dict. Secrets
are never looked up, methods never called (but `datetime.fromisoformat`), modules never imported.
"""

from __future__ import annotations

import json
from typing import Any, cast

from langchain_core.load.load import ALL_SERIALIZABLE_MAPPINGS
from langgraph.checkpoint.serde import _msgpack as _langgraph
from langgraph.checkpoint.serde.jsonplus import (
    EXT_CONSTRUCTOR_KW_ARGS,
    EXT_CONSTRUCTOR_POS_ARGS,
    EXT_CONSTRUCTOR_SINGLE_ARG,
)

from haive_persistence.codec.data_types import lookup
from haive_persistence.codec.decoding import AllowList, Plain, Reader
from haive_persistence.codec.standard_types import FROM_ISO
from haive_persistence.errors import DecodeError


class JsonReader:
    """Reads legacy JSON: builds what `reader` would, and the `lc: 2` classes of a list of its own."""

    def __init__(self, reader: Reader, allowed: AllowList) -> None:
        self._reader = reader
        self._allowed: AllowList = allowed
        self._listed = Reader(_joined(reader.allowed, allowed))

    def decode(self, data: bytes) -> Any:
        """Read a value; DecodeError if it is not JSON."""
        try:
            # decoded here, since json.loads would guess an encoding and import its codec
            return json.loads(data.decode("utf-8", "surrogatepass"), object_hook=self._revive)
        except (ValueError, RecursionError) as exc:
            raise DecodeError(f"stored JSON is damaged: {exc}") from exc

    def _revive(self, value: dict[str, Any]) -> Any:
        if value.get("type") != "constructor":
            return value
        match value:
            case {"lc": 1, "id": [str(), *_, str()] as path}:
                return self._revive_langchain(value, list(path))
            case {"lc": 2, "id": [str(), *_, str()] as path}:
                return self._revive_langgraph(value, [str(step) for step in path])
            case _:
                return value

    def _revive_langchain(self, value: dict[str, Any], path: list[Any]) -> Any:
        key = _langchain_key(path)
        if key is None or not (key in _langgraph.SAFE_MSGPACK_TYPES or self._reader.allowed is True):
            return value
        if self._reader.find(EXT_CONSTRUCTOR_KW_ARGS, *key, {}) is None:
            return value
        try:
            return cast("Any", lookup(*key, key[1]))(**value.get("kwargs", {}))
        except Exception:  # a class may refuse what it took once: it stays the dict it is stored as
            return value

    def _revive_langgraph(self, value: dict[str, Any], path: list[str]) -> Any:
        key = (".".join(path[:-1]), path[-1])
        if (*key, value.get("method")) == FROM_ISO:
            return _build(self._reader, ("datetime", "datetime.fromisoformat"), value)
        if key in _langgraph.SAFE_MSGPACK_TYPES:
            return _build(self._reader, key, value)
        if self._allowed is True or (isinstance(self._allowed, set) and tuple(path) in self._allowed):
            return _build(self._listed, key, value)
        return value


def _joined(msgpack: AllowList, paths: AllowList) -> AllowList:
    if msgpack is True or paths is True:
        return True
    return {*(msgpack or ()), *((".".join(path[:-1]), path[-1]) for path in paths or ())}


def _build(reader: Reader, key: tuple[str, str], value: dict[str, Any]) -> Any:
    code, payload = _call(value)
    built = reader.build(code, [*key, payload])
    return value if type(built) is Plain else built


def _langchain_key(path: list[Any]) -> tuple[str, str] | None:
    """The module and name of the class of an `lc: 1` id, if it is one of langchain-core's."""
    if not all(isinstance(step, str) for step in path):
        return None
    found = ALL_SERIALIZABLE_MAPPINGS.get(tuple(path))
    if found is None or found[0] != "langchain_core":
        return None
    return ".".join(found[:-1]), found[-1]


def _call(value: dict[str, Any]) -> tuple[int, Any]:
    """Extension code and payload of msgpack that say the same as these args and kwargs."""
    match value.get("args"), value.get("kwargs"):
        case [only], _:
            return EXT_CONSTRUCTOR_SINGLE_ARG, only
        case [_, *_] as args, _:
            return EXT_CONSTRUCTOR_POS_ARGS, args
        case _, kwargs:
            return EXT_CONSTRUCTOR_KW_ARGS, kwargs or {}
