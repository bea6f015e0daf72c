"""One chat thread that several processes work on: they take turns, or each turn finds a cold one.

A process is a saver with connections and memory of its own. Four take turns on one thread, as behind a
load balancer; then every turn is a saver's first (connected before, nothing known of the thread); then a
thread of many messages is read by a saver that has just been opened.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from statistics import median
from typing import Any

from benchmarks import harness
from benchmarks.bench_chat import Chat, add_options, texts, turns
from benchmarks.harness import SAVERS, WITH_SERVER, Bench, Contender, Tables, Values, rounds
from benchmarks.threads import CONFIG

CROWD = 4


class Turns:
    """One contender's chat whose turns are made by several savers."""

    def __init__(self, bench: Bench, contender: Contender, said: Sequence[str]) -> None:
        self.chat = Chat(bench, contender, said)
        self.contender = contender
        self.graphs: list[Any] = []
        self.laps_ms: list[float] = []

    async def turn(self, saver: Any = None) -> None:
        if saver is not None:
            self.chat.graph = self.chat.compile(saver)
        else:
            self.chat.graph = self.graphs[self.chat.done % len(self.graphs)]
        start = time.perf_counter()
        await self.chat.step()
        self.laps_ms.append((time.perf_counter() - start) * 1e3)

    def latency(self, part: slice) -> float:
        return median(self.laps_ms[part])


def figures(all_turns: Sequence[Turns], what: str) -> dict[str, Values]:
    count = len(all_turns[0].laps_ms)
    twentieth = max(4, count // 20)
    return {
        f"{what}, first {twentieth}, ms": {
            t.contender.name: t.latency(slice(0, twentieth)) for t in all_turns
        },
        f"{what}, last {twentieth} of {count}, ms": {
            t.contender.name: t.latency(slice(-twentieth, None)) for t in all_turns
        },
    }


async def taking_turns(bench: Bench, said: Sequence[str], count: int) -> dict[str, Values]:
    async with AsyncExitStack() as stack:
        contenders = await stack.enter_async_context(bench.contenders(_on_server()))
        all_turns = [Turns(bench, contender, said) for contender in contenders]
        for one in all_turns:
            for _ in range(CROWD):
                opened = bench.opened(SAVERS[one.contender.name], one.contender.place)
                one.graphs.append(one.chat.compile(await stack.enter_async_context(opened)))
        for _, one in rounds(all_turns, count):
            await one.turn()
        return figures(all_turns, f"turn of {CROWD} that take turns")


async def cold(bench: Bench, said: Sequence[str], count: int) -> dict[str, Values]:
    async with bench.contenders(_on_server()) as contenders:
        all_turns = [Turns(bench, contender, said) for contender in contenders]
        for _, one in rounds(all_turns, count):
            async with bench.opened(SAVERS[one.contender.name], one.contender.place) as saver:
                await one.turn(saver)
        table = figures(all_turns, "turn of a cold process")
        table["cold process: disk, kB per turn"] = {
            t.contender.name: (t.contender.disk_bytes() - t.chat.empty) / count / 1e3 for t in all_turns
        }
        return table


async def first_read(bench: Bench, said: Sequence[str], count: int) -> dict[str, Values]:
    """A thread that one process wrote, as another one reads it for the first time."""

    async def state(graph: Any) -> None:
        assert (await bench.call(graph, "get_state", CONFIG)).values

    async with bench.contenders(_on_server()) as contenders:
        chats = [Chat(bench, contender, said) for contender in contenders]
        for _, chat in rounds(chats, count):
            await chat.step()
        times = await bench.median_ms(contenders, 15, chats[0].compile, state, fresh=True)
    return {f"first read of {2 * count} messages, ms": times}


def _on_server() -> harness.Openers:
    return {name: SAVERS[name] for name in WITH_SERVER}


async def run(bench: Bench) -> Tables:
    said = texts(bench.options)
    count = turns(bench.options)
    table: dict[str, Values] = {}
    for scenario in (taking_turns, cold, first_read):
        if scenario.__name__ in bench.options.only:
            table |= await scenario(bench, said, count)
    return {f"several processes, one chat, {count} turns, {bench.kind}": table}


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    add_options(parser, turns=400)
    parser.add_argument("--only", nargs="*", default=["taking_turns", "cold", "first_read"])
    harness.execute(run, parser.parse_args(argv))


if __name__ == "__main__":
    main()
