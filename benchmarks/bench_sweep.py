"""Random graphs: channels, types, edits and sizes are drawn by a seed. The worst ratio is the figure.

Every contender runs the same turns. Their whole histories are compared for equality; then the medians
of a turn, of `get_state` and of `get_state_history(limit=50)` are divided by the incumbent's.
`--kind models` (or dataclasses, tuples, json, messages, texts, numbers, bytes) is one growing list.
"""

from __future__ import annotations

import logging
import operator
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Annotated, Any, NamedTuple

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from pydantic import BaseModel
from typing_extensions import TypedDict

from benchmarks import harness, words
from benchmarks.harness import OURS, WITH_SERVER, Bench, Contender, Tables, Values, rounds

INCUMBENT = WITH_SERVER[0]
OPERATIONS = ("turn", "get_state", "history(50)")


class Place(BaseModel):
    city: str
    position: list[float]


class Booking(BaseModel):
    number: int
    guest: str
    place: Place
    tags: list[str]
    note: str | None = None


@dataclass
class Step:
    number: int
    text: str
    scores: list[float] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


class Point(NamedTuple):
    number: int
    label: str
    weight: float


class Source:
    """Elements of every kind, drawn from one seeded source."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.text = words.realistic(seed, vocabulary=2000)
        self.number = 0

    def draw(self, kind: str) -> Any:
        self.number += 1
        return getattr(self, kind)()

    def some_text(self, most: int = 200) -> str:
        return self.text(self.random.randint(3, most))

    def models(self) -> Booking:
        place = Place(city=self.some_text(20), position=[self.random.random(), self.random.random()])
        return Booking(
            number=self.number, guest=self.some_text(30), place=place, tags=[self.some_text(10)] * 2
        )

    def dataclasses(self) -> Step:
        return Step(self.number, self.some_text(), [self.random.random()], {"tool": self.some_text(20)})

    def tuples(self) -> Point:
        return Point(self.number, self.some_text(40), self.random.random())

    def json(self) -> dict[str, Any]:
        rows = [{"id": n, "name": self.some_text(20), "ok": True} for n in range(self.random.randint(1, 4))]
        return {"number": self.number, "rows": rows, "meta": {"source": self.some_text(30), "score": 0.5}}

    def messages(self) -> Any:
        of_kind = HumanMessage if self.random.random() < 0.5 else AIMessage
        return of_kind(self.some_text(600), id=f"m{self.number}")

    def texts(self) -> str:
        return self.some_text(300)

    def numbers(self) -> float:
        return self.random.choice((self.random.random(), self.random.randint(-(10**9), 10**9)))

    def bytes(self) -> bytes:
        return self.random.randbytes(self.random.randint(10, 400))


KINDS = ("models", "dataclasses", "tuples", "json", "messages", "texts", "numbers", "bytes")
EDITS = ("append", "append", "replace", "remove", "constant")


@dataclass(frozen=True)
class Channel:
    name: str
    kind: str
    container: str  # list, dict or one
    edit: str
    start: int
    per_turn: int


def draw_channels(seed: int) -> list[Channel]:
    source = random.Random(seed)
    return [
        Channel(
            name=f"channel{number}",
            kind=(kind := source.choice(KINDS)),
            container="list" if kind == "messages" else source.choice(("list", "list", "dict", "one")),
            edit=source.choice(EDITS),
            start=source.choice((0, 1, 5, 20, 100)),
            per_turn=source.choice((1, 1, 2, 5)),
        )
        for number in range(source.randint(1, 6))
    ]


def growing(kind: str, start: int) -> list[Channel]:
    return [Channel("items", kind, "list", "append", start, 1)]


class Script:
    """What a graph's node returns, turn by turn: drawn once, then the same for every contender."""

    def __init__(self, channels: Sequence[Channel], seed: int) -> None:
        self.channels = channels
        self.draw = Source(seed)
        self.source = random.Random(seed)
        self.state: dict[str, Any] = {c.name: self.first(c) for c in channels}

    def first(self, c: Channel) -> Any:
        elements = [self.draw.draw(c.kind) for _ in range(max(c.start, c.container == "one"))]
        if c.container == "one":
            return elements[0]
        return elements if c.container == "list" else {f"key {n}": e for n, e in enumerate(elements)}

    def turn(self, number: int) -> dict[str, Any]:
        """The channels that this turn changes, each with its whole new value (messages: what is added)."""
        return {c.name: self.changed(c, number) for c in self.channels if number == 0 or c.edit != "constant"}

    def changed(self, c: Channel, number: int) -> Any:
        before = self.state[c.name]
        if number == 0:
            return before
        new = [self.draw.draw(c.kind) for _ in range(c.per_turn)]
        if c.kind == "messages":
            if c.edit == "replace" and before:
                new[0].id = self.source.choice(before).id
            self.state[c.name] = add_messages(before, new)
            return new
        if c.container == "one":
            after = new[0]
        elif c.container == "list":
            after = self.edited(c, list(before), new)
        else:
            after = dict(before)
            for at, element in enumerate(new):
                old = self.source.choice(list(before)) if before and c.edit == "replace" else None
                after[old or f"key {number}.{at}"] = element
            if c.edit == "remove" and len(after) > 1:
                del after[self.source.choice(list(after))]
        self.state[c.name] = after
        return after

    def edited(self, c: Channel, after: list[Any], new: list[Any]) -> list[Any]:
        for element in new:
            if c.edit == "replace" and after:
                after[self.source.randrange(len(after))] = element
            else:
                after.append(element)
        if c.edit == "remove" and len(after) > 1:
            del after[self.source.randrange(len(after))]
        return after


