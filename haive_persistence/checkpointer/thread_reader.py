"""Rows of the reading queries to `CheckpointTuple`s: which pieces are missing, fetch them, decode."""

from __future__ import annotations

import gc
import uuid
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, filterfalse
from operator import itemgetter
from typing import Any, NamedTuple

from langgraph.checkpoint.base import WRITES_IDX_MAP, CheckpointTuple, PendingWrite, writes_sort_key

from haive_persistence.checkpointer.damage import raises_decode_error
from haive_persistence.checkpointer.ids import decode_id, line_name
from haive_persistence.checkpointer.storage import manifest as mf
from haive_persistence.checkpointer.storage import row_format as records
from haive_persistence.checkpointer.storage.bindings import bindings_of, missing_row
from haive_persistence.checkpointer.storage.copies import Uncopyable
from haive_persistence.checkpointer.storage.decoder import Decoder, piece_size
from haive_persistence.checkpointer.storage.piece_cache import ProcessCache
from haive_persistence.checkpointer.storage.piece_index import ThreadLog, key_of
from haive_persistence.checkpointer.storage.piece_numbers import ranges
from haive_persistence.checkpointer.storage.snapshots import (
    MAX_PIECES,
    MAX_STORED,
    Content,
    Snapshot,
    Values,
)
from haive_persistence.codec import unbuilt_count
from haive_persistence.codec.limits import Budget
from haive_persistence.codec.seal import is_sealed
from haive_persistence.db.protocol import Executor, Query, Statement
from haive_persistence.errors import ConflictError, DecodeError, PersistenceError, TamperedError
from haive_persistence.keys import Sealing

FETCH_AT_ONCE = 20_000  # pieces per statement
NAMED_BYTES = 256  # that a piece takes at least, until it is decoded
MAX_TEMPLATE = 160  # bytes as stored, of a template worth looking for
_NO_TEMPLATE = "a row names a piece that is not a template: its data is damaged"


@contextmanager
def no_garbage_collection(*, many: bool = False) -> Generator[None]:
    """Hold the collector back while objects are made at once, none of which is garbage.

    It would walk them again and again: two thirds of the time of reading a long history. If they are
    `many` it does not walk them right afterwards either: once it has looked at what was young before,
    they are counted as old, which takes no time. (Where the application has frozen objects, which that
    would thaw, they are walked once instead of three times.)
    """
    if not gc.isenabled():
        yield
        return
    if many:
        gc.collect(1)
    gc.disable()
    try:
        yield
    finally:
        if many and gc.get_freeze_count() == 0:
            gc.freeze()
            gc.unfreeze()
        elif many:
            gc.collect(1)
        gc.enable()


class StaleRead(Exception):
    """A thread changed between two statements of one read: read again."""

    def __init__(self, reader: ThreadReader) -> None:
        super().__init__()
        self.reader = reader


class StaleReadRetry:
    """Counts the retries of a read when threads change under it."""

    def __init__(self, cache: ProcessCache) -> None:
        self._cache = cache
        self._met: list[tuple[uuid.UUID, int | None]] = []

    def forget(self, stale: StaleRead) -> None:
        reader = stale.reader
        self._cache.drop(reader.thread.bytes, reader.log)
        self._met.append((reader.thread, reader.log.epoch))

    def final_error(self, what: str) -> PersistenceError:
        """The error for a read that never got all of it: if the thread did not change, that is why."""
        if len(self._met) > 1 and self._met[-1] == self._met[-2]:
            return DecodeError(f"pieces of {what} are missing: its data is damaged")
        return ConflictError(f"{what} changes faster than it can be read; try again")


class StoredCheckpoint(NamedTuple):
    """One checkpoint as its rows say it."""

    thread: uuid.UUID
    thread_id: Any
    ns_key: int
    id: bytes
    parent: bytes | None
    body: records.Body
    writes: list[records.Write]
    branch: str | None = None  # as the caller wrote it
    parent_ns_key: int | None = None  # of a parent on another line

    @property
    def key(self) -> tuple[int, bytes]:
        return self.ns_key, self.id

    @property
    def parent_key(self) -> tuple[int, bytes] | None:
        if self.parent is None:
            return None
        return self.ns_key if self.parent_ns_key is None else self.parent_ns_key, self.parent


