"""The logs of the threads this process used last, within a budget of memory. Pure: no database."""

from __future__ import annotations

import threading
from collections import OrderedDict

from haive_persistence.checkpointer.storage.piece_index import ThreadLog
from haive_persistence.checkpointer.storage.piece_numbers import new_block

TRIM_EVERY = 64  # operations


class ProcessCache:
    """The logs of the threads used last, at most `max_bytes` of them (least recently used go first)."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.has_evicted = False  # so that a log that is not here may have been
        self._lock = threading.Lock()
        self._logs: OrderedDict[bytes, ThreadLog] = OrderedDict()
        self._operations = 0

    def get(self, thread_key: bytes) -> ThreadLog | None:
        with self._lock:
            log = self._logs.get(thread_key)
            if log is not None:
                self._logs.move_to_end(thread_key)
            return log

    def at_epoch(self, thread_key: bytes, epoch: int) -> ThreadLog:
        """The log of the thread at this epoch; what was known of another epoch is dropped."""
        with self._lock:
            log = self._logs.get(thread_key)
            if log is None or log.epoch != epoch:
                log = self._logs[thread_key] = ThreadLog(epoch)
            self._logs.move_to_end(thread_key)
            return log

    def for_new_thread(self, thread_key: bytes) -> ThreadLog:
        """The log of a thread that is not stored yet; its epoch is known when it is."""
        with self._lock:
            log = self._logs.get(thread_key)
            if log is None or log.exists:
                log = self._logs[thread_key] = ThreadLog(None)
                log.take_block(new_block())  # nobody can know of its epoch yet, so nobody is in it
            return log

    def drop(self, thread_key: bytes, log: ThreadLog | None = None) -> None:
        """Forget a thread (if it is still this log that is known)."""
        with self._lock:
            if log is None or self._logs.get(thread_key) is log:
                self._logs.pop(thread_key, None)

    def trim(self) -> None:
        """Call after each operation: every so often, the threads used least recently make room."""
        self._operations += 1
        if self._operations % TRIM_EVERY:
            return
        with self._lock:
            taken = {thread: log.bytes_taken() for thread, log in self._logs.items()}
            held = sum(taken.values())
            while held > self.max_bytes and len(self._logs) > 1:
                thread, _ = self._logs.popitem(last=False)
                held -= taken[thread]
                self.has_evicted = True
            if held > self.max_bytes:
                self._evict_last()

    def _evict_last(self) -> None:
        ((thread, log),) = self._logs.items()
        log.evict_payloads()
        if log.bytes_to_send() > self.max_bytes:  # of statements that failed
            del self._logs[thread]
            self.has_evicted = True
