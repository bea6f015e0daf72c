"""A thread that deletes expired items now and then.

Expired items are not shown, swept or not, unless the store was told to show them until then. Any
number of processes may sweep at once.
"""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Protocol

from haive_persistence._awaitable import SweeperHandle

logger = logging.getLogger("haive_persistence.store")


class Sweeps(Protocol):
    def sweep_ttl(self) -> int: ...


class Sweeper:
    """Starts and stops the thread. It ends by itself when its store is garbage."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._handle = SweeperHandle()

    def start(self, store: Sweeps, interval_seconds: float) -> SweeperHandle:
        """Sweep every so often from now on. When it already does, the handle of that."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive() and not self._stop.is_set():
                return self._handle
            self._stop = stop = threading.Event()
            self._handle = handle = SweeperHandle()
            handle.add_done_callback(lambda _: stop.set())
            self._thread = threading.Thread(
                target=_sweep,
                args=(weakref.ref(store, lambda _: stop.set()), interval_seconds, stop, handle),
                name="haive-ttl-sweeper",
                daemon=True,
            )
            self._thread.start()
            return handle

    def stop(self, timeout: float | None = None) -> bool:
        """Whether it has stopped, after waiting for a sweep that runs for at most `timeout` seconds."""
        thread = self._thread
        self._stop.set()
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()


def _sweep(
    store: weakref.ReferenceType[Sweeps],
    interval_seconds: float,
    stop: threading.Event,
    handle: SweeperHandle,
) -> None:
    while not stop.wait(interval_seconds):
        if (target := store()) is None:
            break
        try:
            if deleted := target.sweep_ttl():
                logger.info("swept %d expired items", deleted)
        except Exception:  # the server may be back by the next time
            logger.exception("could not sweep expired items; trying again in %s seconds", interval_seconds)
        del target
    if not handle.cancelled():
        handle.set_result(None)
