"""One process that serves very many threads: puts, first reads, and listings over all of them.

64 tasks put one checkpoint into each of many new threads. What the first thousand cost is compared with what
those at the end do (wall time, CPU of client and server, WAL), and memory with `cache_bytes`. Then, of these
threads: some are read for the first time by a process, the newest are listed (before an ANALYZE too), and
the few with a certain metadata value.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from statistics import median
from typing import Any, NamedTuple

import psutil
import psycopg

from benchmarks import harness, words
from benchmarks.bench_raw import checkpoint
from benchmarks.harness import SAVERS, WITH_SERVER, Bench, Contender, Tables, Values, rounds

TASKS = 64
FIRST = 1000
ONE_IN = 1000  # threads with the same user
SEED = 19


class Part(NamedTuple):
    """What a thousand puts cost."""

    wall_s: float
    client_cpu_s: float
    server_cpu_s: float  # of all processes of the server
    wal_bytes: int


class Filler:
    """Puts one checkpoint into each of many threads, by 64 tasks."""

    def __init__(self, saver: Any, texts: Sequence[str]) -> None:
        self.saver = saver
        self.texts = texts
        self.done = 0

    async def put(self, number: int) -> None:
        text = self.texts[number % len(self.texts)]
        config = {"configurable": {"thread_id": f"thread {number}", "checkpoint_ns": ""}}
        user = f"user {number * 7919 % 1_000_003 % ONE_IN}"
        metadata: Any = {"source": "loop", "step": 0, "parents": {}, "user": user}
        versions = {"answer": 1, "step": 1}
        made: Any = checkpoint({"answer": text, "step": number}, dict(versions))
        await self.saver.aput(config, made, metadata, versions)

    async def fill(self, count: int) -> None:
        """Fill up to `count` threads."""
        numbers = iter(range(self.done, count))

        async def work() -> None:
            for number in numbers:
                await self.put(number)

        await asyncio.gather(*(work() for _ in range(TASKS)))
        self.done = count

    async def measure(self, bench: Bench, count: int) -> list[Part]:
        """Fill up to `count` threads, a thousand at a time."""
        parts = []
        while self.done + FIRST <= count:
            server, wal = server_cpu_s(bench), bench.server.wal_position()
            wall, cpu = time.perf_counter(), time.process_time()
            await self.fill(self.done + FIRST)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            server = {pid: s - server.get(pid, 0.0) for pid, s in server_cpu_s(bench).items()}
            parts.append(Part(wall, cpu, sum(server.values()), bench.server.wal_position() - wal))
        await self.fill(count)
        return parts


@asynccontextmanager
async def open_sealed(place: str, *, asynchronous: bool) -> AsyncIterator[Any]:
    from haive_persistence import Checkpointer, EncryptionConfig, PersistenceConfig

    encryption = EncryptionConfig(encryption_key=bytes(range(32)))
    saver = Checkpointer(PersistenceConfig(connection_string=place, encryption=encryption))
    try:
        yield saver
    finally:
        await harness.call(saver, "close", asynchronous=asynchronous)


def openers(bench: Bench) -> harness.Openers:
    """Ours seals with `--sealed`; the others' filters would find nothing then."""
    found = {name: SAVERS[name] for name in WITH_SERVER}
    return found | {harness.OURS: open_sealed} if bench.options.sealed else found


def server_cpu_s(bench: Bench) -> dict[int, float]:
    """CPU seconds of the server's processes, by their ids; nothing where it runs elsewhere."""
    pids = bench.server.admin.execute("SELECT pid FROM pg_stat_activity").fetchall()
    used = {}
    for (pid,) in pids:
        with suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            used[pid] = times.user + times.system
    return used


async def rates(bench: Bench, contenders: Sequence[Contender]) -> dict[str, Values]:
    """What the first thousand puts and those at the end cost, and what the process grew by.

    The wall time's fall is the client's, the server's, or that of a disk that takes more WAL and checkpoints:
    hence their CPU, and the other contenders' fall in the same run.
    """
    text = words.text_source(SEED, random_text=bench.options.random_text)
    texts = [text(bench.options.bytes) for _ in range(100)]
    table: dict[str, Values] = {}
    for contender in contenders:
        async with bench.opened(openers(bench)[contender.name], contender.place) as saver:
            filler = Filler(saver, texts)
            await filler.fill(200)  # connections and statements
            before = psutil.Process().memory_info().rss
            parts = await filler.measure(bench, bench.options.threads)
            after = psutil.Process().memory_info().rss
        for metric, value in {**falls(parts), "memory, MB": (after - before) / 1e6}.items():
            table.setdefault(metric, {})[contender.name] = value
    return table


