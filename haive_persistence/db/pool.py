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
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import psycopg

from haive_persistence.db import error_mapping
from haive_persistence.db.error_mapping import ExchangeFailure
from haive_persistence.db.exchange import Outcome, PipelinedConnection
from haive_persistence.db.protocol import Statement
from haive_persistence.db.slots import Slots
from haive_persistence.errors import TimedOutError

if TYPE_CHECKING:
    from haive_persistence.db.server import Server
    from haive_persistence.db.session_setup import SessionPlan

#: Seconds between attempts to reach a server that is away.
_BACKOFF_S = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)


# -- pools --------------------------------------------------------------------------------------


class _Refused(Exception):
    """The server allows no more connections; the slot was given back."""


class Pool(ABC):
    """The way to a connection that works, which both pools share."""

    #: Known once the database has been reached for the first time.
    plan: SessionPlan

    def __init__(self, server: Server) -> None:
        self._server = server
        self.slots = Slots(server.config.pool_size, server.config.max_overflow)

    async def acquire(self) -> PipelinedConnection:
        """A connection that is ours alone; give it to `release`.

        Raises TimedOutError when all are busy for `pool_timeout`, UnavailableError when the
        server cannot be reached for as long.
        """
        connection = self.slots.idle()
        if connection is not None and connection.alive():
            return connection
        give_up = time.monotonic() + self._server.config.pool_timeout
        if connection is None:
            connection = await self._wait(give_up)
        while connection is None or not connection.alive():
            opened = await self._open_or_leave(connection, give_up)
            if opened is not None:
                return opened
            connection = await self._wait(give_up)
        return connection

    def release(self, connection: PipelinedConnection) -> None:
        """Take a connection back; one that is not in order is closed."""
        if connection.reusable():
            self.slots.release(connection)
        else:
            connection.close()
            self.slots.release(None)

    async def _open_or_leave(
        self, dead: PipelinedConnection | None, give_up: float
    ) -> PipelinedConnection | None:
        """A new connection; None if the server allows no more of them, and the slot was given back."""
        if dead is not None:
            dead.close()
        try:
            return await self._open(give_up)
        except _Refused:
            return None
        except BaseException:
            self.slots.release(None)
            raise

    async def _open(self, give_up: float) -> PipelinedConnection:
        for pause in chain(_BACKOFF_S, repeat(_BACKOFF_S[-1])):
            if pause:
                await self.sleep(pause)
            try:
                return await self._set_up(await self._connect())
            except psycopg.Error as error:
                if error_mapping.is_refused_for_number(error) and self.slots.refused():
                    raise _Refused from error
                if error_mapping.is_permanent(error) or time.monotonic() > give_up:
                    raise error_mapping.unreachable(error) from error
            await self._revive()
        raise AssertionError  # the loop above does not end

    async def _set_up(self, connection: PipelinedConnection) -> PipelinedConnection:
        if self.plan.on_connect:
            outcome = await self.exchange(connection, self.plan.on_connect, ())
            if isinstance(outcome, ExchangeFailure):
                connection.close()
                raise outcome.error
        return connection

    def _exhausted(self) -> TimedOutError:
        seconds = self._server.config.pool_timeout
        return TimedOutError(
            f"all {self.slots.open} connections have been busy for {seconds:g} s: raise pool_size or "
            "max_overflow, or the limit of the server or the role if that is lower, or look for transactions "
            "left open"
        )

    @abstractmethod
    async def exchange(
        self,
        connection: PipelinedConnection,
        before: Sequence[bytes],
        statements: Sequence[Statement],
        after: Sequence[bytes] = (),
        tenant: str = "",
    ) -> Outcome:
        """One round trip on `connection`."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None: ...

    @abstractmethod
    async def _revive(self) -> None:
        """Do what can be done about a server that does not answer."""

    @abstractmethod
    async def _connect(self) -> PipelinedConnection: ...

    @abstractmethod
    async def _wait(self, give_up: float) -> PipelinedConnection | None:
        """A slot, sooner or later; its connection if it has one. Raises TimedOutError at `give_up`."""


# -- blocking -----------------------------------------------------------------------------------


class _WaitingThread:
    __slots__ = ("_gate", "connection")

    def __init__(self) -> None:
        self.connection: PipelinedConnection | None = None
        self._gate = threading.Lock()
        self._gate.acquire()

    def notify(self) -> bool:
        self._gate.release()
        return True

    def wait(self, seconds: float) -> bool:
        return self._gate.acquire(timeout=seconds)


class BlockingPool(Pool):
    """Connections for threads. Its coroutines block and never suspend."""

    def __init__(self, server: Server, plan: SessionPlan) -> None:
        super().__init__(server)
        self.plan = plan

    def adopt(self, conn: psycopg.Connection[Any]) -> None:
        """Take a connection that was opened to find out about the database."""
        try:
            conn.execute(b"; ".join(self.plan.on_connect))
        except psycopg.Error:  # whoever needs one opens it, and says what is wrong
            conn.close()
        else:
            self.slots.add_idle(PipelinedConnection(conn, self.plan.prepares_after))

    async def exchange(
        self,
        connection: PipelinedConnection,
        before: Sequence[bytes],
        statements: Sequence[Statement],
        after: Sequence[bytes] = (),
        tenant: str = "",
    ) -> Outcome:
        outcome: Outcome = connection.driver.wait(connection.exchange(before, statements, after, tenant))
        return outcome

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def _revive(self) -> None:
        self._server.ensure_running()

    async def _connect(self) -> PipelinedConnection:
        conn = psycopg.Connection[Any].connect(self._server.conninfo(), autocommit=True)
        return PipelinedConnection(conn, self.plan.prepares_after)

    async def _wait(self, give_up: float) -> PipelinedConnection | None:
        waiter = _WaitingThread()
        if self.slots.claim(waiter):
            return waiter.connection
        try:
            in_time = waiter.wait(max(0.0, give_up - time.monotonic()))
        except BaseException:  # Ctrl-C
            if not self.slots.cancel_wait(waiter):
                self.slots.release(waiter.connection)
            raise
        if not in_time and self.slots.cancel_wait(waiter):
            raise self._exhausted()
        return waiter.connection


# -- asynchronous -------------------------------------------------------------------------------


class _WaitingTask:
    __slots__ = ("connection", "future", "handed")

    def __init__(self) -> None:
        self.connection: PipelinedConnection | None = None
        self.handed = False
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def notify(self) -> bool:
        if not self.future.done():
            self.handed = True
            self.future.set_result(None)
        return self.handed

    def expire(self) -> None:
        if not self.future.done():
            self.future.set_exception(asyncio.TimeoutError())


class AsyncPool(Pool):
    """Connections for the tasks of one event loop."""

    def __init__(
        self,
        server: Server,
        make_plan: Callable[[], SessionPlan],
        on_loop_end: Callable[[asyncio.AbstractEventLoop, AsyncPool], None],
    ) -> None:
        """`make_plan` may block; `on_loop_end` is a method, called with this pool as its event loop ends."""
        super().__init__(server)
        self._make_plan = make_plan
        self.is_open = False
        self._opening = asyncio.Lock()
        loop = asyncio.get_running_loop()
        self._end = _until_loop_ends(weakref.ref(self), self.slots, weakref.WeakMethod(on_loop_end), loop)

    async def open(self) -> None:
        """Make ready, however many tasks ask at once."""
        async with self._opening:
            if not self.is_open:
                self.plan = await asyncio.to_thread(self._make_plan)
                with contextlib.suppress(StopAsyncIteration):
                    await self._end.__anext__()
                self.is_open = True

    async def exchange(
        self,
        connection: PipelinedConnection,
        before: Sequence[bytes],
        statements: Sequence[Statement],
        after: Sequence[bytes] = (),
        tenant: str = "",
    ) -> Outcome:
        outcome: Outcome = await connection.driver.wait(
            connection.exchange(before, statements, after, tenant)
        )
        return outcome

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _revive(self) -> None:
        await asyncio.to_thread(self._server.ensure_running)

    async def _connect(self) -> PipelinedConnection:
        conn = await psycopg.AsyncConnection[Any].connect(self._server.conninfo(), autocommit=True)
        return PipelinedConnection(conn, self.plan.prepares_after)

    async def _wait(self, give_up: float) -> PipelinedConnection | None:
        waiter = _WaitingTask()
        if self.slots.claim(waiter):
            return waiter.connection
        loop = asyncio.get_running_loop()
        timer = loop.call_later(max(0.0, give_up - time.monotonic()), waiter.expire)
        try:
            await waiter.future
        except BaseException as error:
            self.slots.cancel_wait(waiter)
            if waiter.handed:  # and cancelled in the same turn of the loop
                self.slots.release(waiter.connection)
            if isinstance(error, asyncio.TimeoutError):
                raise self._exhausted() from None
            raise
        finally:
            timer.cancel()
        return waiter.connection


async def _until_loop_ends(
    pool: weakref.ref[AsyncPool],
    slots: Slots,
    on_end: weakref.WeakMethod[Callable[[asyncio.AbstractEventLoop, AsyncPool], None]],
    loop: asyncio.AbstractEventLoop,
) -> AsyncGenerator[None, None]:
    """Suspended for as long as the loop runs: loops close the async generators they have left.

    That is the one notice a loop gives before it closes, `asyncio.run` included.
    """
    try:
        yield
    finally:
        slots.close()
        if (call := on_end()) is not None and (ended := pool()) is not None:
            call(loop, ended)
