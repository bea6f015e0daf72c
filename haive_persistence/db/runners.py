"""The two runners of the `Db` protocol. What they do is written once; how they wait is the pool's."""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from haive_persistence.config import check_tenant
from haive_persistence.db import error_mapping
from haive_persistence.db.error_mapping import CommitState, ExchangeFailure
from haive_persistence.db.exchange import Outcome, PipelinedConnection
from haive_persistence.db.hooks import RoundTrip, StatementHook
from haive_persistence.db.pool import Pool
from haive_persistence.db.protocol import Executor, Params, Query, Row, Statement
from haive_persistence.errors import DatabaseError, InvalidInputError, UnavailableError

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from haive_persistence.db.pools import Pools

T = TypeVar("T")

#: Takes what is wanted from a result while its connection is held.
Reader = Callable[["PipelinedConnection", "PGresult"], T]

#: How often a statement is sent at most, the first time included.
MAX_TRIES = 4
BACKOFF_S = 0.005  # half the longest first pause of the victim of a deadlock

_BEGIN = {
    None: b"BEGIN",
    "read committed": b"BEGIN ISOLATION LEVEL READ COMMITTED",
    "repeatable read": b"BEGIN ISOLATION LEVEL REPEATABLE READ",
    "serializable": b"BEGIN ISOLATION LEVEL SERIALIZABLE",
}
# A deadlock or a failed serialisation: the server has rolled back and asks for another try.
_TRY_AGAIN = ("40P01", "40001")


class _Statements(ABC):
    """The methods of `Executor`, over one that runs a list of statements."""

    @abstractmethod
    async def _run(
        self,
        statements: Sequence[Statement],
        idempotent: bool,
        read: Reader[T],
    ) -> list[T]: ...

    async def fetch_all(self, query: Query, params: Params = (), *, idempotent: bool = False) -> list[Row]:
        return (await self._run((Statement(query, params),), idempotent, PipelinedConnection.rows))[0]

    async def fetch_one(self, query: Query, params: Params = (), *, idempotent: bool = False) -> Row | None:
        (rows,) = await self._run((Statement(query, params),), idempotent, PipelinedConnection.rows)
        return rows[0] if rows else None

    async def execute(self, query: Query, params: Params = (), *, idempotent: bool = False) -> int:
        return (await self._run((Statement(query, params),), idempotent, PipelinedConnection.count))[0]

    async def batch(self, statements: Sequence[Statement], *, idempotent: bool = False) -> list[list[Row]]:
        return await self._run(statements, idempotent, PipelinedConnection.rows) if statements else []


class Runner(_Statements):
    """Runs statements for one tenant on the connections of a pool."""

    def __init__(self, pools: Pools, hooks: Sequence[StatementHook], tenant: str) -> None:
        self._pools = pools
        self._hooks = hooks
        self._tenant = tenant

    @property
    def tenant(self) -> str:
        return self._tenant

    def transaction(
        self, *, isolation: str | None = None, read_only: bool = False
    ) -> AbstractAsyncContextManager[Executor]:
        if isolation not in _BEGIN:
            raise InvalidInputError(
                f"isolation={isolation!r}: write one of {', '.join(filter(None, _BEGIN))}"
            )
        return _Transaction(self, _BEGIN[isolation] + (b" READ ONLY" if read_only else b""))

    @abstractmethod
    async def pool(self) -> Pool: ...

    async def _run(
        self,
        statements: Sequence[Statement],
        idempotent: bool,
        read: Reader[T],
    ) -> list[T]:
        pool = await self.pool()
        before, after = pool.plan.envelope(self._tenant)
        tries = 0
        while True:
            connection = await pool.acquire()
            try:
                tenant_is_set = connection.tenant == self._tenant
                connection.tenant = None  # until the answer says otherwise
                outcome = await self.send(
                    pool, connection, () if tenant_is_set else before, statements, after
                )
                if not isinstance(outcome, ExchangeFailure):
                    if not after:
                        connection.tenant = self._tenant
                    return [read(connection, result) for result in outcome]
                await _recover(pool, connection, outcome)
            finally:
                pool.release(connection)
            tries += 1
            if tries >= MAX_TRIES or not _worth_repeating(outcome, idempotent):
                raise error_mapping.translate(outcome) from outcome.error
            if outcome.state is CommitState.REFUSED:  # by others' locks: let them go first
                await self.sleep(random.uniform(0, BACKOFF_S * 2**tries))

    @abstractmethod
    async def sleep(self, seconds: float) -> None: ...

    async def send(
        self,
        pool: Pool,
        connection: PipelinedConnection,
        before: Sequence[bytes],
        statements: Sequence[Statement],
        after: Sequence[bytes] = (),
    ) -> Outcome:
        """One round trip, and telling the hooks of it."""
        hooks = self._hooks
        if not hooks:
            return await pool.exchange(connection, before, statements, after, self._tenant)
        started = time.perf_counter()
        outcome = await pool.exchange(connection, before, statements, after, self._tenant)
        elapsed = (time.perf_counter() - started) * 1000
        texts = (*(b.decode() for b in before), *(s.query for s in statements), *(a.decode() for a in after))
        rows = 0 if isinstance(outcome, ExchangeFailure) else sum(result.ntuples for result in outcome)
        trip = RoundTrip(texts, elapsed, rows)
        for hook in tuple(hooks):
            hook(trip)
        return outcome


