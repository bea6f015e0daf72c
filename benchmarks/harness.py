"""What the scenarios share: a server, contenders on fresh databases, meters, medians, tables of ratios.

A scenario is a module with `run(bench) -> Tables` and `main(argv)`. It opens its contenders with
`bench.contenders()`, does the same work with each, interleaved (`rounds`), and returns
{title: {metric: {contender: value}}}. All of them run in this process, on one server, with that
server's durability; `--repeat` prints the medians of several runs.

Scenarios are written once, as `async def`. `call(thing, "invoke", …)` awaits `thing.ainvoke(…)`, or
in the blocking form calls `thing.invoke(…)`, which never suspends.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import shutil
import sqlite3
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Protocol, TypeVar

import aiosqlite
import psycopg
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.store.postgres import AsyncPostgresStore, PostgresStore
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool, ConnectionPool

T = TypeVar("T")
Values = dict[str, float]  # contender -> value
Tables = dict[str, dict[str, Values]]  # title -> metric -> values

OURS = "haive"
WITH_SERVER = ("postgres", OURS)
POOL_SIZE = 20  # as many connections as a Checkpointer opens at most by default
PACKAGES = (
    "langgraph",
    "langgraph-checkpoint-postgres",
    "langgraph-checkpoint-sqlite",
    "psycopg",
    "haive-persistence",
)
TABLES_SIZE_SQL = b"""
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
AND n.nspname NOT LIKE 'pg\\_toast%'
"""
SESSIONS_WAL_SQL = b"""
SELECT coalesce(sum(wal.wal_bytes), 0)::bigint
FROM pg_stat_activity a CROSS JOIN LATERAL pg_stat_get_backend_wal(a.pid) wal
WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
"""
SESSIONS_WAL_DELAY_S = 10.5  # by then an idle session has told what it wrote


# -- the server -----------------------------------------------------------------------------------


class Server:
    """One Postgres, and fresh databases on it."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.admin = psycopg.connect(dsn, autocommit=True)

    def value(self, query: str) -> Any:
        row = self.admin.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def wal_position(self) -> int:
        return int(self.value("SELECT pg_current_wal_lsn() - '0/0'"))

    @contextmanager
    def database(self) -> Iterator[str]:
        name = f"bench_{uuid.uuid4().hex[:12]}"
        self.admin.execute(f"CREATE DATABASE {name}".encode())
        try:
            yield make_conninfo(self.dsn, dbname=name)
        finally:
            self.admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextmanager
def running_server(dsn: str | None) -> Iterator[Server]:
    """The server at `dsn`, or an embedded one of our own with its default settings."""
    if dsn:
        yield Server(dsn)
        return
    from haive_persistence.db import embedded

    directory = Path(tempfile.mkdtemp(prefix="haive-bench-"))
    directory.chmod(0o711)  # as root, the server runs as somebody else
    attached = embedded.attach(directory / "server")
    try:
        yield Server(attached.dsn())
    finally:
        attached.close()
        shutil.rmtree(directory, ignore_errors=True)


# -- the contenders -------------------------------------------------------------------------------


