"""Pools of connections: one for blocking code, one per event loop for async code.

A pool is a few slots. Whoever claims a slot gets an idle connection with it or opens one itself,
in its own thread or task, so that the reason why a connection fails reaches the caller who wanted
it. A slot that comes back goes to whoever waits longest. There are no background threads or tasks:
nothing to stop when a process forks, an event loop ends, or the pool is dropped.

Why not psycopg_pool: docs/design/0004-connections.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Protocol

import psycopg

from haive_persistence.db import failures
from haive_persistence.db.protocol import Statement
from haive_persistence.db.wire import Failed, Outcome, Wire
from haive_persistence.errors import TimedOutError

if TYPE_CHECKING:
    from haive_persistence.db.database import Core
    from haive_persistence.db.session import SessionPlan

#: Seconds after which a connection is replaced; after which one nobody uses is closed; and after
#: which one above `pool_size` is: not at once, or changing load would open and close them all the time.
MAX_LIFETIME = 3600.0
MAX_IDLE = 300.0
OVERFLOW_IDLE = 5.0

#: Seconds between attempts to reach a server that is away.
_BACK_OFF = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)


class _Waiter(Protocol):
    """Someone who waits for a slot."""

    wire: Wire | None

    def hand(self) -> bool:
        """Wake it; False if it no longer waits."""
        ...


class Slots:
    """Who may use which connection. Knows nothing of how one is opened or waited for."""

    def __init__(self, keep: int, overflow: int) -> None:
        self._keep = keep
        self._limit = keep + overflow
        self._lock = threading.Lock()
        self._idle: deque[Wire] = deque()
        self._waiters: deque[_Waiter] = deque()
        self._taken = 0
        self._closed = False

    def idle(self) -> Wire | None:
        """A slot with an idle connection in it, if there is one. The last used comes first."""
        with self._lock:
            if not self._idle:
                return None
            self._taken += 1
            return self._idle.pop()

    def claim(self, waiter: _Waiter) -> bool:
        """Take a slot for `waiter`, with or without a connection; False if it must wait."""
        with self._lock:
            if self._idle:
                waiter.wire = self._idle.pop()
            elif self._taken + len(self._idle) >= self._limit:
                self._waiters.append(waiter)
                return False
            self._taken += 1
            return True

    def withdraw(self, waiter: _Waiter) -> bool:
        """Stop waiting; False if the slot has been handed over already."""
        with self._lock:
            if waiter not in self._waiters:
                return False
            self._waiters.remove(waiter)
            return True

    def give(self, wire: Wire | None) -> None:
        """Give a slot back, with its connection if that can still be used."""
        surplus: list[Wire] = []
        with self._lock:
            now = time.monotonic()
            if wire is not None and (self._closed or now - wire.born > MAX_LIFETIME):
                surplus.append(wire)
                wire = None
            if not self._hand_over(wire):
                self._taken -= 1
                if wire is not None:
                    wire.idle_since = now
                    self._idle.append(wire)
                    self._shrink(now, surplus)
        for each in surplus:
            each.close()

    def _hand_over(self, wire: Wire | None) -> bool:
        while self._waiters:
            waiter = self._waiters.popleft()
            waiter.wire = wire
            if waiter.hand():
                return True
        return False

    def _shrink(self, now: float, surplus: list[Wire]) -> None:
        idle = self._idle
        while idle:
            limit = OVERFLOW_IDLE if len(idle) + self._taken > self._keep else MAX_IDLE
            if now - idle[0].idle_since < limit:
                break
            surplus.append(idle.popleft())

    def close(self) -> None:
        """Close what is idle now, and what is in use when it comes back."""
        with self._lock:
            self._closed = True
            idle = list(self._idle)
            self._idle.clear()
        for wire in idle:
            wire.close()

    @property
    def open(self) -> int:
        """Connections open now, idle or in use."""
        with self._lock:
            return len(self._idle) + self._taken


# -- pools --------------------------------------------------------------------------------------


class Pool(ABC):
    """What both pools share: the way to a connection that works."""

    #: Known once the database has been reached for the first time.
    plan: SessionPlan

    def __init__(self, core: Core) -> None:
        self._core = core
        self.slots = Slots(core.config.pool_size, core.config.max_overflow)

    async def acquire(self) -> Wire:
        """A connection that is ours alone; give it to `release`.

        Raises TimedOutError when all are busy for `pool_timeout`, UnavailableError when the
        server cannot be reached for as long.
        """
        wire = self.slots.idle()
        if wire is None:
            wire = await self._wait()
        if wire is not None and wire.alive():
            return wire
        try:
            return await self._open(wire)
        except BaseException:
            self.slots.give(None)
            raise

    def release(self, wire: Wire) -> None:
        """Take a connection back; one that is not in order is closed."""
        if wire.reusable():
            self.slots.give(wire)
        else:
            wire.close()
            self.slots.give(None)

    async def _open(self, dead: Wire | None) -> Wire:
        if dead is not None:
            dead.close()
        give_up = time.monotonic() + self._core.config.pool_timeout
        for pause in chain(_BACK_OFF, repeat(_BACK_OFF[-1])):
            if pause:
                await self.sleep(pause)
            try:
                return await self._set_up(await self._connect())
            except psycopg.Error as error:
                if failures.is_permanent(error) or time.monotonic() > give_up:
                    raise failures.unreachable(error) from error
            await self._revive()
        raise AssertionError  # the loop above does not end

    async def _set_up(self, wire: Wire) -> Wire:
        if self.plan.on_connect:
            outcome = await self.exchange(wire, self.plan.on_connect, ())
            if isinstance(outcome, Failed):
                wire.close()
                raise outcome.error
        return wire

    def _exhausted(self) -> TimedOutError:
        config = self._core.config
        return TimedOutError(
            f"all {config.pool_size + config.max_overflow} connections have been busy for "
            f"{config.pool_timeout:g} s: raise pool_size or max_overflow, or look for transactions left open"
        )

    @abstractmethod
    async def exchange(
        self,
        wire: Wire,
        before: Sequence[bytes],
        statements: Sequence[Statement],
        after: Sequence[bytes] = (),
        tenant: str = "",
    ) -> Outcome:
        """One round trip on `wire`."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None: ...

    @abstractmethod
    async def _revive(self) -> None:
        """Do what can be done about a server that does not answer."""

    @abstractmethod
    async def _connect(self) -> Wire: ...

    @abstractmethod
    async def _wait(self) -> Wire | None:
        """A slot, sooner or later; its connection if it has one."""