class BlockingDb(Runner):
    """Blocks the calling thread; its coroutines never suspend."""

    def for_tenant(self, tenant: str) -> BlockingDb:
        return BlockingDb(self._pools, self._hooks, check_tenant(tenant))

    async def pool(self) -> Pool:
        return self._pools.blocking()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class AsyncDb(Runner):
    """Really awaits; usable from any number of event loops."""

    def for_tenant(self, tenant: str) -> AsyncDb:
        return AsyncDb(self._pools, self._hooks, check_tenant(tenant))

    async def pool(self) -> Pool:
        return await self._pools.asynchronous()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Transaction(_Statements):
    """BEGIN leaves with the first statement, so an empty block costs nothing."""

    def __init__(self, runner: Runner, begin: bytes) -> None:
        self._runner = runner
        self._begin = begin
        self._pool: Pool | None = None
        self._connection: PipelinedConnection | None = None
        self._failed: ExchangeFailure | None = None
        self._busy = False

    async def __aenter__(self) -> Executor:
        return self

    async def _run(
        self,
        statements: Sequence[Statement],
        idempotent: bool,
        read: Reader[T],
    ) -> list[T]:
        if self._busy:
            raise RuntimeError("a transaction does one thing at a time: await its statements one by one")
        self._busy = True
        try:
            outcome = await self._send(statements)
        finally:
            self._busy = False
        if isinstance(outcome, ExchangeFailure):
            self._failed = outcome
            raise _undone(outcome) from outcome.error
        assert self._connection is not None
        return [read(self._connection, result) for result in outcome]

    async def _send(self, statements: Sequence[Statement]) -> Outcome:
        if self._pool is not None and self._connection is not None:
            return await self._runner.send(self._pool, self._connection, (), statements)
        if self._failed is not None:
            return self._failed
        return await self._start(statements)

    async def _start(self, statements: Sequence[Statement]) -> Outcome:
        """Until COMMIT is sent nothing can be committed, so a lost connection is no reason to give up yet."""
        pool, tenant = await self._runner.pool(), self._runner.tenant
        tries = 0
        while True:
            connection = await pool.acquire()
            try:
                before = pool.plan.begin(self._begin, tenant, tenant_is_set=connection.tenant == tenant)
                outcome = await self._runner.send(pool, connection, before, statements)
            except BaseException:
                connection.tenant = None
                pool.release(connection)
                raise
            if not isinstance(outcome, ExchangeFailure) or outcome.state is CommitState.REFUSED:
                self._pool, self._connection = pool, connection
                return outcome
            connection.close()
            pool.release(connection)
            tries += 1
            if tries >= MAX_TRIES:
                return outcome

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pool, connection = self._pool, self._connection
        self._pool = self._connection = None
        if pool is None or connection is None:
            return
        try:
            if kind is None and self._failed is None:
                await self._commit(pool, connection)
            elif kind is not None and issubclass(kind, GeneratorExit):
                connection.close()  # the coroutine is being dropped: it may not wait for anything any more
            else:
                await _roll_back(pool, connection)
        finally:
            pool.release(connection)
        if kind is None and self._failed is not None:
            raise DatabaseError(
                "a statement of this transaction failed and the error was caught inside it; "
                "nothing was committed",
                sqlstate=self._failed.error.sqlstate,
            ) from self._failed.error

    async def _commit(self, pool: Pool, connection: PipelinedConnection) -> None:
        tenant, connection.tenant = connection.tenant, None
        outcome = await self._runner.send(pool, connection, (), (), (b"COMMIT",))
        if isinstance(outcome, ExchangeFailure):
            await _roll_back(pool, connection)
            raise error_mapping.translate(outcome) from outcome.error
        connection.tenant = tenant


def _undone(failed: ExchangeFailure) -> DatabaseError:
    """Ours for what ended a transaction before COMMIT: it is certain that nothing was committed."""
    if failed.error.sqlstate is None:
        return UnavailableError(
            "the connection was lost in the middle of a transaction; nothing was committed, run it again"
        )
    return error_mapping.from_driver(failed.error)


def _worth_repeating(failed: ExchangeFailure, idempotent: bool) -> bool:
    if failed.state is CommitState.REFUSED:
        return failed.error.sqlstate in _TRY_AGAIN
    return failed.state is CommitState.NOT_RUN or idempotent


async def _recover(pool: Pool, connection: PipelinedConnection, failed: ExchangeFailure) -> None:
    """Bring the connection back to where it can be used again, or close it."""
    if failed.state is CommitState.REFUSED:
        await _roll_back(pool, connection)
    else:
        connection.close()


async def _roll_back(pool: Pool, connection: PipelinedConnection) -> None:
    connection.tenant = None
    if connection.in_transaction and isinstance(
        await pool.exchange(connection, (b"ROLLBACK",), ()), ExchangeFailure
    ):
        connection.close()
