"""One process that serves very many threads: puts, first reads, and listings over all of them.

64 tasks put one checkpoint into each of many new threads. The rate over the first thousand is compared
with the rate over all and at the end, and memory with `cache_bytes`. Then, of these threads: one is read
for the first time by a new process, the newest are listed, and the few with a certain metadata value.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import psutil
import psycopg

from benchmarks import harness, words
from benchmarks.bench_raw import checkpoint
from benchmarks.harness import SAVERS, WITH_SERVER, Bench, Contender, Tables, Values, rounds

TASKS = 64
FIRST = 1000
ONE_IN = 1000  # threads with the same user
SEED = 19


class Filler:
    """Puts one checkpoint into each of many threads, by 64 tasks."""

    def __init__(self, saver: Any, texts: Sequence[str]) -> None:
        self.saver = saver
        self.texts = texts
        self.done = 0
        self.times: list[tuple[int, float]] = []

    async def put(self, number: int) -> None:
        text = self.texts[number % len(self.texts)]
        config = {"configurable": {"thread_id": f"thread {number}", "checkpoint_ns": ""}}
        user = f"user {number * 7919 % 1_000_003 % ONE_IN}"
        metadata: Any = {"source": "loop", "step": 0, "parents": {}, "user": user}
        versions = {"answer": 1, "step": 1}
        made: Any = checkpoint({"answer": text, "step": number}, dict(versions))
        await self.saver.aput(config, made, metadata, versions)

    async def fill(self, count: int) -> float:
        """Fill up to `count` threads; threads per second."""
        numbers = iter(range(self.done, count))

        async def work() -> None:
            for number in numbers:
                await self.put(number)

        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(TASKS)))
        seconds = time.perf_counter() - start
        rate = (count - self.done) / seconds if count > self.done else 0.0
        self.done = count
        return rate


async def rates(bench: Bench, contenders: Sequence[Contender]) -> dict[str, Values]:
    """Puts per second (more is better), and what the process grew by."""
    text = words.text_source(SEED, random_text=bench.options.random_text)
    texts = [text(bench.options.bytes) for _ in range(100)]
    count = bench.options.threads
    table: dict[str, Values] = {}
    for contender in contenders:
        async with bench.opened(SAVERS[contender.name], contender.place) as saver:
            filler = Filler(saver, texts)
            await filler.fill(200)  # connections and statements
            before = psutil.Process().memory_info().rss
            first = await filler.fill(200 + FIRST)
            if contender.name == harness.OURS:
                table.setdefault("list(limit=10), 1,200 threads, ms", {})
            start = time.perf_counter()
            while filler.done < count:
                last = await filler.fill(min(count, filler.done + 20_000))
            over_all = (count - 200 - FIRST) / (time.perf_counter() - start)
            after = psutil.Process().memory_info().rss
        for metric, value in {
            f"puts per second, first {FIRST:,} (more is better)": first,
            f"… over {count:,}": over_all,
            "… the last 20,000": last,
            "last ÷ first": last / first,
            "memory, MB": (after - before) / 1e6,
        }.items():
            table.setdefault(metric, {})[contender.name] = value
    return {metric: values for metric, values in table.items() if values}


async def listings(bench: Bench, contenders: Sequence[Contender], count: int) -> dict[str, Values]:
    async def newest(saver: Any) -> None:
        assert len([t async for t in saver.alist(None, limit=10)]) == 10

    async def of_user(saver: Any) -> None:
        found = [t async for t in saver.alist(None, filter={"user": "user 77"}, limit=10)]
        assert len(found) == min(10, sum(n * 7919 % 1_000_003 % ONE_IN == 77 for n in range(count)))

    def itself(saver: Any) -> Any:
        return saver

    return {
        f"list(None, limit=10) of {count:,}, ms": await bench.median_ms(contenders, 15, itself, newest),
        f"list(None, filter=…, limit=10) of {count:,}, ms": await bench.median_ms(
            contenders, 15, itself, of_user
        ),
    }


async def first_reads(bench: Bench, contenders: Sequence[Contender]) -> dict[str, Values]:
    """Threads that a process reads for the first time, one after the other, on a warm connection."""
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number, contender in rounds(contenders, 500):
        config = {"configurable": {"thread_id": f"thread {number * 2 + 1}", "checkpoint_ns": ""}}
        start = time.perf_counter()
        assert await contender.saver.aget_tuple(config)
        times[contender.name].append((time.perf_counter() - start) * 1e3)
    return {"get_tuple, thread not read before, ms": {n: sorted(t)[len(t) // 2] for n, t in times.items()}}


def settle(contenders: Sequence[Contender]) -> None:
    for contender in contenders:
        with psycopg.connect(contender.place, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")


async def run(bench: Bench) -> Tables:
    table: dict[str, Values] = {}
    async with bench.contenders({name: SAVERS[name] for name in WITH_SERVER}) as contenders:
        wanted, bench.options.threads = bench.options.threads, min(1200, bench.options.threads)
        for contender in contenders:
            filler = Filler(contender.saver, [words.realistic(SEED)(bench.options.bytes)])
            await filler.fill(1200)
        table |= await listings(bench, contenders, 1200)
        bench.options.threads = wanted
    async with bench.contenders({name: SAVERS[name] for name in WITH_SERVER}) as contenders:
        table |= await rates(bench, contenders)
        settle(contenders)
        table["disk bytes per checkpoint"] = {c.name: c.disk_bytes() / wanted for c in contenders}
        table |= await first_reads(bench, contenders)
        table |= await listings(bench, contenders, wanted)
    return {f"one process, {wanted:,} threads": table}


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--threads", type=int, default=120_000)
    parser.add_argument("--bytes", type=int, default=200, help="size of the text in a checkpoint")
    options = parser.parse_args(argv)
    options.asynchronous = True
    harness.execute(run, options)


if __name__ == "__main__":
    main()
