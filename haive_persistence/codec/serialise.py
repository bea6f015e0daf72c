"""`SafeSerializer`: LangGraph's serialiser, safe without a setting, and exact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.documents.base import Document
from langchain_core.messages.chat import ChatMessage
from langchain_core.messages.function import FunctionMessage
from langchain_core.messages.modifier import RemoveMessage
from langgraph.checkpoint.serde import _msgpack as _langgraph
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from typing_extensions import Self

from haive_persistence.codec.decoding import AllowList, DeepValueError, Reader
from haive_persistence.codec.encoding import encode
from haive_persistence.codec.legacy_json import JsonReader
from haive_persistence.codec.limits import MAX_READ_BYTES
from haive_persistence.codec.stack import is_small, with_large_stack
from haive_persistence.codec.unbuilt import count_unbuilt, unbuilt_count
from haive_persistence.errors import DecodeError

if TYPE_CHECKING:
    from langgraph.checkpoint.serde._msgpack import AllowedMsgpackModules

_LOADED = (Document, ChatMessage, FunctionMessage, RemoveMessage)
"""Safe types of LangGraph's whose modules it may not have loaded itself: reading imports nothing."""


class SafeSerializer(JsonPlusSerializer):
    """Reads and writes what LangGraph's `JsonPlusSerializer` does, and is safe without a setting.

    Reading imports no module, calls no function or method, unpickles nothing, and builds only data:
    LangGraph's safe types, and enums, named tuples, dataclasses, pydantic models and the like of
    modules that are already loaded, from their stored fields, without running their code. Anything else
    comes back as plain data, with a warning, and is stored again as what it was. Graphs with state
    types of their own need no setting.

    `allowed_msgpack_modules` makes it stricter: only the safe types and the classes listed (as
    classes, or as `(module, name)`) are built, None allows none, True is the default. What is listed
    may run its own validators and constructor where its stored fields do not say all. The environment
    variable LANGGRAPH_STRICT_MSGPACK=true makes None the default. `allowed_json_modules` lists
    classes (as tuples of dotted path and name) to build from the JSON of old LangGraph releases
    beside the safe types.

    Values come back as they were written, of the same types: NaN, lone surrogates, integers of any
    size, dict keys of any type, tuples, exceptions and subclasses of Python's own types included. Only
    a bytearray inside another value comes back as bytes. The rest is refused with EncodeError.
    """

    def __init__(
        self,
        *,
        allowed_msgpack_modules: AllowedMsgpackModules | Literal[True] | None = _langgraph._SENTINEL,
        allowed_json_modules: Iterable[tuple[str, ...]] | Literal[True] | None = None,
    ) -> None:
        super().__init__(
            allowed_msgpack_modules=allowed_msgpack_modules, allowed_json_modules=allowed_json_modules
        )
        self._follow_allowlists()

    _max_read_bytes = MAX_READ_BYTES

    def _follow_allowlists(self) -> None:
        self._reader = Reader(_as_allowlist(self._allowed_msgpack_modules), self._max_read_bytes)
        self._json_reader = JsonReader(self._reader, _as_allowlist(self._allowed_json_modules))
        self._unpack_ext_hook = self._reader

    def with_msgpack_allowlist(self, extra_allowlist: Iterable[tuple[str, ...] | type]) -> JsonPlusSerializer:
        """A serialiser that also builds these classes; this one if it builds all data types anyway."""
        clone = super().with_msgpack_allowlist(extra_allowlist)
        if isinstance(clone, SafeSerializer) and clone is not self:
            clone._follow_allowlists()
        return clone

    def within(self, max_read_bytes: int) -> Self:
        """The same serialiser; copies made while one value is read take about so much memory at most."""
        if max_read_bytes == self._max_read_bytes:
            return self
        clone = copy(self)
        clone._max_read_bytes = max_read_bytes
        clone._follow_allowlists()
        return clone

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """The type tag and bytes of a value.

        Raises EncodeError, naming the part of the value that cannot be stored.
        """
        if obj is None:
            return "null", b""
        if type(obj) is bytes:
            return "bytes", obj
        if type(obj) is bytearray:
            return "bytearray", bytes(obj)
        return "msgpack", with_large_stack(lambda: encode(obj)) if is_small() else encode(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """The value of a type tag and bytes.

        Raises DecodeError if they are damaged, of an unknown type, or pickled.
        """
        if not is_small():
            try:
                return self._loads(data)
            except DeepValueError:
                pass

        def loads() -> tuple[Any, int]:
            value = self._loads(data)
            return value, unbuilt_count()

        value, count = with_large_stack(loads)
        count_unbuilt(count)
        return value

    def load_messages(self, parts: Sequence[bytes], prefix: bytes) -> list[Any] | None:
        """The messages of msgpack lists with one message each; None if one is anything else.

        Each part begins with `prefix`. Raises DecodeError if one is damaged.
        """
        if is_small():
            return None
        try:
            return self._reader.decode_messages(parts, prefix)
        except DeepValueError:
            return None

    def _loads(self, data: tuple[str, bytes]) -> Any:
        tag, body = data
        match tag:
            case "msgpack":
                return self._reader.decode(body)
            case "null":
                return None
            case "bytes":
                return bytes(body)
            case "bytearray":
                return bytearray(body)
            case "json":
                return self._json_reader.decode(body)
            case "pickle":
                raise DecodeError("this value is pickled, and reading a pickle may run any code: refused")
            case _:
                raise DecodeError(f"unknown serialisation type {tag!r}")


def _as_allowlist(allowed: object) -> AllowList:
    return allowed if isinstance(allowed, set) else True if allowed is True else None
