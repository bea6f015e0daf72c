"""Group commit: statements of several writers in one round trip and one transaction.

A durable commit costs a flush of the log, and a round trip costs both sides time, however small the
statement. Under load writers therefore share them: one of them leads, sends what has gathered, and
hands the answers out; who comes meanwhile waits for the next round. No writer waits for company: a
lone writer sends at once. When a shared transaction fails, each of its statements runs again by
itself, so that an error is only the writer's who made it.

The statements must be idempotent and of one tenant, and must not wait for locks that others may hold
for long: none shall wait for a row that only one of them wants (NOWAIT).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from operator import attrgetter

from haive_persistence.db.error_mapping import affects_whole_batch
from haive_persistence.db.protocol import Db, Params, Query, Row, Statement, run_sync
from haive_persistence.db.runners import BlockingDb
from haive_persistence.errors import DatabaseError, InvalidInputError

#: Rounds under way at once: while the server works on one, the client prepares the other.
LEADERS = 2
#: Writers that wait for the leader before there is a second one. That needs another connection, whose server
#: process plans each statement again: it costs a process that serves one request more than waiting does.
#: Of 0, 8 and 64 this has the best worst case (docs/design/0004-connections.md has the figures).
PATIENCE = 64
#: A leader that takes longer is not waited for.
SLOW_ROUND_S = 0.05
#: Statements in one round at most, and the bytes after which no more are added.
MAX_STATEMENTS = 64
MAX_ROUND_BYTES = 1 << 20

_RUN_ALONE = (
    "55P03",
    "23505",
)  # lock_not_available, unique_violation: the fallback waits, or replaces its row


class GroupCommit:
    """Joins the idempotent statements of one tenant's concurrent writers."""

    def __init__(self, patience: int = PATIENCE) -> None:
        """`patience`: how many writers wait for the leader before there is a second one."""
        self._patience = patience
        self._blocking = _BlockingGroup(patience)
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopGroup] = (
            weakref.WeakKeyDictionary()
        )

    async def fetch_all(
        self, db: Db, query: Query, params: Params, *, fallback: Query, key: bytes, size: int
    ) -> list[Row]:
        """Run one statement, maybe together with others; its rows.

        `fallback` is what runs by itself if a round fails: the same, but it may wait for locks, and replace
        a row that is stored. `key` says which rows it locks: rounds take them in the order of their keys, so
        that two never wait for each other. `size`: its parameters' bytes, about.
        """
        entry = _Entry(Statement(query, params), key, size)
        if isinstance(db, BlockingDb):
            self._blocking.submit(db, entry)
        else:
            loop = asyncio.get_running_loop()
            group = self._loops.get(loop)
            if group is None:
                group = self._loops[loop] = _LoopGroup(self._patience)
            await group.submit(db, entry)
        if entry.error is not None:
            raise entry.error
        if entry.rows is None:
            return await db.fetch_all(fallback, params, idempotent=True)
        return entry.rows


class _Entry:
    """One writer's statement and what becomes of it."""

    __slots__ = ("error", "future", "key", "part", "rows", "size", "statement", "wake")

    def __init__(self, statement: Statement, key: bytes, size: int) -> None:
        self.statement = statement
        self.key = key
        self.size = size
        self.rows: list[Row] | None = None
        self.error: DatabaseError | InvalidInputError | None = None
        self.part: list[_Entry] | None = None  # the round this writer leads
        self.wake: threading.Lock | None = None
        self.future: asyncio.Future[None] | None = None


def _fill(queue: deque[_Entry], most: int) -> list[_Entry]:
    """Move entries from the queue to a round until it is full."""
    part: list[_Entry] = []
    size = 0
    while queue and len(part) < most and (not part or size + queue[0].size <= MAX_ROUND_BYTES):
        size += queue[0].size
        part.append(queue.popleft())
    return part