class ChannelWrite(NamedTuple):
    """A pending write to one channel."""

    task_id: str
    channel: str
    manifest: mf.Manifest
    base: int


class ThreadReader:
    """Reads one thread at one epoch."""

    def __init__(
        self,
        log: ThreadLog,
        codec: Sealing,
        thread: uuid.UUID,
        queries: Mapping[str, Query],
        cache: ProcessCache | None = None,
    ) -> None:
        self._cache = cache
        self.log = log
        self.unopened: dict[int, bytes] = {}  # pieces as they are stored, which may be needed
        self.thread = thread
        self._codec = codec
        self._queries = queries
        self.decoder = Decoder(codec.codec, log)
        self.pieces = self.decoder.pieces  # the same dict, whatever is evicted meanwhile
        self._budget = Budget(codec.codec.max_read_bytes)  # for what this read unpacks
        self._named: list[tuple[int, int]] = []  # runs of pieces that manifests name, not looked at yet
        self._repeated: list[list[tuple[int, int]]] = []  # (start, stop) of pieces named again
        self._snapshots = log.snapshots
        self._contents: dict[tuple[int, bytes], Content] = {}  # of checkpoints that were read before
        self._to_fill: dict[tuple[int, bytes], Snapshot] = {}

    def keep_small(self) -> None:
        """Leave pieces that the read did not need, and that may be templates, to writers of this process."""
        small = {no: stored for no, stored in self.unopened.items() if len(stored) <= MAX_TEMPLATE}
        if small:
            self.log.unopened = small

    def settle(self) -> None:
        """Charge the process's cache with what this read added to it; it may evict what others use."""
        if self._cache is not None:
            self._cache.settle(self.thread.bytes, self.log)

    # --- opening rows

    @raises_decode_error
    def open_sequence(self, no: int, payload: bytes) -> None:
        if no not in self.log.sequences:
            data = self._codec.open("piece", (self.thread, no), payload)
            self.log.record_pieces({no: data}, self.pieces)
            self.log.record_sequence(no, mf.decode_sequence(data, self._budget))

    @raises_decode_error
    def open_sequences_later(self, rows: Iterable[tuple[int, bytes]]) -> None:
        """Take all sequence pieces of a thread; each is unpacked when it is named (`PackedSequences`)."""
        packed = self._open_pieces([(no, payload) for no, payload in rows])
        self._budget.spend(sum(map(len, packed.values())))
        self.log.record_pieces(packed, self.pieces)
        self.log.sequences = mf.PackedSequences(packed, self._budget.limit)

    @raises_decode_error
    def open_body(
        self, ns_key: int, checkpoint_id: bytes, parent: bytes | None, payload: bytes
    ) -> records.Body:
        data = self._codec.open("checkpoint", (self.thread, ns_key, checkpoint_id), payload)
        body = self._known_body(ns_key, checkpoint_id, data)
        if self._codec.sealed and is_sealed(payload) and body.parent != parent:
            raise TamperedError(
                "a checkpoint's parent is not the one it was sealed with: the row was changed"
            )
        return body

    def check_parent_line(self, body: records.Body, payload: bytes, parent_ns_key: int | None) -> None:
        """Raise TamperedError if a sealed row says another line of the parent than its body."""
        if self._codec.sealed and is_sealed(payload) and body.parent_ns_key != parent_ns_key:
            raise TamperedError(
                "a checkpoint's parent is not on the line it was sealed with: the row was changed"
            )

    def _known_body(self, ns_key: int, checkpoint_id: bytes, data: bytes) -> records.Body:
        """The body that these bytes hold. What is known of its values is used from here on."""
        key = ns_key, checkpoint_id
        snapshot = self._snapshots.get(key)
        if snapshot is None or snapshot.data != data:
            snapshot = Snapshot(data, records.open_body(data))
            self.log.record_snapshot(ns_key, checkpoint_id, snapshot)
        elif (content := snapshot.content) is None:
            if snapshot.is_kept:
                self._to_fill[key] = snapshot
        elif self.decoder.are_current(content.classes):
            self._contents[key] = content
        else:
            self._to_fill[key] = snapshot
        body: records.Body = snapshot.body
        return body

    @raises_decode_error
    def check_ancestors(
        self, checkpoints: Iterable[StoredCheckpoint], ancestors: Iterable[StoredCheckpoint], ended: bool
    ) -> None:
        """Raise TamperedError if rows are missing that sealed checkpoints were made from.

        `ancestors`: those that were read with their pending writes. `ended`: all ancestors were read.
        """
        if not self._codec.sealed:
            return
        stored = {s.id: frozenset(w.no for w in s.writes) for s in ancestors}
        for s in checkpoints:
            cut = ended and s.parent is not None and s.parent not in stored
            if missing_row(s.body, stored) or (cut and bindings_of(s.body).parent_stored):
                raise TamperedError(
                    "rows that a checkpoint was made from are missing: they were deleted from the database"
                )

    @raises_decode_error
    def open_write(self, ns_key: int, checkpoint_id: bytes, no: int, payload: bytes) -> records.Write:
        data = self._codec.open("pending_write", (self.thread, ns_key, checkpoint_id, no), payload)
        snapshot = self._snapshots.get((ns_key, checkpoint_id))
        known, write = (b"", None) if snapshot is None else snapshot.writes.get(no, (b"", None))
        if write is None or known != data:
            write = records.open_write(no, checkpoint_id, data)
            if snapshot is not None and snapshot.is_kept:
                snapshot.writes[no] = data, write
        self.log.clock = max(self.log.clock, write.time)
        if self._codec.sealed:
            self.log.record_write(ns_key, checkpoint_id, no)
        return write

    # --- pieces

    @raises_decode_error
    def needed(self, stored: Iterable[StoredCheckpoint], want: str = "all") -> set[int]:
        """The pieces of some checkpoints that are not known yet.

        `want`: "all", "metadata" (enough to filter by), or "delta" (writes and snapshots, to replay).
        """
        pieces = self.pieces
        missing: set[int] = set()
        for s in stored:
            content = self._contents.get((s.ns_key, s.id)) if want == "all" else None
            self.check_named()
            if s.body.template not in pieces:
                missing.add(s.body.template)
            for m in _wanted(s.body, want) if content is None else ():
                self.add_missing(m, s.body.base, missing)
            for w in s.writes if content is None or content.writes != s.writes else ():
                if w.template not in pieces:
                    missing.add(w.template)
                for m in w.manifests if want != "metadata" else ():
                    self.add_missing(m, w.base, missing)
        self.check_named()
        return missing

    def add_missing(self, manifest: mf.Manifest, base: int, missing: set[int]) -> None:
        """Add the pieces of a manifest that are not known yet; `check_named` is to follow."""
        if type(manifest) is not list or not manifest:
            return
        if manifest[0] == mf.LEAF:
            no = base + manifest[1]
            self._named.append((no, 1))
            if no not in self.pieces:
                missing.add(no)
        else:
            self.add_ranges(self.ranges_of(manifest, base), missing)

    def ranges_of(self, manifest: mf.Manifest, base: int) -> list[tuple[int, int]]:
        """The pieces that a manifest names, as (start, length)."""
        budget = Budget(self._budget.limit)
        single = mf.single_ranges(manifest, base)
        if single is not None:
            for _, count in single:
                budget.spend(count * NAMED_BYTES)
            return single
        found: list[tuple[int, int]] = []
        try:
            for start, count in mf.piece_numbers(manifest, base, self.log.sequences):
                budget.spend(count * NAMED_BYTES)
                found.append((start, count))
        except KeyError as exc:
            raise StaleRead(self) from exc
        return found

    def add_ranges(self, named: Sequence[tuple[int, int]], missing: set[int]) -> None:
        """Add those of some pieces that are not known yet; `check_named` is to follow."""
        pieces = self.pieces
        for start, count in named:
            numbers = range(start, start + count)
            missing.update(filterfalse(pieces.__contains__, numbers) if pieces else numbers)
        self._named += named

    def check_named(self) -> None:
        """Note the pieces that a checkpoint names more than once: each takes memory as often."""
        if not self._named:
            return
        named, self._named = sorted(self._named), []
        repeated: list[tuple[int, int]] = []
        end = named[0][0]
        for start, count in named:
            stop = start + count
            if start < end:
                repeated.append((start, min(stop, end)))
            end = max(end, stop)
        if repeated:
            self._repeated.append(repeated)

    def _check_repeated(self) -> None:
        """Raise DecodeError if pieces are named so often that their values would take too much memory."""
        repeated, self._repeated = self._repeated, []
        for ranges_named_again in repeated:
            budget = Budget(self._budget.limit)
            for start, stop in ranges_named_again:
                budget.spend(sum(piece_size(self.pieces.get(no)) for no in range(start, stop)))

    async def fetch(self, db: Executor, missing: set[int]) -> None:
        """Bring pieces into memory. Raises StaleRead if the thread has changed meanwhile."""
        await fetch_pieces(db, [(self, missing)])

    def to_fetch(self, missing: set[int]) -> list[int]:
        """The pieces that must be fetched, in order; those that came with the checkpoint are opened."""
        if at_hand := missing & self.unopened.keys():
            self._record([(no, self.unopened.pop(no)) for no in sorted(at_hand)])
        numbers = sorted(missing - at_hand)
        if numbers and not (numbers[0] >= 0 and numbers[-1] < 1 << 63):
            raise DecodeError("a row names a piece by a number that none can have: its data is damaged")
        return numbers

    def statement(self, numbers: Sequence[int]) -> Statement:
        """The statement that fetches some pieces, if the thread is still at its epoch."""
        return Statement(*self._piece_query(numbers))

    def receive(self, numbers: Sequence[int], rows: Sequence[tuple[Any, ...]]) -> None:
        """Take the answer to `statement`. Raises StaleRead if pieces are missing in it."""
        self._record([(no, payload) for no, payload in rows])
        if len(rows) != len(numbers):
            raise StaleRead(self)

    def _record(self, rows: Sequence[tuple[int, bytes]]) -> None:
        found = self._open_pieces(rows)
        self._budget.spend(sum(map(len, found.values())))
        self.log.record_pieces(found, self.pieces)

    def _open_pieces(self, rows: Sequence[tuple[int, bytes]]) -> dict[int, bytes]:
        numbers = [no for no, _ in rows]
        opened = self._codec.open_all("piece", (self.thread,), numbers, (stored for _, stored in rows))
        return dict(zip(numbers, opened, strict=True))

    def _piece_query(self, numbers: Sequence[int]) -> tuple[Query, dict[str, Any]]:
        key = {"thread": self.thread, "epoch": self.log.epoch}
        runs = list(ranges(numbers))
        if len(runs) * 4 > len(numbers):
            return self._queries["pieces"], {**key, "numbers": list(numbers)}
        starts = [start for start, _ in runs]
        ends = [start + count for start, count in runs]
        return self._queries["piece_ranges"], {**key, "starts": starts, "ends": ends}

    # --- decoding

    def names(self, body: records.Body) -> records.CheckpointNames:
        names = self._template(body.template)
        if not isinstance(names, records.CheckpointNames):
            raise DecodeError(_NO_TEMPLATE)
        return names

    def write_names(self, write: records.Write) -> records.WriteNames:
        names = self._template(write.template)
        if not isinstance(names, records.WriteNames):
            raise DecodeError(_NO_TEMPLATE)
        return names

    def _template(self, no: int) -> object:
        piece = self.pieces[no]
        if type(piece) is bytes:
            self.log.add_location(key_of("template", piece), no)
            piece = self.pieces[no] = records.open_template(piece)
        return piece

    @raises_decode_error
    def metadata(self, body: records.Body) -> dict[str, Any]:
        return records.decode_metadata(body, self.names(body), self.decoder)

    @raises_decode_error
    def checkpoint_tuple(self, s: StoredCheckpoint) -> CheckpointTuple:
        """The checkpoint with values of its own; its pieces must be in memory."""
        if self._repeated:
            self._check_repeated()
        checkpoint, metadata, pending = self._values(s)
        address = {"thread_id": s.thread_id, "checkpoint_ns": s.body.ns}
        if s.branch is not None:
            address["branch"] = s.branch
        parent = s.parent and {"configurable": {**address, "checkpoint_id": decode_id(s.parent)}}
        return CheckpointTuple(
            {"configurable": {**address, "checkpoint_id": checkpoint["id"]}},
            checkpoint,  # type: ignore[arg-type]
            metadata,  # type: ignore[arg-type]
            parent or None,  # type: ignore[arg-type]
            pending,
        )

    def _values(self, s: StoredCheckpoint) -> Values:
        """The checkpoint, its metadata and its pending writes: copies if it was read before."""
        key = s.ns_key, s.id
        content = self._contents.get(key)
        if content is None:
            return self._decoded(s)
        if content.writes == s.writes:
            return content.copy()
        snapshot = self._snapshots.get(key)
        if snapshot is not None:
            snapshot.content = None  # it gets other pending writes when it is read again
        checkpoint, metadata, _ = content.copy()
        return checkpoint, metadata, self.decode_writes(self.ordered(s.writes))

    def _decoded(self, s: StoredCheckpoint) -> Values:
        snapshot = self._to_fill.get((s.ns_key, s.id))
        names, before = self.names(s.body), unbuilt_count()
        values: Values = (
            records.decode_checkpoint(s.body, names, s.id, self.decoder),
            records.decode_metadata(s.body, names, self.decoder),
            self.decode_writes(self.ordered(s.writes)) if s.writes else [],
        )
        if snapshot is None:
            return values
        content = None
        if unbuilt_count() == before and self._is_small(s):
            with suppress(Uncopyable):
                content = Content(*values, s.writes)
        if content is None:
            snapshot.give_up()
            return values
        self.log.fill_snapshot(s.ns_key, s.id, snapshot, content)
        return content.copy()

    def _is_small(self, s: StoredCheckpoint) -> bool:
        """True if a checkpoint has few pieces, which are small."""
        count = size = 0
        manifests = [(m, s.body.base) for m in s.body.manifests()]
        for m, base in chain(manifests, ((m, w.base) for w in s.writes for m in w.manifests)):
            for start, length in mf.piece_numbers(m, base, self.log.sequences):
                count += length
                if count > MAX_PIECES:
                    return False
                size += sum(piece_size(self.pieces.get(no)) for no in range(start, start + length))
        return size <= MAX_STORED

    @raises_decode_error
    def record(self, s: StoredCheckpoint) -> None:
        """Make a checkpoint known to writers: what is put next may inherit from it."""
        known = records.known_checkpoint(s.body, self.names(s.body))
        if s.body.bound is not None:
            bound = bindings_of(s.body).writes.values()
            known = known._replace(
                parent=s.parent,
                parent_ns_key=s.parent_ns_key,
                bound_writes=frozenset(chain.from_iterable(bound)),
            )
        self.log.record_checkpoint(s.ns_key, s.id, known)

    @raises_decode_error
    def written(self, writes: Iterable[records.Write]) -> set[str]:
        """The channels that some writes are to."""
        return {name for w in writes for name in self.write_names(w).channels}

    @raises_decode_error
    def decode_writes(self, writes: Sequence[ChannelWrite]) -> list[PendingWrite]:
        if self._repeated:
            self._check_repeated()
        values = self.decoder.decode_all([(m, base) for _, _, m, base in writes])
        return [(task, name, value) for (task, name, _, _), value in zip(writes, values, strict=True)]

    def ordered(self, writes: Iterable[records.Write]) -> list[ChannelWrite]:
        """The writes of one checkpoint as LangGraph wants them.

        A task's writes are known by their index. Writing an index again changes nothing, except for
        lists of special writes (errors, interrupts, resumes), which replace what was there.
        """
        slots: dict[tuple[bytes, int], tuple[str, str, mf.Manifest, int]] = {}
        for w in sorted(writes, key=lambda w: (w.time, w.no)):
            node_path, channels = self.write_names(w)
            path: str = node_path or w.task_path or ""
            for at, (name, m) in enumerate(zip(channels, w.manifests, strict=True)):
                slot = w.task_id, WRITES_IDX_MAP.get(name, at)
                if w.upsert or slot not in slots:
                    slots[slot] = (path, name, m, w.base)
        in_order = sorted(
            (
                (writes_sort_key(path, task_id := decode_id(task), idx), ChannelWrite(task_id, name, m, base))
                for (task, idx), (path, name, m, base) in slots.items()
            ),
            key=itemgetter(0),
        )
        return [write for _, write in in_order]


