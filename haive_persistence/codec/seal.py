"""Seals bytes: AES-256-GCM under a key of their own, bound to the row they are stored in.

Three kinds of key, each derived from or wrapped by the one above it:

    master key     yours (a secret, or a passphrase); never stored; `Keyring` holds it
    data key       32 random bytes per tenant, numbered; stored wrapped by the master key
    record key     HKDF(data key, the record's random salt); used for one record, never stored

Because every record has a key of its own, no nonce is used twice under a key however many records
there are (two of 2^48 records share a salt with probability 2^-33), and rotation of the master key
re-wraps data keys without touching a record. A sealed record of format 1 is

    0x81 | algorithm 0x01 | data-key number (2) | salt (16) | key check (4) | commitment (28)
         | ciphertext | tag (16)

    HKDF-SHA512 (RFC 5869)   PRK = Extract(salt="haive.record.v1", data key)
                             key check = Expand(PRK, "haive.record.v1 check", 4)
                             record key, commitment = Expand(PRK, "haive.record.v1" | salt, 32 + 28)
    AES-256-GCM              nonce of 12 zero bytes (its key is used once), AAD = header | context

The commitment is compared before anything is decrypted, so that no ciphertext can be made that opens
under two keys; key check and commitment together tell a wrong key from changed bytes. The context
(`context()`) names tenant, table and row: a record moved to another row does not open. A wrapped data
key has the same layout, with the master key's id (8) instead of a number and "haive.wrap.v1" labels.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NoReturn
from uuid import UUID

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
OVERHEAD: Final = 68
"""Bytes that sealing adds to a record."""

MIN_PASSPHRASE: Final = 12
"""The fewest characters a passphrase may have; a random key of 32 bytes is better than any."""

_SEALED: Final = 0x80
_FORMAT: Final = 0x81
_ALGORITHM: Final = 0x01
_SALT, _CHECK, _COMMITMENT, _TAG = 16, 4, 28, 16
_BODY: Final = 4  # where a record's salt begins
_PREFIX: Final = _SALT + _CHECK + _COMMITMENT
_NONCE: Final = bytes(12)
_RECORD: Final = b"haive.record.v1"
_WRAP: Final = b"haive.wrap.v1"
_INDEX: Final = b"haive.index.v1"
_ID_BYTES: Final = 8
_MAX_NUMBER: Final = 2**16 - 1

Part = str | bytes | int | UUID


# --- which row --------------------------------------------------------------------------------


def context(tenant: str, table: str, *identity: Part) -> bytes:
    """The associated data of a row: the tenant, table and full key of the row a record belongs to.

    Parts are typed and length-prefixed, so no two rows have the same. They are simply concatenated:
    `context(tenant, table, a, b) == context(tenant, table, a) + row(b)`, which saves work in loops.
    """
    return row(tenant, table, *identity)


def row(*identity: Part) -> bytes:
    """The end of a `context`."""
    return b"".join(map(_prefixed, identity))


def _prefixed(part: Part) -> bytes:
    if isinstance(part, str):
        kind, data = b"s", part.encode("utf-8", "surrogatepass")
    elif isinstance(part, int):
        kind, data = b"i", b"%d" % part
    elif isinstance(part, UUID):
        kind, data = b"u", part.bytes
    else:
        kind, data = b"b", part
    return kind + len(data).to_bytes(4, "big") + data


# --- one key ----------------------------------------------------------------------------------


class _Box:
    """Seals and opens under one key: a data key for records, a master key for data keys."""

    def __init__(self, key: bytes, label: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ConfigError(f"a key has {KEY_BYTES} bytes, this one has {len(key)}")
        self._label = label
        self._prf = hmac.new(hmac.digest(label, key, "sha512"), digestmod="sha512")
        self._check = self._expand(b" check")[:_CHECK]

    def _expand(self, info: bytes) -> bytes:
        """One block of HKDF-Expand; 1 µs, where the library's HKDF object takes 8."""
        prf = self._prf.copy()
        prf.update(self._label + info + b"\x01")
        return prf.digest()

    def close(self, header: bytes, data: bytes, aad: bytes) -> bytes:
        salt = os.urandom(_SALT)
        block = self._expand(salt)
        sealed = _aesgcm()(block[:KEY_BYTES]).encrypt(_NONCE, data, header + aad)
        return header + salt + self._check + block[KEY_BYTES : KEY_BYTES + _COMMITMENT] + sealed

    def open(self, header: bytes, body: bytes, aad: bytes) -> bytes | None:
        """The record's data, or None if it does not commit to this key."""
        block = self._expand(body[:_SALT])
        committed = self._check + block[KEY_BYTES : KEY_BYTES + _COMMITMENT]
        if not hmac.compare_digest(body[_SALT:_PREFIX], committed):
            return None
        from cryptography.exceptions import InvalidTag

        try:
            return _aesgcm()(block[:KEY_BYTES]).decrypt(_NONCE, body[_PREFIX:], header + aad)
        except InvalidTag as exc:
            raise TamperedError(_CHANGED) from exc

    def made(self, body: bytes) -> bool:
        """True if a record that does not open was made with this key, and changed since."""
        commitment = self._expand(body[:_SALT])[KEY_BYTES : KEY_BYTES + _COMMITMENT]
        return body[_SALT : _SALT + _CHECK] == self._check or body[_SALT + _CHECK : _PREFIX] == commitment


