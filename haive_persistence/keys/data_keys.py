"""Tenants' data keys: loaded on first use, made by the first write, remembered by the process.

The user's master key wraps a data key per tenant; the data key seals. Rotating the master key wraps
the same data keys again and rewrites no data. Older master keys still open what they wrapped.

A read never makes a key. Until a tenant has one nothing of it is sealed, and what is found is not opened.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from haive_persistence.codec import Keyring, Sealer, context, new_data_key, wrapping_id
from haive_persistence.config import EncryptionConfig
from haive_persistence.db.protocol import Db, Executor, Statement
from haive_persistence.db.sql import Queries
from haive_persistence.errors import ConfigError, PlaintextRefusedError, TamperedError, WrongKeyError

#: Tenants whose data keys a process remembers; one that was evicted is loaded again.
MAX_TENANTS = 10_000


#: The transaction before which a tenant's plaintext was written, and the server that counts it.
_MOMENT = struct.Struct(">Qq")


def _moment_context(tenant: str) -> bytes:
    return context(tenant, "data_key", "plaintext_before")


class KeyRow(NamedTuple):
    """A row of `data_key`."""

    key_no: int
    wrapped: bytes
    plaintext_threads: bool
    plaintext_items: bool


class TenantKeys(NamedTuple):
    """One tenant's data keys, as they were stored when they were loaded.

    `sealer` is None if nothing is to be sealed. `current` is the number and the wrapped form of the data key
    that seals what is written: writes name it, so that none is sealed under a key that is no longer stored.
    """

    sealer: Sealer | None = None
    current: tuple[int, bytes] | None = None
    index_key: bytes | None = None
    numbers: frozenset[int] = frozenset()
    #: Threads, or store items, that were written before the tenant had a key may be left.
    plaintext_threads: bool = False
    plaintext_items: bool = False


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
            raise _no_key()
        return Keyring(self.encryption.encryption_key, *self.encryption.older_encryption_keys)

    # --- use

    async def load(self, db: Db) -> TenantKeys:
        """The keys of the tenant that `db` works for.

        Raises WrongKeyError if no master key of the configuration opens them.
        """
        if self.encryption is None:
            return _UNSEALED
        keys = self._tenants.get(db.tenant)
        if keys is None or keys.current is None:  # another process may have made the first key since
            keys = self._remember(db.tenant, await self._rows(db))
        return keys

    async def load_to_write(self, db: Db) -> TenantKeys:
        """`load`; makes the tenant's first data key if it has none."""
        keys = await self.load(db)
        if self.encryption is None or keys.current is not None:
            return keys
        await self._add_first(db)  # does nothing where another process was first: then its key counts
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
            raise _plaintext_refused(db.tenant)

    async def check_plaintext(self, transaction: Executor, tenant: str) -> None:
        """Raise PlaintextRefusedError unless the tenant has no data key until this transaction ends."""
        row = await transaction.fetch_one(self._queries["accepts_plaintext"], {"tenant": tenant})
        if row != (True,):
            raise _plaintext_refused(tenant)

    async def check_unsealed(self, db: Db) -> None:
        """Raise WrongKeyError if the tenant has keys, which this process, without one, cannot see through.

        Names are sealed too: items would not be found, and their tenant be taken for empty.
        """
        if await self._rows(db):
            raise WrongKeyError(
                f"the data of tenant {db.tenant!r} is encrypted and this process has no key: nothing can be "
                "found; set PersistenceConfig(encryption=EncryptionConfig(encryption_key=…)) or "
                "HAIVE_ENCRYPTION_KEY"
            )

    async def _rows(self, db: Db) -> Sequence[KeyRow]:
        rows = await db.fetch_all(self._queries["data_keys"], {"tenant": db.tenant}, idempotent=True)
        return [KeyRow(*row) for row in rows]

    def _remember(self, tenant: str, rows: Sequence[KeyRow]) -> TenantKeys:
        keys = self._unwrapped(tenant, rows) if rows else self._without_keys
        with self._lock:
            self._tenants[tenant] = keys
            if len(self._tenants) > MAX_TENANTS:
                self._tenants.popitem(last=False)
        return keys

    def _unwrapped(self, tenant: str, rows: Sequence[KeyRow]) -> TenantKeys:
        # Names and keyed hashes are made with the first: under another, what is stored would not be found.
        if [row.key_no for row in rows] != [*range(1, len(rows) + 1)]:
            raise TamperedError(f"a data key of tenant {tenant!r} is missing: restore data_key from a backup")
        data_keys = {row.key_no: self._keyring.unwrap(row.wrapped, tenant, row.key_no) for row in rows}
        first, last = rows[0], rows[-1]
        return TenantKeys(
            Sealer(data_keys),
            (last.key_no, last.wrapped),
            data_keys[first.key_no],
            frozenset(data_keys),
            first.plaintext_threads,
            first.plaintext_items,
        )

    @property
    def _without_keys(self) -> TenantKeys:
        """For a tenant without keys: what it has is plaintext, and older than any key."""
        accepts = self.encryption is None or self.encryption.accept_earlier_plaintext
        return _UNSEALED if accepts else _NO_KEYS

    # --- plaintext from before

    async def plaintext_moment(self, db: Db, *, trust_all: bool = False) -> int:
        """The transaction before which the tenant's plaintext was written; with `trust_all`, the next one.

        Raises PlaintextRefusedError if that is not known of this server.
        """
        if self.encryption is None:
            raise _no_key()
        rows = await db.fetch_all(self._queries["recorded_moment"], {"tenant": db.tenant}, idempotent=True)
        for _, recorded, cluster, next_transaction in rows:
            if trust_all:
                return int(next_transaction)
            sealer = (await self.load(db)).sealer
            assert sealer is not None
            moment, of_cluster = _MOMENT.unpack(sealer.open(recorded, _moment_context(db.tenant)))
            if of_cluster == cluster:
                return int(moment)
        raise PlaintextRefusedError(
            f"tenant {db.tenant!r} has plaintext, and this server did not record when the tenant's first key "
            "was made (a restored dump?): if you trust all that is in it, call seal_existing(trust_all=True)"
        )

    async def refresh_plaintext(self, db: Db) -> bool:
        """True if the tenant, as it is stored now, may have threads that are older than its first key."""
        await self.refresh(db)
        return (await self.load(db)).plaintext_threads

    async def end_plaintext(self, db: Db, what: str) -> None:
        """Record that all "threads", or all "items", of the tenant are sealed."""
        await db.execute(self._queries[f"end_plaintext_{what}"], {"tenant": db.tenant}, idempotent=True)
        await self.refresh(db)

    # --- making keys

    async def _add_first(self, db: Db) -> None:
        """Make a tenant's first data key, and record the moment before which its plaintext was written.

        Statements that write plaintext are waited for and held back meanwhile. What processes remember of the
        threads becomes stale, so that each asks again whether the tenant accepts plaintext.
        """
        params = {"tenant": db.tenant}
        names = ("lock_data_keys", "make_epochs_stale", "plaintext_moment")
        async with db.transaction() as tx:
            *_, [(moment, cluster, threads, items)] = await tx.batch(
                [Statement(self._queries[name], params) for name in names]
            )
            data_key = new_data_key()
            sealed = Sealer({1: data_key}).seal(_MOMENT.pack(moment, cluster), _moment_context(db.tenant))
            await self._add(tx, db.tenant, 1, data_key, sealed, threads, items)

    async def _add(
        self,
        db: Executor,
        tenant: str,
        number: int,
        data_key: bytes,
        plaintext_before: bytes | None = None,
        plaintext_threads: bool = False,
        plaintext_items: bool = False,
    ) -> None:
        params = {
            "tenant": tenant,
            "key_no": number,
            "wrapped": self._keyring.wrap(data_key, tenant, number),
            "plaintext_before": plaintext_before,
            "plaintext_threads": plaintext_threads,
            "plaintext_items": plaintext_items,
        }
        await db.execute(self._queries["add_data_key"], params, idempotent=True)

    # --- administration

    async def add(self, db: Db) -> int:
        """Make a new data key, which seals what is written from now on. Returns its number."""
        rows = await self._rows(db)
        if rows:
            await self._add(db, db.tenant, rows[-1].key_no + 1, new_data_key())
        else:
            await self._add_first(db)
        rows = await self._rows(db)
        self._remember(db.tenant, rows)
        return rows[-1].key_no

    async def rotate(self, db: Db) -> int:
        """Wrap the tenant's data keys under the current master key. Returns how many were under another."""
        changed = 0
        for row in await self._rows(db):
            if wrapping_id(row.wrapped) != self._keyring.current_id:
                again = self._keyring.rewrap(row.wrapped, db.tenant, row.key_no)
                params = {"tenant": db.tenant, "key_no": row.key_no, "wrapped": again, "old": row.wrapped}
                changed += len(await db.fetch_all(self._queries["rewrap_data_key"], params))
        return changed


def _no_key() -> ConfigError:
    return ConfigError("there is no encryption_key: set PersistenceConfig(encryption=…)")


def _plaintext_refused(tenant: str) -> PlaintextRefusedError:
    return PlaintextRefusedError(
        f"the data of tenant {tenant!r} is encrypted and this process has no key: nothing was written; set "
        "PersistenceConfig(encryption=EncryptionConfig(encryption_key=…)) or HAIVE_ENCRYPTION_KEY"
    )


class _NoDataKeys(Sealer):
    """The sealer of a tenant that has no data key yet: it refuses all it is asked to open."""

    def __init__(self) -> None:
        self._boxes = {}


_NO_KEYS = TenantKeys(_NoDataKeys())
