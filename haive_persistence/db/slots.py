"""Assigns the connections of a pool. Knows nothing of how one is opened or waited for."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Protocol

from haive_persistence.db.exchange import PipelinedConnection

#: Seconds after which a connection is replaced; after which an idle one is closed; and after
#: which one above `pool_size` is: not at once, or changing load would open and close them all the time.
MAX_LIFETIME_S = 3600.0
MAX_IDLE_S = 300.0
OVERFLOW_IDLE_S = 5.0
#: Seconds in which no more connections are opened after the server refused one for their number.
REFUSED_S = 5.0


class Waiter(Protocol):
    """Someone who waits for a slot."""

    connection: PipelinedConnection | None

    def notify(self) -> bool:
        """Wake it; False if it no longer waits."""
        ...


class Slots:
    """The places for connections, taken and free; whoever waits longest gets the next one."""

    def __init__(self, keep: int, overflow: int) -> None:
        self._keep = keep
        self._limit = keep + overflow
        self._lock = threading.Lock()
        self._idle: deque[PipelinedConnection] = deque()
        self._waiters: deque[Waiter] = deque()
        self._taken = 0
        self._refused_until = 0.0
        self._closed = False

    def add_idle(self, connection: PipelinedConnection) -> None:
        """Take a connection that no slot was claimed for."""
        with self._lock:
            self._taken += 1
        self.release(connection)

    def idle(self) -> PipelinedConnection | None:
        """A slot with an idle connection in it, if there is one. The last used comes first."""
        with self._lock:
            if not self._idle:
                return None
            self._taken += 1
            return self._idle.pop()

    def claim(self, waiter: Waiter) -> bool:
        """Take a slot for `waiter`, with or without a connection; False if it must wait."""
        with self._lock:
            if self._idle:
                waiter.connection = self._idle.pop()
            elif self._taken >= self._limit or (self._taken and time.monotonic() < self._refused_until):
                self._waiters.append(waiter)
                return False
            self._taken += 1
            return True

    def refused(self) -> bool:
        """Give back a slot that the server allows no connection for; False if it is the only one.

        Whoever has it back waits for one of the others then, instead of asking the server again.
        """
        with self._lock:
            self._refused_until = time.monotonic() + REFUSED_S
            if self._taken + len(self._idle) <= 1:
                return False
            self._taken -= 1
            return True

    def cancel_wait(self, waiter: Waiter) -> bool:
        """Stop waiting; False if the slot has been handed over already."""
        with self._lock:
            if waiter not in self._waiters:
                return False
            self._waiters.remove(waiter)
            return True

    def release(self, connection: PipelinedConnection | None) -> None:
        """Give a slot back, with its connection if that can still be used."""
        surplus: list[PipelinedConnection] = []
        with self._lock:
            now = time.monotonic()
            if connection is not None and (self._closed or now - connection.born > MAX_LIFETIME_S):
                surplus.append(connection)
                connection = None
            if not (self._waiters and self._hand_over(connection)):
                self._taken -= 1
                if connection is not None:
                    connection.idle_since = now
                    self._idle.append(connection)
                    if self._idle[0] is not connection:
                        self._shrink(now, surplus)
        for each in surplus:
            each.close()

    def _hand_over(self, connection: PipelinedConnection | None) -> bool:
        while self._waiters:
            waiter = self._waiters.popleft()
            waiter.connection = connection
            if waiter.notify():
                return True
        return False

    def _shrink(self, now: float, surplus: list[PipelinedConnection]) -> None:
        idle = self._idle
        while idle:
            limit = OVERFLOW_IDLE_S if len(idle) + self._taken > self._keep else MAX_IDLE_S
            if now - idle[0].idle_since < limit:
                break
            surplus.append(idle.popleft())

    def close(self) -> None:
        """Close what is idle now, and what is in use when it comes back."""
        with self._lock:
            self._closed = True
            idle = list(self._idle)
            self._idle.clear()
        for connection in idle:
            connection.close()

    @property
    def open(self) -> int:
        """Connections open now, idle or in use."""
        with self._lock:
            return len(self._idle) + self._taken
