"""Raw `put` + `put_writes` per second with 1, 8 and 32 writers on one saver.

Blocking writers are threads, async ones tasks. Every writer has a thread id of its own; with
`--one-thread` they share one, each in a namespace of its own, as parallel subgraphs do.
More is better here: a ratio says how many times as many.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from statistics import median
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.base.id import uuid6

from benchmarks import harness, words
from benchmarks.harness import Bench, Contender, Tables, Values, rounds

SEED = 13


class Writer:
    """Puts checkpoints, each the child of the one before, and after each the writes of one task."""

    def __init__(self, saver: BaseCheckpointSaver[Any], config: Any, texts: Sequence[str]) -> None:
        self.saver, self.config, self.texts = saver, config, texts
        self.written = 0

    def steps(self, deadline: float) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
        """The arguments of `put` and of `put_writes` that follow the config."""
        version = None
        for step in count():
            version = self.saver.get_next_version(version, None)
            versions = {"answer": version, "step": version}
            text = self.texts[step % len(self.texts)]
            put = (
                checkpoint({"answer": text, "step": step}, versions),
                {"source": "loop", "step": step},
                versions,
            )
            yield put, ([("answer", text)], str(uuid6()))
            self.written += 1
            if time.perf_counter() > deadline:
                return

    def write(self, deadline: float) -> None:
        for put, writes in self.steps(deadline):
            self.config = self.saver.put(self.config, *put)
            self.saver.put_writes(self.config, *writes)

    async def awrite(self, deadline: float) -> None:
        for put, writes in self.steps(deadline):
            self.config = await self.saver.aput(self.config, *put)
            await self.saver.aput_writes(self.config, *writes)


def checkpoint(values: dict[str, Any], versions: dict[str, Any]) -> dict[str, Any]:
    return {
        "v": 4,
        "id": str(uuid6()),
        "ts": "2026-01-01T00:00:00+00:00",
        "channel_values": values,
        "channel_versions": versions,
        "versions_seen": {"model": versions},
        "updated_channels": list(values),
    }


def crowd(bench: Bench, contender: Contender, number: int, texts: Sequence[str]) -> list[Writer]:
    """Writers that begin anew: on threads nobody has written yet."""
    run = str(uuid6())
    places = [(run, f"worker:{n}") if bench.options.one_thread else (f"{run}-{n}", "") for n in range(number)]
    configs = [
        {"configurable": {"thread_id": thread, "checkpoint_ns": namespace}} for thread, namespace in places
    ]
    return [Writer(contender.saver, config, texts) for config in configs]


async def per_second(bench: Bench, writers: Sequence[Writer]) -> float:
    """Pairs of put and put_writes per second, of all writers together."""
    start = time.perf_counter()
    deadline = start + bench.options.seconds
    if bench.asynchronous:
        await asyncio.gather(*(writer.awrite(deadline) for writer in writers))
    else:
        with ThreadPoolExecutor(len(writers)) as pool:
            list(pool.map(lambda writer: writer.write(deadline), writers))
    return sum(writer.written for writer in writers) / (time.perf_counter() - start)


async def compare(bench: Bench, contenders: Sequence[Contender], number: int, texts: Sequence[str]) -> Values:
    samples: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _, contender in rounds(contenders, bench.options.rounds):
        samples[contender.name].append(await per_second(bench, crowd(bench, contender, number, texts)))
    return {name: median(values) for name, values in samples.items()}


async def run(bench: Bench) -> Tables:
    text = words.text_source(SEED, random_text=bench.options.random_text)
    texts = [text(bench.options.bytes) for _ in range(100)]
    async with bench.contenders() as contenders:
        table = {
            f"{number} writer{'s' if number > 1 else ''}": await compare(bench, contenders, number, texts)
            for number in bench.options.writers
        }
    threads = "one thread id" if bench.options.one_thread else "a thread id each"
    return {f"put + put_writes per second (more is better), {threads}, {bench.kind}": table}


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--writers", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each sample takes")
    parser.add_argument("--rounds", type=int, default=5, help="samples to take the median of")
    parser.add_argument(
        "--bytes", type=int, default=500, help="size of the text in the checkpoint and in the write"
    )
    parser.add_argument("--one-thread", action="store_true", help="all writers in one thread id")
    harness.execute(run, parser.parse_args(argv))


if __name__ == "__main__":
    main()
