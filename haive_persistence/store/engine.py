"""The logic of a store, written once for blocking and asynchronous use."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from langchain_core.runnables import run_in_executor
from langgraph.store.base import Op, Result

from haive_persistence.db import Database, Db, Statement
from haive_persistence.db.batching import Coalescer, KeyedLock
from haive_persistence.db.driver import require_driver
from haive_persistence.db.sql import Queries
from haive_persistence.documents import namespaces
from haive_persistence.documents.items import ItemCodec, SealedItemCodec
from haive_persistence.embedding import LargeScopes, PostgresIndexConfig, VectorIndex, Vectors, read_index
from haive_persistence.errors import (
    ConfigError,
    DatabaseError,
    MigrationError,
    PlaintextRefusedError,
    WrongKeyError,
)
from haive_persistence.keys import DataKeys, NameSealer, Sealing, Sealings, SealProgress
from haive_persistence.store.batch import Batch
from haive_persistence.store.seal_items import reporting, seal_scope
from haive_persistence.store.statements import Statements, Step

if TYPE_CHECKING:
    from haive_persistence.embedding.schema import VectorSchema

logger = logging.getLogger("haive_persistence.store")

#: Items deleted in one transaction of a sweep: some milliseconds of locks.
_SWEPT_AT_ONCE = 1000
#: Tenants whose engines a store remembers.
_MAX_TENANTS = 10_000

# SQLSTATEs of haive.check_data_key (0003_store.sql), and of a server or a role that may only read.
_TENANT_IS_SEALED, _NO_SUCH_DATA_KEY = "HK001", "HK002"
_READ_ONLY = ("25006", "42501")


class IoMode(NamedTuple):
    """Ways to wait: for the database, for the embedding model, and for what can only block."""

    db: Db
    embed: Callable[[Sequence[str], Sequence[str]], Awaitable[Vectors]]
    run_blocking: Callable[[Callable[[], object]], Awaitable[None]]


class Shared:
    """State that the views of all tenants share: settings, keys, and what is known about the tables."""

    def __init__(self, database: Database, index: PostgresIndexConfig | None) -> None:
        encryption = database.encryption
        if index and encryption is not None and not encryption.readable_embeddings:
            raise ConfigError(
                "index= stores vectors in the clear, and they tell much of their texts: to have them beside "
                "sealed items, set EncryptionConfig(readable_embeddings=True)"
            )
        self.queries: Queries = database.queries("store")
        self.index: VectorIndex | None = read_index(index) if index else None
        self.vector_schema = _new_vector_schema(database, self.index) if self.index else None
        self.large = LargeScopes()
        #: Whether it was said that a query is ignored.
        self.has_warned = False
        self.sealings = Sealings(DataKeys(database.queries("keys"), encryption))
        self._engines: OrderedDict[str, Engine] = OrderedDict()
        self._lock = threading.Lock()

    def engine(self, database: Database) -> Engine:
        """The engine of the database's tenant: the same for every view of it, for as long as it is in use."""
        with self._lock:
            engine = self._engines.get(database.tenant)
            if engine is None:
                engine = self._engines[database.tenant] = Engine(database, self)
                if len(self._engines) > _MAX_TENANTS:
                    self._engines.popitem(last=False)
            self._engines.move_to_end(database.tenant)
            return engine


