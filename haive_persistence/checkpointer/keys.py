"""A tenant's codec: its data keys are loaded, or made, on first use and kept in memory.

The user's master key wraps a data key per tenant; the data key seals. Rotating the master key wraps
the same data keys again and rewrites no data. Older master keys still open what they wrapped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from langgraph.checkpoint.serde.base import SerializerProtocol

from haive_persistence.checkpointer.config import CheckpointConfig
from haive_persistence.checkpointer.sealing import BoundCodec
from haive_persistence.codec import Codec, Keyring, Sealer, new_data_key
from haive_persistence.codec.seal import wrapping_id
from haive_persistence.db.protocol import Db, Query


class CodecProvider:
    """Makes the codec of one tenant and serialiser."""

    def __init__(
        self, queries: Mapping[str, Query], tenant: str, serde: SerializerProtocol, config: CheckpointConfig
    ) -> None:
        self._queries = queries
        self._tenant = tenant
        self._serde = serde
        self._config = config
        self._bound: BoundCodec | None = None
        self._numbers: frozenset[int] = frozenset()

    async def codec(self, db: Db) -> BoundCodec:
        """The tenant's codec. Raises WrongKeyError if the master keys do not open its data keys."""
        if self._bound is None:
            sealer, key, index_key = await self._sealer(db)
            codec = Codec(self._serde, compression=self._config.compression, sealer=sealer)
            self._bound = BoundCodec(codec, self._tenant, key, index_key)
        return self._bound

    async def look_again(self, db: Db) -> bool:
        """Load the data keys as they are stored now; whether there are any that another process added."""
        if self._keyring() is None:
            return False
        before, self._bound = self._numbers, None
        await self.codec(db)
        return not self._numbers <= before

    def _keyring(self) -> Keyring | None:
        if self._config.encryption_key is None:
            return None
        return Keyring(self._config.encryption_key, *self._config.older_encryption_keys)

    async def _sealer(self, db: Db) -> tuple[Sealer | None, tuple[int, bytes] | None, bytes | None]:
        """What seals, the number and wrapped form of the key it seals with, and the key of blind indexes."""
        keyring = self._keyring()
        if keyring is None:
            return None, None, None
        rows = await self._rows(db)
        if not rows:
            wrapped = keyring.wrap(new_data_key(), self._tenant, 1)
            await db.fetch_all(
                self._queries["add_data_key"],
                {"tenant": self._tenant, "no": 1, "wrapped": wrapped},
                idempotent=True,
            )
            rows = await self._rows(db)  # another process may have been first: its key counts
        keys = {no: keyring.unwrap(wrapped, self._tenant, no) for no, wrapped in rows}
        self._numbers = frozenset(keys)
        return Sealer(keys), max(rows), keys[min(keys)]

    async def _rows(self, db: Db) -> Sequence[tuple[int, bytes]]:
        return await db.fetch_all(self._queries["data_keys"], {"tenant": self._tenant}, idempotent=True)

    async def add_data_key(self, db: Db) -> int:
        """A new data key: what is written from now on is sealed with it. Returns its number."""
        keyring = self._keyring()
        if keyring is None:
            return 0
        no = max((no for no, _ in await self._rows(db)), default=0) + 1
        wrapped = keyring.wrap(new_data_key(), self._tenant, no)
        params = {"tenant": self._tenant, "no": no, "wrapped": wrapped}
        await db.fetch_all(self._queries["add_data_key"], params, idempotent=True)
        self._bound = None
        return no

    async def rotate(self, db: Db) -> int:
        """Wrap the tenant's data keys under the current master key; how many were wrapped anew."""
        keyring = self._keyring()
        if keyring is None:
            return 0
        changed = 0
        for no, wrapped in await self._rows(db):
            if wrapping_id(wrapped) != keyring.current_id:
                fresh = keyring.rewrap(wrapped, self._tenant, no)
                params = {"tenant": self._tenant, "no": no, "wrapped": fresh, "old": wrapped}
                changed += len(await db.fetch_all(self._queries["rewrap_data_key"], params))
        return changed
