"""The logs of the threads this process used last, within a budget of memory. Pure: no database.

Every log is charged with the bytes it takes. An operation that used a log charges the difference
(`settle`), so that neither charging nor eviction depends on the number of threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from haive_persistence.checkpointer.storage.piece_index import ThreadLog
from haive_persistence.checkpointer.storage.piece_numbers import new_block


class ProcessCache:
    """The logs of the threads used last, at most `max_bytes` of them (least recently used go first)."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.clear()

    def clear(self) -> None:
        """Forget all. In a forked child too, where another thread may have held the lock."""
        self.has_evicted = False  # so that a log that is not here may have been
        self.charged_bytes = 0
        self._lock = threading.Lock()
        self._logs: OrderedDict[bytes, ThreadLog] = OrderedDict()

    def __len__(self) -> int:
        return len(self._logs)

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
                return self._add(thread_key, ThreadLog(epoch))
            self._logs.move_to_end(thread_key)
            return log

    def of(self, thread_key: bytes) -> ThreadLog:
        """The log of the thread; a new one if nothing is known of it."""
        return self.get(thread_key) or self.for_new_thread(thread_key)

    def for_new_thread(self, thread_key: bytes) -> ThreadLog:
        """The log of a thread that is not stored yet; its epoch is known when it is."""
        with self._lock:
            log = self._logs.get(thread_key)
            if log is None or log.exists:
                log = self._add(thread_key, ThreadLog(None))
                log.take_block(new_block())  # no other process knows its epoch yet, so none uses the block
            return log

    def drop(self, thread_key: bytes, log: ThreadLog | None = None) -> None:
        """Forget a thread (if it is still this log that is known)."""
        with self._lock:
            if log is None or self._logs.get(thread_key) is log:
                self._remove(thread_key)

    def advance(self, thread_key: bytes, before: int, epoch: int, main_line: int | None) -> None:
        """Take a thread to the epoch after this process changed names in it: its pieces are as they were."""
        with self._lock:
            log = self._logs.get(thread_key)
            if log is not None and log.epoch == before:
                log.change_names(epoch, main_line)
            else:
                self._remove(thread_key)

    def settle(self, thread_key: bytes, log: ThreadLog) -> None:
        """Charge what an operation added to a log, and evict the threads used least recently.

        A log with pieces on their way is spared once: statements that name them are sent again from it.
        """
        with self._lock:
            if self._logs.get(thread_key) is not log:
                return
            taken = log.bytes_taken()
            self.charged_bytes += taken - log.charged_bytes
            log.charged_bytes = taken
            log.is_spared = False
            while self.charged_bytes > self.max_bytes and len(self._logs) > 1:
                oldest = next(iter(self._logs))
                if self._logs[oldest].unacknowledged and not self._logs[oldest].is_spared:
                    self._logs[oldest].is_spared = True
                    self._logs.move_to_end(oldest)
                else:
                    self._remove(oldest)
                    self.has_evicted = True
            if self.charged_bytes > self.max_bytes:
                self._evict_last()

    def _add(self, thread_key: bytes, log: ThreadLog) -> ThreadLog:
        self._remove(thread_key)
        self._logs[thread_key] = log
        log.charged_bytes = log.bytes_taken()
        self.charged_bytes += log.charged_bytes
        return log

    def _remove(self, thread_key: bytes) -> None:
        log = self._logs.pop(thread_key, None)
        if log is not None:
            self.charged_bytes -= log.charged_bytes

    def _evict_last(self) -> None:
        ((thread, log),) = self._logs.items()
        log.evict_payloads()
        taken = log.bytes_taken()
        self.charged_bytes += taken - log.charged_bytes
        log.charged_bytes = taken
        if log.bytes_to_send > self.max_bytes:  # of statements that failed
            self._remove(thread)
            self.has_evicted = True