class Engine:
    """One tenant's items, over an `IoMode`."""

    def __init__(self, database: Database, shared: Shared) -> None:
        self._database = database
        self._shared = shared
        self._queries = shared.queries
        self._index = shared.index
        self._vector_schema = shared.vector_schema
        self._sealings = shared.sealings
        self._encryption = shared.sealings.data_keys.encryption
        self._sealed: tuple[Sealing, SealedItemCodec] | None = None
        self._refreshes = True
        # Without a key: that the tenant had none either, asked once, when a read found nothing.
        self._is_unsealed = False
        # What only reads by key, filter and name waits for no model and for no lock.
        self._reads = Coalescer[Batch, list[Result]](self._run_together)
        self._ticks = Coalescer[Batch, list[Result]](self._run_in_turn)
        self._turns = KeyedLock()

    @property
    def embeddings(self) -> Any:
        return self._index.embedder.embeddings if self._index else None

    @cached_property
    def blocking(self) -> IoMode:
        return IoMode(self._database.blocking, self._embed_blocking, _here)

    @cached_property
    def asynchronous(self) -> IoMode:
        return IoMode(self._database.asynchronous, self._embed_async, _in_thread)

    async def _embed_blocking(self, texts: Sequence[str], queries: Sequence[str]) -> Vectors:
        assert self._index is not None
        return self._index.embedder.blocking(texts, queries)

    async def _embed_async(self, texts: Sequence[str], queries: Sequence[str]) -> Vectors:
        assert self._index is not None
        return await self._index.embedder.asynchronous(texts, queries)

    # -- batches ------------------------------------------------------------------------------

    def _warn_of_queries(self, batch: Batch) -> None:
        if not self._shared.has_warned and any(search.op.query for search in batch.searches):
            self._shared.has_warned = True
            logger.warning(
                "search(query=…) on a store without index=: the query is ignored and the newest items are "
                'returned; give index={"dims": …, "embed": …} to search by meaning'
            )

    def check(self, ops: Iterable[Op], *, expired: bool = False) -> Batch:
        """A batch, ready to run. Raises an InvalidInputError or EncodeError for what cannot be done.

        `expired`: whether it sees items that are expired and not swept yet.
        """
        batch = Batch(self._index, self._encryption, expired)
        batch.add(ops)
        if self._index is None and batch.searches:
            self._warn_of_queries(batch)
        return batch

    async def ask(self, batch: Batch) -> list[Result]:
        """`run` for code under an event loop, together with what other tasks ask in the same tick."""
        if self._turns.are_taken(batch.puts):  # the others of this tick need not wait for what it waits for
            return (await self._run_in_turn([batch]))[0]
        return await (self._ticks if batch.near or batch.puts else self._reads).submit(batch)

    async def _run_in_turn(self, batches: Sequence[Batch]) -> list[list[Result]]:
        async with self._turns.hold(item for batch in batches for item in batch.puts):
            return await self._run_together(batches)

    async def _run_together(self, batches: Sequence[Batch]) -> list[list[Result]]:
        joined = batches[0] if len(batches) == 1 else Batch.join(batches)
        results = await self.run(self.asynchronous, joined)
        ends = list(accumulate(len(batch.results) for batch in batches))
        return [results[end - len(batch.results) : end] for batch, end in zip(batches, ends, strict=True)]

    async def run(self, io: IoMode, batch: Batch) -> list[Result]:
        """The results of a batch, in its order."""
        vectors = await self._embed(io, batch)
        try:
            await self._run(io, batch, vectors)
        except (WrongKeyError, DatabaseError) as error:
            if not await self._can_retry(io.db, batch, error):
                raise
            await self._run(io, batch, vectors)
        return batch.results

    async def _can_retry(self, db: Db, batch: Batch, error: WrongKeyError | DatabaseError) -> bool:
        """Learn from a refusal of the database. Raises PlaintextRefusedError if it was for want of a key."""
        if isinstance(error, WrongKeyError):
            return await self._sealings.refresh(db)
        if error.sqlstate in (_TENANT_IS_SEALED, _NO_SUCH_DATA_KEY):
            await self._sealings.refresh_to_write(db)
            return error.sqlstate == _NO_SUCH_DATA_KEY
        if error.sqlstate in _READ_ONLY and self._refreshes and not batch.puts:
            self._refreshes = False
            return True
        return False

    async def _run(self, io: IoMode, batch: Batch, vectors: Vectors) -> None:
        needs_vectors = batch.near or (self._index and batch.writes)
        vector_queries = await self._vector_queries(io) if needs_vectors else None
        stored_as = await self._codec(io.db, batch)
        if stored_as is None:
            batch.answer_empty()
            return
        statements = Statements(
            batch,
            self._queries,
            self._database.tenant,
            *stored_as,
            vector_queries=vector_queries,
            refreshes=self._refreshes,
        )
        if batch.near:
            await self._search(io.db, statements, vectors[1])
            await _send(io.db, statements.writes(vectors[0]))
        else:
            await _send(io.db, statements.reads() + statements.writes(vectors[0]))
        if self._encryption is None and not self._is_unsealed and not batch.found_all():
            await self._sealings.data_keys.check_unsealed(io.db)
            self._is_unsealed = True

    async def _embed(self, io: IoMode, batch: Batch) -> Vectors:
        texts, queries = batch.texts()
        return await io.embed(texts, queries) if texts or queries else ({}, {})

    async def _search(self, db: Db, statements: Statements, vectors: dict[str, Sequence[float]]) -> None:
        """All reads of a batch; searches whose answer was not complete are sent again, together."""
        index = self._index
        assert index is not None
        settings = Statement(self._queries["search_settings"], index.settings)
        steps = statements.reads()
        opened = statements.open_searches(index, self._shared.large, vectors)
        while opened:
            sent = [*(step.statement for step in steps), settings, *map(statements.vector_search, opened)]
            answers = await db.batch(sent, idempotent=True)
            for step, rows in zip(steps, answers, strict=False):
                step.read(rows)
            answered = zip(opened, answers[len(steps) + 1 :], strict=True)
            opened = [one for one, rows in answered if not statements.read_vector_search(index, one, rows)]
            steps = []

    # -- encryption ---------------------------------------------------------------------------

    async def _codec(self, db: Db, batch: Batch) -> tuple[ItemCodec, tuple[int, bytes] | None] | None:
        """The codec of this tenant's items, and the data key that seals; None if there is no item."""
        if self._encryption is None:
            return _PLAIN, None
        sealing = await (self._sealings.load_to_write(db) if batch.writes else self._sealings.load(db))
        if sealing.key is None:
            row = await db.fetch_one(self._queries["has_items"], {"tenant": db.tenant}, idempotent=True)
            if row == (False,):
                return None
            if self._encryption.accept_earlier_plaintext:
                return _PLAIN, None
            raise _older_than_key(db.tenant)
        codec = self._sealed_codec(sealing)
        if sealing.keys.plaintext_items:
            await self._seal_touched(db, codec, batch)
        return codec, sealing.key

    async def _seal_touched(self, db: Db, codec: SealedItemCodec, batch: Batch) -> None:
        """Seal the items older than the first key that a batch may be about, if they are accepted."""
        assert self._encryption is not None
        if not self._encryption.accept_earlier_plaintext:
            raise _older_than_key(db.tenant)
        moment = await self._sealings.data_keys.plaintext_moment(db)
        done = 0
        for scope in batch.scopes():
            done += await seal_scope(db, self._queries, codec, scope, moment)
        if not done:  # another process may have sealed the last of them
            await self._sealings.refresh(db)

    async def seal_existing(
        self, io: IoMode, progress: Callable[[SealProgress], None] | None, trust_all: bool
    ) -> int:
        """Seal all items in plaintext. Returns how many there were."""
        db, data_keys = io.db, self._sealings.data_keys
        sealing = await self._sealings.load_to_write(db)
        moment = await data_keys.plaintext_moment(db, trust_all=trust_all)
        tenant = {"tenant": db.tenant}
        (total,) = await db.fetch_one(self._queries["count_items"], tenant, idempotent=True) or (0,)
        told = reporting(progress, total) if progress else None
        codec = self._sealed_codec(sealing)
        done = await seal_scope(db, self._queries, codec, namespaces.scope(()), moment, told)
        await data_keys.end_plaintext(db, "items")
        return done

    def _sealed_codec(self, sealing: Sealing) -> SealedItemCodec:
        if self._sealed is None or self._sealed[0] is not sealing:
            assert self._encryption is not None
            assert sealing.keys.index_key is not None
            names = NameSealer(sealing.keys.index_key, self._database.tenant)
            self._sealed = sealing, SealedItemCodec(sealing, names, self._encryption)
        return self._sealed[1]

    # -- the tables ---------------------------------------------------------------------------

    async def _vector_queries(self, io: IoMode) -> Queries:
        """The queries for the vector table, which is made if it is not there."""
        schema = self._vector_schema
        assert schema is not None
        if schema.queries is None and not await schema.is_ready(io.db):
            try:
                await io.run_blocking(schema.make)
            except (DatabaseError, MigrationError) as error:
                if not await schema.is_ready(io.db, needs_index=False):
                    raise
                logger.warning("searching without an index, which setup() can build: %s", error)
            else:
                await schema.is_ready(io.db)
        if schema.queries is None:
            raise MigrationError("the vector table was made and is gone again; call setup()")
        return schema.queries

    async def setup(self, io: IoMode) -> None:
        """Make all that is missing, an index that first use would leave out included."""
        await io.run_blocking(self._database.setup)
        if self._vector_schema is not None:
            await io.run_blocking(self._vector_schema.make)
            await self._vector_queries(io)

    async def initialize(
        self, io: IoMode, create_schema: bool, run_migrations: bool, check_version: bool
    ) -> None:
        """`setup`, as far as it is allowed."""
        if create_schema and run_migrations:
            await self.setup(io)
        else:
            await io.run_blocking(lambda: self._inspect(create_schema, run_migrations, check_version))

    def _inspect(self, create_schema: bool, run_migrations: bool, check_version: bool) -> None:
        from haive_persistence.db.migrate import migrations, pending, read_applied

        schema = self._database.schema
        with self._database.connect() as conn:
            there = conn.execute("SELECT FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone()
            missing = pending(read_applied(conn, schema), migrations())
        if there is None and not create_schema:
            raise MigrationError(
                f"there is no schema {schema!r}, and create_schema=False does not let it be made"
            )
        if run_migrations:
            self._database.setup()
        elif missing and check_version:
            names = ", ".join(f"{m.version:04}_{m.name}" for m in missing)
            raise MigrationError(
                f"the schema {schema!r} lacks {names}, and run_migrations=False does not let them run"
            )

    # -- expiry -------------------------------------------------------------------------------

    async def sweep(self, io: IoMode) -> int:
        """Delete this tenant's expired items and return how many."""
        params = {"tenant": self._database.tenant, "limit": _SWEPT_AT_ONCE}
        deleted, last = 0, _SWEPT_AT_ONCE
        while last == _SWEPT_AT_ONCE:
            last = await io.db.execute(self._queries["sweep_items"], params, idempotent=True)
            deleted += last
        return deleted


def _new_vector_schema(database: Database, index: VectorIndex) -> VectorSchema:
    require_driver()
    from haive_persistence.embedding.schema import VectorSchema  # the driver takes 50 ms, which can wait

    return VectorSchema(database, index)


def _older_than_key(tenant: str) -> PlaintextRefusedError:
    return PlaintextRefusedError(
        f"tenant {tenant!r} has items that were written before it had a key: seal them with seal_existing()"
    )


_PLAIN = ItemCodec()


async def _send(db: Db, steps: Sequence[Step]) -> None:
    for step, rows in zip(steps, await db.batch([s.statement for s in steps], idempotent=True), strict=True):
        step.read(rows)


async def _here(work: Callable[[], object]) -> None:
    work()


async def _in_thread(work: Callable[[], object]) -> None:
    await run_in_executor(None, work)