@dataclass
class Meter:
    """Wall, client CPU and WAL of the spans measured, and the time of each lap within them.

    The WAL is all that the server wrote meanwhile: its autovacuum may have been busy with somebody
    else's tables. `Contender.sessions_wal_bytes` knows better who wrote what.
    """

    wal_position: Callable[[], int]
    wall_s: float = 0.0
    cpu_s: float = 0.0
    wal_bytes: int = 0
    laps_ms: list[float] = field(default_factory=list)

    @contextmanager
    def span(self) -> Iterator[None]:
        gc.collect()  # nobody pays for the garbage of whoever ran before,
        os.sync()  # nor for what the disk still owes them
        wal, cpu, wall = self.wal_position(), time.process_time(), time.perf_counter()
        yield
        self.wall_s += time.perf_counter() - wall
        self.cpu_s += time.process_time() - cpu
        self.wal_bytes += self.wal_position() - wal

    @contextmanager
    def lap(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.laps_ms.append((time.perf_counter() - start) * 1e3)


@dataclass
class Contender:
    name: str
    saver: Any  # or a store
    place: str  # connection string, or file
    meter: Meter

    def disk_bytes(self) -> int:
        """All its tables and indexes, the empty ones and the migrations' too; a file's size for SQLite."""
        if self.name == "memory":
            return 0
        if self.name == "sqlite":
            return sum(
                os.path.getsize(self.place + suffix)
                for suffix in ("", "-wal")
                if os.path.exists(self.place + suffix)
            )
        return self._ask(TABLES_SIZE_SQL)

    def sessions_wal_bytes(self) -> int | None:
        """The WAL that its open connections wrote; None without Postgres 18. It may be some seconds old."""
        if self.name not in WITH_SERVER:
            return None
        try:
            return self._ask(SESSIONS_WAL_SQL)
        except psycopg.errors.UndefinedFunction:
            return None

    def _ask(self, query: bytes) -> int:
        with psycopg.connect(self.place) as connection:
            row = connection.execute(query).fetchone()
        assert row is not None
        return int(row[0])


class Opener(Protocol):
    def __call__(self, place: str, *, asynchronous: bool) -> AbstractAsyncContextManager[Any]: ...


@asynccontextmanager
async def open_postgres(place: str, *, asynchronous: bool) -> AsyncIterator[Any]:
    arguments: dict[str, Any] = {
        "kwargs": {"autocommit": True},
        "min_size": 1,
        "max_size": POOL_SIZE,
        "open": False,
    }
    if asynchronous:
        async with AsyncConnectionPool(place, **arguments) as pool:
            saver = AsyncPostgresSaver(pool)
            await saver.setup()
            yield saver
    else:
        with ConnectionPool(place, **arguments) as blocking_pool:
            blocking_saver = PostgresSaver(blocking_pool)
            blocking_saver.setup()
            yield blocking_saver


@asynccontextmanager
async def open_sqlite(place: str, *, asynchronous: bool) -> AsyncIterator[Any]:
    if asynchronous:
        async with aiosqlite.connect(place) as connection:
            await connection.execute("PRAGMA synchronous=FULL")  # a commit is on disk, as with Postgres
            yield AsyncSqliteSaver(connection)
    else:
        blocking_connection = sqlite3.connect(place, check_same_thread=False)
        blocking_connection.execute("PRAGMA synchronous=FULL")
        yield SqliteSaver(blocking_connection)
        blocking_connection.close()


@asynccontextmanager
async def open_memory(place: str, *, asynchronous: bool) -> AsyncIterator[Any]:
    yield InMemorySaver()


@asynccontextmanager
async def open_haive(place: str, *, asynchronous: bool) -> AsyncIterator[Any]:
    from haive_persistence import Checkpointer

    saver = Checkpointer(place)
    try:
        yield saver
    finally:
        await call(saver, "close", asynchronous=asynchronous)


@asynccontextmanager
async def open_postgres_store(place: str, *, asynchronous: bool) -> AsyncIterator[Any]:
    pool: Any = {"min_size": 1, "max_size": POOL_SIZE}
    if asynchronous:
        async with AsyncPostgresStore.from_conn_string(place, pool_config=pool) as store:
            await store.setup()
            yield store
    else:
        with PostgresStore.from_conn_string(place, pool_config=pool) as blocking_store:
            blocking_store.setup()
            yield blocking_store


@asynccontextmanager
async def open_memory_store(place: str, *, asynchronous: bool) -> AsyncIterator[Any]:
    yield InMemoryStore()


@asynccontextmanager
async def open_haive_store(place: str, *, asynchronous: bool) -> AsyncIterator[Any]:
    from haive_persistence import PostgresStore as OurStore

    store = OurStore(place)
    try:
        yield store
    finally:
        await call(store, "close", asynchronous=asynchronous)


Openers = dict[str, Opener]
SAVERS: Openers = {"postgres": open_postgres, "sqlite": open_sqlite, "memory": open_memory, OURS: open_haive}
STORES: Openers = {"postgres": open_postgres_store, "memory": open_memory_store, OURS: open_haive_store}


class Bench:
    """One run of one scenario: its options, the server, and contenders on fresh databases."""

    def __init__(self, server: Server, options: argparse.Namespace) -> None:
        self.server = server
        self.options = options
        self.asynchronous: bool = options.asynchronous
        self.kind = "async" if options.asynchronous else "blocking"

    @asynccontextmanager
    async def contenders(
        self, openers: Openers = SAVERS, *, route: Callable[[str], str] | None = None
    ) -> AsyncIterator[list[Contender]]:
        """Those of `openers` that were asked for, opened; `route` may send them through a proxy."""
        async with AsyncExitStack() as stack:
            wanted = [name for name in self.options.contenders if name in openers]
            opened = [self._contender(name, openers[name], route) for name in wanted]
            yield [await stack.enter_async_context(one) for one in opened]

    @asynccontextmanager
    async def _contender(
        self, name: str, opener: Opener, route: Callable[[str], str] | None
    ) -> AsyncIterator[Contender]:
        with self._place(name) as place:
            async with self.opened(opener, route(place) if route else place) as saver:
                yield Contender(name, saver, place, Meter(self.server.wal_position))

    @contextmanager
    def _place(self, name: str) -> Iterator[str]:
        if name in WITH_SERVER:
            with self.server.database() as dsn:
                yield dsn
        else:
            with tempfile.TemporaryDirectory(prefix="haive-bench-") as directory:
                yield os.path.join(directory, "checkpoints.sqlite")

    @asynccontextmanager
    async def opened(self, opener: Opener, place: str) -> AsyncIterator[Any]:
        """As a new process would have it: connected, the tables there, nothing remembered."""
        async with opener(place, asynchronous=self.asynchronous) as it:
            if isinstance(it, BaseStore):
                await self.call(it, "get", ("warm-up",), "warm-up")
            else:
                await self.call(
                    it, "get_tuple", {"configurable": {"thread_id": "warm-up", "checkpoint_ns": ""}}
                )
            yield it

    async def median_ms(
        self,
        contenders: Sequence[Contender],
        count: int,
        prepare: Callable[[Any], T],
        work: Callable[[T], Awaitable[Any]],
        *,
        fresh: bool = False,
    ) -> Values:
        """The median time of `work(prepare(saver))`, `prepare` untimed; `fresh` opens a saver for each."""
        meters = {contender.name: Meter(self.server.wal_position) for contender in contenders}
        for _, contender in rounds(contenders, count):
            async with AsyncExitStack() as stack:
                again = self.opened(SAVERS[contender.name], contender.place)
                prepared = prepare(await stack.enter_async_context(again) if fresh else contender.saver)
                with meters[contender.name].lap():
                    await work(prepared)
        return {name: median(meter.laps_ms) for name, meter in meters.items()}

    async def call(self, thing: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        return await call(thing, method, *args, asynchronous=self.asynchronous, **kwargs)


async def call(thing: Any, method: str, *args: Any, asynchronous: bool, **kwargs: Any) -> Any:
    """`await thing.a<method>(…)` or `thing.<method>(…)`; what either yields comes back as a list."""
    result = getattr(thing, f"a{method}" if asynchronous else method)(*args, **kwargs)
    if hasattr(result, "__aiter__"):
        return [item async for item in result]
    if isinstance(result, Iterator):
        return list(result)
    return await result if isinstance(result, Awaitable) else result


def rounds(things: Sequence[T], count: int) -> Iterator[tuple[int, T]]:
    """Every thing once per round, each round begun by another one, so that noise falls on all."""
    for number in range(count):
        shift = number % len(things) if things else 0
        for thing in (*things[shift:], *things[:shift]):
            yield number, thing


# -- results --------------------------------------------------------------------------------------


def medians(runs: list[Tables]) -> Tables:
    return {
        title: {
            metric: {name: median(run[title][metric][name] for run in runs) for name in values}
            for metric, values in table.items()
        }
        for title, table in runs[0].items()
    }


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show(title: str, table: dict[str, Values], contenders: Sequence[str]) -> None:
    """One line per metric: every contender's value, then ours divided by each other's."""
    names = [name for name in contenders if any(name in values for values in table.values())]
    others = [name for name in names if name != OURS and OURS in names]
    width = max(len(metric) for metric in table) + 2
    print(f"\n{title}")
    print(
        " " * width
        + "".join(f"{name:>12}" for name in names)
        + "".join(f"{f'÷ {name}':>12}" for name in others)
    )
    for metric, values in table.items():
        ratios = [values[OURS] / values[o] if values.get(o) and OURS in values else None for o in others]
        cells = [*(values.get(name) for name in names), *ratios]
        print(f"{metric:<{width}}" + "".join(f"{number(cell):>12}" for cell in cells), flush=True)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def heading(server: Server) -> str:
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    durability = ", ".join(
        f"{name}={server.value(f'SHOW {name}')}" for name in ("fsync", "synchronous_commit")
    )
    machine = f"{os.cpu_count()} × {processor()}, Python {platform.python_version()}"
    postgres = f"Postgres {server.value('SHOW server_version')} ({durability})"
    return f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, {machine}, {postgres}\n{versions}"


# -- the command line -----------------------------------------------------------------------------


def parser(doc: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--async", dest="asynchronous", action="store_true", help="async methods and savers")
    made.add_argument(
        "--contenders", type=lambda text: text.split(","), default=list(SAVERS), help="default: all"
    )
    made.add_argument("--repeat", type=int, default=1, help="runs to take medians of")
    made.add_argument("--random-text", action="store_true", help="text that does not compress")
    made.add_argument("--dsn", default=os.environ.get("HAIVE_BENCH_DSN"), help="default: an embedded server")
    made.add_argument("--json", type=Path, help="append the results to this file, one line per scenario")
    return made


def add_durability(made: argparse.ArgumentParser) -> None:
    modes = ("sync", "async", "exit")
    made.add_argument("--durability", choices=modes, default="async", help="LangGraph's default: async")


def execute(run: Callable[[Bench], Awaitable[Tables]], options: argparse.Namespace) -> Tables:
    """Run a scenario as often as asked for and print its tables of medians."""

    async def once(server: Server) -> Tables:
        return await run(Bench(server, options))

    with running_server(options.dsn) as server:
        about = heading(server)
        print(about)
        tables = medians([asyncio.run(once(server)) for _ in range(options.repeat)])
    for title, table in tables.items():
        show(title, table, options.contenders)
    if options.json:
        with options.json.open("a") as file:
            print(json.dumps({"about": about, "tables": tables}), file=file)
    return tables
