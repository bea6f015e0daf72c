"""`SafeSerializer`: LangGraph's serialiser, safe by default and exact."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from langgraph.checkpoint.serde import _msgpack as _langgraph
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from haive_persistence.codec.decoding import Reader
from haive_persistence.codec.encoding import encode
from haive_persistence.codec.legacy import read_json
from haive_persistence.errors import DecodeError

if TYPE_CHECKING:
    from langgraph.checkpoint.serde._msgpack import AllowedMsgpackModules


class SafeSerializer(JsonPlusSerializer):
    """LangGraph's serialiser that never imports, never unpickles and never calls what data names."""

    def __init__(
        self,
        *,
        allowed_msgpack_modules: AllowedMsgpackModules | Literal[True] | None = _langgraph._SENTINEL,
        allowed_json_modules: Iterable[tuple[str, ...]] | Literal[True] | None = None,
    ) -> None:
        super().__init__(
            allowed_msgpack_modules=allowed_msgpack_modules, allowed_json_modules=allowed_json_modules
        )
        self._follow_allowlist()

    def _follow_allowlist(self) -> None:
        self._reader = Reader(self._allowed_msgpack_modules)
        self._unpack_ext_hook = self._reader

    def with_msgpack_allowlist(self, extra_allowlist: Iterable[tuple[str, ...] | type]) -> JsonPlusSerializer:
        """This serialiser with more classes allowed; itself if it already allows any data type."""
        clone = super().with_msgpack_allowlist(extra_allowlist)
        if isinstance(clone, SafeSerializer) and clone is not self:
            clone._follow_allowlist()
        return clone

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """The type tag and bytes of a value; EncodeError names the part that cannot be stored."""
        if obj is None:
            return "null", b""
        if isinstance(obj, bytes):
            return "bytes", obj
        if isinstance(obj, bytearray):
            return "bytearray", bytes(obj)
        return "msgpack", encode(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """The value of a type tag and bytes; DecodeError if they are damaged or of an unknown type."""
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
                return read_json(body, self._reader)
            case "pickle":
                raise DecodeError(
                    "this value is pickled, and reading a pickle may run any code: it is refused"
                )
            case _:
                raise DecodeError(f"unknown serialisation type {tag!r}")
