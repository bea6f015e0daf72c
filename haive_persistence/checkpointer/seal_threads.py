"""Sealing threads that were written before their tenant had a key.

A thread is sealed in one transaction, under the lock of its row: readers see all of it as it was or all of it
sealed, and writers wait. Nothing that running processes remember changes, because its pieces have the same
numbers and contents. A process that is killed leaves the thread it was at as it was. Within the transaction
pieces are read and written in chunks: neither memory nor the size of a message bounds a thread's size.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from haive_persistence.checkpointer.context import TenantContext
from haive_persistence.checkpointer.ids import run_key
from haive_persistence.checkpointer.metadata import signature
from haive_persistence.checkpointer.storage.bindings import Bindings
from haive_persistence.checkpointer.storage.piece_index import ThreadLog
from haive_persistence.checkpointer.thread_reader import StoredCheckpoint, ThreadReader
from haive_persistence.checkpointer.versions.names import Names, name_key
from haive_persistence.checkpointer.versions.ref_records import (
    open_operation,
    open_ref,
    pack_operation,
)
from haive_persistence.db.protocol import Db, Executor, Statement
from haive_persistence.errors import PlaintextRefusedError
from haive_persistence.keys import Sealing, SealProgress

CHUNK_BYTES = 16 << 20
_ROW_BYTES = 100  # of each row's other columns
_PAGE = 100
_BEFORE_ALL = uuid.UUID(int=0)

Row = tuple[Any, ...]
T = TypeVar("T")


class _Plaintext(NamedTuple):
    """A thread's rows in plaintext, without the column that says they are trusted."""

    pieces: list[tuple[int, int]]  # number and size
    writes: list[Row]
    checkpoints: list[Row]


