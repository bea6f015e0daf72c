"""What this process knows of one thread's log of pieces. Pure memory: no database.

Nothing here decides what is true. It saves work: a piece that is known is neither sent nor fetched
again. It is tied to the thread's *epoch*; every statement that relies on it checks the epoch in
SQL, so what has gone stale is refused there, dropped here, and read or sent again.

Numbers. A process takes piece numbers from a *lane* of its own: 43 random bits, then a 20-bit
counter in three parts: slices of lists, ids given to messages, and everything else, so that what is
appended to a list gets consecutive numbers. A lane is confirmed once a plain INSERT into it was
acknowledged: from then on nobody else can be in it, so a piece may be sent twice (`ON CONFLICT DO
NOTHING`) until its first acknowledgement, by whichever statement names it. That is how a checkpoint
can name a message that a write still in flight is about to store.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple, cast

from haive_persistence.checkpointer.storage.piece_numbers import (
    OTHER,
    PART_ENDS,
    PART_STARTS,
    LaneFull,
    new_lane,
    used_up,
)

HEADS_KEPT = 64
DELTA_PAGE = 128  # ancestors to look for a delta channel's last value among, at first
FROZEN_TRIED = 8
LOG_BYTES = 4000  # what a log takes by itself, about; a checkpoint's head; a known key besides its bytes
HEAD_BYTES = 1000
KEY_BYTES = 300
LONG_KEY = 1024  # longer keys are kept as a digest

Key = tuple[Any, bytes]  # (class or kind, exact bytes or their 256-bit digest)
Placed = int | tuple[int, int]  # a piece, or a message's piece with the piece that gives it its id


def new_epoch() -> int:
    """A random, non-zero 63-bit number."""
    return secrets.randbits(62) | 1


def key_of(kind: Any, data: bytes) -> Key:
    return (kind, data if len(data) <= LONG_KEY else blake2b(data, digest_size=32).digest())


class KnownHead(NamedTuple):
    """A checkpoint's channels as they were stored: versions, and manifests relative to `base`."""

    versions: dict[str, Any]
    manifests: dict[str, Any]
    base: int


class ThreadLog:
    """One thread, one epoch. Locks guard memory only and are never held across the network.

    Writers hold `lock` while they encode, one after the other. Readers never wait for it: what they add
    goes through the methods below, or is added by one atomic step and the same whoever adds it.
    """

    def __init__(self, epoch: int | None) -> None:
        self.lock = threading.Lock()
        self._guard = threading.Lock()  # the innermost: for a few steps that belong together
        self.epoch = epoch  # None: it is not stored yet
        self.lane: int | None = None
        self.next_numbers = [0, 0, 0]
        self.known: dict[Key, Placed] = {}
        self.unacknowledged: dict[int, bytes] = {}
        self.pieces: dict[int, Any] = {}  # readers hold on to the dict they began with: see `let_go`
        self.frozen: OrderedDict[int, list[int]] = OrderedDict()
        # Messages that an id piece gives an id, and the one that does; 0 if several do. Where such a piece is
        # named for another message of it, they get theirs too: so they are named with it or not at all.
        self.given: dict[int, int] = {}
        self.met: dict[int, bool] = {}  # pieces that were decoded, and whether they may be kept so
        self.heads: OrderedDict[tuple[int, bytes], KnownHead] = OrderedDict()
        self.clock = 0  # microseconds since 1970: the time of the latest write seen
        self.delta_depth = DELTA_PAGE  # enough for the last look
        self.bytes_held = 0  # by what `let_go` lets go of
        self.bytes_known = 0

    def take_lane(self, lane: int, next_numbers: list[int] | None = None) -> None:
        """A lane that is known to be ours alone."""
        self.lane = lane
        self.next_numbers = next_numbers or [lane + start for start in PART_STARTS]

    @property
    def exists(self) -> bool:
        return self.epoch is not None

    def bytes_taken(self) -> int:
        """Memory that all this takes, about."""
        heads = HEAD_BYTES * len(self.heads)
        return LOG_BYTES + self.bytes_held + self.bytes_known + heads + self.bytes_to_send()

    def bytes_to_send(self) -> int:
        """What is on its way, and what did not get there."""
        return sum(map(len, list(self.unacknowledged.values())))

    def learn(self, key: Key, placed: Placed) -> None:
        """Where a part is stored, unless it is known to be somewhere already."""
        if key not in self.known and self.known.setdefault(key, placed) is placed:
            self.bytes_known += KEY_BYTES + len(key[1])

    def forget(self, key: Key) -> None:
        if self.known.pop(key, None) is not None:
            self.bytes_known -= KEY_BYTES + len(key[1])

    def remember_head(self, ns_key: int, checkpoint_id: bytes, head: KnownHead) -> None:
        with self._guard:
            self.heads[ns_key, checkpoint_id] = head
            self.heads.move_to_end((ns_key, checkpoint_id))
            while len(self.heads) > HEADS_KEPT:
                self.heads.popitem(last=False)

    def remember_frozen(self, no: int, numbers: list[int]) -> None:
        with self._guard:
            self.frozen[no] = numbers
            self.frozen.move_to_end(no)
            self.bytes_held += 8 * len(numbers)

    def remember_given(self, messages: Iterable[int], id_piece: int) -> None:
        """What an id piece says of which messages."""
        for no in messages:
            if self.given.setdefault(no, id_piece) != id_piece:
                self.given[no] = 0

    def latest_frozen(self) -> list[tuple[int, list[int]]]:
        """The frozen sequences that were added last, the latest first."""
        with self._guard:
            return list(islice(reversed(self.frozen.items()), FROZEN_TRIED))

    def remember_pieces(self, found: Mapping[int, bytes], pieces: dict[int, Any] | None = None) -> None:
        """Pieces as they are stored; what is known decoded meanwhile stays so. `pieces`: the reader's."""
        pieces = self.pieces if pieces is None else pieces
        with self._guard:
            for no, data in found.items():
                if no not in pieces:
                    pieces[no] = data
                    self.bytes_held += len(data) + 100

    def remember_decoded(self, pieces: dict[int, Any], no: int, piece: Any, size: int) -> None:
        """A piece as it is handed out from now on; `size`: bytes that this takes more, about."""
        with self._guard:
            pieces[no] = piece
            self.bytes_held += size

    def let_go(self) -> None:
        """Make room: what pieces hold is fetched again when it is read, that they are there stays known.

        Who reads now goes on with the pieces it began with.
        """
        with self._guard:
            self.pieces = {}
            self.bytes_held = sum(8 * len(numbers) for numbers in self.frozen.values())


