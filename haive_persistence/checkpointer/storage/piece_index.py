"""One thread's log of pieces, as far as this process knows it. Pure memory: no database.

Nothing here decides what is true. It saves work: a piece that is known is neither sent nor fetched
again. It is tied to the thread's *epoch*; every statement that relies on it checks the epoch in
SQL, so what has gone stale is refused there, dropped here, and read or sent again.

Numbers. A process takes piece numbers from a *number block* of its own: 43 random bits, then a 20-bit
counter in four parts: slices of lists, ids of a message, ids of many, and everything else, so that what
is appended to a list gets consecutive numbers. A block is confirmed once a plain INSERT into it was
acknowledged: from then on no other process can use it, so a piece may be sent twice (`ON CONFLICT DO
NOTHING`) until its first acknowledgement, by whichever statement names it. That is how a checkpoint
can name a message that a write still in flight is about to store.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple, cast

from haive_persistence.checkpointer.ids import pack_uuid
from haive_persistence.checkpointer.storage import manifest as mf
from haive_persistence.checkpointer.storage.piece_numbers import (
    IDS,
    JOINED_IDS,
    OTHER,
    PART_ENDS,
    PART_STARTS,
    BlockFull,
    new_block,
    part_of,
    used_up,
)
from haive_persistence.checkpointer.storage.snapshots import Content, Snapshot

MAX_CHECKPOINTS = 64
MAX_ANCESTRIES = 8
MAX_SNAPSHOTS = 256
DELTA_PAGE = 128  # ancestors to look for a delta channel's last value among, at first
SEQUENCES_TRIED = 8
# Memory of each by itself, about: a log, a known checkpoint, a known key, a piece without its bytes.
LOG_BYTES = 1950
CHECKPOINT_BYTES = 1000
KEY_BYTES = 300
PIECE_BYTES = 100
GIVEN_BYTES = 250
GRID_BYTES = 3000
LINE_BYTES = 650  # of a view, with one pending write at its start
PLACED_BYTES = 250
MAX_GRIDS = 256
LONG_KEY = 1024  # of longer keys a digest is stored

Key = tuple[Any, bytes]  # (class or kind, exact bytes or their 256-bit digest)
PieceRef = int | tuple[int, int]  # a piece, or a message's piece with one that gives it its id
Given = tuple[str, int]  # the id that a message got after it was stored, and the piece that gives it


def new_epoch() -> int:
    """A random, non-zero 63-bit number."""
    return secrets.randbits(62) | 1


def key_of(kind: Any, data: bytes) -> Key:
    return (kind, data if len(data) <= LONG_KEY else blake2b(data, digest_size=32).digest())


class KnownCheckpoint(NamedTuple):
    """A checkpoint's channels as they were stored: versions, and manifests relative to `base`."""

    versions: dict[str, Any]
    manifests: dict[str, Any]
    base: int
    parent: bytes | None = None
    parent_ns_key: int | None = None  # of a parent on another line
    bound_writes: frozenset[int] = frozenset()  # of its ancestors, which it names: see `bindings.py`


