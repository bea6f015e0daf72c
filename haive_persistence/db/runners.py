"""The two runners of the `Db` protocol."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from haive_persistence.db.failures import translate
from haive_persistence.db.protocol import Executor, Params, Query, Row, Statement


class _Runner:
    def __init__(self, core: Any, tenant: str) -> None:
        self._core = core
        self._tenant = tenant

    @property
    def tenant(self) -> str:
        return self._tenant

    def for_tenant(self, tenant: str) -> Any:
        return type(self)(self._core, tenant)

    async def _run(self, statements: Sequence[Statement], idempotent: bool) -> list[Any]:
        raise AssertionError

    async def fetch_all(self, query: Query, params: Params = (), *, idempotent: bool = False) -> list[Row]:
        (cursor,) = await self._run([Statement(query, params)], idempotent)
        return _rows(cursor)

    async def fetch_one(self, query: Query, params: Params = (), *, idempotent: bool = False) -> Row | None:
        (cursor,) = await self._run([Statement(query, params)], idempotent)
        rows = _rows(cursor)
        return rows[0] if rows else None

    async def execute(self, query: Query, params: Params = (), *, idempotent: bool = False) -> int:
        (cursor,) = await self._run([Statement(query, params)], idempotent)
        return int(cursor.rowcount)

    async def batch(self, statements: Sequence[Statement], *, idempotent: bool = False) -> list[list[Row]]:
        return [_rows(cursor) for cursor in await self._run(statements, idempotent)]

    def _told(self, statements: Sequence[Statement], started: float, cursors: Sequence[Any]) -> None:
        ms = (time.perf_counter() - started) * 1000
        text = "; ".join(s.query for s in statements)
        for hook in self._core.hooks:
            hook(text, ms, sum(max(c.rowcount, 0) for c in cursors))


def _rows(cursor: Any) -> list[Row]:
    # The results are here already: fetchall() of an async cursor would only wrap this.
    if cursor.pgresult is None or not cursor.pgresult.nfields:
        return []
    return cursor._tx.load_rows(0, cursor.pgresult.ntuples, cursor._make_row)


class BlockingDb(_Runner):
    """Blocks in the calling thread; its coroutines never suspend."""

    async def _run(self, statements: Sequence[Statement], idempotent: bool) -> list[Any]:
        pool = self._core.blocking_pool()
        started = time.perf_counter()
        conn = pool.getconn()
        try:
            cursors = self._exchange(conn, statements)
        except psycopg.Error as error:
            _clean(conn)
            raise translate(error) from error
        except BaseException:
            conn.close()
            raise
        finally:
            pool.putconn(conn)
        if self._core.hooks:
            self._told(statements, started, cursors)
        return cursors

    def _exchange(self, conn: Any, statements: Sequence[Statement]) -> list[Any]:
        plan = self._core.plan()
        with conn.pipeline():
            conn._haive_tenant = None
            for text in plan.preamble(self._tenant):
                conn.execute(text, prepare=False)
            cursors = [conn.execute(q, p, binary=True) for q, p in statements]
            if plan.per_transaction:
                conn.execute("COMMIT", prepare=False)
        return cursors

    @asynccontextmanager
    async def transaction(
        self, *, isolation: str | None = None, read_only: bool = False
    ) -> AsyncIterator[Executor]:
        pool = self._core.blocking_pool()
        plan = self._core.plan()
        conn = pool.getconn()
        try:
            for text in _begin(plan, self._tenant, isolation, read_only):
                conn.execute(text)
            yield _BlockingTransaction(self._core, self._tenant, conn)
            conn.execute("COMMIT")
        except psycopg.Error as error:
            _clean(conn)
            raise translate(error) from error
        except BaseException:
            _clean(conn)
            raise
        finally:
            pool.putconn(conn)


class _BlockingTransaction(_Runner):
    def __init__(self, core: Any, tenant: str, conn: Any) -> None:
        super().__init__(core, tenant)
        self._conn = conn

    async def _run(self, statements: Sequence[Statement], idempotent: bool) -> list[Any]:
        started = time.perf_counter()
        try:
            with self._conn.pipeline():
                cursors = [self._conn.execute(q, p, binary=True) for q, p in statements]
        except psycopg.Error as error:
            raise translate(error) from error
        if self._core.hooks:
            self._told(statements, started, cursors)
        return cursors


class AsyncDb(_Runner):
    """Awaits; for code under an event loop."""

    async def _run(self, statements: Sequence[Statement], idempotent: bool) -> list[Any]:
        pool = await self._core.async_pool()
        started = time.perf_counter()
        conn = await pool.getconn()
        try:
            cursors = await self._exchange(conn, statements)
        except psycopg.Error as error:
            await _aclean(conn)
            raise translate(error) from error
        except BaseException:
            await conn.close()
            raise
        finally:
            await pool.putconn(conn)
        if self._core.hooks:
            self._told(statements, started, cursors)
        return cursors

    async def _exchange(self, conn: Any, statements: Sequence[Statement]) -> list[Any]:
        plan = await self._core.aplan()
        async with conn.pipeline():
            for text in plan.preamble(self._tenant):
                await conn.execute(text, prepare=False)
            cursors = [await conn.execute(q, p, binary=True) for q, p in statements]
            if plan.per_transaction:
                await conn.execute("COMMIT", prepare=False)
        return cursors

    @asynccontextmanager
    async def transaction(
        self, *, isolation: str | None = None, read_only: bool = False
    ) -> AsyncIterator[Executor]:
        pool = await self._core.async_pool()
        plan = await self._core.aplan()
        conn = await pool.getconn()
        try:
            for text in _begin(plan, self._tenant, isolation, read_only):
                await conn.execute(text)
            yield _AsyncTransaction(self._core, self._tenant, conn)
            await conn.execute("COMMIT")
        except psycopg.Error as error:
            await _aclean(conn)
            raise translate(error) from error
        except BaseException:
            await _aclean(conn)
            raise
        finally:
            await pool.putconn(conn)


class _AsyncTransaction(_Runner):
    def __init__(self, core: Any, tenant: str, conn: Any) -> None:
        super().__init__(core, tenant)
        self._conn = conn

    async def _run(self, statements: Sequence[Statement], idempotent: bool) -> list[Any]:
        started = time.perf_counter()
        try:
            async with self._conn.pipeline():
                cursors = [await self._conn.execute(q, p, binary=True) for q, p in statements]
        except psycopg.Error as error:
            raise translate(error) from error
        if self._core.hooks:
            self._told(statements, started, cursors)
        return cursors


def _begin(plan: Any, tenant: str, isolation: str | None, read_only: bool) -> list[str]:
    begin = "BEGIN" + (f" ISOLATION LEVEL {isolation}" if isolation else "") + (" READ ONLY" if read_only else "")
    preamble = plan.preamble(tenant)
    return [begin, *(preamble[1:] if plan.per_transaction else preamble)]


def _clean(conn: Any) -> None:
    try:
        conn.rollback()
    except psycopg.Error:
        conn.close()


async def _aclean(conn: Any) -> None:
    try:
        await conn.rollback()
    except psycopg.Error:
        await conn.close()
