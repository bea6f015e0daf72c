"""The history a `DeltaChannel` is rebuilt from: its last stored value and the writes since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from langgraph.checkpoint.base import DeltaChannelHistory

from haive_persistence.checkpointer.ancestry import Ancestor, Ancestry, ancestry_of
from haive_persistence.checkpointer.context import ATTEMPTS, Config, TenantContext
from haive_persistence.checkpointer.damage import raises_decode_error
from haive_persistence.checkpointer.ids import Address, check_list, shown
from haive_persistence.checkpointer.reads import Reads, fetch_missing
from haive_persistence.checkpointer.storage import manifest as mf
from haive_persistence.checkpointer.storage.piece_index import DELTA_PAGE, ThreadLog
from haive_persistence.checkpointer.thread_reader import (
    StaleRead,
    StaleReadRetry,
    StoredCheckpoint,
    ThreadReader,
    no_garbage_collection,
)
from haive_persistence.checkpointer.versions.lines import View
from haive_persistence.checkpointer.versions.views import ViewChanged
from haive_persistence.db.protocol import Db
from haive_persistence.errors import ConflictError, InvalidInputError
from haive_persistence.keys import Sealing


class _Changed(Exception):
    """The ancestors are not as they were read before: that was forgotten, read again."""


class _Chain(NamedTuple):
    """A checkpoint and its ancestors, nearest first."""

    reader: ThreadReader
    ancestors: list[Ancestor]
    ended: bool  # no ancestor is left out


class Walk(NamedTuple):
    """The ancestors, nearest first, up to the first with a value of a channel."""

    path: list[Ancestor]
    seed: tuple[mf.Manifest, int] | None  # that value's manifest and its base


class DeltaHistory:
    """Reads delta channels of one tenant's threads."""

    def __init__(self, context: TenantContext, reads: Reads) -> None:
        self._context = context
        self._reads = reads

    async def read(self, db: Db, config: Config, channels: Sequence[str]) -> dict[str, DeltaChannelHistory]:
        names = check_list("channels", channels)
        if not all(isinstance(name, str) for name in names):
            raise InvalidInputError(f"channels must be names, not {shown(names)}")
        if not names:
            return {}
        return await self._context.with_all_keys(db, lambda: self._read(db, config, names))

    async def _read(self, db: Db, config: Config, channels: Sequence[str]) -> dict[str, DeltaChannelHistory]:
        """Per channel, the writes since the nearest ancestor that has a value of it, and that value."""
        address = Address(config, self._context.tenant)
        for _ in range(ATTEMPTS):
            view = await self._reads.views.names.view(db, address)
            try:
                if view is None:
                    return await self._read_line(db, address, channels)
                return await self._read_view(db, address, view, channels)
            except ViewChanged:
                continue
        raise ConflictError(
            f"the branches of thread {address.thread_id!r} change faster than they can be read"
        )

    async def _read_view(
        self, db: Db, address: Address, view: View, channels: Sequence[str]
    ) -> dict[str, DeltaChannelHistory]:
        """The same through a branch, whose checkpoints have ancestors on other lines."""
        depth = DELTA_PAGE
        again = StaleReadRetry(self._context.cache)
        for _ in range(ATTEMPTS * 4):
            try:
                page = await self._reads.views.ancestors(db, address, view, depth)
                if page.reader is None or not page.stored:
                    return {channel: {"writes": []} for channel in channels}
                ended = len(page.stored) <= depth
                page.reader.check_ancestors(page.stored, page.stored[1:], ended=ended)
                chain = [Ancestor.read(page.reader, s) for s in page.stored]
                walks = {channel: _walk(chain, channel) for channel in channels}
                if not ended and any(walk.seed is None for walk in walks.values()):
                    depth *= 8
                    continue
                return await _histories(db, page.reader, page.stored[0].ns_key, walks)
            except StaleRead as stale:
                again.forget(stale)
        raise again.final_error(f"thread {address.thread_id!r}")

    async def _read_line(
        self, db: Db, address: Address, channels: Sequence[str]
    ) -> dict[str, DeltaChannelHistory]:
        codec = await self._context.codec(db)
        log = self._context.cache.get(address.thread.bytes)
        depth = log.delta_depth if log is not None else DELTA_PAGE
        again = StaleReadRetry(self._context.cache)
        for _ in range(ATTEMPTS * 4):
            try:
                chain = await self._chain(db, address, codec, depth)
                if chain is None:
                    return {channel: {"writes": []} for channel in channels}
                walks = {channel: _walk(chain.ancestors, channel) for channel in channels}
                if not chain.ended and any(walk.seed is None for walk in walks.values()):
                    depth *= 8
                    await self._extend(db, address, codec, chain.reader.log, depth)
                    continue
                return await _histories(db, chain.reader, address.ns_key, walks)
            except _Changed:
                continue
            except StaleRead as stale:
                again.forget(stale)
        raise again.final_error(f"thread {address.thread_id!r}")

    async def _chain(self, db: Db, address: Address, codec: Sealing, depth: int) -> _Chain | None:
        """The checkpoint and its ancestors; None if it does not exist."""
        log = self._context.cache.get(address.thread.bytes)
        known: Ancestry | None = log.ancestries.get(address.ns_key) if log is not None else None
        id_ = address.checkpoint_id
        if known is not None and id_ is not None and id_ <= known.newest:
            if id_ in known.by_id:
                return await self._known_chain(db, address, codec, known)
            known = None
        params = {
            "thread": address.thread,
            "ns_key": address.ns_key,
            "id": id_,
            "depth": depth,
            "known": b"" if known is None else known.newest,
            "oldest": b"" if known is None else known.oldest,
        }
        query = self._context.queries.render("get_ancestors", more="")
        rows = await db.fetch_all(query, params, idempotent=True)
        with no_garbage_collection():
            reader, stored = self._reads.open(rows, address, codec)
        if reader is not None and reader.log.main_line is not None:
            raise ViewChanged(reader.log.epoch or 0)
        if reader is None or not stored:
            return None
        states = {row[0]: row[2] for row in rows if row[0] in {"f", "g"}}
        if known is not None:
            _check_known(reader, address, known, states["f"])
            if stored[-1].id != known.newest:  # another branch
                reader.log.record_ancestry(address.ns_key, None)
                raise _Changed
        return await _continued(db, address, reader, stored, known, states["g"], len(stored) <= depth)

    async def _extend(self, db: Db, address: Address, codec: Sealing, log: ThreadLog, depth: int) -> None:
        """Read on where what is known of the ancestors ends."""
        known: Ancestry | None = log.ancestries.get(address.ns_key)
        if known is None:
            return
        log.record_ancestry(address.ns_key, None)
        below = Address.of_row(address.thread, address.thread_id, address.ns_key, known.oldest)
        if await self._chain(db, below, codec, depth) is None:
            return
        more: Ancestry | None = log.ancestries.get(address.ns_key)
        if more is not None:
            log.record_ancestry(address.ns_key, known.continued_by(more))

    async def _known_chain(self, db: Db, address: Address, codec: Sealing, known: Ancestry) -> _Chain | None:
        params = {"thread": address.thread, "ns_key": address.ns_key}
        row = await db.fetch_one(
            self._context.queries["ancestors_state"],
            {**params, "known": known.newest, "oldest": known.oldest},
            idempotent=True,
        )
        if row is None:
            self._context.cache.drop(address.thread.bytes)
            return None
        reader = self._context.reader(codec, address.thread, row[0])
        _check_known(reader, address, known, row[1])
        return _Chain(reader, known.below(address.checkpoint_id or b""), known.is_whole)