class ThreadLog:
    """One thread, one epoch. Locks guard memory only and are never held across the network.

    Writers hold `lock` while they encode, one after the other. Readers never wait for it: what they add
    goes through the methods below, or is added by one atomic step and the same whoever adds it.
    """

    __slots__ = (
        "_guard",
        "accepts_plaintext",
        "ancestries",
        "block",
        "bytes_held",
        "bytes_known",
        "bytes_to_send",
        "cacheable_by_piece",
        "charged_bytes",
        "checkpoints",
        "clock",
        "delta_depth",
        "epoch",
        "given_ids",
        "grids",
        "is_spared",
        "known",
        "lock",
        "main_line",
        "next_numbers",
        "pieces",
        "placed",
        "runs",
        "sequences",
        "snapshots",
        "stored_writes",
        "unacknowledged",
        "unopened",
        "views",
    )

    def __init__(self, epoch: int | None) -> None:
        self.lock = threading.Lock()
        self._guard = threading.Lock()  # the innermost: for a few steps that belong together
        self.epoch = epoch  # None: it is not stored yet
        # True once the tenant was seen to have no data key at this epoch: making the first one ends it.
        self.accepts_plaintext = False
        self.block: int | None = None
        self.next_numbers = [0] * len(PART_STARTS)
        self.known: dict[Key, PieceRef] = {}
        self.grids: dict[Key, list[int]] = {}  # slices of lists and dicts by their bytes: their pieces
        self.unacknowledged: dict[int, bytes] = {}
        self.bytes_to_send = 0  # of unacknowledged pieces
        self.pieces: dict[int, Any] = {}  # readers hold on to the dict they began with: see `evict_payloads`
        self.runs: dict[int, Any] = {}  # of cached pieces, by the number of their first
        # Small pieces as they are stored, which came with a read and may be templates: see `Writes`.
        self.unopened: dict[int, bytes] = {}
        self.sequences: dict[int, list[int]] = {}
        # Message pieces that id pieces give an id; None if they give several. Where such an id piece is named
        # for another message of it, they get theirs too: so they are named with it or not at all.
        self.given_ids: dict[int, Given | None] = {}
        # Pieces that were decoded, and whether they may stay decoded.
        self.cacheable_by_piece: dict[int, bool] = {}
        self.checkpoints: dict[tuple[int, bytes], KnownCheckpoint] = {}
        self.snapshots: dict[tuple[int, bytes], Snapshot] = {}  # another dict takes its place, as with pieces
        self.ancestries: dict[int, Any] = {}  # by namespace: see `ancestry.py`
        # Of sealed threads: the pending writes known to be stored, by namespace and checkpoint.
        self.stored_writes: dict[tuple[int, bytes], frozenset[int]] = {}
        self.main_line: int | None = None  # what `main` means: None is the line on which the thread began
        self.views: dict[Any, Any] = {}  # what branches show, by their names: see `versions/`
        # Lines of checkpoints that are put on branches, by namespace and id. A custom id may be on several.
        self.placed: dict[tuple[int, bytes], tuple[int, ...]] = {}
        self.clock = 0  # microseconds since 1970: the time of the latest write seen
        self.delta_depth = DELTA_PAGE  # enough for the last look
        self.bytes_held = 0  # by what `evict_payloads` evicts
        self.bytes_known = 0
        self.charged_bytes = 0  # see `ProcessCache.settle`
        self.is_spared = False

    def take_block(self, block: int, next_numbers: list[int] | None = None) -> None:
        """A block that is known to be ours alone."""
        self.block = block
        self.next_numbers = next_numbers or [block + start for start in PART_STARTS]

    @property
    def exists(self) -> bool:
        return self.epoch is not None

    def change_names(self, epoch: int, main_line: int | None) -> None:
        """Go to an epoch at which names mean something else, and all the rest is as it was."""
        with self._guard:
            self.epoch = epoch
            self.main_line = main_line
            self.views = {}

    def bytes_taken(self) -> int:
        """Memory that all this takes, about."""
        per_piece = PIECE_BYTES * len(self.cacheable_by_piece) + GIVEN_BYTES * len(self.given_ids)
        checkpoints = CHECKPOINT_BYTES * (len(self.checkpoints) + len(self.stored_writes))
        parts = checkpoints + per_piece + GRID_BYTES * len(self.grids) + 2 * PIECE_BYTES * len(self.unopened)
        if self.ancestries:
            sizes: list[int] = [ancestry.size for ancestry in list(self.ancestries.values())]
            parts += sum(sizes)
        if self.views or self.placed:
            lines = sum(len(view.lines) for view in list(self.views.values()))
            parts += LINE_BYTES * lines + PLACED_BYTES * len(self.placed)
        return LOG_BYTES + self.bytes_held + self.bytes_known + parts + self.bytes_to_send

    def add_unacknowledged(self, no: int, data: bytes) -> None:
        self.unacknowledged[no] = data
        self.bytes_to_send += PIECE_BYTES + len(data)

    def acknowledge(self, no: int) -> None:
        """Count a piece as stored, or as never sent."""
        data = self.unacknowledged.pop(no, None)
        if data is not None:
            self.bytes_to_send -= PIECE_BYTES + len(data)

    def add_location(self, key: Key, location: PieceRef) -> None:
        """Record where a part is stored, unless a location is known already."""
        if key not in self.known and self.known.setdefault(key, location) is location:
            self.bytes_known += KEY_BYTES + len(key[1])

    def add_locations(self, locations: Iterable[tuple[Key, PieceRef]]) -> None:
        """`add_location` for many."""
        known, size = self.known, 0
        for key, location in locations:
            if key not in known and known.setdefault(key, location) is location:
                size += KEY_BYTES + len(key[1])
        self.bytes_known += size

    def forget(self, key: Key) -> None:
        if self.known.pop(key, None) is not None:
            self.bytes_known -= KEY_BYTES + len(key[1])

    def record_checkpoint(self, ns_key: int, checkpoint_id: bytes, known: KnownCheckpoint) -> None:
        with self._guard:
            self.checkpoints.pop((ns_key, checkpoint_id), None)  # the latest comes last
            self.checkpoints[ns_key, checkpoint_id] = known
            while len(self.checkpoints) > MAX_CHECKPOINTS:
                del self.checkpoints[next(iter(self.checkpoints))]

    def record_ancestry(self, ns_key: int, ancestry: Any) -> None:
        """Record a namespace's chain of ancestors; None if nothing is known of it any more."""
        with self._guard:
            self.ancestries.pop(ns_key, None)  # the latest comes last
            if ancestry is not None:
                self.ancestries[ns_key] = ancestry
                while len(self.ancestries) > MAX_ANCESTRIES:
                    del self.ancestries[next(iter(self.ancestries))]

    def record_snapshot(self, ns_key: int, checkpoint_id: bytes, snapshot: Snapshot) -> None:
        """Record a checkpoint as it was read."""
        with self._guard:
            before = self.snapshots.pop((ns_key, checkpoint_id), None)  # the latest comes last
            if before is None and len(self.snapshots) >= MAX_SNAPSHOTS:
                before = self.snapshots.pop(next(iter(self.snapshots)))
            self.snapshots[ns_key, checkpoint_id] = snapshot
            self.bytes_held += snapshot.size - (0 if before is None else before.size)

    def fill_snapshot(self, ns_key: int, checkpoint_id: bytes, snapshot: Snapshot, content: Content) -> None:
        """Record the values of a checkpoint that was read again."""
        with self._guard:
            snapshot.content = content
            if self.snapshots.get((ns_key, checkpoint_id)) is snapshot:
                stored = [data for data, _ in list(snapshot.writes.values())]
                size = (
                    content.size + 4 * len(snapshot.data) + sum(map(len, stored)) + PIECE_BYTES * len(stored)
                )
                self.bytes_held += size - snapshot.size
                snapshot.size = size

    def record_write(self, ns_key: int, checkpoint_id: bytes, write_no: int) -> None:
        """Record that a pending write of a sealed thread is stored."""
        key = ns_key, checkpoint_id
        with self._guard:
            self.stored_writes[key] = self.stored_writes.pop(key, frozenset()) | {write_no}
            while len(self.stored_writes) > MAX_CHECKPOINTS:
                del self.stored_writes[next(iter(self.stored_writes))]

    def record_sequence(self, no: int, numbers: list[int]) -> None:
        with self._guard:
            self.sequences.pop(no, None)  # the latest comes last
            self.sequences[no] = numbers
            self.bytes_held += 8 * len(numbers)

    def record_ids(self, given: Mapping[int, Given]) -> None:
        """Record the ids that an id piece gives. Of two that give the same, one that gives many is named."""
        with self._guard:
            for message, one in given.items():
                known = self.given_ids.setdefault(message, one)
                if known is None or known is one:
                    continue
                if known[0] != one[0]:
                    self.given_ids[message] = None
                elif part_of(one[1]) == JOINED_IDS:
                    self.given_ids[message] = one

    def claim_ids(self, given: Mapping[int, Given]) -> bool:
        """Record ids of messages that have none; False, and nothing is recorded, if a reader was first."""
        with self._guard:
            if any(message in self.given_ids for message in given):
                return False
            self.given_ids.update(given)
            return True

    def latest_sequences(self) -> list[tuple[int, list[int]]]:
        """The sequence pieces that were added last, the latest first."""
        with self._guard:
            return list(islice(reversed(self.sequences.items()), SEQUENCES_TRIED))

    def record_pieces(self, found: Mapping[int, bytes], pieces: dict[int, Any] | None = None) -> None:
        """Pieces as they are stored; what is known decoded meanwhile stays so. `pieces`: the reader's."""
        pieces = self.pieces if pieces is None else pieces
        with self._guard:
            new = (
                found
                if pieces.keys().isdisjoint(found)
                else {n: d for n, d in found.items() if n not in pieces}
            )
            pieces.update(new)
            self.bytes_held += sum(map(len, new.values())) + PIECE_BYTES * len(new)

    def record_decoded(self, pieces: dict[int, Any], no: int, piece: Any, size: int) -> None:
        """A piece as it is handed out from now on; `size`: bytes that this takes more, about."""
        with self._guard:
            pieces[no] = piece
            self.bytes_held += size

    def cached(self) -> tuple[dict[int, Any], dict[int, Any]]:
        """Return the pieces in memory, and the runs made of them: what one reader works with."""
        with self._guard:
            return self.pieces, self.runs

    def evict_payloads(self) -> None:
        """Evict cached payloads; piece numbers stay known. Active readers keep their own dict."""
        with self._guard:
            self.pieces = {}
            self.runs = {}
            self.ancestries = {}
            self.snapshots = {}
            self.bytes_held = sum(8 * len(numbers) for numbers in self.sequences.values())