async def _round(db: Db, part: Sequence[_Entry]) -> None:
    """Send a round. Entries left with neither rows nor an error are to run by themselves."""
    if len(part) > 1:
        part = sorted(part, key=attrgetter("key"))
    try:
        answers = await db.batch([entry.statement for entry in part], idempotent=True)
    except (DatabaseError, InvalidInputError) as error:
        run_alone = isinstance(error, DatabaseError) and error.sqlstate in _RUN_ALONE
        if not run_alone and (len(part) == 1 or affects_whole_batch(error)):
            for entry in part:
                entry.error = error
        return
    for entry, rows in zip(part, answers, strict=True):
        entry.rows = rows


class _Group:
    """The writers of threads, or of an event loop."""

    def __init__(self, patience: int) -> None:
        self._queue: deque[_Entry] = deque()
        self._leading = 0
        self._patience = patience
        self._led_since = 0.0

    def _places(self) -> int:
        """The number of leaders that there may be now."""
        if self._patience and time.monotonic() - self._led_since < SLOW_ROUND_S:
            return 1
        return LEADERS

    def _may_lead(self) -> bool:
        """True if there is a free place; whoever finds none waits."""
        if self._leading == 0 or self._leading < self._places():
            return True
        self._patience -= self._patience > 0
        return False

    def _lead(self) -> None:
        self._leading += 1
        self._led_since = time.monotonic()


class _BlockingGroup(_Group):
    """For threads: the leader is the writer that found a free place, or was handed one."""

    def __init__(self, patience: int) -> None:
        super().__init__(patience)
        self._lock = threading.Lock()

    def submit(self, db: Db, entry: _Entry) -> None:
        with self._lock:
            if self._may_lead():
                self._lead()
                entry.part = [entry]
            else:
                entry.wake = threading.Lock()
                entry.wake.acquire()
                self._queue.append(entry)
        try:
            if entry.wake is not None:
                entry.wake.acquire()  # until a leader has an answer, or a place to hand over
            if entry.part is not None:
                with self._lock:
                    entry.part += _fill(self._queue, MAX_STATEMENTS - 1)
                run_sync(_round(db, entry.part))
        except BaseException:  # Ctrl-C, maybe while it waited: no leader shall count on it
            with self._lock, contextlib.suppress(ValueError):
                self._queue.remove(entry)
            raise
        finally:
            if entry.part is not None:
                self._hand_over()
                for other in entry.part[1:]:
                    _wake(other)

    def _hand_over(self) -> None:
        with self._lock:
            if not self._queue:
                self._leading -= 1
                return
            self._led_since = time.monotonic()
            following = self._queue.popleft()
            following.part = [following]
        _wake(following)


def _wake(entry: _Entry) -> None:
    if entry.wake is not None:
        entry.wake.release()


class _LoopGroup(_Group):
    """For the tasks of one event loop: a round is led by the task that asked first."""

    def __init__(self, patience: int) -> None:
        super().__init__(patience)
        self._scheduled = False

    async def submit(self, db: Db, entry: _Entry) -> None:
        loop = asyncio.get_running_loop()
        entry.future = loop.create_future()
        self._queue.append(entry)
        if not self._scheduled and self._may_lead():
            self._scheduled = True
            loop.call_soon(self._appoint)  # so that the tasks of this tick go together
        try:
            await entry.future  # until there is an answer, or a round to lead
            if entry.part is not None:
                await _round(db, entry.part)
        finally:
            if entry.part is not None:
                self._leading -= 1
                for other in entry.part:
                    _answered(other)
                self._appoint()

    def _appoint(self) -> None:
        self._scheduled = False
        leaders = self._places() if self._leading or not self._patience else 1
        while self._queue and self._leading < leaders:
            # What has gathered is shared among the free places.
            part = _fill(self._queue, min(MAX_STATEMENTS, -(-len(self._queue) // (leaders - self._leading))))
            waiting = [entry for entry in part if entry.future is not None and not entry.future.done()]
            if waiting:  # the others were cancelled
                self._lead()
                waiting[0].part = waiting
                _answered(waiting[0])


def _answered(entry: _Entry) -> None:
    if entry.future is not None and not entry.future.done():
        entry.future.set_result(None)
