"""Seals bytes: AES-256-GCM under a key of their own, bound to the row they are stored in.

Three kinds of key, each derived from or wrapped by the one above it:

    master key     yours (a secret, or a passphrase); never stored; `Keyring` holds it
    data key       32 random bytes per tenant, numbered; stored wrapped by the master key
    record key     HKDF(data key, the record's random salt); used for one record, never stored

Because every record has its own key, a nonce cannot repeat under a key however many records there
are, and rotation of the master key re-wraps data keys without touching a record.

A sealed record (format 1) is

    0x81 | algorithm 0x01 | data-key number (LEB128) | salt (16) | commitment (32) | ciphertext | tag (16)

    HKDF-SHA512 (RFC 5869): PRK = Extract("haive.record.v1", data key)
                            record key || commitment = Expand(PRK, "haive.record.v1" || salt, 32 + 32)
    AES-256-GCM, nonce of 12 zero bytes (the key is used once), AAD = header || context

The commitment is compared before anything is decrypted: a wrong key is told from changed bytes, and
no ciphertext can be made that opens under two keys. The context (`context()`) names tenant, table
and row, so that a record moved to another row does not open.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from haive_persistence.errors import (
    ConfigError,
    DecodeError,
    PlaintextRefusedError,
    TamperedError,
    WrongKeyError,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
_SEALED: Final = 0x80
_FORMAT: Final = 0x81
_ALGORITHM: Final = 0x01
_SALT_BYTES: Final = 16
_COMMITMENT_BYTES: Final = 32
_TAG_BYTES: Final = 16
_NONCE: Final = bytes(12)
_RECORD: Final = b"haive.record.v1"
_WRAP: Final = b"haive.wrap.v1"


def context(tenant: str, table: str, *identity: str | bytes | int) -> bytes:
    """The associated data of a row: which tenant, table and row (its full key) a record belongs to."""
    return b"".join(_prefixed(part) for part in (tenant, table, *identity))


def _prefixed(part: str | bytes | int) -> bytes:
    if isinstance(part, str):
        kind, data = b"s", part.encode("utf-8", "surrogatepass")
    elif isinstance(part, int):
        kind, data = b"i", str(int(part)).encode()
    else:
        kind, data = b"b", bytes(part)
    return kind + len(data).to_bytes(4, "big") + data


def is_sealed(stored: bytes) -> bool:
    """Whether these stored bytes are a sealed record (of any format)."""
    return bool(stored) and stored[0] >= _SEALED


class _Box:
    """Seals records under one data key (or wraps data keys under one master key)."""

    def __init__(self, key: bytes, label: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ConfigError(f"a key has {KEY_BYTES} bytes, this one {len(key)}")
        self._label = label
        prk = hmac.digest(label, key, "sha512")
        self._prf = hmac.new(prk, digestmod="sha512")

    def _derive(self, salt: bytes) -> tuple[AESGCM, bytes]:
        prf = self._prf.copy()
        prf.update(self._label + salt + b"\x01")
        block = prf.digest()
        return _aesgcm()(block[:KEY_BYTES]), block[KEY_BYTES:]

    def close(self, header: bytes, data: bytes, aad: bytes) -> bytes:
        salt = os.urandom(_SALT_BYTES)
        cipher, commitment = self._derive(salt)
        return header + salt + commitment + cipher.encrypt(_NONCE, data, header + aad)

    def open(self, header: bytes, body: bytes, aad: bytes) -> bytes:
        salt, commitment = body[:_SALT_BYTES], body[_SALT_BYTES : _SALT_BYTES + _COMMITMENT_BYTES]
        cipher, expected = self._derive(salt)
        if not hmac.compare_digest(commitment, expected):
            raise WrongKeyError("this record was sealed with another key: give the key it was written with")
        try:
            return cipher.decrypt(_NONCE, body[_SALT_BYTES + _COMMITMENT_BYTES :], header + aad)
        except _invalid_tag() as exc:
            raise TamperedError(
                "sealed bytes were changed, or moved here from another row; restore the row from a backup"
            ) from exc


class Sealer:
    """Seals and opens records with a tenant's data keys: new ones with the highest number."""

    def __init__(self, data_keys: Mapping[int, bytes]) -> None:
        if not data_keys:
            raise ConfigError("a sealer needs at least one data key")
        self._boxes = {number: _Box(key, _RECORD) for number, key in data_keys.items()}
        self.current = max(data_keys)
        self._header = _header(self.current)

    def __repr__(self) -> str:
        return f"Sealer(data keys {sorted(self._boxes)})"

    def seal(self, data: bytes, aad: bytes) -> bytes:
        """Encrypt `data` for the row that `aad` names."""
        return self._boxes[self.current].close(self._header, data, aad)

    def open(self, stored: bytes, aad: bytes) -> bytes:
        """Decrypt a record of the row that `aad` names.

        Raises PlaintextRefusedError if it is not sealed, WrongKeyError if it was sealed with another
        key or a data key this sealer does not have, TamperedError if it was changed or moved here.
        """
        number, start = read_header(stored)
        box = self._boxes.get(number)
        if box is None:
            raise WrongKeyError(f"sealed with data key {number}, which is not among {sorted(self._boxes)}")
        return box.open(stored[:start], stored[start:], aad)


