"""Bytes in and out of rows: compressed, and sealed under the tenant's data key for the row they belong to."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import NamedTuple

from langgraph.checkpoint.serde.base import SerializerProtocol

from haive_persistence.codec import Codec, blind_index, context, is_sealed, row
from haive_persistence.codec.limits import MAX_READ_BYTES
from haive_persistence.codec.seal import Part
from haive_persistence.db.protocol import Db
from haive_persistence.errors import PlaintextRefusedError
from haive_persistence.keys.data_keys import MAX_TENANTS, DataKeys, TenantKeys

Identity = tuple[Part, ...]


class SealProgress(NamedTuple):
    """Progress of `seal_existing`: threads, or items, that were sealed, of all that there are."""

    done: int
    total: int


class PlaintextRowError(PlaintextRefusedError):
    """A row that should be sealed is not; `identity` is its key, or begins it."""

    def __init__(self, table: str, identity: Identity) -> None:
        super().__init__(
            f"a row of {table} is not sealed, and the tenant has a key: if it is older than the key, call "
            "seal_existing(), or set accept_earlier_plaintext=True; if not, something else wrote it: delete "
            "it, or restore a backup"
        )
        self.identity = identity


class Sealing:
    """Seals and opens one tenant's records; a sealed record opens only in the row it was sealed for.

    `identity` is the full key of the row. `key` is the data key that seals, as stored: its number and its
    wrapped form; None if nothing is sealed.
    """

    def __init__(self, codec: Codec, tenant: str, keys: TenantKeys) -> None:
        self.codec = codec.with_sealer(keys.sealer)
        self.sealed = keys.sealer is not None
        self.keys = keys
        self._tenant = tenant

    @property
    def key(self) -> tuple[int, bytes] | None:
        return self.keys.current

    def seal(self, table: str, identity: Identity, data: bytes) -> bytes:
        """Return the bytes to store in the row of `table` that `identity` names."""
        aad = context(self._tenant, table, *identity) if self.sealed else b""
        return self.codec.pack(data, aad)

    def open(self, table: str, identity: Identity, stored: bytes) -> bytes:
        """The bytes that `seal` was given for this row.

        Raises a SealError if they are not sealed, sealed for another row, sealed with an unknown key or
        changed; DecodeError if they are damaged or of a newer version.
        """
        aad = context(self._tenant, table, *identity) if self.sealed else b""
        try:
            return self.codec.unpack(stored, aad)
        except PlaintextRefusedError as error:
            raise PlaintextRowError(table, identity) from error

    def open_all(
        self, table: str, prefix: Identity, ends: Sequence[Part], stored: Iterable[bytes]
    ) -> list[bytes]:
        """`open` for rows identified by `prefix` and one of `ends`."""
        if not self.sealed:
            return self.codec.unpack_all(stored, repeat(b""))
        shared = context(self._tenant, table, *prefix)
        try:
            return self.codec.unpack_all(stored, (shared + row(end) for end in ends))
        except PlaintextRefusedError as error:
            raise PlaintextRowError(table, prefix) from error

    def trusting(self) -> Sealing:
        """The same, which opens plaintext too. For rows that the caller has checked."""
        return _TrustingSealing(self.codec, self._tenant, self.keys)

    def blind(self, field: str, value: str | int | float | bool | None) -> bytes | None:
        """A keyed hash of a value, by which rows are found without their value; None if nothing is sealed."""
        if self.keys.index_key is None:
            return None
        return blind_index(self.keys.index_key, field, value)


class _TrustingSealing(Sealing):
    def open(self, table: str, identity: Identity, stored: bytes) -> bytes:
        if is_sealed(stored):
            return super().open(table, identity, stored)
        return self.codec.with_sealer(None).unpack(stored, b"")

    def open_all(
        self, table: str, prefix: Identity, ends: Sequence[Part], stored: Iterable[bytes]
    ) -> list[bytes]:
        return [self.open(table, (*prefix, end), one) for end, one in zip(ends, stored, strict=True)]


class Sealings:
    """Each tenant's `Sealing`, for one serialiser (None if only bytes are sealed)."""

    def __init__(
        self,
        data_keys: DataKeys,
        serde: SerializerProtocol | None = None,
        compression: str | None = "zstd",
        max_read_bytes: int = MAX_READ_BYTES,
    ) -> None:
        self.data_keys = data_keys
        self._codec = Codec(serde, compression=compression, max_read_bytes=max_read_bytes)
        self._tenants: OrderedDict[str, Sealing] = OrderedDict()

    async def load(self, db: Db) -> Sealing:
        """The sealing of the tenant that `db` works for. Raises WrongKeyError if its keys do not open."""
        return self._of(db.tenant, await self.data_keys.load(db))

    async def load_to_write(self, db: Db) -> Sealing:
        """`load`; makes the tenant's first data key if it has none."""
        if self.data_keys.encryption is None and (sealing := self._tenants.get(db.tenant)) is not None:
            return sealing  # there is nothing to load
        return self._of(db.tenant, await self.data_keys.load_to_write(db))

    async def refresh(self, db: Db) -> bool:
        """`DataKeys.refresh`."""
        return await self.data_keys.refresh(db)

    async def refresh_to_write(self, db: Db) -> None:
        """`DataKeys.refresh_to_write`."""
        await self.data_keys.refresh_to_write(db)

    def _of(self, tenant: str, keys: TenantKeys) -> Sealing:
        sealing = self._tenants.get(tenant)
        if sealing is None or sealing.keys is not keys:
            sealing = self._tenants[tenant] = Sealing(self._codec, tenant, keys)
            if len(self._tenants) > MAX_TENANTS:
                self._tenants.popitem(last=False)
        return sealing