class Batch:
    """The pieces one statement sends: those it makes and those it names that nobody confirmed yet.

    Use under the log's lock. `acknowledge` when the statement's transaction is known to be kept.
    """

    def __init__(self, log: ThreadLog) -> None:
        self._log = log
        if log.lane is not None and used_up(log.lane, log.next_numbers):
            log.lane = None
        self.shared = log.lane is not None
        self.base: int = log.lane if log.lane is not None else new_lane()
        self._next = log.next_numbers if self.shared else [self.base + start for start in PART_STARTS]
        self.given = log.given
        self._own: dict[Key, Placed] = {}
        self.send: dict[int, bytes] = {}
        self._made: list[int] = []
        self._new_frozen: dict[int, list[int]] = {}

    def find(self, key: Key) -> Placed | None:
        """Where this part is stored already; what is not acknowledged yet is sent again."""
        found = self._log.known.get(key)
        if found is None:
            return self._own.get(key)
        if self._log.unacknowledged:
            for no in (found,) if type(found) is int else cast("tuple[int, int]", found):
                if not self.name(no):
                    return None
        return found

    def name(self, no: int) -> bool:
        """Make sure a piece that is named gets there; False if this statement must not name it."""
        data = self._log.unacknowledged.get(no)
        if data is not None:
            if not self.shared:
                return False
            self.send[no] = data
        return True

    def know(self, key: Key, placed: Placed) -> None:
        self._own[key] = placed
        if self.shared:
            self._log.forget(key)
            self._log.learn(key, placed)

    def forget(self, key: Key) -> None:
        self._own.pop(key, None)
        self._log.forget(key)

    def add(self, key: Key | None, data: bytes, part: int = OTHER) -> int:
        """A new piece; its number."""
        no = self.reserve(part)
        self.put(no, data)
        if key is not None:
            self.know(key, no)
        return no

    def put(self, no: int, data: bytes) -> None:
        """The piece of a number that was reserved."""
        self.send[no] = data
        self._made.append(no)
        if self.shared:
            self._log.unacknowledged[no] = data

    def reserve(self, part: int = OTHER) -> int:
        """The next number of a part of the lane, for a piece or for a row that is not a piece."""
        no = self._next[part]
        if no == self.base + PART_ENDS[part]:
            raise LaneFull
        self._next[part] = no + 1
        return no

    def intern(self, kind: Any, data: bytes, part: int = OTHER) -> int:
        key = key_of(kind, data)
        found = self.find(key)
        return self.add(key, data, part) if found is None else cast(int, found)

    def candidates(self) -> Iterable[tuple[int, list[int]]]:
        """Frozen sequences to name slices of, latest first."""
        for no, numbers in self._log.latest_frozen():
            if self.shared or no not in self._log.unacknowledged:
                yield no, numbers

    def freeze(self, numbers: list[int], encode: Callable[[list[int]], bytes]) -> int:
        no = self.add(None, encode(numbers))
        if self.shared:
            self._log.remember_frozen(no, numbers)
        else:
            self._new_frozen[no] = numbers
        return no

    def abandon(self) -> None:
        """Nothing is sent: forget what this batch made. Call before anyone else can have named it."""
        for key, placed in self._own.items():
            if self._log.known.get(key) == placed:
                self._log.forget(key)
        made = set(self._made)
        for no in made:
            self._log.unacknowledged.pop(no, None)
            self._log.frozen.pop(no, None)
        for message in [message for message, no in self._log.given.items() if no in made]:
            del self._log.given[message]

    def acknowledge(self) -> None:
        """The statement was kept: its pieces are there for good."""
        log = self._log
        with log.lock:
            for no in self.send:
                log.unacknowledged.pop(no, None)
            log.remember_pieces(self.send)
            if not self.shared:
                self._adopt()

    def _adopt(self) -> None:
        log = self._log
        if log.lane is None:
            log.take_lane(self.base, self._next)
        for key, no in self._own.items():
            log.learn(key, no)
        for no, numbers in self._new_frozen.items():
            log.remember_frozen(no, numbers)
