"""What a store does, written once for both ways of waiting."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from langchain_core.runnables import run_in_executor
from langgraph.store.base import Op, Result

from haive_persistence.db import Database, Db, Statement
from haive_persistence.db.batching import Coalescer, KeyedLock
from haive_persistence.db.sql import Queries
from haive_persistence.errors import DatabaseError, MigrationError
from haive_persistence.store.batch import Batch, Step, no_vectors
from haive_persistence.store.nearest import LargeScopes, Nearest
from haive_persistence.store.vectors import PostgresIndexConfig, VectorIndex, Vectors, read_index

if TYPE_CHECKING:
    from haive_persistence.store.ground import Ground

logger = logging.getLogger("haive_persistence.store")

#: Items deleted in one transaction of a sweep: some milliseconds of locks.
_SWEPT_AT_ONCE = 1000


class Way(NamedTuple):
    """How to wait: for the database, for the embedding model, and for what can only block."""

    db: Db
    embed: Callable[[Sequence[str], Sequence[str]], Awaitable[Vectors]]
    aside: Callable[[Callable[[], object]], Awaitable[None]]


class Engine:
    """The logic of `PostgresStore` over a `Way` of waiting."""

    def __init__(self, database: Database, index: PostgresIndexConfig | None) -> None:
        self._database = database
        self._queries: Queries = database.queries("store")
        self._index: VectorIndex | None = read_index(index) if index else None
        self._ground = _ground(database, self._index) if self._index else None
        self._large = LargeScopes()
        # What only reads by key, filter and name waits for no model and for nobody's lock.
        self._reads = Coalescer[Batch, list[Result]](self._run_together)
        self._ticks = Coalescer[Batch, list[Result]](self._run_in_turn)
        self._turns = KeyedLock()

    def for_tenant(self, database: Database) -> Engine:
        """The same engine for another tenant of its database; what is known about the tables stays known."""
        other = Engine(database, None)
        other._index, other._ground, other._large = self._index, self._ground, self._large
        return other

    @property
    def embeddings(self) -> Any:
        return self._index.embedder.embeddings if self._index else None

    @cached_property
    def blocking(self) -> Way:
        return Way(self._database.blocking, self._embed_blocking, _here)

    @cached_property
    def asynchronous(self) -> Way:
        return Way(self._database.asynchronous, self._embed_async, _in_thread)

    async def _embed_blocking(self, texts: Sequence[str], queries: Sequence[str]) -> Vectors:
        assert self._index is not None
        return self._index.embedder.blocking(texts, queries)

    async def _embed_async(self, texts: Sequence[str], queries: Sequence[str]) -> Vectors:
        assert self._index is not None
        return await self._index.embedder.asynchronous(texts, queries)

    # -- batches ------------------------------------------------------------------------------

    def check(self, ops: Iterable[Op], *, expired: bool = False) -> Batch:
        """A batch, ready to run. Raises an InvalidInputError or EncodeError for what cannot be done.

        `expired`: whether it sees items that are expired and not swept yet.
        """
        batch = Batch(self._queries, self._database.tenant, self._index, expired)
        batch.add(ops)
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

    async def run(self, way: Way, batch: Batch) -> list[Result]:
        """The results of a batch, in its order."""
        aimed = await self._aimed(way) if batch.near or (self._index and any(batch.puts.values())) else None
        stored, searched = await self._embed(way, batch)
        if not batch.near or not aimed:
            await _send(way.db, batch.reads() + batch.writes(stored, aimed))
        else:
            await self._search(way.db, batch, aimed, searched)
            await _send(way.db, batch.writes(stored, aimed))
        return batch.results

    async def _embed(self, way: Way, batch: Batch) -> Vectors:
        texts, queries = batch.texts()
        return await way.embed(texts, queries) if texts or queries else no_vectors()

    async def _search(
        self, db: Db, batch: Batch, aimed: Queries, vectors: dict[str, Sequence[float]]
    ) -> None:
        """All reads of a batch; searches whose answer was not complete are asked again, together."""
        assert self._index is not None
        settings = Statement(self._queries["search_settings"], self._index.settings)
        steps = batch.reads()
        open_searches = [
            Nearest(search, self._index, vectors[str(search.op.query)], aimed, batch.tenant, self._large)
            for search in batch.near
        ]
        while open_searches:
            statements = (
                [step.statement for step in steps] + [settings] + [s.statement() for s in open_searches]
            )
            answers = await db.batch(statements, idempotent=True)
            for step, rows in zip(steps, answers, strict=False):
                step.read(rows)
            found = zip(open_searches, answers[len(steps) + 1 :], strict=True)
            open_searches = [search for search, rows in found if not search.accept(rows, batch.results)]
            steps = []

    # -- the tables ---------------------------------------------------------------------------

    async def _aimed(self, way: Way) -> Queries:
        """The queries for the vector table, which is made if it is not there."""
        assert self._ground is not None
        if self._ground.aimed is None and not await self._ground.is_ready(way.db):
            try:
                await way.aside(self._ground.make)
            except (DatabaseError, MigrationError) as error:
                if not await self._ground.is_ready(way.db, needs_index=False):
                    raise
                logger.warning("searching without an index, which setup() can build: %s", error)
            else:
                await self._ground.is_ready(way.db)
        if self._ground.aimed is None:
            raise MigrationError("the vector table was made and is gone again; call setup()")
        return self._ground.aimed

    async def setup(self, way: Way) -> None:
        """Make all that is missing, an index that first use would leave out included."""
        await way.aside(self._database.setup)
        if self._ground is not None:
            await way.aside(self._ground.make)
            await self._aimed(way)

    async def initialize(
        self, way: Way, create_schema: bool, run_migrations: bool, check_version: bool
    ) -> None:
        """`setup`, as far as it is allowed."""
        if create_schema and run_migrations:
            await self.setup(way)
        else:
            await way.aside(lambda: self._inspect(create_schema, run_migrations, check_version))

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

    async def sweep(self, way: Way) -> int:
        """Delete this tenant's expired items and return how many."""
        params = {"tenant": self._database.tenant, "limit": _SWEPT_AT_ONCE}
        deleted, last = 0, _SWEPT_AT_ONCE
        while last == _SWEPT_AT_ONCE:
            last = await way.db.execute(self._queries["sweep_items"], params, idempotent=True)
            deleted += last
        return deleted


def _ground(database: Database, index: VectorIndex) -> Ground:
    from haive_persistence.store.ground import Ground  # with it comes the driver, 50 ms that can wait

    return Ground(database, index)


async def _send(db: Db, steps: Sequence[Step]) -> None:
    for step, rows in zip(steps, await db.batch([s.statement for s in steps], idempotent=True), strict=True):
        step.read(rows)


async def _here(work: Callable[[], object]) -> None:
    work()


async def _in_thread(work: Callable[[], object]) -> None:
    await run_in_executor(None, work)
