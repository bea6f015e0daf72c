"""Names that are sealed and can be looked up all the same.

AES-SIV (RFC 5297) turns the same name into the same text, always: rows are found by it. Whoever reads the
table learns which rows have equal names, and about how long they are; without the key no name can be read,
made up or changed.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import TYPE_CHECKING

from haive_persistence.codec import context
from haive_persistence.errors import PlaintextRefusedError, TamperedError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

_TAG = 16
_MAX_CACHED = 4096


class NameSealer:
    """Seals the names of one tenant, each for one kind of name."""

    def __init__(self, index_key: bytes, tenant: str) -> None:
        self._key = hmac.digest(index_key, b"haive.names.v1", "sha512")
        self._tenant = tenant
        self._siv: AESSIV | None = None
        self._sealed: dict[tuple[str, str], str] = {}
        self._opened: dict[tuple[str, str], str] = {}

    def seal(self, kind: str, name: str) -> str:
        """The name as text of letters, digits, "-" and "_"."""
        cached = self._sealed.get((kind, name))
        if cached is None:
            data = self._cipher().encrypt(name.encode() or b"\0", [context(self._tenant, kind)])
            cached = base64.urlsafe_b64encode(data).rstrip(b"=").decode()
            self._remember(kind, name, cached)
        return cached

    def open(self, kind: str, sealed: str) -> str:
        """The name that was sealed.

        Raises PlaintextRefusedError if the text is no sealed name, TamperedError if it was changed or belongs
        to another tenant or kind.
        """
        cached = self._opened.get((kind, sealed))
        if cached is None:
            cached = self._decrypt(kind, sealed)
            self._remember(kind, cached, sealed)
        return cached

    def _decrypt(self, kind: str, sealed: str) -> str:
        from cryptography.exceptions import InvalidTag

        try:
            data = base64.b64decode(sealed + "=" * (-len(sealed) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            data = b""
        if len(data) <= _TAG:
            raise PlaintextRefusedError(
                f"the {kind} of a row should be sealed and is not: something else wrote it"
            )
        try:
            name = self._cipher().decrypt(data, [context(self._tenant, kind)])
        except InvalidTag:
            raise TamperedError(
                f"the sealed {kind} of a row was changed, or moved here: restore the row from a backup"
            ) from None
        return "" if name == b"\0" else name.decode()

    def _remember(self, kind: str, name: str, sealed: str) -> None:
        if len(self._sealed) >= _MAX_CACHED or len(self._opened) >= _MAX_CACHED:
            self._sealed, self._opened = {}, {}
        self._sealed[kind, name] = sealed
        self._opened[kind, sealed] = name

    def _cipher(self) -> AESSIV:
        if self._siv is None:
            from cryptography.hazmat.primitives.ciphers.aead import AESSIV  # 50 ms that only sealing needs

            self._siv = AESSIV(self._key)
        return self._siv