def _refuse(body: bytes, boxes: Iterable[_Box], reason: str) -> NoReturn:
    if any(box.made(body) for box in boxes):
        raise TamperedError(_CHANGED)
    raise WrongKeyError(reason)


_CHANGED = "sealed bytes were changed, or moved here from another row: restore the row from a backup"


# --- a tenant's data keys ---------------------------------------------------------------------


class Sealer:
    """Seals records with one of a tenant's data keys, and opens those of all of them.

    `data_keys` maps numbers to 32-byte keys; new records use `current` (default: the highest number).
    """

    def __init__(self, data_keys: Mapping[int, bytes], *, current: int | None = None) -> None:
        self._boxes = {_checked(number): _Box(key, _RECORD) for number, key in data_keys.items()}
        if not self._boxes:
            raise ConfigError("a sealer needs at least one data key")
        self.current = max(self._boxes) if current is None else current
        if self.current not in self._boxes:
            raise ConfigError(f"data key {self.current} is not among those given: {sorted(self._boxes)}")
        self._header = bytes((_FORMAT, _ALGORITHM)) + self.current.to_bytes(2, "big")

    def __repr__(self) -> str:
        return f"Sealer(current={self.current}, data_keys={sorted(self._boxes)})"

    def seal(self, data: bytes, aad: bytes) -> bytes:
        """Encrypt `data` for the row that `aad` names; the result is `OVERHEAD` bytes longer."""
        return self._boxes[self.current].close(self._header, data, aad)

    def open(self, stored: bytes, aad: bytes) -> bytes:
        """Decrypt a record of the row that `aad` names.

        Raises PlaintextRefusedError if it is not sealed; WrongKeyError if it was sealed with another
        key, or with a data key that this sealer was not given; TamperedError if it was changed, or
        moved here from another row; DecodeError if a newer version of this package wrote it.
        """
        number = _read_header(stored)
        header, body = stored[:_BODY], stored[_BODY:]
        box = self._boxes.get(number)
        if box is None:
            reason = f"sealed with data key {number}; known are {sorted(self._boxes)}: load it first"
            _refuse(body, self._boxes.values(), reason)
        data = box.open(header, body, aad)
        if data is None:
            _refuse(body, self._boxes.values(), "sealed with another key: give the key it was written with")
        return data


def is_sealed(stored: bytes) -> bool:
    """True if these stored bytes are a sealed record, of whatever format."""
    return bool(stored) and stored[0] >= _SEALED


