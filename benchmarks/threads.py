"""Growing threads: the part that the chat, supervisor and file scenarios have in common.

A `Thread` is one contender's conversation; `grow` runs those of all contenders, interleaved, and
`costs` and `reads` tell what that took and what reading costs afterwards.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from benchmarks.harness import SESSIONS_WAL_DELAY_S, WITH_SERVER, Bench, Contender, Values, rounds

PARTS = 20  # a run is cut into this many interleaved parts; latencies are those of the first and the last
CONFIG: dict[str, Any] = {"configurable": {"thread_id": "thread"}}


class Thread(ABC):
    """One contender's thread in one graph."""

    def __init__(self, bench: Bench, contender: Contender) -> None:
        self.bench, self.contender = bench, contender
        self.done = 0
        self.empty = contender.disk_bytes()
        self.disk: list[int] = []
        self.wal: int | None = None
        self.graph = self.compile(contender.saver)

    @abstractmethod
    def compile(self, saver: Any) -> Any:
        """The graph, with `saver` as its checkpointer."""

    @abstractmethod
    def said(self) -> Any:
        """The input of the next step."""

    async def step(self) -> None:
        config = CONFIG | {"recursion_limit": 1000}
        await self.bench.call(
            self.graph, "invoke", self.said(), config, durability=self.bench.options.durability
        )
        self.done += 1

    async def part(self, steps: int) -> None:
        with self.contender.meter.span():
            for _ in range(steps):
                with self.contender.meter.lap():
                    await self.step()
        self.disk.append(self.contender.disk_bytes())


async def grow(threads: Sequence[Thread], steps: int) -> None:
    """All steps of all threads, interleaved part by part."""
    await asyncio.sleep(SESSIONS_WAL_DELAY_S)
    before = [thread.contender.sessions_wal_bytes() for thread in threads]
    for _, thread in rounds(threads, PARTS):
        await thread.part(steps // PARTS)
    await asyncio.sleep(SESSIONS_WAL_DELAY_S)
    for thread, wal in zip(threads, before, strict=True):
        if wal is not None:
            thread.wal = (thread.contender.sessions_wal_bytes() or 0) - wal


def costs(threads: Sequence[Thread], step: str = "turn") -> dict[str, Values]:
    """What the steps cost. Growth compares the last tenth's bytes with those of the second tenth."""

    def each(value: Callable[[Thread], float]) -> Values:
        return {thread.contender.name: value(thread) for thread in threads}

    def latency(first: bool) -> Callable[[Thread], float]:
        count = len(threads[0].contender.meter.laps_ms) // PARTS
        part = slice(None, count) if first else slice(-count, None)
        return lambda thread: median(thread.contender.meter.laps_ms[part])

    on_disk = [name for name in each(lambda _: 0) if name != "memory"]
    on_postgres = [name for name in on_disk if name in WITH_SERVER]
    return {
        "disk MB": only(on_disk, each(lambda thread: thread.disk[-1] / 1e6)),
        "disk MB before the first": only(on_disk, each(lambda thread: thread.empty / 1e6)),
        "disk growth, last ÷ second tenth": only(on_disk, each(growth)),
        "WAL MB, by its sessions": {t.contender.name: t.wal / 1e6 for t in threads if t.wal is not None},
        "WAL MB, by all meanwhile": only(on_postgres, each(lambda t: t.contender.meter.wal_bytes / 1e6)),
        "wall s": each(lambda thread: thread.contender.meter.wall_s),
        "client CPU s": each(lambda thread: thread.contender.meter.cpu_s),
        f"{step}, median of first twentieth, ms": each(latency(first=True)),
        f"{step}, median of last twentieth, ms": each(latency(first=False)),
    }


def growth(thread: Thread) -> float:
    tenth = PARTS // 10
    last = thread.disk[-1] - thread.disk[-1 - tenth]
    second = thread.disk[2 * tenth - 1] - thread.disk[tenth - 1]
    return last / second if second else float("nan")


def only(names: Sequence[str], values: Values) -> Values:
    return {name: values[name] for name in names}


async def reads(bench: Bench, threads: Sequence[Thread], history: int = 50) -> dict[str, Values]:
    """Reading the threads as they are now; "fresh" is a saver that has just been opened."""
    contenders = [thread.contender for thread in threads]
    compile_graph = threads[0].compile

    async def state(graph: Any) -> None:
        assert (await bench.call(graph, "get_state", CONFIG)).values

    async def snapshots(graph: Any) -> None:
        assert len(await bench.call(graph, "get_state_history", CONFIG, limit=history)) == history

    persistent = [contender for contender in contenders if contender.name != "memory"]
    return {
        "get_state, ms": await bench.median_ms(contenders, 9, compile_graph, state),
        "get_state, fresh saver, ms": await bench.median_ms(persistent, 5, compile_graph, state, fresh=True),
        f"get_state_history(limit={history}), ms": await bench.median_ms(
            contenders, 3, compile_graph, snapshots
        ),
    }