def read_header(stored: bytes) -> tuple[int, int]:
    """The data-key number of a sealed record, and where its header ends."""
    if not is_sealed(stored):
        raise PlaintextRefusedError(
            "this row should be sealed and is not: it was not written by this package"
        )
    if stored[0] != _FORMAT:
        raise DecodeError(
            f"sealed format 0x{stored[0]:02x} is unknown: written by a newer version of this package"
        )
    if stored[1:2] != bytes((_ALGORITHM,)):
        raise DecodeError("sealing algorithm is unknown: written by a newer version of this package")
    number, end = _read_leb128(stored, 2)
    if len(stored) < end + _SALT_BYTES + _COMMITMENT_BYTES + _TAG_BYTES:
        raise TamperedError("sealed bytes were cut short; restore the row from a backup")
    return number, end


def _header(number: int) -> bytes:
    return bytes((_FORMAT, _ALGORITHM)) + _leb128(number)


def _leb128(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_leb128(data: bytes, start: int) -> tuple[int, int]:
    number = 0
    for at in range(start, min(start + 5, len(data))):
        number |= (data[at] & 0x7F) << 7 * (at - start)
        if data[at] < 0x80:
            return number, at + 1
    raise TamperedError("sealed bytes were cut short; restore the row from a backup")


def new_data_key() -> bytes:
    """A fresh random data key."""
    return os.urandom(KEY_BYTES)


# --- master keys ------------------------------------------------------------------------------


class Keyring:
    """Master keys: the current one wraps, any of them unwraps.

    A secret is 32 bytes, base64 or hexadecimal of 32 bytes, or a passphrase.
    """

    def __init__(self, current: str | bytes, *older: str | bytes) -> None:
        keys = [_master_key(secret) for secret in (current, *older)]
        self._boxes = {key_id(key): _Box(key, _WRAP) for key in keys}
        self.current_id = key_id(keys[0])

    def __repr__(self) -> str:
        return f"Keyring(current {self.current_id.hex()}, {len(self._boxes)} in all)"

    def wrap(self, data_key: bytes, tenant: str, number: int) -> bytes:
        """A tenant's data key, encrypted under the current master key."""
        header = bytes((_FORMAT, _ALGORITHM)) + self.current_id
        return self._boxes[self.current_id].close(header, data_key, _wrap_context(tenant, number))

    def unwrap(self, wrapped: bytes, tenant: str, number: int) -> bytes:
        """The data key back; WrongKeyError if none of the master keys wrapped it."""
        end = 2 + _ID_BYTES
        if len(wrapped) != end + _SALT_BYTES + _COMMITMENT_BYTES + KEY_BYTES + _TAG_BYTES:
            raise TamperedError("a wrapped data key has the wrong length; restore it from a backup")
        if wrapped[:2] != bytes((_FORMAT, _ALGORITHM)):
            raise DecodeError(
                "a wrapped data key of unknown format: written by a newer version of this package"
            )
        box = self._boxes.get(wrapped[2:end])
        if box is None:
            raise WrongKeyError(
                f"a data key is wrapped by master key {wrapped[2:end].hex()}, which was not given"
            )
        return box.open(wrapped[:end], wrapped[end:], _wrap_context(tenant, number))

    def rewrap(self, wrapped: bytes, tenant: str, number: int) -> bytes:
        """The same data key under the current master key; unchanged if it already is."""
        if wrapped[2 : 2 + _ID_BYTES] == self.current_id:
            return wrapped
        return self.wrap(self.unwrap(wrapped, tenant, number), tenant, number)


_ID_BYTES: Final = 8


def key_id(key: bytes) -> bytes:
    """A public name of a master key, from which the key cannot be computed."""
    return hmac.digest(key, b"haive.key-id.v1", "sha256")[:_ID_BYTES]


def _wrap_context(tenant: str, number: int) -> bytes:
    return context(tenant, "data_key", number)


def _master_key(secret: str | bytes) -> bytes:
    if isinstance(secret, bytes) and len(secret) == KEY_BYTES:
        return secret
    text = secret if isinstance(secret, bytes) else secret.encode()
    return _decoded(text) or _from_passphrase(text)


def _decoded(text: bytes) -> bytes | None:
    for decode in (binascii.unhexlify, base64.b64decode, base64.urlsafe_b64decode):
        try:
            key = decode(text)
        except (ValueError, binascii.Error):
            continue
        if len(key) == KEY_BYTES:
            return key
    return None


@lru_cache(maxsize=64)
def _from_passphrase(text: bytes) -> bytes:
    return hashlib.scrypt(text, salt=b"haive.passphrase.v1", n=2**16, r=8, p=2, maxmem=2**27, dklen=KEY_BYTES)


@lru_cache(maxsize=1)
def _aesgcm() -> type[AESGCM]:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM


def _invalid_tag() -> Any:
    from cryptography.exceptions import InvalidTag

    return InvalidTag


# --- searching what is sealed -----------------------------------------------------------------


def blind_index(key: bytes, field: str, value: str | int | float | bool | None) -> bytes:
    """A keyed hash by which rows with this value can be found without storing the value."""
    return hmac.digest(key, _prefixed("haive.index.v1") + _prefixed(field) + repr(value).encode(), "sha256")[
        :16
    ]
