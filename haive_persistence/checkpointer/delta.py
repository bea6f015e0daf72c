"""The history a `DeltaChannel` is rebuilt from: its last stored value and the writes since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from langgraph.checkpoint.base import DeltaChannelHistory, PendingWrite

from haive_persistence.checkpointer.context import ATTEMPTS, Config, TenantContext
from haive_persistence.checkpointer.ids import Address, check_list, shown
from haive_persistence.checkpointer.reads import Reads, fetch_missing
from haive_persistence.checkpointer.storage import manifest as mf
from haive_persistence.checkpointer.storage.piece_index import DELTA_PAGE
from haive_persistence.checkpointer.thread_reader import (
    StaleRead,
    StaleReadRetry,
    StoredCheckpoint,
    ThreadReader,
    no_garbage_collection,
)
from haive_persistence.db.protocol import Db
from haive_persistence.errors import InvalidInputError


class DeltaHistory:
    """Reads delta channels of one tenant's threads."""

    def __init__(self, context: TenantContext, reads: Reads) -> None:
        self._context = context
        self._reads = reads

    async def read(self, db: Db, config: Config, channels: Sequence[str]) -> dict[str, DeltaChannelHistory]:
        return await self._context.with_all_keys(db, lambda: self._read(db, config, channels))

    async def _read(self, db: Db, config: Config, channels: Sequence[str]) -> dict[str, DeltaChannelHistory]:
        """Per channel, the writes since the nearest ancestor that has a value of it, and that value."""
        channels = check_list("channels", channels)
        if not all(isinstance(channel, str) for channel in channels):
            raise InvalidInputError(f"channels must be names, not {shown(channels)}")
        if not channels:
            return {}
        address = Address(config, self._context.tenant)
        codec = await self._context.codec(db)
        known = self._context.cache.get(address.thread.bytes)
        depth = known.delta_depth if known is not None else DELTA_PAGE
        again = StaleReadRetry(self._context.cache)
        for _ in range(ATTEMPTS * 4):
            params = {
                "thread": address.thread,
                "ns_key": address.ns_key,
                "id": address.checkpoint_id,
                "depth": depth,
            }
            rows = await db.fetch_all(
                self._context.queries.render("get_ancestors", more=""), params, idempotent=True
            )
            with no_garbage_collection():
                reader, chain = self._reads.open(rows, address, codec)
            if reader is None or not chain:
                return {channel: {"writes": []} for channel in channels}
            reader.check_ancestors(chain, chain[1:], ended=len(chain) <= depth)
            try:
                await fetch_missing(db, {address.thread: reader}, chain, "delta")
                walks = {channel: _walk(reader, chain, channel) for channel in channels}
                if len(chain) > depth and any(seed is None for _, seed in walks.values()):
                    depth *= 8
                    continue
                reader.log.delta_depth = max(DELTA_PAGE, 2 * max(len(path) for path, _ in walks.values()))
                if missing := _needed_by(reader, walks):
                    await reader.fetch(db, missing)
                with no_garbage_collection():
                    histories = {ch: _history(reader, ch, *walk) for ch, walk in walks.items()}
                reader.settle()
                return histories
            except StaleRead as stale:
                again.forget(stale)
        raise again.final_error(f"thread {address.thread_id!r}")


Walk = tuple[list[StoredCheckpoint], "tuple[mf.Manifest, int] | None"]


def _walk(reader: ThreadReader, chain: Sequence[StoredCheckpoint], channel: str) -> Walk:
    """The ancestors, nearest first, up to the first with a value of the channel; that value's manifest."""
    on_path: list[StoredCheckpoint] = []
    for s in chain[1:]:
        on_path.append(s)
        names = reader.names(s.body).values
        if channel in names:
            return on_path, (s.body.values[names.index(channel)], s.body.base)
    return on_path, None


def _needed_by(reader: ThreadReader, walks: Mapping[str, Walk]) -> set[int]:
    missing: set[int] = set()
    for channel, (path, seed) in walks.items():
        if seed is not None:
            reader.add_missing(*seed, missing)
        for s in path:
            for _, name, m, base in reader.ordered(s.writes):
                if name == channel:
                    reader.add_missing(m, base, missing)
        reader.check_named()
    return missing


def _history(
    reader: ThreadReader, channel: str, path: Sequence[StoredCheckpoint], seed: tuple[mf.Manifest, int] | None
) -> DeltaChannelHistory:
    writes: list[PendingWrite] = []
    for s in reversed(path):
        writes += reader.pending_writes(s.writes, channel)
    if seed is None:
        return {"writes": writes}
    return {"writes": writes, "seed": reader.decoder.decode(*seed)}