def compile_graph(channels: Sequence[Channel], saver: Any, outputs: list[dict[str, Any]]) -> Any:
    """A graph with one node that returns what comes next of `outputs`."""
    types: dict[str, Any] = {
        c.name: Annotated[list[Any], add_messages] if c.kind == "messages" else Any for c in channels
    }
    builder = StateGraph(TypedDict("State", {**types, "turns": Annotated[int, operator.add]}))  # type: ignore[operator]
    builder.add_node("node", lambda state: outputs[state["turns"] - 1])
    builder.add_edge(START, "node")
    return builder.compile(checkpointer=saver)


class Player:
    """One contender's thread of one graph."""

    def __init__(self, bench: Bench, contender: Contender, channels: Sequence[Channel], outputs: Any) -> None:
        self.bench, self.name = bench, contender.name
        self.graph = compile_graph(channels, contender.saver, outputs)
        self.config: Any = {"configurable": {"thread_id": f"sweep {time.perf_counter_ns()}"}}
        self.times: dict[str, list[float]] = {operation: [] for operation in OPERATIONS}

    async def timed(self, operation: str, method: str, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        found = await self.bench.call(self.graph, method, *args, **kwargs)
        self.times[operation].append((time.perf_counter() - start) * 1e3)
        return found

    async def turn(self) -> None:
        await self.timed("turn", "invoke", {"turns": 1}, self.config, durability="sync")

    async def read(self) -> None:
        await self.timed("get_state", "get_state", self.config)

    async def history(self) -> list[Any]:
        found = await self.timed("history(50)", "get_state_history", self.config, limit=50)
        return [(s.values, s.next, s.metadata.get("step"), [t.result for t in s.tasks]) for s in found]


async def play(
    bench: Bench, contenders: Sequence[Contender], channels: list[Channel], seed: int
) -> dict[str, dict[str, float]]:
    """Medians by operation and contender, of the same turns on every contender."""
    script = Script(channels, seed)
    outputs = [script.turn(number) for number in range(bench.options.turns)]
    players = [Player(bench, contender, channels, outputs) for contender in contenders]
    for _, player in rounds(players, bench.options.turns):
        await player.turn()
    for _, player in rounds(players, 9):
        await player.read()
    histories: dict[str, list[Any]] = {}
    for _, player in rounds(players, 5):
        histories[player.name] = await player.history()
    reference = histories[players[0].name]
    for name, found in histories.items():
        assert found == reference, f"seed {seed}: the history of {name} is another one"
    return {
        operation: {player.name: median(player.times[operation]) for player in players}
        for operation in OPERATIONS
    }


def described(channels: Sequence[Channel]) -> str:
    return "; ".join(f"{c.container} of {c.kind}, {c.edit} {c.per_turn}, from {c.start}" for c in channels)


async def run(bench: Bench) -> Tables:
    logging.getLogger("langgraph").setLevel(logging.ERROR)
    options = bench.options
    graphs: list[tuple[str, int, Callable[[], list[Channel]]]] = [
        (f"200 {kind}, one more per turn", 1, lambda kind=kind: growing(kind, 200)) for kind in options.kind
    ]
    seeds = range(options.seed, options.seed + options.graphs)
    graphs += [(f"seed {seed}", seed, lambda seed=seed: draw_channels(seed)) for seed in seeds]
    ratios: dict[str, Values] = {}
    worst: dict[str, list[float]] = {operation: [] for operation in OPERATIONS}
    async with bench.contenders({name: harness.SAVERS[name] for name in WITH_SERVER}) as contenders:
        for title, seed, channels in graphs:
            drawn = channels()
            found = await play(bench, contenders, drawn, seed)
            if {OURS, INCUMBENT} <= {contender.name for contender in contenders}:
                row = {op: found[op][OURS] / found[op][INCUMBENT] for op in OPERATIONS}
                for operation, ratio in row.items():
                    worst[operation].append(ratio)
                figures = "  ".join(f"{op} {ratio:.2f}" for op, ratio in row.items())
                print(f"{title:<34} {figures}  ({described(drawn)})", flush=True)
    for operation, values in worst.items():
        if values:
            ratios[f"{operation}, worst"] = {OURS: max(values), INCUMBENT: 1.0}
            ratios[f"{operation}, mean"] = {OURS: sum(values) / len(values), INCUMBENT: 1.0}
    return {f"random graphs, {options.turns} turns, as ratios, {bench.kind}": ratios}


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--graphs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--kind", nargs="*", default=list(KINDS), choices=KINDS)
    harness.execute(run, parser.parse_args(argv))


if __name__ == "__main__":
    main()