def _wanted(body: records.Body, want: str) -> list[mf.Manifest]:
    if want == "all":
        return body.manifests()
    if want == "metadata":
        return body.metadata
    return [m for m in body.values if type(m) is list and m and m[0] == mf.SNAPSHOT]


def open_rows(
    rows: Sequence[tuple[Any, ...]],
    reader_of: Callable[[uuid.UUID, int], ThreadReader],
    thread_id: Any = None,
) -> tuple[list[StoredCheckpoint], dict[int, ThreadReader]]:
    """Rows of a listing query as checkpoints in order, with a reader for each thread.

    Readers are by `UUID.int`, which takes a tenth of the time to look up. `thread_id`: as the caller wrote
    it, where one thread is listed.
    """
    readers: dict[int, ThreadReader] = {}
    thread_ids: dict[int, Any] = {}
    writes: defaultdict[tuple[int, int, bytes], list[records.Write]] = defaultdict(list)
    stored: list[StoredCheckpoint] = []
    for kind, thread, ns_key, id_, number, other, text, payload in rows:
        key = thread.int
        if kind == "t":
            readers[key] = reader = reader_of(thread, number)
            if payload is not None:
                reader.log.main_line = int.from_bytes(payload, "big")
            thread_ids[key] = text if thread_id is None else thread_id
        elif kind == "s":
            readers[key].open_sequence(number, payload)
        elif kind == "w":
            writes[key, ns_key, id_].append(readers[key].open_write(ns_key, id_, number, payload))
        elif key in readers:
            body = readers[key].open_body(ns_key, id_, other, payload)
            own = writes[key, ns_key, id_]
            branch = None
            if number != (readers[key].log.main_line or 0):
                branch = line_name(number)
            stored.append(StoredCheckpoint(thread, thread_ids[key], ns_key, id_, other, body, own, branch))
    return stored, readers