def data_key_number(stored: bytes) -> int:
    """The number of the data key that a sealed record needs; PlaintextRefusedError if it is not sealed."""
    return _read_header(stored)


def new_data_key() -> bytes:
    """A fresh random data key."""
    return os.urandom(KEY_BYTES)


def _checked(number: int) -> int:
    if not 0 <= number <= _MAX_NUMBER:
        raise ConfigError(f"a data key's number is between 0 and {_MAX_NUMBER}, not {number}")
    return number


def _read_header(stored: bytes) -> int:
    if not is_sealed(stored):
        raise PlaintextRefusedError("this row should be sealed and is not: something else wrote it")
    if stored[0] != _FORMAT or stored[1:2] not in (b"", bytes((_ALGORITHM,))):
        raise DecodeError("sealed in an unknown format: written by a newer version of this package")
    if len(stored) < _BODY + _PREFIX + _TAG:
        raise TamperedError("sealed bytes were cut short: restore the row from a backup")
    return int.from_bytes(stored[2:_BODY], "big")


# --- master keys ------------------------------------------------------------------------------


class Keyring:
    """Master keys, which wrap data keys: the current one wraps, any of them unwraps.

    A secret is 32 bytes; base64 or hexadecimal text of 32 bytes; or a passphrase of at least 12
    characters, from which scrypt makes the key (N=2^15, r=8, p=3: 32 MiB and about half a second,
    once per process). ConfigError if it is none of these.
    """

    def __init__(self, current: str | bytes, *older: str | bytes) -> None:
        keys = [_master_key(secret) for secret in (current, *older)]
        self._boxes = {_key_id(key): _Box(key, _WRAP) for key in keys}
        self._current = _key_id(keys[0])

    def __repr__(self) -> str:
        return f"Keyring(current={self.current_id!r}, keys={len(self._boxes)})"

    @property
    def current_id(self) -> str:
        """The public name of the master key that wraps; the key cannot be computed from it."""
        return self._current.hex()

    @property
    def ids(self) -> frozenset[str]:
        """The public names of all these master keys."""
        return frozenset(key.hex() for key in self._boxes)

    def wrap(self, data_key: bytes, tenant: str, number: int) -> bytes:
        """A tenant's data key, encrypted under the current master key: 106 bytes."""
        if len(data_key) != KEY_BYTES:
            raise ConfigError(f"a data key has {KEY_BYTES} bytes, this one has {len(data_key)}")
        header = bytes((_FORMAT, _ALGORITHM)) + self._current
        return self._boxes[self._current].close(header, data_key, _wrap_context(tenant, number))

    def unwrap(self, wrapped: bytes, tenant: str, number: int) -> bytes:
        """The data key back.

        Raises WrongKeyError if it was wrapped by a master key that was not given; TamperedError if
        it was changed, or belongs to another tenant or number.
        """
        header, body = wrapped[: 2 + _ID_BYTES], wrapped[2 + _ID_BYTES :]
        reason = (
            f"wrapped by master key {wrapping_id(wrapped)}; given were {sorted(self.ids)}: give the key "
            "it was wrapped by as encryption_key, or among older_encryption_keys"
        )
        box = self._boxes.get(header[2:])
        data_key = None if box is None else box.open(header, body, _wrap_context(tenant, number))
        if data_key is None:
            _refuse(body, self._boxes.values(), f"the data key of tenant {tenant!r} is {reason}")
        return data_key

    def rewrap(self, wrapped: bytes, tenant: str, number: int) -> bytes:
        """The same data key wrapped by the current master key, whichever of these wrapped it."""
        return self.wrap(self.unwrap(wrapped, tenant, number), tenant, number)


