"""The checkpointer's logic, written once over `Db`: put, write, get, list, delta history.

A thread's row carries an epoch. Every statement that adds to a thread names the epoch it believes in,
and does nothing when the thread has moved on (pruned, deleted, made anew); then what this process
knew is dropped, the parent is read, and what is not shared with it is sent. So a stale cache costs
some round trips, never a wrong state.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from langgraph.checkpoint.base import (
    EXCLUDED_METADATA_KEYS,
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    PendingWrite,
)

from haive_persistence.checkpointer import manifest as mf
from haive_persistence.checkpointer import records
from haive_persistence.checkpointer.identity import Address, encode_id
from haive_persistence.checkpointer.keys import CodecProvider
from haive_persistence.checkpointer.reading import (
    Rereading,
    StaleRead,
    Stored,
    ThreadReader,
    no_garbage_collection,
    open_rows,
)
from haive_persistence.checkpointer.sealing import BoundCodec
from haive_persistence.checkpointer.split import Encoder
from haive_persistence.checkpointer.statements import waiting, while_sealed, with_pieces
from haive_persistence.checkpointer.thread_log import (
    DELTA_PAGE,
    MOST_PARTS,
    Batch,
    KnownHead,
    LaneFull,
    ProcessCache,
    ThreadLog,
)
from haive_persistence.db import forks
from haive_persistence.db.protocol import Db, Query
from haive_persistence.errors import CodecError, ConflictError, EncodeError, InvalidInputError, WrongKeyError

if TYPE_CHECKING:
    from haive_persistence.db.grouping import Grouping

ATTEMPTS = 8
PAGE = 64
MANY = 500  # pieces

Config = Mapping[str, Any]
T = TypeVar("T")


class Engine:
    """One tenant's checkpoints; every method takes the `Db` to work on, blocking or asynchronous."""

    def __init__(
        self,
        queries: Mapping[str, Query],
        tenant: str,
        cache: ProcessCache,
        keys: CodecProvider,
        searchable: Sequence[str] = (),
    ) -> None:
        self.queries = queries
        self.tenant = tenant
        self.cache = cache
        self.codec = keys.codec
        self._keys = keys
        self.searchable = searchable
        self._writers = _grouping()
        forks.begins_anew(self)

    def after_fork(self) -> None:
        """A child must not write into its parent's lanes, nor wait for its parent's threads."""
        self.cache = ProcessCache(self.cache.max_bytes)
        self._writers = _grouping()

    def reader(self, codec: BoundCodec, thread: uuid.UUID, epoch: int) -> ThreadReader:
        return ThreadReader(self.cache.at_epoch(thread.bytes, epoch), codec, thread, self.queries)

    # --- writing

    async def put(
        self,
        db: Db,
        config: Config,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> dict[str, Any]:
        address = Address(config, self.tenant)
        id_ = encode_id(checkpoint["id"])
        kept_metadata = stored_metadata(config, metadata)
        run = kept_metadata.get("run_id")
        if address.checkpoint_id is not None:
            await self._know_parent(db, config, address, records.unchanged(checkpoint, new_versions))
        known: list[KnownHead] = []

        def encode(codec: BoundCodec, batch: Batch, log: ThreadLog) -> tuple[str, dict[str, Any]]:
            encoder = Encoder(codec.codec, batch)
            parent = address.checkpoint_id
            reuse = log.heads.get((address.ns_key, parent)) if parent else None
            head, as_known = records.encode_head(
                encoder,
                batch,
                checkpoint,
                kept_metadata,
                reuse,
                new_versions,
                id_,
                parent if codec.sealed else None,
                address.ns,
            )
            known[:] = [as_known]
            return "put", {
                "id": id_,
                "parent": parent,
                "run_key": codec.run_key(str(run)) if run else None,
                "labels": labels_of(kept_metadata, self.searchable),
                "frozen": sorted(encoder.structural) or None,
                "head": codec.seal_head(address.thread, address.ns_key, id_, head),
            }

        log = await self._send(db, address, encode)
        log.remember_head(address.ns_key, id_, known[0])
        self.cache.trim()
        return address.config(id_)

    async def _know_parent(self, db: Db, config: Config, address: Address, inherits: bool) -> None:
        """Look at the parent, unless it is known: if channels have what it has, or the thread's log made room
        for others, without which the pieces they share would be sent and stored again."""
        log = self.cache.get(address.thread.bytes)
        if log is None:
            wanted = inherits or self.cache.has_made_room
        else:
            wanted = inherits and (address.ns_key, address.checkpoint_id) not in log.heads
        if wanted:
            await self.get_tuple(db, config)

    async def put_writes(
        self, db: Db, config: Config, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> None:
        address = Address(config, self.tenant)
        if address.checkpoint_id is None:
            raise InvalidInputError(
                "put_writes needs the checkpoint_id of the checkpoint the writes belong to"
            )
        if not writes:
            return
        task = encode_id(task_id, "task_id")
        id_ = address.checkpoint_id
        upsert = all(channel in WRITES_IDX_MAP for channel, _ in writes)

        def encode(codec: BoundCodec, batch: Batch, log: ThreadLog) -> tuple[str, dict[str, Any]]:
            encoder = Encoder(codec.codec, batch)
            no = batch.reserve()
            # Later than all that this process has seen, whatever the clocks of others say: an answer comes
            # after those it was given in the knowledge of.
            log.clock = now = max(time.time_ns() // 1000, log.clock + 1)
            record = records.encode_write(encoder, batch, no, id_, now, (task, task_path), writes, upsert)
            return "write", {
                "id": id_,
                "no": no,
                "frozen": sorted(encoder.structural) or None,
                "payload": codec.seal_write(address.thread, address.ns_key, id_, no, record),
            }

        await self._send(db, address, encode)

    async def _send(
        self,
        db: Db,
        address: Address,
        encode: Callable[[BoundCodec, Batch, ThreadLog], tuple[str, dict[str, Any]]],
    ) -> ThreadLog:
        """Encode against what is known of the thread and send it, until the thread agrees."""
        thread = address.thread
        log = self.cache.get(thread.bytes) or self.cache.absent(thread.bytes)
        for attempt in range(ATTEMPTS):
            codec = await self.codec(db)
            with log.lock:
                batch = Batch(log)
                try:
                    name, params = encode(codec, batch, log)
                    pieces = [(no, codec.seal_piece(thread, no, batch.send[no])) for no in sorted(batch.send)]
                except LaneFull:
                    batch.abandon()
                    if not batch.shared:
                        raise EncodeError(
                            f"a value has too many parts; at most {MOST_PARTS:,} can be stored"
                        ) from None
                    log.lane = None
                    continue
                except BaseException:
                    batch.abandon()
                    raise
                creates = not log.exists
                epoch = log.epoch
                params |= {"thread": thread, "tenant": self.tenant, "ns_key": address.ns_key}
                if creates:
                    name = f"create_and_{name}"
                    params["thread_id"] = address.thread_id
                else:
                    params["epoch"] = epoch
                    if batch.shared:
                        name += "_shared" if pieces else "_bare"
            query = self.queries[name]
            if codec.key is not None:
                query = while_sealed(query, self.queries["and_sealed"])
                params["key_no"], params["key"] = codec.key
            query, more = with_pieces(query, pieces)
            params |= more
            size = sum(len(payload) for _, payload in pieces)
            try:
                kept = await self._writers.fetch_all(
                    db, query, params, alone=waiting(query), key=thread.bytes, size=size
                )
            except ConflictError:
                if attempt + 1 == ATTEMPTS:
                    raise
                with log.lock:
                    log.lane = None  # another process is in this lane: take a new one
                continue
            if kept:
                if creates:
                    # Each statement that makes the thread makes another: what one of them stored is not
                    # there for those after it, if the thread was deleted in between.
                    epoch = kept[0][0]
                    with log.lock:
                        if not log.exists:
                            log.epoch = epoch
                if log.epoch == epoch:
                    batch.acknowledge()
                else:
                    self.cache.drop(thread.bytes, log)
                return log
            await self._keys.look_again(db)
            log = await self._refresh(db, address, log)
        raise ConflictError(
            f"thread {address.thread_id!r} is being pruned or deleted over and over; try again", sqlstate=None
        )

    async def _refresh(self, db: Db, address: Address, log: ThreadLog) -> ThreadLog:
        thread = address.thread
        if address.checkpoint_id is not None:  # and know what is shared with it: it need not be sent again
            with contextlib.suppress(CodecError):  # damaged: what is put now is whole by itself
                await self.get_tuple(db, address.config(address.checkpoint_id))
                return self.cache.get(thread.bytes) or self.cache.absent(thread.bytes)
        row = await db.fetch_one(self.queries["epoch"], {"thread": thread}, idempotent=True)
        if row is None:
            self.cache.drop(thread.bytes, log)
            return self.cache.absent(thread.bytes)
        return self.cache.at_epoch(thread.bytes, row[0])

    # --- reading

    async def latest_codec(self, db: Db) -> BoundCodec:
        """The codec with the data keys as they are stored now."""
        await self._keys.look_again(db)
        return await self.codec(db)

    async def with_all_keys(self, db: Db, read: Callable[[], Awaitable[T]]) -> T:
        """Read, once more if another process has sealed with a data key it added meanwhile."""
        try:
            return await read()
        except WrongKeyError:
            if not await self._keys.look_again(db):
                raise
            return await read()

    async def get_tuple(self, db: Db, config: Config) -> CheckpointTuple | None:
        return await self.with_all_keys(db, lambda: self._get_tuple(db, config))

    async def _get_tuple(self, db: Db, config: Config) -> CheckpointTuple | None:
        address = Address(config, self.tenant)
        codec = await self.codec(db)
        params: dict[str, Any] = {"thread": address.thread, "ns_key": address.ns_key}
        name = "get_latest"
        if address.checkpoint_id is not None:
            name, params["id"] = "get_one", address.checkpoint_id
        again = Rereading(self.cache)
        for _ in range(ATTEMPTS):
            rows = await db.fetch_all(self.queries[name], params, idempotent=True)
            reader, stored = self._open(rows, address, codec)
            if reader is None or not stored:
                return None
            try:
                missing = reader.needed(stored)
                if missing:
                    await reader.fetch(db, missing)
                with no_garbage_collection(many=len(missing) > MANY):
                    found = reader.checkpoint_tuple(stored[0])
            except StaleRead as stale:
                again.forget(stale)
                continue
            self.cache.trim()
            return found
        raise again.given_up(f"thread {address.thread_id!r}")

    def _open(
        self, rows: Sequence[tuple[Any, ...]], address: Address, codec: BoundCodec
    ) -> tuple[ThreadReader | None, list[Stored]]:
        """Rows of a query on one namespace; checkpoints in order of their depth."""
        epoch = next((row[2] for row in rows if row[0] == "t"), None)
        if epoch is None:
            known = self.cache.get(address.thread.bytes)
            if known is not None and known.exists:
                self.cache.drop(address.thread.bytes, known)
            return None, []
        reader = self.reader(codec, address.thread, epoch)
        ns_key = address.ns_key
        writes: dict[bytes, list[records.Write]] = {}
        for kind, id_, number, _, payload in rows:
            if kind == "f":
                reader.open_frozen(number, payload)
            elif kind == "w":
                writes.setdefault(id_, []).append(reader.open_write(ns_key, id_, number, payload))
        stored = [
            (
                depth,
                Stored(
                    address.thread,
                    address.thread_id_given,
                    ns_key,
                    id_,
                    parent,
                    reader.open_head(ns_key, id_, parent, payload),
                    writes.get(id_, []),
                ),
            )
            for kind, id_, depth, parent, payload in rows
            if kind == "c"
        ]
        return reader, [s for _, s in sorted(stored, key=lambda pair: pair[0])]

    async def list(
        self,
        db: Db,
        config: Config | None,
        *,
        filter: Mapping[str, Any] | None,
        before: Config | None,
        limit: int | None,
    ) -> AsyncIterator[CheckpointTuple]:
        name, params, thread_id = self._list_query(config, before)
        params["labels"] = labels_of(filter or {}, self.searchable)
        left = limit
        while left is None or left > 0:
            size = PAGE if left is None or filter else min(PAGE, left)
            self.cache.trim()
            wanted = {**params, "limit": size}
            page = await self.with_all_keys(db, partial(self._page, db, name, wanted, filter, thread_id))
            for found in page.tuples:
                yield found
                if left is not None:
                    left -= 1
                    if left == 0:
                        return
            if page.last is None or page.size < size:
                return
            params |= {
                "after_id": page.last.id,
                "after_ns": page.last.ns_key,
                "after_thread": page.last.thread,
            }

    def _list_query(self, config: Config | None, before: Config | None) -> tuple[str, dict[str, Any], Any]:
        params: dict[str, Any] = {"before": None, "after_id": None, "after_ns": None, "after_thread": None}
        if before is not None and (given := (before.get("configurable") or {}).get("checkpoint_id")):
            params["before"] = encode_id(given)
        if config is None:
            return "list_all", params, None
        address = Address(config, self.tenant)
        any_ns = (config["configurable"]).get("checkpoint_ns") is None
        params |= {"thread": address.thread, "ns_key": None if any_ns else address.ns_key}
        if address.checkpoint_id is not None:
            return "list_one", params | {"id": address.checkpoint_id}, address.thread_id_given
        return "list_thread" if any_ns else "list_namespace", params, address.thread_id_given

    async def _page(
        self,
        db: Db,
        name: str,
        params: dict[str, Any],
        filter: Mapping[str, Any] | None,
        thread_id: Any,
    ) -> Page:
        codec = await self.codec(db)
        again = Rereading(self.cache)
        for _ in range(ATTEMPTS):
            rows = await db.fetch_all(self.queries[name], params, idempotent=True)
            found, readers = open_rows(rows, lambda thread, epoch: self.reader(codec, thread, epoch))
            last, size = (found[-1] if found else None), len(found)
            try:
                if filter:
                    await fetch_missing(db, readers, found, "metadata")
                    found = [s for s in found if contains(readers[s.thread].metadata(s.head), filter)]
                await fetch_missing(db, readers, found)
                if thread_id is not None:
                    found = [s._replace(thread_id=thread_id) for s in found]
                with no_garbage_collection(many=len(found) > 1):
                    return Page([readers[s.thread].checkpoint_tuple(s) for s in found], last, size)
            except StaleRead as stale:
                again.forget(stale)
        raise again.given_up("a thread of those listed")

    async def delta_history(
        self, db: Db, config: Config, channels: Sequence[str]
    ) -> dict[str, DeltaChannelHistory]:
        return await self.with_all_keys(db, lambda: self._delta_history(db, config, channels))

    async def _delta_history(
        self, db: Db, config: Config, channels: Sequence[str]
    ) -> dict[str, DeltaChannelHistory]:
        """Per channel, the writes since the nearest ancestor that has a value of it, and that value."""
        if not channels:
            return {}
        address = Address(config, self.tenant)
        codec = await self.codec(db)
        known = self.cache.get(address.thread.bytes)
        depth = known.delta_depth if known is not None else DELTA_PAGE
        again = Rereading(self.cache)
        for _ in range(ATTEMPTS * 4):
            params = {
                "thread": address.thread,
                "ns_key": address.ns_key,
                "id": address.checkpoint_id,
                "depth": depth,
            }
            rows = await db.fetch_all(self.queries["get_ancestors"], params, idempotent=True)
            with no_garbage_collection():
                reader, chain = self._open(rows, address, codec)
            if reader is None or not chain:
                return {channel: {"writes": []} for channel in channels}
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
                    return {ch: _history(reader, ch, *walk) for ch, walk in walks.items()}
            except StaleRead as stale:
                again.forget(stale)
        raise again.given_up(f"thread {address.thread_id!r}")


def _grouping() -> Grouping:
    from haive_persistence.db.grouping import Grouping  # with it comes the driver, 50 ms that can wait

    return Grouping()


class Page(NamedTuple):
    tuples: Sequence[CheckpointTuple]
    last: Stored | None
    size: int


async def fetch_missing(
    db: Db, readers: Mapping[uuid.UUID, ThreadReader], stored: Sequence[Stored], want: str = "all"
) -> None:
    """Bring what some checkpoints need into memory: one statement per thread that lacks something."""
    for thread, reader in readers.items():
        if missing := reader.needed((s for s in stored if s.thread == thread), want):
            await reader.fetch(db, missing)


Walk = tuple[list[Stored], "tuple[mf.Manifest, int] | None"]


def _walk(reader: ThreadReader, chain: Sequence[Stored], channel: str) -> Walk:
    """The ancestors, nearest first, up to the first with a value of the channel; that value's manifest."""
    on_path: list[Stored] = []
    for s in chain[1:]:
        on_path.append(s)
        names = reader.names(s.head)[3]
        if channel in names:
            return on_path, (s.head.values[names.index(channel)], s.head.base)
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
    return missing


def _history(
    reader: ThreadReader, channel: str, path: Sequence[Stored], seed: tuple[mf.Manifest, int] | None
) -> DeltaChannelHistory:
    writes: list[PendingWrite] = []
    for s in reversed(path):
        writes += reader.pending_writes(s.writes, channel)
    if seed is None:
        return {"writes": writes}
    return {"writes": writes, "seed": reader.decoder.decode(*seed)}


def stored_metadata(config: Config, metadata: CheckpointMetadata) -> dict[str, Any]:
    """A checkpoint's metadata with the run's scalars, as LangGraph's own savers keep it."""
    kept: dict[str, Any] = {k: v for k, v in metadata.items() if k != "writes"}
    for source in (config.get("metadata"), config.get("configurable")):
        for key, value in (source or {}).items():
            if key in kept or key in EXCLUDED_METADATA_KEYS or key.startswith("__") or key == "writes":
                continue
            if isinstance(value, (str, int, float)):
                kept[key] = value
    return kept


def labels_of(metadata: Mapping[str, Any], searchable: Sequence[str]) -> str | None:
    """The searchable part of metadata as JSON; None if there is none. What JSON cannot hold is left out."""
    labels: dict[str, Any] = {}
    for key in searchable:
        value = metadata.get(key)
        if isinstance(value, str) and ("\x00" in value or not value.isprintable()):
            continue
        if isinstance(value, (str, bool, int)):
            labels[key] = value
    return json.dumps(labels) if labels else None


def contains(value: Any, wanted: Any) -> bool:
    """Whether `value` has all of `wanted`, as Postgres's `@>` has it: objects by key, arrays as sets."""
    if isinstance(wanted, Mapping):
        return isinstance(value, Mapping) and all(
            k in value and contains(value[k], v) for k, v in wanted.items()
        )
    if isinstance(wanted, (list, tuple)):
        return isinstance(value, (list, tuple)) and all(any(contains(v, w) for v in value) for w in wanted)
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    return bool(value == wanted)