async def fetch_pieces(db: Executor, wanted: Iterable[tuple[ThreadReader, set[int]]]) -> None:
    """Bring pieces of any number of threads into memory, in one round trip unless they are very many.

    Raises StaleRead if one of the threads has changed meanwhile.
    """
    round_trip: list[tuple[ThreadReader, list[int]]] = []
    size = 0
    for reader, missing in wanted:
        numbers = reader.to_fetch(missing)
        for at in range(0, len(numbers), FETCH_AT_ONCE):
            part = numbers[at : at + FETCH_AT_ONCE]
            if size + len(part) > FETCH_AT_ONCE:
                await _fetch(db, round_trip)
                round_trip, size = [], 0
            round_trip.append((reader, part))
            size += len(part)
    if round_trip:
        await _fetch(db, round_trip)


async def _fetch(db: Executor, parts: Sequence[tuple[ThreadReader, list[int]]]) -> None:
    statements = [reader.statement(numbers) for reader, numbers in parts]
    if len(statements) == 1:
        answers = [await db.fetch_all(*statements[0], idempotent=True)]
    else:
        answers = await db.batch(statements, idempotent=True)
    with no_garbage_collection():
        for (reader, numbers), rows in zip(parts, answers, strict=True):
            reader.receive(numbers, rows)