class Batch:
    """The pieces one statement sends: those it makes and those it names that are not confirmed yet.

    Use under the log's lock. `commit` when the statement's transaction is known to be committed.
    """

    def __init__(self, log: ThreadLog) -> None:
        self._log = log
        if log.block is not None and used_up(log.block, log.next_numbers):
            log.block = None
        self.shared = log.block is not None
        self.base: int = log.block if log.block is not None else new_block()
        self._next = log.next_numbers if self.shared else [self.base + start for start in PART_STARTS]
        self.given_ids = log.given_ids if self.shared else log.given_ids.copy()
        self._given: dict[int, Given] = {}  # to record once it is committed
        self._own: dict[Key, PieceRef] = {}
        self.send: dict[int, bytes] = {}
        self._made: list[int] = []
        self._new_sequences: dict[int, list[int]] = {}

    def find(self, key: Key) -> PieceRef | None:
        """The location where this part is stored already; what is not acknowledged yet is sent again."""
        found = self._log.known.get(key)
        if found is None:
            return self._own.get(key)
        if self._log.unacknowledged:
            for no in (found,) if type(found) is int else cast("tuple[int, int]", found):
                if not self.reference(no):
                    return None
        return found

    def reference(self, no: int) -> bool:
        """Make sure a piece that is named gets there; False if this statement must not name it."""
        data = self._log.unacknowledged.get(no)
        if data is not None:
            if not self.shared:
                return False
            self.send[no] = data
        return True

    def is_stored(self, no: int) -> bool:
        """True if a piece is known to be stored: it was read, or its statement is committed."""
        return no in self._log.pieces

    def record_location(self, key: Key, location: PieceRef) -> None:
        self._own[key] = location
        if self.shared:
            self._log.forget(key)
            self._log.add_location(key, location)

    def forget(self, key: Key) -> None:
        self._own.pop(key, None)
        self._log.forget(key)

    def add(self, key: Key | None, data: bytes, part: int = OTHER) -> int:
        """A new piece; its number."""
        no = self.reserve(part)
        self.put(no, data)
        if key is not None:
            self.record_location(key, no)
        return no

    def put(self, no: int, data: bytes) -> None:
        """The piece of a number that was reserved."""
        self.send[no] = data
        self._made.append(no)
        if self.shared:
            self._log.add_unacknowledged(no, data)

    def reserve(self, part: int = OTHER) -> int:
        """The next number of a part of the block, for a piece or for a row that is not a piece."""
        no = self._next[part]
        if no == self.base + PART_ENDS[part]:
            raise BlockFull
        self._next[part] = no + 1
        return no

    def intern(self, kind: Any, data: bytes, part: int = OTHER) -> int:
        key = key_of(kind, data)
        found = self.find(key)
        return self.add(key, data, part) if found is None else cast(int, found)

    def find_grid(self, key: Key) -> list[int] | None:
        """The pieces of a slice that was encoded before; all of them are acknowledged."""
        return self._log.grids.get(key)

    def are_stored(self, parts: list[Any]) -> bool:
        """True unless some are new pieces, or elements with manifests of their own."""
        return all(type(part) is int and part not in self.send for part in parts)

    def record_grid(self, key: Key, parts: list[int]) -> None:
        """Record the pieces of a slice, all of which are stored."""
        grids = self._log.grids
        grids[key] = parts
        if len(grids) > MAX_GRIDS:
            del grids[next(iter(grids))]

    def candidates(self) -> Iterable[tuple[int, list[int]]]:
        """Sequence pieces to name slices of, latest first."""
        for no, numbers in self._log.latest_sequences():
            if self.shared or no not in self._log.unacknowledged:
                yield no, numbers

    def add_sequence(self, numbers: list[int], encode: Callable[[list[int]], bytes]) -> int:
        no = self.add(None, encode(numbers))
        if self.shared:
            self._log.record_sequence(no, numbers)
        else:
            self._new_sequences[no] = numbers
        return no

    def give_ids(self, given: Mapping[int, str]) -> int | None:
        """A piece that gives ids to message pieces that have none; None if a reader found one meanwhile."""
        no = self.reserve(IDS)
        ids = {piece: (id_, no) for piece, id_ in given.items()}
        if self.shared:
            if not self._log.claim_ids(ids):
                return None
        else:
            self.given_ids.update(ids)
            self._given |= ids
        self._put_ids(no, given)
        return no

    def join_ids(self, given: Mapping[int, str]) -> int:
        """A piece that gives many messages the ids that others give them; it is named once it is stored."""
        no = self.reserve(JOINED_IDS)
        self._given |= {piece: (id_, no) for piece, id_ in given.items()}
        self._put_ids(no, given)
        return no

    def _put_ids(self, no: int, given: Mapping[int, str]) -> None:
        self.put(no, mf.encode_ids(no, ((piece, pack_uuid(id_)) for piece, id_ in sorted(given.items()))))

    def rollback(self) -> None:
        """Nothing is sent: forget what this batch made. Call before anyone else can have named it."""
        for key, location in self._own.items():
            if self._log.known.get(key) == location:
                self._log.forget(key)
        made = set(self._made)
        for no in made:
            self._log.acknowledge(no)
            self._log.sequences.pop(no, None)
        for message, given in list(self.given_ids.items()):  # readers add to it meanwhile
            if given is not None and given[1] in made:
                del self.given_ids[message]

    def commit(self) -> None:
        """Record that the statement was committed: its pieces are there for good."""
        if self.shared and not self.send:
            return
        log = self._log
        with log.lock:
            for no in self.send:
                log.acknowledge(no)
            log.record_pieces(self.send)
            log.record_ids(self._given)
            if not self.shared:
                self._merge()

    def _merge(self) -> None:
        log = self._log
        if log.block is None:
            log.take_block(self.base, self._next)
        for key, location in self._own.items():
            log.forget(key)  # an id that stood in a manifest has a piece now
            log.add_location(key, location)
        for no, numbers in self._new_sequences.items():
            log.record_sequence(no, numbers)
