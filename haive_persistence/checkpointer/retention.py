"""Delete and prune. What may be deleted is decided here, in memory, under the thread's row lock.

Whoever changes which pieces a thread has takes its row and gives it a new epoch first. Writers that
believe in the old epoch wait for that row, find it changed, and read and send again; so no
checkpoint can ever name a piece that is being deleted.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from haive_persistence.checkpointer.context import TenantContext
from haive_persistence.checkpointer.ids import (
    ROOT_NS_KEY,
    check_list,
    encode_id,
    run_key,
    shown,
    thread_id_text,
)
from haive_persistence.checkpointer.storage import manifest as mf
from haive_persistence.checkpointer.storage import row_format as records
from haive_persistence.checkpointer.storage.bindings import Bindings, bindings_of
from haive_persistence.checkpointer.storage.piece_index import ThreadLog, new_epoch
from haive_persistence.checkpointer.thread_reader import StoredCheckpoint, ThreadReader
from haive_persistence.db.protocol import Db, Executor, Statement
from haive_persistence.errors import InvalidInputError
from haive_persistence.keys import Sealing

COUNTERS = "counters_since_delta_snapshot"
CheckpointKey = tuple[int, bytes]  # (ns_key, checkpoint_id)


class _Thread(NamedTuple):
    """A whole thread, read under its lock."""

    reader: ThreadReader
    checkpoints: list[StoredCheckpoint]
    orphan_writes: list[records.Write]


class Retention:
    """The operations that take pieces away."""

    def __init__(self, context: TenantContext) -> None:
        self._context = context
        self._queries = context.queries

    async def delete_threads(self, db: Db, thread_ids: Iterable[object]) -> None:
        await self._delete_threads(db, self._keys_of(thread_ids))

    def _keys_of(self, thread_ids: object) -> list[uuid.UUID]:
        return [self._context.thread_key(t) for t in check_list("thread_ids", thread_ids)]

    async def _delete_threads(self, db: Db, keys: Sequence[uuid.UUID]) -> None:
        if not keys:
            return
        names = ("delete_thread", "delete_checkpoints_of", "delete_writes_of", "delete_pieces_of")
        statements = [Statement(self._queries[n], {"threads": keys}) for n in names]
        await self._context.retrying("threads to delete", lambda: db.batch(statements, idempotent=True))
        for key in keys:
            self._context.cache.drop(key.bytes)

    async def prune(self, db: Db, thread_ids: Sequence[object], strategy: str) -> None:
        keys = self._keys_of(thread_ids)
        if strategy == "delete":
            await self._delete_threads(db, keys)
        elif strategy == "keep_latest":
            for key in keys:
                await self._rewrite(db, key, all_but_latest)
        else:
            raise InvalidInputError(
                f'unknown prune strategy {shown(strategy)}: use "keep_latest" or "delete"'
            )

    async def delete_for_runs(self, db: Db, run_ids: Sequence[str]) -> None:
        wanted = {thread_id_text(r, "run_id") for r in check_list("run_ids", run_ids)}
        if not wanted:
            return
        await self._context.settle_plaintext(db)
        codec = await self._context.latest_codec(db)
        if not codec.sealed:  # sealed checkpoints would not be found
            await self._context.keys.refresh_to_write(db)
        keys = {"run_keys": [run_key(r, codec.blind("run_id", r)) for r in wanted]}

        def of_runs(thread: _Thread) -> set[CheckpointKey]:
            reader = thread.reader
            found = {
                (s.ns_key, s.id)
                for s in thread.checkpoints
                if str(reader.metadata(s.body).get("run_id")) in wanted
            }
            return found - needed_by_other_runs(thread, found)

        # Again until there are no others: a copy that had begun is there once its source's row is free.
        done: set[uuid.UUID] = set()
        while True:
            rows = await db.fetch_all(self._queries["threads_of_runs"], keys, idempotent=True)
            threads = {row[0] for row in rows} - done
            if not threads:
                return
            for key in threads:
                await self._rewrite(db, key, of_runs)
            done |= threads

    async def _rewrite(self, db: Db, key: uuid.UUID, choose: Any) -> None:
        """Delete the checkpoints `choose` names, their writes, and the pieces nothing else uses."""

        async def rewrite() -> None:
            await self._context.with_all_keys(db, lambda: self._rewrite_once(db, key, choose))

        await self._context.retrying("a thread to prune", rewrite)

    async def _rewrite_once(self, db: Db, key: uuid.UUID, choose: Any) -> None:
        codec = await self._context.latest_codec(db)
        async with db.transaction() as tx:
            if not codec.sealed:  # a row that is written again is no longer older than the tenant's first key
                await self._context.keys.data_keys.check_plaintext(tx, self._context.tenant)
            row = await tx.fetch_one(self._queries["lock_thread"], {"thread": key})
            if row is None:
                return
            thread = await self._load_thread(tx, codec, key, row[0])
            _check_lines(thread)
            to_delete: set[CheckpointKey] = choose(thread)
            if to_delete:
                await self._delete(tx, codec, key, thread, to_delete)
        if to_delete:
            self._context.cache.drop(key.bytes)

    async def _load_thread(self, tx: Executor, codec: Sealing, key: uuid.UUID, epoch: int) -> _Thread:
        params = {"thread": key}
        names = ("all_sequences", "all_writes", "all_checkpoints")
        sequences, writes, rows = await tx.batch([Statement(self._queries[n], params) for n in names])
        reader = ThreadReader(ThreadLog(epoch), codec, key, self._queries)
        reader.open_sequences_later([(no, payload) for no, payload in sequences])
        by_place: defaultdict[CheckpointKey, list[records.Write]] = defaultdict(list)
        for ns_key, id_, no, _, payload in writes:
            by_place[ns_key, id_].append(reader.open_write(ns_key, id_, no, payload))
        checkpoints = [
            StoredCheckpoint(
                key,
                None,
                ns_key,
                id_,
                parent,
                reader.open_body(ns_key, id_, parent, payload),
                by_place.pop((ns_key, id_), []),
            )
            for ns_key, id_, parent, _, payload in rows
        ]
        if missing := reader.needed(checkpoints, "metadata"):
            await reader.fetch(tx, missing)
        # A run saves its writes in the background: those of a checkpoint not saved yet are kept.
        return _Thread(reader, checkpoints, [w for ws in by_place.values() for w in ws])

    async def _delete(
        self, tx: Executor, codec: Sealing, key: uuid.UUID, thread: _Thread, to_delete: set[CheckpointKey]
    ) -> None:
        kept = [s for s in thread.checkpoints if (s.ns_key, s.id) not in to_delete]
        live = live_ranges(thread.reader, kept, thread.orphan_writes)
        places = sorted(to_delete)
        moved = list(_new_parents(thread.checkpoints, to_delete))
        params: dict[str, Any] = {
            "thread": key,
            "epoch": new_epoch(),
            "ns_keys": [ns for ns, _ in places],
            "ids": [id_ for _, id_ in places],
            "child_ns_keys": [s.ns_key for s, _ in moved],
            "child_ids": [s.id for s, _ in moved],
            "parents": [parent for _, parent in moved],
            "bodies": [_resealed_body(codec, thread, s, parent, to_delete) for s, parent in moved],
            "live": "{" + ",".join(f"[{start},{stop})" for start, stop in live) + "}",
        }
        names = [
            "next_epoch",
            "delete_checkpoints",
            "delete_writes",
            "set_parents",
            "delete_pieces_outside",
        ]
        statements = [Statement(self._queries[n], params) for n in names]
        if not kept and not thread.orphan_writes:
            statements.append(Statement(self._queries["delete_thread"], {"threads": [key]}))
        await tx.batch(statements)


def _new_parents(
    checkpoints: Iterable[StoredCheckpoint], to_delete: set[CheckpointKey]
) -> Iterator[tuple[StoredCheckpoint, bytes | None]]:
    """The checkpoints that stay and lose their parent, with the nearest ancestor that stays.

    A `DeltaChannel` is rebuilt along the parents: without a way to them, what older runs wrote would be lost.
    """
    parents = {(s.ns_key, s.id): s.parent for s in checkpoints}
    for s in checkpoints:
        parent = s.parent
        if (s.ns_key, s.id) in to_delete or parent is None or (s.ns_key, parent) not in to_delete:
            continue
        while parent is not None and (s.ns_key, parent) in to_delete:
            parent = parents[s.ns_key, parent]
        yield s, parent


def _resealed_body(
    codec: Sealing,
    thread: _Thread,
    s: StoredCheckpoint,
    parent: bytes | None,
    to_delete: set[CheckpointKey],
) -> bytes | None:
    """The body sealed again with its new parent, and with what is left of the rows that led to it."""
    if not codec.sealed:
        return None
    bound = None
    if parent is not None:
        line = {other.id: other for other in thread.checkpoints if other.ns_key == s.ns_key}
        ancestor = line.get(parent)  # it may never have been stored
        writes = {} if ancestor is None else {parent: frozenset(w.no for w in ancestor.writes)}
        at: StoredCheckpoint | None = s
        while at is not None and at.id != parent:
            for id_, numbers in bindings_of(at.body).writes.items():
                if (s.ns_key, id_) not in to_delete:
                    writes[id_] = writes.get(id_, frozenset()) | numbers
            at = line.get(at.parent or b"")
        bound = Bindings(ancestor is not None, writes).encode(parent, s.body.base)
    body = s.body._replace(parent=parent, bound=bound)
    return codec.seal("checkpoint", (s.thread, s.ns_key, s.id), body.pack())


def _check_lines(thread: _Thread) -> None:
    """Raise TamperedError where rows are missing: what is left must not be sealed as if it were all."""
    lines: defaultdict[int, dict[bytes, StoredCheckpoint]] = defaultdict(dict)
    for s in thread.checkpoints:
        lines[s.ns_key][s.id] = s
    for line in lines.values():
        thread.reader.check_ancestors(line.values(), line.values(), ended=True)


def live_ranges(
    reader: ThreadReader, kept: Iterable[StoredCheckpoint], loose: Iterable[records.Write]
) -> Iterator[tuple[int, int]]:
    """The piece numbers that some checkpoints and writes use, as sorted `(start, stop)`."""
    runs: set[tuple[int, int]] = set()
    for s in kept:
        runs.add((s.body.template, 1))
        for m in s.body.manifests():
            runs.update(mf.piece_numbers(m, s.body.base, reader.log.sequences))
        for w in s.writes:
            runs.update(_of_write(reader, w))
    for w in loose:
        runs.update(_of_write(reader, w))
    start = stop = -1
    for first, count in sorted(runs):
        if first <= stop:
            stop = max(stop, first + count)
            continue
        if start >= 0:
            yield start, stop
        start, stop = first, first + count
    if start >= 0:
        yield start, stop


def _of_write(reader: ThreadReader, write: records.Write) -> Iterator[tuple[int, int]]:
    yield write.template, 1
    for m in write.manifests:
        yield from mf.piece_numbers(m, write.base, reader.log.sequences)


# --- what keep_latest keeps


def all_but_latest(thread: _Thread) -> set[CheckpointKey]:
    """All checkpoints but the latest of each namespace and what those still need.

    A subgraph call's namespace ends in ":" and its task's id, and goes with the root checkpoint that
    the call started from, once that one is saved; a `checkpointer=True` subgraph's outlives its calls.
    A `DeltaChannel` is rebuilt from its ancestors' writes: they are kept back to its last stored value.
    """
    by_ns: dict[int, dict[bytes, StoredCheckpoint]] = {}
    for s in thread.checkpoints:  # newest first within each namespace
        by_ns.setdefault(s.ns_key, {})[s.id] = s
    roots = by_ns.get(ROOT_NS_KEY, {})
    kept_roots = _retained_ids(thread.reader, roots)
    to_delete = {(ROOT_NS_KEY, id_) for id_ in roots if id_ not in kept_roots}
    latest_root = next(iter(roots), None)
    for ns_key, line in by_ns.items():
        if ns_key == ROOT_NS_KEY:
            continue
        newest = next(iter(line.values()))
        started = (thread.reader.metadata(newest.body).get("parents") or {}).get("")
        origin = encode_id(started) if isinstance(started, str) and started else None
        if ":" in newest.body.ns and origin in roots and origin != latest_root:
            to_delete.update((ns_key, id_) for id_ in line)
        else:
            kept = _retained_ids(thread.reader, line)
            to_delete.update((ns_key, id_) for id_ in line if id_ not in kept)
    return to_delete


def _retained_ids(reader: ThreadReader, line: Mapping[bytes, StoredCheckpoint]) -> set[bytes]:
    """The latest checkpoint of a namespace and the ancestors its delta channels are rebuilt from."""
    if not line:
        return set()
    latest = next(iter(line.values()))
    delta = _delta_channels(reader, line.values())
    names = reader.names(latest.body)
    open_channels = {ch for ch in delta if ch in names.channels and ch not in names.values}
    kept = {latest.id}
    at = latest
    while open_channels and at.parent is not None and at.parent in line:
        at = line[at.parent]
        kept.add(at.id)
        open_channels -= set(reader.names(at.body).values)
    return kept


# --- what the runs that stay need of those that go


def needed_by_other_runs(thread: _Thread, to_delete: set[CheckpointKey]) -> set[CheckpointKey]:
    """Of these checkpoints, those that hold what other runs gave to a `DeltaChannel`.

    A run that resumes another, or is saved at its end only, has its writes below the checkpoint it started
    from, which is the other's. And where older checkpoints are pruned, a snapshot may be all that is left of
    them.
    """
    lines: defaultdict[int, dict[bytes, StoredCheckpoint]] = defaultdict(dict)
    for s in thread.checkpoints:
        lines[s.ns_key][s.id] = s
    needed: set[CheckpointKey] = set()
    for ns_key, line in lines.items():
        if not (delta := _delta_channels(thread.reader, line.values())):
            continue
        gone = {id_ for ns, id_ in to_delete if ns == ns_key}
        while more := set(_needed_by_rest(thread.reader, line, delta, gone)):
            gone -= more
            needed.update((ns_key, id_) for id_ in more)
    return needed


def _needed_by_rest(
    reader: ThreadReader, line: Mapping[bytes, StoredCheckpoint], delta: set[str], gone: set[bytes]
) -> Iterator[bytes]:
    for s in line.values():
        if s.id in gone:
            continue
        above = line.get(s.parent or b"")
        if above is not None and above.id in gone and delta & reader.written(above.writes):
            yield above.id
        names = reader.names(s.body)
        for channel in delta.intersection(names.channels).difference(names.values):
            if (only := _only_seed(reader, line, channel, above, gone)) is not None:
                yield only


def _only_seed(
    reader: ThreadReader,
    line: Mapping[bytes, StoredCheckpoint],
    channel: str,
    at: StoredCheckpoint | None,
    gone: set[bytes],
) -> bytes | None:
    """The nearest ancestor with a value of this channel, if it is to go and what led to it is cut off."""
    nearest: bytes | None = None
    oldest = at
    while at is not None:
        oldest = at
        if channel in reader.names(at.body).values:
            if at.id not in gone:
                return None
            nearest = nearest or at.id
        at = line.get(at.parent or b"")
    if oldest is None or nearest is None:
        return None
    began = records.metadata_value(oldest.body, reader.names(oldest.body), "step", reader.decoder) == -1
    return None if began else nearest


def _delta_channels(reader: ThreadReader, line: Iterable[StoredCheckpoint]) -> set[str]:
    """The channels that counters or snapshots show to be `DeltaChannel`s."""
    found: set[str] = set()
    for s in line:
        names = reader.names(s.body)
        for channel, m in zip(names.values, s.body.values, strict=True):
            if type(m) is list and m and m[0] == mf.SNAPSHOT:
                found.add(channel)
        if COUNTERS in names.metadata:
            found.update(records.metadata_value(s.body, names, COUNTERS, reader.decoder) or {})
    return found
