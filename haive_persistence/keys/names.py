"""Names that are sealed and can be looked up all the same.

AES-SIV (RFC 5297) turns the same name into the same text, always: rows are found by it. Whoever reads the
table learns which rows have equal names, and about how long they are; without the key no name can be read,
made up or changed. A name may be bound to others, such as a key to its namespace: then it opens beside
them only, and proves that they were stored together.
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
        self._sealed: dict[tuple[str, ...], str] = {}
        self._opened: dict[tuple[str, ...], str] = {}

    def seal(self, kind: str, name: str, *bound: str) -> str:
        """The name, bound to others, as text of letters, digits, "-" and "_"."""
        cached = self._sealed.get((kind, name, *bound))
        if cached is None:
            data = self._cipher().encrypt(name.encode() or b"\0", [context(self._tenant, kind, *bound)])
            cached = base64.urlsafe_b64encode(data).rstrip(b"=").decode()
            self._remember(kind, name, cached, bound)
        return cached

    def open(self, kind: str, sealed: str, *bound: str) -> str:
        """The name that was sealed.

        Raises PlaintextRefusedError if the text is no sealed name, TamperedError if it was changed, belongs
        to another tenant or kind, or is bound to other names.
        """
        cached = self._opened.get((kind, sealed, *bound))
        if cached is None:
            cached = self._decrypt(kind, sealed, bound)
            self._remember(kind, cached, sealed, bound)
        return cached

    def _decrypt(self, kind: str, sealed: str, bound: tuple[str, ...]) -> str:
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
            name = self._cipher().decrypt(data, [context(self._tenant, kind, *bound)])
        except InvalidTag:
            raise TamperedError(
                f"the sealed {kind} of a row was changed, or moved here: restore the row from a backup"
            ) from None
        return "" if name == b"\0" else name.decode()

    def _remember(self, kind: str, name: str, sealed: str, bound: tuple[str, ...]) -> None:
        if len(self._sealed) >= _MAX_CACHED or len(self._opened) >= _MAX_CACHED:
            self._sealed, self._opened = {}, {}
        in_clear, stored = (kind, name, *bound), (kind, sealed, *bound)
        self._sealed[in_clear] = sealed
        self._opened[stored] = name

    def _cipher(self) -> AESSIV:
        if self._siv is None:
            from cryptography.hazmat.primitives.ciphers.aead import AESSIV  # 50 ms that only sealing needs

            self._siv = AESSIV(self._key)
        return self._siv