class SealThreads:
    """Seals one tenant's threads."""

    def __init__(self, context: TenantContext, names: Names, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._context = context
        self._names = names
        self._queries = context.queries
        self._chunk_bytes = chunk_bytes  # of payloads per statement

    async def seal_existing(
        self, db: Db, progress: Callable[[SealProgress], None] | None = None, *, trust_all: bool = False
    ) -> int:
        """Seal all threads that have plaintext. Returns how many had."""
        await self._context.codec_to_write(db)
        moment = await self._context.keys.data_keys.plaintext_moment(db, trust_all=trust_all)
        tenant = {"tenant": self._context.tenant}
        (total,) = await db.fetch_one(self._queries["count_threads"], tenant, idempotent=True) or (0,)
        done, after = 0, _BEFORE_ALL
        while True:
            page = {**tenant, "after": after, "limit": _PAGE}
            rows = await db.fetch_all(self._queries["plaintext_threads"], page, idempotent=True)
            for (thread,) in rows:
                done += await self._seal(db, thread, moment)
                if progress is not None:
                    progress(SealProgress(done, total))
            if len(rows) < _PAGE:
                break
            after = rows[-1][0]
        await self._context.keys.data_keys.end_plaintext(db, "threads")
        return done

    async def seal_thread(self, db: Db, thread: uuid.UUID) -> bool:
        """Seal a thread of which plaintext was read. False if it has none that is accepted."""
        keys = self._context.keys.data_keys
        accepted = keys.encryption is not None and keys.encryption.accept_earlier_plaintext
        if not accepted or not (await keys.load(db)).plaintext_threads:
            return False
        return await self._seal(db, thread, await keys.plaintext_moment(db))

    async def settle(self, db: Db) -> None:
        """Before threads are looked for by a keyed hash, which older ones do not have: seal them all.

        Raises PlaintextRefusedError if there are any and they are not accepted.
        """
        data_keys = self._context.keys.data_keys
        if not (await data_keys.load(db)).plaintext_threads or not await data_keys.refresh_plaintext(db):
            return
        if data_keys.encryption is None or not data_keys.encryption.accept_earlier_plaintext:
            raise PlaintextRefusedError(
                f"tenant {self._context.tenant!r} has threads that were written before it had a key: "
                "seal them with seal_existing()"
            )
        await self.seal_existing(db)

    async def _seal(self, db: Db, thread: uuid.UUID, moment: int) -> bool:
        """Seal a thread. False if it has no plaintext any more."""
        codec = await self._context.latest_codec(db)
        async with db.transaction() as tx:
            row = await tx.fetch_one(self._queries["lock_thread"], self._params(thread))
            if row is None:
                return False
            found = await self._plaintext(tx, thread, moment)
            await self._seal_rows(tx, codec, thread, found)
            await self._seal_checkpoints(tx, codec, thread, row[0], found.checkpoints)
            await self._seal_names(tx, codec, thread, moment)
        return any(found)

    def _params(self, thread: uuid.UUID) -> dict[str, Any]:
        return {"thread": thread, "tenant": self._context.tenant}

    async def _plaintext(self, tx: Executor, thread: uuid.UUID, moment: int) -> _Plaintext:
        params = {**self._params(thread), "moment": moment}
        names = ("plaintext_pieces", "plaintext_writes", "plaintext_checkpoints")
        answers = await tx.batch([Statement(self._queries[name], params) for name in names])
        self._check_trusted(row for rows in answers for row in rows)
        pieces, writes, checkpoints = ([row[1:] for row in rows] for rows in answers)
        return _Plaintext([(no, size) for no, size in pieces], writes, checkpoints)

    async def _seal_rows(self, tx: Executor, codec: Sealing, thread: uuid.UUID, found: _Plaintext) -> None:
        trusting = codec.trusting()

        def sealed(table: str, identity: tuple[Any, ...], stored: bytes) -> bytes:
            return codec.seal(table, identity, trusting.open(table, identity, stored))

        key = self._params(thread)
        for chunk in self._chunks(found.pieces, lambda piece: piece[1]):
            numbers = [no for no, _ in chunk]
            rows = await tx.fetch_all(self._queries["some_pieces"], {**key, "numbers": numbers})
            params = {
                "numbers": [no for no, _ in rows],
                "payloads": [sealed("piece", (thread, no), payload) for no, payload in rows],
            }
            await tx.execute(self._queries["seal_pieces"], {**key, **params})
        for writes in self._chunks(found.writes, lambda row: len(row[-1])):
            params = {
                "ids": [id_ for _, id_, _, _ in writes],
                "numbers": [no for _, _, no, _ in writes],
                "payloads": [
                    sealed("pending_write", (thread, ns_key, id_, no), payload)
                    for ns_key, id_, no, payload in writes
                ],
            }
            await tx.execute(self._queries["seal_writes"], {**key, **params})

    def _chunks(self, rows: Sequence[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
        """Rows in parts of few enough bytes for one statement; a larger row is alone."""
        part: list[T] = []
        size = 0
        for row in rows:
            if part and size + size_of(row) > self._chunk_bytes:
                yield part
                part, size = [], 0
            part.append(row)
            size += size_of(row) + _ROW_BYTES
        if part:
            yield part

    async def _seal_names(self, tx: Executor, codec: Sealing, thread: uuid.UUID, moment: int) -> None:
        """Seal the branches and tags of a thread, and its log. A sealed row is found by another key."""
        queries, trusting = self._names.queries, codec.trusting()
        params = {**self._params(thread), "moment": moment}
        statements = [Statement(queries[name], params) for name in ("plaintext_refs", "plaintext_operations")]
        refs, operations = await tx.batch(statements)
        self._check_trusted([*refs, *operations])
        changes: list[Statement] = []
        for row in refs:
            ref = open_ref(trusting, thread, row[1:])
            key = None if ref.name_key is None else name_key(codec, ref.name)
            columns = ref._replace(name_key=key).params(codec, thread)
            changes.append(Statement(queries["update_ref"], {"thread": thread, **columns}))
        for _, id_, payload in operations:
            sealed = pack_operation(codec, thread, id_, open_operation(trusting, thread, id_, payload))
            columns = {"thread": thread, "operation_id": id_, "payload": sealed}
            changes.append(Statement(queries["update_operation"], columns))
        if changes:
            await tx.batch(changes)

    def _check_trusted(self, rows: Iterable[Row]) -> None:
        """Raise PlaintextRefusedError if a row was written after the tenant's first key was made."""
        if not all(row[0] for row in rows):
            raise PlaintextRefusedError(
                f"a thread of tenant {self._context.tenant!r} has plaintext that was written after the "
                "tenant's first key was made: something else wrote it; delete the thread, or restore a backup"
            )

    async def _seal_checkpoints(
        self, tx: Executor, codec: Sealing, thread: uuid.UUID, epoch: int, rows: Sequence[Row]
    ) -> None:
        if not rows:
            return
        key = self._params(thread)
        reader = ThreadReader(ThreadLog(epoch), codec.trusting(), thread, self._queries)
        checkpoints = [
            StoredCheckpoint(
                thread,
                None,
                ns_key,
                id_,
                parent,
                reader.open_body(ns_key, id_, parent, body),
                [],
                None,
                parent_ns_key,
            )
            for ns_key, id_, parent, parent_ns_key, body in rows
        ]
        names = ("all_sequences", "write_numbers", "checkpoint_keys")
        sequences, numbers, keys = await tx.batch([Statement(self._queries[name], key) for name in names])
        reader.open_sequences_later([(no, payload) for no, payload in sequences])
        if missing := reader.needed(checkpoints, "metadata"):
            await reader.fetch(tx, missing)
        writes: defaultdict[tuple[int, bytes], set[int]] = defaultdict(set)
        for ns_key, id_, no in numbers:
            writes[ns_key, id_].add(no)
        stored = set(keys)
        for chunk in self._chunks(list(zip(checkpoints, rows, strict=True)), lambda pair: len(pair[1][-1])):
            some = [s for s, _ in chunk]
            params = {
                "ns_keys": [s.ns_key for s in some],
                "ids": [s.id for s in some],
                "bodies": [_bound_body(codec, s, stored, writes[s.ns_key, s.parent or b""]) for s in some],
                **_hashes(codec, [reader.metadata(s.body) for s in some]),
            }
            await tx.execute(self._queries["seal_checkpoints"], {**key, **params})


def _bound_body(
    codec: Sealing, s: StoredCheckpoint, stored: set[tuple[Any, ...]], writes: Iterable[int]
) -> bytes:
    """The body, bound to its parent and to the parent's pending writes, as if it had been put sealed."""
    bound = None
    if s.parent is not None:
        bindings = Bindings(s.parent_key in stored, {s.parent: frozenset(writes)})
        bound = bindings.encode(s.parent, s.body.base)
    body = s.body._replace(parent=s.parent, bound=bound, parent_ns_key=s.parent_ns_key)
    return codec.seal("checkpoint", (s.thread, s.ns_key, s.id), body.pack())


def _hashes(codec: Sealing, metadata: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The columns by which checkpoints are found, under the tenant's key."""
    runs = [one.get("run_id") for one in metadata]
    signatures = [signature(one, codec.keys.index_key) for one in metadata]
    return {
        "run_keys": [run and run_key(str(run), codec.blind("run_id", str(run))) for run in runs],
        "signatures_1": [one["signature_1"] for one in signatures],
        "signatures_2": [one["signature_2"] for one in signatures],
    }
