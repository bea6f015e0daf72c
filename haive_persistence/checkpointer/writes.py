"""Writing: a checkpoint, and a task's pending writes.

A thread's row carries an epoch. Every statement that adds to a thread names the epoch it believes in,
and does nothing when the thread has moved on (pruned, deleted, created again); then what this process
knew is dropped, the parent is read, and what is not shared with it is sent. So a stale cache costs
some round trips, never a wrong state.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from langgraph.checkpoint.base import WRITES_IDX_MAP, ChannelVersions, Checkpoint, CheckpointMetadata

from haive_persistence.checkpointer.context import ATTEMPTS, Config, TenantContext
from haive_persistence.checkpointer.damage import MALFORMED
from haive_persistence.checkpointer.ids import (
    Address,
    check_list,
    check_mapping,
    check_str,
    encode_id,
    listing_key,
    run_key,
    shown,
)
from haive_persistence.checkpointer.metadata import signature, stored_metadata
from haive_persistence.checkpointer.reads import Reads
from haive_persistence.checkpointer.statements import ASKED, PLAINTEXT, SEALED, WriteStatements
from haive_persistence.checkpointer.storage import row_format as records
from haive_persistence.checkpointer.storage.bindings import bindings_for_child
from haive_persistence.checkpointer.storage.encoder import Encoder
from haive_persistence.checkpointer.storage.piece_index import MAX_CHECKPOINTS, Batch, ThreadLog, key_of
from haive_persistence.checkpointer.storage.piece_numbers import MAX_PARTS, BlockFull
from haive_persistence.checkpointer.versions.places import Places
from haive_persistence.db import fork_safety
from haive_persistence.db.driver import require_driver
from haive_persistence.db.protocol import Db
from haive_persistence.errors import (
    CodecError,
    ConflictError,
    EncodeError,
    InvalidInputError,
    NotFoundError,
    PersistenceError,
)
from haive_persistence.keys import Sealing

if TYPE_CHECKING:
    from haive_persistence.db.batching.group_commit import GroupCommit


class _Encoded(NamedTuple):
    """A statement without the thread it is for."""

    kind: str  # "put" or "write"
    params: dict[str, Any]
    record: Callable[[ThreadLog], None]  # what is known once it is committed


class _Prepared(NamedTuple):
    """An encoded statement with its pieces, and the epoch that it was encoded for (None: a new thread)."""

    encoded: _Encoded
    batch: Batch
    pieces: list[tuple[int, bytes]]
    epoch: int | None
    guard: str


Encode = Callable[..., _Encoded]  # of a Sealing, a Batch and a ThreadLog


class _ParentEvictedError(Exception):
    """The parent was read, and others of its thread took its place before it was used."""


class Writes:
    """Adds to one tenant's threads."""

    def __init__(self, context: TenantContext, reads: Reads) -> None:
        self._context = context
        self._reads = reads
        self._places = Places(context, reads.views)
        self._statements = WriteStatements(context.queries)
        self._writers = _group_commit()
        fork_safety.register(self)

    def after_fork(self) -> None:
        """A child must not wait for its parent's threads."""
        self._writers = _group_commit()

    async def put(
        self,
        db: Db,
        config: Config,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> dict[str, Any]:
        address = Address(config, self._context.tenant)
        check_checkpoint(checkpoint)
        check_mapping("new_versions", new_versions)
        new_versions = new_versions or {}
        stored = stored_metadata(config, metadata)
        id_ = encode_id(checkpoint["id"])
        new = records.NewCheckpoint(id_, address.ns, address.checkpoint_id, checkpoint, stored, new_versions)
        if address.checkpoint_id is not None:
            await self._load_parent(db, config, address, records.unchanged(checkpoint, new_versions))
        await self._send(db, address, partial(self._encode_checkpoint, address, new), id_)
        return address.config(id_)

    def _encode_checkpoint(
        self,
        address: Address,
        new: records.NewCheckpoint,
        codec: Sealing,
        batch: Batch,
        log: ThreadLog,
        *,
        is_parent_stored: bool = True,  # as far as is known
    ) -> _Encoded:
        ns_key, parent, parent_ns_key = address.ns_key, new.parent, address.parent_ns_key
        encoder = Encoder(codec.codec, batch)
        home = ns_key if parent_ns_key is None else parent_ns_key
        inherited = log.checkpoints.get((home, parent)) if parent else None
        may_be_evicted = inherited is None and is_parent_stored and len(log.checkpoints) >= MAX_CHECKPOINTS
        if parent and may_be_evicted and records.missing_values(new.checkpoint, new.new_versions):
            raise _ParentEvictedError
        body, known = records.encode_checkpoint(encoder, batch, new, inherited)
        if codec.sealed and parent is not None:
            bindings = bindings_for_child(log, ns_key, parent, parent_ns_key, address.shown_writes)
            bound = bindings.encode(parent, body.base)
            body = body._replace(parent=parent, bound=bound, parent_ns_key=parent_ns_key)
            bound_writes = frozenset(chain.from_iterable(bindings.writes.values()))
            known = known._replace(parent=parent, parent_ns_key=parent_ns_key, bound_writes=bound_writes)
        run = new.metadata.get("run_id")
        params = {
            "id": new.id,
            "parent": parent,
            "line_no": address.line_no,
            "parent_ns_key": parent_ns_key,
            "run_key": run_key(str(run), codec.blind("run_id", str(run))) if run else None,
            "listing_key": listing_key(self._context.tenant, new.id),
            **signature(new.metadata, codec.keys.index_key),
            "sequence_nos": sorted(encoder.sequence_nos) or None,
            "body": codec.seal("checkpoint", (address.thread, ns_key, new.id), body.pack()),
        }

        def record(log: ThreadLog) -> None:
            log.record_checkpoint(ns_key, new.id, known)

        return _Encoded("put", params, record)

    async def _load_parent(self, db: Db, config: Config, address: Address, inherits: bool) -> None:
        """Read the parent, unless it is known, if the put depends on it.

        It does if channels inherit from it, or if the log evicted pieces, which would be stored twice.
        """
        log = self._context.cache.get(address.thread.bytes)
        if address.branch is not None or (log is not None and log.main_line is not None):
            return  # placing it reads the parent
        if log is None:
            wanted = inherits or self._context.cache.has_evicted
        else:
            wanted = inherits and (address.ns_key, address.checkpoint_id) not in log.checkpoints
        if wanted:
            await self._reads.get_tuple(db, config)

    async def put_writes(
        self, db: Db, config: Config, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> None:
        address = Address(config, self._context.tenant)
        if address.checkpoint_id is None:
            raise InvalidInputError(
                "put_writes needs the checkpoint_id of the checkpoint the writes belong to"
            )
        writes = check_writes(writes)
        if not writes:
            return
        check_str("task_path", task_path)
        new = records.NewWrites(
            address.checkpoint_id,
            encode_id(task_id, "task_id"),
            task_path,
            writes,
            upsert=all(channel in WRITES_IDX_MAP for channel, _ in writes),
        )
        await self._send(db, address, partial(self._encode_writes, address, new))

    def _encode_writes(
        self, address: Address, new: records.NewWrites, codec: Sealing, batch: Batch, log: ThreadLog
    ) -> _Encoded:
        encoder = Encoder(codec.codec, batch)
        write_no = batch.reserve()
        # Logical clock: later than every write read so far, even if another host's clock is ahead.
        log.clock = now = max(time.time_ns() // 1000, log.clock + 1)
        payload = records.encode_write(encoder, batch, write_no, now, new)
        id_, ns_key = new.checkpoint_id, address.ns_key
        params = {
            "id": id_,
            "write_no": write_no,
            "sequence_nos": sorted(encoder.sequence_nos) or None,
            "payload": codec.seal("pending_write", (address.thread, ns_key, id_, write_no), payload),
        }

        def record(log: ThreadLog) -> None:
            if codec.sealed:
                log.record_write(ns_key, id_, write_no)

        return _Encoded("write", params, record)

    # --- sending

    async def _placed(
        self, db: Db, address: Address, log: ThreadLog, new_id: bytes | None = None
    ) -> ThreadLog:
        """Say on which line something is put: on the first, for `main` where it was never moved."""
        if address.branch is None and log.main_line is None and address.line_no is None:
            return log
        await self._places.place(db, address, new_id)
        return self._context.cache.of(address.thread.bytes)

    async def _send(self, db: Db, address: Address, encode: Encode, new_id: bytes | None = None) -> None:
        """Encode against what is known of the thread and send it, until the thread agrees.

        `new_id`: the checkpoint that is put.
        """
        cache, thread = self._context.cache, address.thread.bytes
        log = cache.of(thread)
        if address.branch is not None or log.main_line is not None:
            log = await self._placed(db, address, log, new_id)
        for attempt in range(ATTEMPTS):
            codec = await self._context.codec_to_write(db)
            if log.unopened:
                _learn_templates(address, codec, log)
            try:
                prepared = self._prepare(address, codec, log, encode)
            except _ParentEvictedError:
                if await self._reads.get_tuple(db, address.config(address.checkpoint_id or b"")) is None:
                    encode = partial(encode, is_parent_stored=False)
                log = cache.of(thread)
                continue
            if prepared is None:
                continue
            try:
                rows = await self._submit(db, address, codec, prepared)
            except ConflictError:
                if attempt + 1 == ATTEMPTS:
                    raise
                with log.lock:
                    log.block = None  # another process uses this block: take a new one
                continue
            if rows:
                self._confirm(address, log, prepared, rows[0][0])
                cache.settle(thread, log)
                return
            if prepared.epoch is None and log.exists:
                continue  # another writer of this process was first to create the thread
            await self._context.keys.refresh_to_write(db)
            log = await self._placed(db, address, await self._refresh(db, address, log), new_id)
        raise ConflictError(
            f"thread {address.thread_id!r} is being pruned or deleted over and over; try again", sqlstate=None
        )

    def _prepare(self, address: Address, codec: Sealing, log: ThreadLog, encode: Encode) -> _Prepared | None:
        """Encode once, as the thread is known now; None if the number block has no room left."""
        with log.lock:
            batch = Batch(log)
            try:
                encoded = encode(codec, batch, log)
                pieces = [
                    (no, codec.seal("piece", (address.thread, no), data))
                    for no, data in sorted(batch.send.items())
                ]
            except BlockFull:
                batch.rollback()
                if not batch.shared:
                    raise EncodeError(
                        f"a value has too many parts; at most {MAX_PARTS:,} can be stored"
                    ) from None
                log.block = None
                return None
            except MALFORMED as error:
                batch.rollback()
                if isinstance(error, PersistenceError):
                    raise
                raise EncodeError(
                    f"the checkpoint or its metadata cannot be stored ({type(error).__name__}: {error}): "
                    "versions, names and ids must be text or numbers"
                ) from error
            except BaseException:
                batch.rollback()
                raise
            return _Prepared(encoded, batch, pieces, log.epoch, _guard(codec, log))

    async def _submit(
        self, db: Db, address: Address, codec: Sealing, prepared: _Prepared
    ) -> Sequence[tuple[Any, ...]]:
        """Send it, perhaps together with other writers' statements; a row if the thread was as believed."""
        encoded, batch, pieces, epoch, guard = prepared
        statement, piece_params = self._statements.choose(
            encoded.kind,
            pieces,
            creates=epoch is None,
            shared=batch.shared,
            guard=guard,
        )
        params = encoded.params
        params |= piece_params
        params["thread"], params["tenant"] = address.thread, self._context.tenant
        params["ns_key"] = address.ns_key
        if epoch is None:
            params["thread_id"] = address.thread_id
        else:
            params["epoch"] = epoch
        if codec.key is not None:
            params["key_no"], params["key"] = codec.key
        return await self._writers.fetch_all(
            db,
            statement.query,
            params,
            fallback=statement.fallback,
            key=address.thread.bytes,
            size=sum(len(payload) for _, payload in pieces),
        )

    def _confirm(self, address: Address, log: ThreadLog, prepared: _Prepared, answer: int) -> None:
        """Record what is stored now."""
        epoch = prepared.epoch
        if epoch is None:
            # Each statement that creates the thread creates another: what one of them stored is not there
            # for those after it, if the thread was deleted in between.
            epoch = answer
            with log.lock:
                if not log.exists:
                    log.epoch = epoch
        if log.epoch == epoch:
            log.accepts_plaintext = prepared.guard != SEALED
            prepared.batch.commit()
            prepared.encoded.record(log)
        else:
            self._context.cache.drop(address.thread.bytes, log)

    async def _refresh(self, db: Db, address: Address, log: ThreadLog) -> ThreadLog:
        thread, cache = address.thread.bytes, self._context.cache
        if address.checkpoint_id is not None:  # and know what is shared with it: it need not be sent again
            # Damaged, or on a branch that has no name any more: what is put now is whole by itself.
            with contextlib.suppress(CodecError, NotFoundError):
                await self._reads.get_tuple(db, address.config(address.checkpoint_id))
                return cache.of(thread)
        row = await db.fetch_one(self._context.queries["epoch"], {"thread": address.thread}, idempotent=True)
        if row is None:
            cache.drop(thread, log)
            return cache.for_new_thread(thread)
        known = cache.at_epoch(thread, row[0])
        known.main_line = row[1]
        return known


def _guard(codec: Sealing, log: ThreadLog) -> str:
    if codec.sealed:
        return SEALED
    return ASKED if log.exists and log.accepts_plaintext else PLAINTEXT


def check_checkpoint(checkpoint: object) -> None:
    """Raise InvalidInputError unless this is a checkpoint as LangGraph makes it."""
    if type(checkpoint) is not dict and not isinstance(checkpoint, Mapping):
        raise InvalidInputError(f"checkpoint must be a dict, not {shown(checkpoint)}")
    for key in ("v", "id", "ts", "channel_values", "channel_versions", "versions_seen"):
        if key not in checkpoint:
            raise InvalidInputError(
                f"the checkpoint has no {key!r}: see langgraph.checkpoint.base.Checkpoint"
            )
    for key in ("channel_values", "channel_versions", "versions_seen"):
        if type(checkpoint[key]) is not dict and not isinstance(checkpoint[key], Mapping):
            raise InvalidInputError(f"the checkpoint's {key!r} must be a dict, not {shown(checkpoint[key])}")


def check_writes(writes: object) -> list[tuple[str, Any]]:
    """The writes of a task. Raises InvalidInputError unless they are pairs of a channel and a value."""
    found: list[Any] = check_list("writes", writes)
    for write in found:
        if not isinstance(write, (tuple, list)) or len(write) != 2 or not isinstance(write[0], str):
            raise InvalidInputError(f"each write must be (channel, value), not {shown(write)}")
    return [(channel, value) for channel, value in found]


def _group_commit() -> GroupCommit:
    require_driver()  # it takes 50 ms, which can wait for the first write
    from haive_persistence.db.batching.group_commit import GroupCommit

    return GroupCommit()


def _learn_templates(address: Address, codec: Sealing, log: ThreadLog) -> None:
    """Make small pieces known that came with the first read: a new process would store its templates again.

    Each is known by its exact bytes as the template it may be.
    """
    with log.lock:
        unopened, log.unopened = log.unopened, {}
        for no, stored in unopened.items():
            with contextlib.suppress(CodecError):  # damaged: it is only not known
                log.add_location(key_of("template", codec.open("piece", (address.thread, no), stored)), no)
