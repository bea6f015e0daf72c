"""Writing: a checkpoint, and a task's pending writes.

A thread's row carries an epoch. Every statement that adds to a thread names the epoch it believes in,
and does nothing when the thread has moved on (pruned, deleted, created again); then what this process
knew is dropped, the parent is read, and what is not shared with it is sent. So a stale cache costs
some round trips, never a wrong state.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from langgraph.checkpoint.base import WRITES_IDX_MAP, ChannelVersions, Checkpoint, CheckpointMetadata

from haive_persistence.checkpointer.context import ATTEMPTS, Config, TenantContext
from haive_persistence.checkpointer.ids import Address, encode_id, run_key
from haive_persistence.checkpointer.metadata import labels_of, stored_metadata
from haive_persistence.checkpointer.reads import Reads
from haive_persistence.checkpointer.statements import WriteStatements
from haive_persistence.checkpointer.storage import row_format as records
from haive_persistence.checkpointer.storage.encoder import Encoder
from haive_persistence.checkpointer.storage.piece_index import Batch, KnownHead, ThreadLog
from haive_persistence.checkpointer.storage.piece_numbers import MAX_PARTS, BlockFull
from haive_persistence.db import fork_safety
from haive_persistence.db.protocol import Db
from haive_persistence.errors import CodecError, ConflictError, EncodeError, InvalidInputError
from haive_persistence.keys import Sealing

if TYPE_CHECKING:
    from haive_persistence.db.batching.group_commit import GroupCommit


class Writes:
    """Adds to one tenant's threads."""

    def __init__(self, context: TenantContext, reads: Reads) -> None:
        self._context = context
        self._reads = reads
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
        id_ = encode_id(checkpoint["id"])
        kept_metadata = stored_metadata(config, metadata)
        run = kept_metadata.get("run_id")
        if address.checkpoint_id is not None:
            await self._load_parent(db, config, address, records.unchanged(checkpoint, new_versions))
        known: list[KnownHead] = []

        def encode(codec: Sealing, batch: Batch, log: ThreadLog) -> tuple[str, dict[str, Any]]:
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
                "run_key": run_key(str(run), codec.blind("run_id", str(run))) if run else None,
                "labels": labels_of(kept_metadata, self._context.searchable),
                "sequence_nos": sorted(encoder.sequence_nos) or None,
                "body": codec.seal("checkpoint", (address.thread, address.ns_key, id_), head),
            }

        log = await self._send(db, address, encode)
        log.record_head(address.ns_key, id_, known[0])
        self._context.cache.settle(address.thread.bytes, log)
        return address.config(id_)

    async def _load_parent(self, db: Db, config: Config, address: Address, inherits: bool) -> None:
        """Look at the parent, unless it is known: if channels have what it has, or the thread's log made room
        for others, without which the pieces they share would be sent and stored again."""
        log = self._context.cache.get(address.thread.bytes)
        if log is None:
            wanted = inherits or self._context.cache.has_evicted
        else:
            wanted = inherits and (address.ns_key, address.checkpoint_id) not in log.heads
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
        if not writes:
            return
        task = encode_id(task_id, "task_id")
        id_ = address.checkpoint_id
        upsert = all(channel in WRITES_IDX_MAP for channel, _ in writes)

        def encode(codec: Sealing, batch: Batch, log: ThreadLog) -> tuple[str, dict[str, Any]]:
            encoder = Encoder(codec.codec, batch)
            no = batch.reserve()
            # Logical clock: later than every write read so far, even if another host's clock is ahead.
            log.clock = now = max(time.time_ns() // 1000, log.clock + 1)
            record = records.encode_write(encoder, batch, no, id_, now, (task, task_path), writes, upsert)
            return "write", {
                "id": id_,
                "write_no": no,
                "sequence_nos": sorted(encoder.sequence_nos) or None,
                "payload": codec.seal("pending_write", (address.thread, address.ns_key, id_, no), record),
            }

        log = await self._send(db, address, encode)
        self._context.cache.settle(address.thread.bytes, log)

    async def _send(
        self,
        db: Db,
        address: Address,
        encode: Callable[[Sealing, Batch, ThreadLog], tuple[str, dict[str, Any]]],
    ) -> ThreadLog:
        """Encode against what is known of the thread and send it, until the thread agrees."""
        thread = address.thread
        log = self._context.cache.get(thread.bytes) or self._context.cache.for_new_thread(thread.bytes)
        for attempt in range(ATTEMPTS):
            codec = await self._context.codec_to_write(db)
            with log.lock:
                batch = Batch(log)
                try:
                    kind, params = encode(codec, batch, log)
                    pieces = [
                        (no, codec.seal("piece", (thread, no), data))
                        for no, data in sorted(batch.send.items())
                    ]
                except BlockFull:
                    batch.rollback()
                    if not batch.shared:
                        raise EncodeError(
                            f"a value has too many parts; at most {MAX_PARTS:,} can be stored"
                        ) from None
                    log.block = None
                    continue
                except BaseException:
                    batch.rollback()
                    raise
                creates = not log.exists
                epoch = log.epoch
                params |= {"thread": thread, "tenant": self._context.tenant, "ns_key": address.ns_key}
                if creates:
                    params["thread_id"] = address.thread_id
                else:
                    params["epoch"] = epoch
            if codec.key is not None:
                params["key_no"], params["key"] = codec.key
            statement, more = self._statements.choose(
                kind, pieces, creates=creates, shared=batch.shared, sealed=codec.key is not None
            )
            params |= more
            size = sum(len(payload) for _, payload in pieces)
            try:
                kept = await self._writers.fetch_all(
                    db, statement.query, params, fallback=statement.fallback, key=thread.bytes, size=size
                )
            except ConflictError:
                if attempt + 1 == ATTEMPTS:
                    raise
                with log.lock:
                    log.block = None  # another process uses this block: take a new one
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
                    batch.commit()
                else:
                    self._context.cache.drop(thread.bytes, log)
                return log
            await self._context.keys.refresh_to_write(db)
            log = await self._refresh(db, address, log)
        raise ConflictError(
            f"thread {address.thread_id!r} is being pruned or deleted over and over; try again", sqlstate=None
        )

    async def _refresh(self, db: Db, address: Address, log: ThreadLog) -> ThreadLog:
        thread = address.thread
        if address.checkpoint_id is not None:  # and know what is shared with it: it need not be sent again
            with contextlib.suppress(CodecError):  # damaged: what is put now is whole by itself
                await self._reads.get_tuple(db, address.config(address.checkpoint_id))
                return self._context.cache.get(thread.bytes) or self._context.cache.for_new_thread(
                    thread.bytes
                )
        row = await db.fetch_one(self._context.queries["epoch"], {"thread": thread}, idempotent=True)
        if row is None:
            self._context.cache.drop(thread.bytes, log)
            return self._context.cache.for_new_thread(thread.bytes)
        return self._context.cache.at_epoch(thread.bytes, row[0])


def _group_commit() -> GroupCommit:
    from haive_persistence.db.batching.group_commit import (
        GroupCommit,  # with it comes the driver, 50 ms that can wait
    )

    return GroupCommit()
