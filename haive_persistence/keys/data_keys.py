"""Tenants' data keys: loaded on first use, made by the first write, remembered by the process.

The user's master key wraps a data key per tenant; the data key seals. Rotating the master key wraps
the same data keys again and rewrites no data. Older master keys still open what they wrapped.

A read never makes a key. Until a tenant has one nothing of it is sealed, and what is found is not opened.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from haive_persistence.codec import Keyring, Sealer, new_data_key, wrapping_id
from haive_persistence.config import EncryptionConfig
from haive_persistence.db.protocol import Db
from haive_persistence.db.sql import Queries
from haive_persistence.errors import ConfigError, PlaintextRefusedError

#: Tenants whose data keys a process remembers; one that was evicted is loaded again.
MAX_TENANTS = 10_000


class TenantKeys(NamedTuple):
    """One tenant's data keys, as they were stored when they were loaded.

    `sealer` is None if nothing is to be sealed. `current` is the number and the wrapped form of the data key
    that seals what is written: writes name it, so that none is sealed under a key that is no longer stored.
    """

    sealer: Sealer | None = None
    current: tuple[int, bytes] | None = None
    index_key: bytes | None = None
    numbers: frozenset[int] = frozenset()


_UNSEALED = TenantKeys()


class DataKeys:
    """The data keys of a database's tenants, for one `EncryptionConfig` (None: nothing is sealed)."""

    def __init__(self, queries: Queries, encryption: EncryptionConfig | None) -> None:
        self._queries = queries
        self.encryption = encryption
        self._tenants: OrderedDict[str, TenantKeys] = OrderedDict()
        self._lock = threading.Lock()

    @cached_property
    def _keyring(self) -> Keyring:
        if self.encryption is None:
            raise ConfigError("there is no encryption_key: set PersistenceConfig(encryption=…)")
        return Keyring(self.encryption.encryption_key, *self.encryption.older_encryption_keys)

    # --- use

    async def load(self, db: Db) -> TenantKeys:
        """The keys of the tenant that `db` works for.

        Raises WrongKeyError if no master key of the configuration opens them.
        """
        if self.encryption is None:
            return _UNSEALED
        return self._tenants.get(db.tenant) or self._remember(db.tenant, await self._rows(db))

    async def load_to_write(self, db: Db) -> TenantKeys:
        """`load`; makes the tenant's first data key if it has none."""
        keys = await self.load(db)
        if keys is _UNSEALED or keys.current is not None:
            return keys
        await self._add(db, 1)  # does nothing where another process was first: then its key counts
        return self._remember(db.tenant, await self._rows(db))

    async def refresh(self, db: Db) -> bool:
        """Load the tenant's keys as they are stored now. True if another process has added one."""
        if self.encryption is None:
            return False
        before = self._tenants.get(db.tenant, _UNSEALED).numbers
        return not self._remember(db.tenant, await self._rows(db)).numbers <= before

    async def refresh_to_write(self, db: Db) -> None:
        """`refresh`, after a write that the database refused.

        Raises PlaintextRefusedError if the tenant has keys and this process was about to write plaintext.
        """
        if self.encryption is not None:
            await self.refresh(db)
        elif await self._rows(db):
            raise PlaintextRefusedError(
                f"the data of tenant {db.tenant!r} is encrypted and this process has no key: nothing was "
                "written; set PersistenceConfig(encryption=EncryptionConfig(encryption_key=…)) or "
                "HAIVE_ENCRYPTION_KEY"
            )

    async def _rows(self, db: Db) -> Sequence[tuple[int, bytes]]:
        return await db.fetch_all(self._queries["data_keys"], {"tenant": db.tenant}, idempotent=True)

    def _remember(self, tenant: str, rows: Sequence[tuple[int, bytes]]) -> TenantKeys:
        unwrapped = {no: self._keyring.unwrap(wrapped, tenant, no) for no, wrapped in rows}
        keys = TenantKeys(
            Sealer(unwrapped) if rows else _NoDataKeys(),
            max(rows) if rows else None,
            unwrapped[min(unwrapped)] if rows else None,
            frozenset(unwrapped),
        )
        with self._lock:
            self._tenants[tenant] = keys
            if len(self._tenants) > MAX_TENANTS:
                self._tenants.popitem(last=False)
        return keys

    # --- administration

    async def add(self, db: Db) -> int:
        """Make a new data key, which seals what is written from now on. Returns its number."""
        number = max((no for no, _ in await self._rows(db)), default=0) + 1
        await self._add(db, number)
        self._remember(db.tenant, await self._rows(db))
        return number

    async def _add(self, db: Db, number: int) -> None:
        wrapped = self._keyring.wrap(new_data_key(), db.tenant, number)
        params = {"tenant": db.tenant, "key_no": number, "wrapped": wrapped}
        await db.fetch_all(self._queries["add_data_key"], params, idempotent=True)

    async def rotate(self, db: Db) -> int:
        """Wrap the tenant's data keys under the current master key. Returns how many were under another."""
        changed = 0
        for no, wrapped in await self._rows(db):
            if wrapping_id(wrapped) != self._keyring.current_id:
                again = self._keyring.rewrap(wrapped, db.tenant, no)
                params = {"tenant": db.tenant, "key_no": no, "wrapped": again, "old": wrapped}
                changed += len(await db.fetch_all(self._queries["rewrap_data_key"], params))
        return changed


class _NoDataKeys(Sealer):
    """The sealer of a tenant that has no data key yet: it refuses all it is asked to open."""

    def __init__(self) -> None:
        self._boxes = {}
