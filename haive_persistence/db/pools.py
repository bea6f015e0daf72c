"""The pools of one database: one for threads, one per event loop, and the session plan they share."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from haive_persistence.db import fork_safety, session_setup
from haive_persistence.db.pool import AsyncPool, BlockingPool
from haive_persistence.db.server import Server
from haive_persistence.db.session_setup import SessionPlan
from haive_persistence.errors import ClosedError

if TYPE_CHECKING:
    from psycopg import Connection


class Pools:
    """Opens pools when they are first needed, and finds out first how their sessions are set up."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._plan: SessionPlan | None = None
        self._closed = False
        self._reset()
        fork_safety.register(self)

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._blocking: BlockingPool | None = None
        self._loops: dict[asyncio.AbstractEventLoop, AsyncPool] = {}

    def after_fork(self) -> None:
        fork_safety.keep_alive((self._blocking, self._loops))
        self._reset()

    def plan(self, *, refresh: bool = False) -> SessionPlan:
        """The set-up of sessions; finding out includes bringing the schema up to date."""
        with self._lock:
            self._check_open()
            if self._plan is None or refresh:
                self._plan = session_setup.prepare(self._server.connect, self._server.config)
            return self._plan

    def blocking(self) -> BlockingPool:
        """The pool for threads."""
        fork_safety.check_pid()
        if self._blocking is None:
            with self._lock:
                if self._blocking is None:
                    self._blocking = self._new_blocking()
                return self._blocking
        return self._blocking

    def _new_blocking(self) -> BlockingPool:
        self._check_open()
        if self._plan is not None:
            return BlockingPool(self._server, self._plan)
        kept: list[Connection[Any]] = []
        self._plan = session_setup.prepare(self._server.connect, self._server.config, kept.append)
        pool = BlockingPool(self._server, self._plan)
        for connection in kept:
            pool.adopt(connection)
        return pool

    async def asynchronous(self) -> AsyncPool:
        """The pool of the running event loop."""
        fork_safety.check_pid()
        loop = asyncio.get_running_loop()
        pool = self._loops.get(loop)
        if pool is None:
            self._check_open()
            for other, of_other in list(self._loops.items()):
                if other.is_closed():
                    self._forget(other, of_other)
            pool = self._loops[loop] = AsyncPool(self._server, self.plan, self._forget)
        if not pool.is_open:
            await pool.open()
        return pool

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError

    def _forget(self, loop: asyncio.AbstractEventLoop, pool: AsyncPool) -> None:
        """Drop the pool of an event loop that has ended."""
        if self._loops.get(loop) is pool:
            del self._loops[loop]
        pool.slots.close()

    def close(self) -> None:
        """Close all connections; those in use when they come back."""
        with self._lock:
            self._closed = True
            pools = [self._blocking, *self._loops.values()]
            self._blocking = None
            self._loops = {}
        for pool in pools:
            if pool is not None:
                pool.slots.close()
