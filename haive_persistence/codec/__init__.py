"""Values to stored bytes and back: serialise, compress, seal.

value --dump--> tagged bytes --pack--> stored bytes        (compressed, sealed if there is a key)
value <--load-- tagged bytes <-unpack- stored bytes        (authenticated first, then decompressed)
"""

from __future__ import annotations

from typing import Any, Final

from langgraph.checkpoint.serde.base import SerializerProtocol, maybe_add_typed_methods

from haive_persistence.codec.compress import MAX_SIZE, compress, decompress
from haive_persistence.codec.seal import Keyring, Sealer, blind_index, context, is_sealed, new_data_key
from haive_persistence.codec.serialise import SafeSerializer
from haive_persistence.errors import ConfigError, DecodeError, EncodeError, PersistenceError, WrongKeyError

__all__ = [
    "Codec",
    "Keyring",
    "SafeSerializer",
    "Sealer",
    "blind_index",
    "compress",
    "context",
    "decompress",
    "is_sealed",
    "new_data_key",
]

_TAGS: Final = ("null", "bytes", "bytearray", "msgpack", "json", "pickle")
_TAG_BYTES: Final = {tag: bytes((number,)) for number, tag in enumerate(_TAGS)}
_NAMED: Final = 0x7F  # a type of a serialiser of the user's: length and name follow


class Codec:
    """Turns values into what is stored, and back."""

    def __init__(
        self, serde: Any = None, *, compression: str | None = "zstd", sealer: Sealer | None = None
    ) -> None:
        if compression not in ("zstd", None):
            raise ConfigError(f"unknown compression {compression!r}: choose 'zstd' or None")
        self.serde: SerializerProtocol = maybe_add_typed_methods(SafeSerializer() if serde is None else serde)
        self.compression = compression
        self.sealer = sealer

    def dump(self, value: Any) -> bytes:
        """Serialise: one byte of type tag, then the serialiser's bytes."""
        try:
            tag, data = self.serde.dumps_typed(value)
        except PersistenceError:
            raise
        except Exception as exc:
            raise EncodeError(f"the serialiser could not store a {type(value).__name__}: {exc}") from exc
        return (_TAG_BYTES.get(tag) or _named(tag)) + data

    def load(self, data: bytes) -> Any:
        """Undo `dump`."""
        tag, body = _split_tag(data)
        try:
            return self.serde.loads_typed((tag, body))
        except PersistenceError:
            raise
        except Exception as exc:
            raise DecodeError(f"the serialiser could not read a value of type {tag!r}: {exc}") from exc

    def pack(self, data: bytes, aad: bytes) -> bytes:
        """Compress, and seal for the row that `aad` names if there is a key."""
        packed = compress(data, self.compression)
        return packed if self.sealer is None else self.sealer.seal(packed, aad)

    def unpack(self, stored: bytes, aad: bytes, *, max_size: int = MAX_SIZE) -> bytes:
        """Undo `pack`: authenticate first, then decompress."""
        if self.sealer is not None:
            stored = self.sealer.open(stored, aad)
        elif is_sealed(stored):
            raise WrongKeyError("this row is sealed and no encryption key was given: set encryption_key")
        return decompress(stored, max_size=max_size)

    def encode(self, value: Any, aad: bytes) -> bytes:
        """`dump`, then `pack`."""
        return self.pack(self.dump(value), aad)

    def decode(self, stored: bytes, aad: bytes) -> Any:
        """`unpack`, then `load`."""
        return self.load(self.unpack(stored, aad))


def _named(tag: str) -> bytes:
    name = tag.encode()
    if len(name) > 0xFF:
        raise EncodeError(f"a serialiser's type name may have 255 bytes; {tag[:40]!r}… has {len(name)}")
    return bytes((_NAMED, len(name))) + name


def _split_tag(data: bytes) -> tuple[str, bytes]:
    if not data:
        raise DecodeError("stored bytes are damaged: there are none")
    number = data[0]
    if number < len(_TAGS):
        return _TAGS[number], data[1:]
    if number == _NAMED and len(data) > 1 and len(data) >= 2 + data[1]:
        end = 2 + data[1]
        return data[2:end].decode("utf-8", "replace"), data[end:]
    raise DecodeError(f"type tag 0x{number:02x} is unknown: written by a newer version of this package")
