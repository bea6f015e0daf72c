"""One tenant's queries, codec and cache: what writing, reading, retention and copying share."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from haive_persistence.checkpointer.ids import thread_id_text, thread_key
from haive_persistence.checkpointer.storage.piece_cache import ProcessCache
from haive_persistence.checkpointer.thread_reader import StaleRead, StaleReadRetry, ThreadReader
from haive_persistence.db.protocol import Db
from haive_persistence.db.sql import Queries
from haive_persistence.errors import ConflictError, WrongKeyError
from haive_persistence.keys import PlaintextRowError, Sealing, Sealings

ATTEMPTS = 8

Config = Mapping[str, Any]
T = TypeVar("T")


class TenantContext:
    """One tenant under one serialiser."""

    def __init__(
        self,
        queries: Queries,
        tenant: str,
        cache: ProcessCache,
        keys: Sealings,
    ) -> None:
        self.queries = queries
        self.tenant = tenant
        self.cache = cache
        self.codec = keys.load
        self.codec_to_write = keys.load_to_write
        self.keys = keys
        #: Seals a thread that is older than the tenant's first key; False if that is not accepted.
        self.seal_thread: Callable[[Db, uuid.UUID], Awaitable[bool]]
        #: Seals all threads that are older than the first key, or raises PlaintextRefusedError.
        self.settle_plaintext: Callable[[Db], Awaitable[None]]

    def thread_key(self, thread_id: object) -> uuid.UUID:
        return thread_key(self.tenant, thread_id_text(thread_id))

    def reader(self, codec: Sealing, thread: uuid.UUID, epoch: int) -> ThreadReader:
        log = self.cache.at_epoch(thread.bytes, epoch)
        return ThreadReader(log, codec, thread, self.queries, self.cache)

    async def latest_codec(self, db: Db) -> Sealing:
        """The codec with the data keys as they are stored now."""
        await self.keys.refresh(db)
        return await self.codec(db)

    async def retrying(self, what: str, work: Callable[[], Awaitable[T]]) -> T:
        """Do work again when others change the same threads at the same time.

        Raises ConflictError if they always do, DecodeError if a thread's pieces are missing.
        """
        again = StaleReadRetry(self.cache)
        for attempt in range(ATTEMPTS):
            try:
                return await work()
            except StaleRead as stale:
                again.forget(stale)
            except ConflictError:
                if attempt + 1 == ATTEMPTS:
                    raise
        raise again.final_error(what)

    async def with_all_keys(self, db: Db, read: Callable[[], Awaitable[T]]) -> T:
        """Read; again when another process has added a data key, or a thread had to be sealed first."""
        while True:
            try:
                return await read()
            except WrongKeyError:
                if not await self.keys.refresh(db):
                    raise
            except PlaintextRowError as refused:
                thread = refused.identity[0]
                if not isinstance(thread, uuid.UUID) or not await self.seal_thread(db, thread):
                    raise