def falls(parts: Sequence[Part]) -> dict[str, float]:
    """The first thousand, the median of the next and of the last twenty, and how they compare."""
    names = ("the first 1,000", "the next 20,000", "the last 20,000")
    spans = (parts[:1], parts[1:21], parts[-20:])
    rows: dict[str, float] = {}
    for metric, of in {
        "puts per second (more is better)": lambda part: FIRST / part.wall_s,
        "client CPU, us per put": lambda part: part.client_cpu_s / FIRST * 1e6,
        "server CPU, us per put": lambda part: part.server_cpu_s / FIRST * 1e6,
        "WAL, bytes per put": lambda part: part.wal_bytes / FIRST,
    }.items():
        first, following, last = (median(map(of, span)) for span in spans)
        rows |= {
            f"{metric}, {name}": value for name, value in zip(names, (first, following, last), strict=True)
        }
        if first and following:
            rows |= {f"{metric}: last ÷ first": last / first, f"{metric}: last ÷ next": last / following}
    return rows


async def newest(bench: Bench, contenders: Sequence[Contender], of: str) -> dict[str, Values]:
    async def list_newest(saver: Any) -> None:
        assert len([t async for t in saver.alist(None, limit=10)]) == 10

    return {
        f"list(None, limit=10) of {of}, ms": await bench.median_ms(contenders, 15, itself, list_newest),
    }


async def listings(bench: Bench, contenders: Sequence[Contender], count: int) -> dict[str, Values]:
    async def of_user(saver: Any) -> None:
        found = [t async for t in saver.alist(None, filter={"user": "user 77"}, limit=10)]
        assert len(found) == min(10, sum(n * 7919 % 1_000_003 % ONE_IN == 77 for n in range(count)))

    return await newest(bench, contenders, f"{count:,}") | {
        f"list(None, filter=…, limit=10) of {count:,}, ms": await bench.median_ms(
            contenders, 15, itself, of_user
        ),
    }


def itself(saver: Any) -> Any:
    return saver


async def first_reads(bench: Bench, contenders: Sequence[Contender]) -> dict[str, Values]:
    """Threads that a process reads for the first time, one after the other, on a warm connection."""
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number, contender in rounds(contenders, 500):
        config = {"configurable": {"thread_id": f"thread {number * 2 + 1}", "checkpoint_ns": ""}}
        start = time.perf_counter()
        assert await contender.saver.aget_tuple(config)
        times[contender.name].append((time.perf_counter() - start) * 1e3)
    return {"get_tuple, thread not read before, ms": {n: sorted(t)[len(t) // 2] for n, t in times.items()}}


async def views(bench: Bench, contenders: Sequence[Contender]) -> dict[str, Values]:
    """What a tenant's view costs that is made per request, beside one that is kept: reads of a thread."""
    times: dict[str, dict[str, float]] = {}
    for contender in contenders:
        if contender.name != harness.OURS:
            continue
        config: Any = {"configurable": {"thread_id": "thread 1", "checkpoint_ns": ""}}
        kept = contender.saver.for_tenant("default")
        of: dict[str, Callable[[], Any]] = {
            "kept": lambda kept=kept: kept,
            "per request": lambda saver=contender.saver: saver.for_tenant("default"),
        }
        spent = dict.fromkeys(of, 0.0)
        for _, way in rounds(list(of), 2000):
            start = time.process_time_ns()
            await of[way]().aget_tuple(config)
            spent[way] += (time.process_time_ns() - start) / 2000 / 1e3
        for way, value in spent.items():
            times[f"get_tuple by a view {way}, client CPU us"] = {contender.name: value}
    return times


def settle(contenders: Sequence[Contender]) -> None:
    for contender in contenders:
        with psycopg.connect(contender.place, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")


async def run(bench: Bench) -> Tables:
    table: dict[str, Values] = {}
    async with bench.contenders(openers(bench)) as contenders:
        wanted, bench.options.threads = bench.options.threads, min(1200, bench.options.threads)
        for contender in contenders:
            filler = Filler(contender.saver, [words.realistic(SEED)(bench.options.bytes)])
            await filler.fill(1200)
        table |= await listings(bench, contenders, 1200)
        bench.options.threads = wanted
    async with bench.contenders(openers(bench)) as contenders:
        table |= await rates(bench, contenders)
        table |= await newest(bench, contenders, f"{wanted:,}, before the first ANALYZE")
        settle(contenders)
        table["disk bytes per checkpoint"] = {c.name: c.disk_bytes() / wanted for c in contenders}
        table |= await first_reads(bench, contenders)
        table |= await views(bench, contenders)
        table |= await listings(bench, contenders, wanted)
    return {f"one process, {wanted:,} threads{', sealed' if bench.options.sealed else ''}": table}


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--threads", type=int, default=120_000)
    parser.add_argument("--bytes", type=int, default=200, help="size of the text in a checkpoint")
    parser.add_argument("--sealed", action="store_true", help="ours seals its tenant's data")
    options = parser.parse_args(argv)
    options.asynchronous = True
    harness.execute(run, options)


if __name__ == "__main__":
    main()
