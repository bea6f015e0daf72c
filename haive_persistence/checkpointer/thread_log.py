"""What this process knows of one thread's log of pieces. Pure memory: no database.

Nothing here decides what is true. It saves work: a piece that is known is neither sent nor fetched
again. It is tied to the thread's *epoch*; every statement that relies on it checks the epoch in
SQL, so what has gone stale is refused there, dropped here and sent again in full.

Numbers. A process takes piece numbers from a *lane* of its own: 43 random bits, then a 20-bit
counter. A lane is confirmed once a plain INSERT into it was acknowledged: from then on nobody else
can be in it, so a piece may be sent twice (`ON CONFLICT DO NOTHING`) until its first
acknowledgement, by whichever statement names it. That is how a checkpoint can name a message that
a write still in flight is about to store.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any, NamedTuple

LANE_BITS = 20
LANE_SIZE = 1 << LANE_BITS
HEADS_KEPT = 64
FROZEN_TRIED = 8
LONG_KEY = 1024  # longer keys are kept as a digest

Key = tuple[Any, bytes]  # (class or kind, exact bytes or their 256-bit digest)


def new_lane() -> int:
    """The first number of a fresh random lane; never 0, always below 2**63."""
    return (secrets.randbits(43) | 1) << LANE_BITS


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
    """One thread, one epoch. `lock` guards memory only and is never held across the network."""

    def __init__(self, epoch: int | None) -> None:
        self.lock = threading.Lock()
        self.epoch = epoch
        self.exists = epoch is not None
        self.lane: int | None = None
        self.next_number = 0
        self.known: dict[Key, int] = {}
        self.unacknowledged: dict[int, bytes] = {}
        self.pieces: dict[int, Any] = {}
        self.frozen: OrderedDict[int, list[int]] = OrderedDict()
        self.heads: OrderedDict[tuple[int, bytes], KnownHead] = OrderedDict()
        self.bytes_held = 0

    def remember_head(self, ns_key: int, checkpoint_id: bytes, head: KnownHead) -> None:
        self.heads[ns_key, checkpoint_id] = head
        self.heads.move_to_end((ns_key, checkpoint_id))
        while len(self.heads) > HEADS_KEPT:
            self.heads.popitem(last=False)

    def remember_frozen(self, no: int, numbers: list[int]) -> None:
        self.frozen[no] = numbers
        self.frozen.move_to_end(no)
        self.bytes_held += 8 * len(numbers)


class Batch:
    """The pieces one statement sends: those it makes and those it names that nobody confirmed yet.

    Use under the log's lock. `acknowledge` when the statement's transaction is known to be kept.
    """

    def __init__(self, log: ThreadLog) -> None:
        self._log = log
        self.shared = log.lane is not None
        if self.shared and log.next_number & (LANE_SIZE - 1) > LANE_SIZE - (1 << 16):
            log.lane, self.shared = None, False  # nearly used up: start another
        self.base: int = log.lane if log.lane is not None else new_lane()
        self._next = log.next_number if self.shared else self.base
        self._own: dict[Key, int] = {}
        self.send: dict[int, bytes] = {}
        self._new_frozen: dict[int, list[int]] = {}

    def find(self, key: Key) -> int | None:
        no = self._log.known.get(key)
        if no is None:
            return self._own.get(key)
        if no in self._log.unacknowledged:
            if not self.shared:
                return None
            self.send[no] = self._log.unacknowledged[no]
        return no

    def add(self, key: Key | None, data: bytes) -> int:
        """A new piece; its number."""
        no = self._next
        self._next = no + 1
        self.send[no] = data
        if key is not None:
            self._own[key] = no
            if self.shared:
                self._log.known[key] = no
        if self.shared:
            self._log.next_number = self._next
            self._log.unacknowledged[no] = data
        return no

    def reserve(self) -> int:
        """A number for a row that is not a piece."""
        no = self._next
        self._next = no + 1
        if self.shared:
            self._log.next_number = self._next
        return no

    def intern(self, kind: Any, data: bytes) -> int:
        key = key_of(kind, data)
        no = self.find(key)
        return self.add(key, data) if no is None else no

    def candidates(self) -> Iterable[tuple[int, list[int]]]:
        """Frozen sequences to name slices of, latest first."""
        for at, no in enumerate(reversed(self._log.frozen)):
            if at == FROZEN_TRIED:
                return
            if no in self._log.unacknowledged:
                if not self.shared:
                    continue
            yield no, self._log.frozen[no]

    def name_frozen(self, no: int) -> None:
        """Send a frozen sequence again while nobody confirmed it."""
        if no in self._log.unacknowledged:
            self.send[no] = self._log.unacknowledged[no]

    def freeze(self, numbers: list[int], encode: Callable[[list[int]], bytes]) -> int:
        no = self.add(None, encode(numbers))
        if self.shared:
            self._log.remember_frozen(no, numbers)
        else:
            self._new_frozen[no] = numbers
        return no

    def acknowledge(self) -> None:
        """The statement was kept: its pieces are there for good."""
        log = self._log
        with log.lock:
            for no, data in self.send.items():
                log.unacknowledged.pop(no, None)
                if no not in log.pieces:
                    log.pieces[no] = data
                    log.bytes_held += len(data) + 100
            if not self.shared:
                self._adopt()

    def _adopt(self) -> None:
        log = self._log
        if log.lane is None:
            log.lane, log.next_number = self.base, self._next
        for key, no in self._own.items():
            log.known.setdefault(key, no)
        for no, numbers in self._new_frozen.items():
            log.remember_frozen(no, numbers)


class ProcessCache:
    """The logs of the threads used last, at most `max_bytes` of them (least recently used go first)."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._logs: OrderedDict[bytes, ThreadLog] = OrderedDict()

    def get(self, thread_key: bytes) -> ThreadLog | None:
        with self._lock:
            log = self._logs.get(thread_key)
            if log is not None:
                self._logs.move_to_end(thread_key)
            return log

    def at_epoch(self, thread_key: bytes, epoch: int | None) -> ThreadLog:
        """The log of the thread at this epoch; what was known of another epoch is dropped."""
        with self._lock:
            log = self._logs.get(thread_key)
            if log is None or log.epoch != epoch or not log.exists:
                if log is not None and log.epoch == epoch:
                    log.exists = True
                else:
                    log = self._logs[thread_key] = ThreadLog(epoch)
            self._logs.move_to_end(thread_key)
            return log

    def absent(self, thread_key: bytes) -> ThreadLog:
        """The log of a thread that is not stored yet: this process chooses its epoch."""
        with self._lock:
            log = self._logs.get(thread_key)
            if log is None or log.exists:
                log = self._logs[thread_key] = ThreadLog(new_epoch())
                log.exists = False
            return log

    def drop(self, thread_key: bytes, log: ThreadLog | None = None) -> None:
        """Forget a thread (if it is still this log that is known)."""
        with self._lock:
            if log is None or self._logs.get(thread_key) is log:
                self._logs.pop(thread_key, None)

    def trim(self) -> None:
        with self._lock:
            total = sum(log.bytes_held for log in self._logs.values()) if len(self._logs) < 64 else None
            if total is None:
                total = sum(log.bytes_held for log in self._logs.values())
            while total > self._max_bytes and len(self._logs) > 1:
                _, log = self._logs.popitem(last=False)
                total -= log.bytes_held

    def clear(self) -> None:
        with self._lock:
            self._logs.clear()