def _check_known(reader: ThreadReader, address: Address, known: Ancestry, state: int) -> None:
    """Raise _Changed unless the ancestors that were read before are as they were."""
    if state != known.state or reader.log.ancestries.get(address.ns_key) is not known:
        reader.log.record_ancestry(address.ns_key, None)
        raise _Changed


async def _continued(
    db: Db,
    address: Address,
    reader: ThreadReader,
    stored: list[StoredCheckpoint],
    known: Ancestry | None,
    state: int,
    ended: bool,
) -> _Chain:
    """The chain that was read, followed by what is known of the ancestors of its last checkpoint."""
    await fetch_missing(db, {address.thread.int: reader}, stored, "delta")
    read = [Ancestor.read(reader, s) for s in stored]
    older = [] if known is None else known.below(stored[-1].id)[1:]
    if known is not None:
        ended = known.is_whole
    chain = _Chain(reader, read + older, ended)
    reader.check_ancestors(stored, [a.stored for a in chain.ancestors[1:]], ended=ended)
    if known is not None or not ended or stored[-1].parent is None:
        reader.log.record_ancestry(address.ns_key, ancestry_of(read, state, known, is_whole=ended))
    return chain


@raises_decode_error
def _walk(chain: Sequence[Ancestor], channel: str) -> Walk:
    for count, ancestor in enumerate(chain[1:], 2):
        names = ancestor.names.values
        if channel in names:
            body = ancestor.stored.body
            return Walk(list(chain[1:count]), (body.values[names.index(channel)], body.base))
    return Walk(list(chain[1:]), None)


async def _histories(
    db: Db, reader: ThreadReader, ns_key: int, walks: Mapping[str, Walk]
) -> dict[str, DeltaChannelHistory]:
    longest = max((walk.path for walk in walks.values()), key=len)
    reader.log.delta_depth = max(DELTA_PAGE, 2 * len(longest))
    ancestry: Ancestry | None = reader.log.ancestries.get(ns_key)
    if ancestry is not None and longest:
        reader.log.record_ancestry(ns_key, ancestry.from_segment_of(longest[-1].stored.id))
    if missing := _needed_by(reader, walks):
        await reader.fetch(db, missing)
    with no_garbage_collection():
        histories = {channel: _history(reader, channel, walk) for channel, walk in walks.items()}
    reader.settle()
    return histories


@raises_decode_error
def _needed_by(reader: ThreadReader, walks: Mapping[str, Walk]) -> set[int]:
    missing: set[int] = set()
    for channel, (path, seed) in walks.items():
        if seed is not None:
            reader.add_missing(*seed, missing)
        for ancestor in path:
            for write, pieces in ancestor.writes:
                if write.channel == channel:
                    reader.add_ranges(pieces, missing)
        reader.check_named()
    return missing


@raises_decode_error
def _history(reader: ThreadReader, channel: str, walk: Walk) -> DeltaChannelHistory:
    on_path = (write for ancestor in reversed(walk.path) for write, _ in ancestor.writes)
    writes = reader.decode_writes([write for write in on_path if write.channel == channel])
    if walk.seed is None:
        return {"writes": writes}
    seed: Any = reader.decoder.decode(*walk.seed)
    return {"writes": writes, "seed": seed}