# -- blocking -----------------------------------------------------------------------------------


class _WaitingThread:
    __slots__ = ("_gate", "wire")

    def __init__(self) -> None:
        self.wire: Wire | None = None
        self._gate = threading.Lock()
        self._gate.acquire()

    def hand(self) -> bool:
        self._gate.release()
        return True

    def wait(self, seconds: float) -> bool:
        return self._gate.acquire(timeout=seconds)


class BlockingPool(Pool):
    """Connections for threads. Its coroutines block and never suspend."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self.plan = core.plan()

    async def exchange(
        self,
        wire: Wire,
        before: Sequence[bytes],
        statements: Sequence[Statement],
        after: Sequence[bytes] = (),
        tenant: str = "",
    ) -> Outcome:
        outcome: Outcome = wire.conn.wait(wire.exchange(before, statements, after, tenant))
        return outcome

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def _revive(self) -> None:
        self._core.revive()

    async def _connect(self) -> Wire:
        conn = psycopg.Connection[Any].connect(self._core.conninfo(), autocommit=True)
        return Wire(conn, self.plan.prepares_after)

    async def _wait(self) -> Wire | None:
        waiter = _WaitingThread()
        if self.slots.claim(waiter):
            return waiter.wire
        try:
            in_time = waiter.wait(self._core.config.pool_timeout)
        except BaseException:  # Ctrl-C
            if not self.slots.withdraw(waiter):
                self.slots.give(waiter.wire)
            raise
        if not in_time and self.slots.withdraw(waiter):
            raise self._exhausted()
        return waiter.wire


# -- asynchronous -------------------------------------------------------------------------------


class _WaitingTask:
    __slots__ = ("future", "handed", "wire")

    def __init__(self) -> None:
        self.wire: Wire | None = None
        self.handed = False
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def hand(self) -> bool:
        if not self.future.done():
            self.handed = True
            self.future.set_result(None)
        return self.handed

    def expire(self) -> None:
        if not self.future.done():
            self.future.set_exception(asyncio.TimeoutError())


class AsyncPool(Pool):
    """Connections for the tasks of one event loop."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self.is_open = False
        self._opening = asyncio.Lock()
        loop = asyncio.get_running_loop()
        self._end = _until_loop_ends(weakref.ref(self), self.slots, weakref.ref(core), loop)

    async def open(self) -> None:
        """Make ready, however many tasks ask at once."""
        async with self._opening:
            if not self.is_open:
                self.plan = await asyncio.to_thread(self._core.plan)
                with contextlib.suppress(StopAsyncIteration):
                    await self._end.__anext__()
                self.is_open = True

    async def exchange(
        self,
        wire: Wire,
        before: Sequence[bytes],
        statements: Sequence[Statement],
        after: Sequence[bytes] = (),
        tenant: str = "",
    ) -> Outcome:
        outcome: Outcome = await wire.conn.wait(wire.exchange(before, statements, after, tenant))
        return outcome

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _revive(self) -> None:
        await asyncio.to_thread(self._core.revive)

    async def _connect(self) -> Wire:
        conn = await psycopg.AsyncConnection[Any].connect(self._core.conninfo(), autocommit=True)
        return Wire(conn, self.plan.prepares_after)

    async def _wait(self) -> Wire | None:
        waiter = _WaitingTask()
        if self.slots.claim(waiter):
            return waiter.wire
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._core.config.pool_timeout, waiter.expire)
        try:
            await waiter.future
        except BaseException as error:
            self.slots.withdraw(waiter)
            if waiter.handed:  # and cancelled in the same turn of the loop
                self.slots.give(waiter.wire)
            if isinstance(error, asyncio.TimeoutError):
                raise self._exhausted() from None
            raise
        finally:
            timer.cancel()
        return waiter.wire


async def _until_loop_ends(
    pool: weakref.ref[AsyncPool],
    slots: Slots,
    core: weakref.ref[Core],
    loop: asyncio.AbstractEventLoop,
) -> AsyncGenerator[None, None]:
    """Suspended for as long as the loop runs: loops close the async generators they have left.

    That is the one notice a loop gives before it closes, `asyncio.run` included.
    """
    try:
        yield
    finally:
        slots.close()
        if (alive := core()) is not None and (ended := pool()) is not None:
            alive.forget(loop, ended)