def wrapping_id(wrapped: bytes) -> str:
    """The public name of the master key that wrapped a data key, to see which need `rewrap`."""
    if wrapped[:2] != bytes((_FORMAT, _ALGORITHM)):
        raise DecodeError(
            "a wrapped data key in an unknown format: written by a newer version of this package"
        )
    if len(wrapped) != 2 + _ID_BYTES + _PREFIX + KEY_BYTES + _TAG:
        raise TamperedError("a wrapped data key has the wrong length: restore it from a backup")
    return wrapped[2 : 2 + _ID_BYTES].hex()


def _wrap_context(tenant: str, number: int) -> bytes:
    return context(tenant, "data_key", number)


def _key_id(key: bytes) -> bytes:
    return hmac.digest(key, b"haive.key-id.v1", "sha512")[:_ID_BYTES]


#: Hexadecimal digits that are nearly a key: taken for a passphrase they would be another key.
_MISCOPIED: Final = re.compile(rb"[0-9a-fA-F]{48,80}")


def _master_key(secret: str | bytes) -> bytes:
    if isinstance(secret, bytes) and len(secret) == KEY_BYTES:
        return secret
    text = secret if isinstance(secret, bytes) else unicodedata.normalize("NFKC", secret).encode()
    key = _decoded(text.strip())
    if key is not None:
        return key
    if len(text) < MIN_PASSPHRASE:
        raise ConfigError(
            f"an encryption key is 32 random bytes (as bytes, base64 or hexadecimal), or a passphrase "
            f"of at least {MIN_PASSPHRASE} characters"
        )
    if _MISCOPIED.fullmatch(text.strip()):
        raise ConfigError(
            f"this encryption key has {len(text.strip())} hexadecimal digits, a key has {2 * KEY_BYTES}: "
            "copy it again, whole"
        )
    if not _is_text(text):
        raise ConfigError(f"this encryption key has {len(text)} bytes: a key has {KEY_BYTES}")
    return _from_passphrase(text)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _decoded(text: bytes) -> bytes | None:
    """32 bytes from their hexadecimal (64 characters) or base64 (43, or 44 with padding) text."""
    try:
        if len(text) == 2 * KEY_BYTES:
            return binascii.unhexlify(text)
        if len(text.rstrip(b"=")) == 43:
            standard = text.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
            return base64.b64decode(standard + b"=", validate=True)
    except binascii.Error:
        pass
    return None


@lru_cache(maxsize=16)
def _from_passphrase(text: bytes) -> bytes:
    # the salt is fixed because key ids must not differ between processes
    return hashlib.scrypt(text, salt=b"haive.passphrase.v1", n=2**15, r=8, p=3, maxmem=2**26, dklen=KEY_BYTES)


@lru_cache(maxsize=1)
def _aesgcm() -> type[AESGCM]:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # 50 ms that only sealing needs

    return AESGCM


# --- searching what is sealed -----------------------------------------------------------------


def blind_index(key: bytes, field: str, value: str | int | float | bool | None) -> bytes:
    """A keyed hash (16 bytes) of one metadata value, to find rows by equality without storing the value.

    `key` is a data key that is kept for this and not rotated: another key gives other hashes. Numbers
    that are equal hash alike (1 and 1.0), a number, its text and a bool do not. Whoever reads the
    table learns which rows have equal values, and nothing else.
    """
    # Keyed BLAKE2 (RFC 7693, 2.9) rather than HMAC: each put hashes, and OpenSSL gives up the interpreter
    # lock even for a few bytes, so that the put waits until the other threads give it back.
    return hashlib.blake2b(row(field) + canonical(value), key=_index_key(key), digest_size=16).digest()


@lru_cache(maxsize=64)
def _index_key(key: bytes) -> bytes:
    return hmac.digest(_INDEX, key, "sha512")


def canonical(value: str | int | float | bool | None) -> bytes:
    if value is None or isinstance(value, bool):
        return b"c" + repr(value).encode()
    if isinstance(value, str):
        return b"s" + str.encode(value, "utf-8", "surrogatepass")
    if isinstance(value, float) and not value.is_integer():
        return b"f" + float.__repr__(value).encode()
    return b"i" + hex(int(value)).encode()
