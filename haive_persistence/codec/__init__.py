"""Values to stored bytes and back: serialise, compress, seal.

    value --dump--> tagged bytes --pack--> stored bytes        (compressed; sealed if there is a key)
    value <--load-- tagged bytes <-unpack- stored bytes        (authenticated first, then decompressed)

Unsealed, a value costs two bytes beside its own: the type tag, and how it was compressed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from copy import copy
from typing import Any, Final

from langgraph.checkpoint.serde.base import SerializerProtocol, maybe_add_typed_methods

from haive_persistence.codec.compress import check_name, compress, decompress, decompress_all
from haive_persistence.codec.data_types import lookup
from haive_persistence.codec.limits import MAX_READ_BYTES
from haive_persistence.codec.seal import (
    Keyring,
    Sealer,
    blind_index,
    context,
    data_key_number,
    is_sealed,
    new_data_key,
    row,
    wrapping_id,
)
from haive_persistence.codec.serialise import SafeSerializer
from haive_persistence.codec.unbuilt import is_unbuilt, unbuilt_count
from haive_persistence.errors import DecodeError, EncodeError, PersistenceError, WrongKeyError

__all__ = [
    "Codec",
    "Keyring",
    "SafeSerializer",
    "Sealer",
    "blind_index",
    "compress",
    "context",
    "data_key_number",
    "decompress",
    "is_sealed",
    "is_unbuilt",
    "lookup",
    "new_data_key",
    "row",
    "unbuilt_count",
    "wrapping_id",
]

# Append-only: the position of a type is the byte it is stored as.
_TAGS: Final = ("null", "bytes", "bytearray", "msgpack", "json", "pickle")
_TAG_BYTES: Final = {tag: bytes((number,)) for number, tag in enumerate(_TAGS)}
_NAMED: Final = 0x7F  # any other type of a foreign serialiser: the length of its name and the name follow


class Codec:
    """Turns values into what is stored, and back.

    `serde` is any serialiser that LangGraph accepts (default: `SafeSerializer()`); `compression` is
    "zstd" or None; with a `sealer` everything is encrypted, and what is not encrypted is refused.
    A read that would unpack to more than `max_read_bytes` is refused.
    """

    def __init__(
        self,
        serde: Any = None,
        *,
        compression: str | None = "zstd",
        sealer: Sealer | None = None,
        max_read_bytes: int = MAX_READ_BYTES,
    ) -> None:
        check_name(compression)
        self.serde: SerializerProtocol = maybe_add_typed_methods(SafeSerializer() if serde is None else serde)
        self.compression = compression
        self.sealer = sealer
        self.max_read_bytes = max_read_bytes
        self._reads = (
            self.serde.within(max_read_bytes) if isinstance(self.serde, SafeSerializer) else self.serde
        )

    def with_sealer(self, sealer: Sealer | None) -> Codec:
        """The same codec with another tenant's keys, or newer ones."""
        changed = copy(self)
        changed.sealer = sealer
        return changed

    def dump(self, value: Any) -> bytes:
        """Serialise: one byte of type tag, then the serialiser's bytes.

        Raises EncodeError, naming the part of the value that cannot be stored.
        """
        try:
            tag, data = self.serde.dumps_typed(value)
        except PersistenceError:
            raise
        except Exception as exc:  # a serialiser of the user's may raise anything
            raise EncodeError(f"the serialiser could not store a {type(value).__name__}: {exc}") from exc
        return (_TAG_BYTES.get(tag) or _named(tag)) + data

    def load(self, data: bytes) -> Any:
        """Undo `dump`. Raises DecodeError if the bytes are damaged or of an unknown type."""
        tag, body = _split_tag(data)
        try:
            return self._reads.loads_typed((tag, body))
        except PersistenceError:
            raise
        except Exception as exc:  # likewise
            raise DecodeError(f"the serialiser could not read a value of type {tag!r}: {exc}") from exc

    def load_all(self, parts: Sequence[bytes]) -> list[Any]:
        """`load` for many at once: what this package's serialiser wrote is read as one array."""
        tag = _TAG_BYTES["msgpack"]
        if len(parts) > 1 and isinstance(self._reads, SafeSerializer) and all(p[:1] == tag for p in parts):
            array = b"\xdd" + len(parts).to_bytes(4, "big") + b"".join([part[1:] for part in parts])
            with suppress(DecodeError):  # one by one, the error is of the part that is damaged
                return list(self._reads.loads_typed(("msgpack", array)))
        return list(map(self.load, parts))

    def load_messages(self, parts: Sequence[bytes]) -> list[Any] | None:
        """`load_all` of lists with one ordinary message each; None if one is anything else, or damaged."""
        if not isinstance(self._reads, SafeSerializer):
            return None
        before = unbuilt_count()
        with suppress(DecodeError):
            found = self._reads.load_messages(parts, _TAG_BYTES["msgpack"])
            return found if unbuilt_count() == before else None
        return None

    def pack(self, data: bytes, aad: bytes) -> bytes:
        """Compress `data`, and seal it for the row that `aad` (see `context`) names if there are keys."""
        packed = compress(data, self.compression)
        return packed if self.sealer is None else self.sealer.seal(packed, aad)

    def unpack(self, stored: bytes, aad: bytes, *, max_size: int | None = None) -> bytes:
        """Undo `pack`: authenticate first, then decompress to at most `max_size` bytes (or `max_read_bytes`).

        Raises DecodeError if damaged, too large or written by a newer version; with keys also
        PlaintextRefusedError, WrongKeyError and TamperedError (see `Sealer.open`). Without keys,
        WrongKeyError if it is sealed.
        """
        limit = self.max_read_bytes if max_size is None else max_size
        return decompress(self._opened(stored, aad), max_size=limit)

    def unpack_all(self, stored: Iterable[bytes], aads: Iterable[bytes]) -> list[bytes]:
        """`unpack` for many at once, to at most `max_read_bytes` in all."""
        opened = list(map(self.sealer.open, stored, aads)) if self.sealer is not None else _plain(stored)
        return decompress_all(opened, max_size=self.max_read_bytes)

    def _opened(self, stored: bytes, aad: bytes) -> bytes:
        return _plain([stored])[0] if self.sealer is None else self.sealer.open(stored, aad)

    def encode(self, value: Any, aad: bytes) -> bytes:
        """`dump`, then `pack`."""
        return self.pack(self.dump(value), aad)

    def decode(self, stored: bytes, aad: bytes) -> Any:
        """`unpack`, then `load`."""
        return self.load(self.unpack(stored, aad))


def _plain(stored: Iterable[bytes]) -> list[bytes]:
    found = list(stored)
    if any(map(is_sealed, found)):
        raise WrongKeyError("this row is sealed and no key was given: set encryption_key")
    return found


def _named(tag: str) -> bytes:
    name = tag.encode()
    if len(name) > 0xFF:
        raise EncodeError(f"a serialiser's type name has at most 255 bytes, {tag[:40]!r}… has {len(name)}")
    return bytes((_NAMED, len(name))) + name


def _split_tag(data: bytes) -> tuple[str, bytes]:
    if not data:
        raise DecodeError("stored bytes are damaged: there are none")
    number = data[0]
    if number < len(_TAGS):
        return _TAGS[number], data[1:]
    if number != _NAMED:
        raise DecodeError(f"type tag 0x{number:02x} is unknown: written by a newer version of this package")
    end = 2 + int.from_bytes(data[1:2], "big")
    if len(data) < max(end, 2):
        raise DecodeError("stored bytes are damaged: they end inside the type's name")
    return data[2:end].decode("utf-8", "replace"), data[end:]
