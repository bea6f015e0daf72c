"""Store operations beside LangGraph's PostgresStore: milliseconds, so a ratio below 1 is ours being faster.

LangGraph's store is opened as `from_conn_string` opens it, on one connection and without a pool, which
is its fastest form for one caller. Every operation is timed for one contender after the other, round by
round; the tables are medians. `--full` takes 21,000 items and 20,000 vectors of 384 dimensions.
The last table is no time: it counts the rows that came back of those that should have.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import numpy as np
from langgraph.store.base import GetOp, PutOp
from langgraph.store.postgres import AsyncPostgresStore, PostgresStore

from benchmarks import harness
from benchmarks.harness import OURS, Bench, Contender, Openers, Tables, Values

DIMS = 384
PER_NAMESPACE = 20
TOPICS = 200
TEXT = "a memory of what was said, and by whom, some weeks ago. " * 5


# -- an embedding model that costs nothing -----------------------------------------------------------


class Topics:
    """Texts are "topic number"; vectors lie around their topic, and are computed once."""

    def __init__(self) -> None:
        self.centres = np.random.default_rng(1).normal(size=(TOPICS, DIMS))
        self.known: dict[str, list[float]] = {}

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        return [self.known.setdefault(text, self._vector(text)) for text in texts]

    def _vector(self, text: str) -> list[float]:
        topic, number = map(int, text.split())
        noise = np.random.default_rng(number).normal(size=DIMS)
        return list((self.centres[topic] + 0.8 * noise).astype(float))


def openers(index: dict[str, Any] | None) -> Openers:
    options: Any = {"index": index} if index else {}

    @asynccontextmanager
    async def theirs(place: str, *, asynchronous: bool) -> AsyncIterator[Any]:
        if asynchronous:
            async with AsyncPostgresStore.from_conn_string(place, **options) as store:
                await store.setup()
                yield store
        else:
            with PostgresStore.from_conn_string(place, **options) as blocking_store:
                blocking_store.setup()
                yield blocking_store

    @asynccontextmanager
    async def ours(place: str, *, asynchronous: bool) -> AsyncIterator[Any]:
        from haive_persistence import PostgresStore as OurStore

        async with OurStore(place, **options) as store:
            await store.initialize()
            yield store

    return {"postgres": theirs, OURS: ours}


# -- items ---------------------------------------------------------------------------------------------


def place(no: int) -> tuple[str, ...]:
    return ("users", f"u{no // PER_NAMESPACE}", "memories")


def value(no: int) -> dict[str, Any]:
    return {
        "text": TEXT,
        "no": no,
        "kind": "fact" if no % 3 else "wish",
        "tags": ["a", "b"],
        "by": {"id": no % 7},
    }


Operation = Callable[[Any, int], Awaitable[Any]]


def item_operations(bench: Bench, items: int) -> dict[str, Operation]:
    """What is timed; `turn` counts up, and chooses another item each time."""
    dice = random.Random(3)
    order = [dice.randrange(items) for _ in range(10_000)]
    call = bench.call

    def one(turn: int) -> int:
        return order[turn % len(order)]

    def some(turn: int, number: int) -> Iterator[int]:
        return (one(turn * number + n) for n in range(number))

    return {
        "put, new": lambda s, t: call(s, "put", place(one(t)), f"new {t}", value(t)),
        "put, again": lambda s, t: call(s, "put", place(one(t)), f"k{one(t)}", value(one(t))),
        "get": lambda s, t: call(s, "get", place(one(t)), f"k{one(t)}"),
        "get, none there": lambda s, t: call(s, "get", place(one(t)), "none"),
        "delete": lambda s, t: call(s, "delete", place(one(t)), f"new {t}"),
        "batch of 100 gets, 100 namespaces": lambda s, t: call(
            s, "batch", [GetOp(place(no), f"k{no}") for no in some(t, 100)]
        ),
        "batch of 100 puts": lambda s, t: call(
            s, "batch", [PutOp(place(no), f"k{no}", value(no)) for no in some(t, 100)]
        ),
        "search a namespace": lambda s, t: call(s, "search", place(one(t))),
        "search a namespace, filter": lambda s, t: call(s, "search", place(one(t)), filter={"kind": "wish"}),
        "search everything, filter": lambda s, t: call(s, "search", (), filter={"no": one(t)}),
        "search everything": lambda s, t: call(s, "search", ()),
        "list_namespaces": lambda s, t: call(s, "list_namespaces"),
        "list_namespaces, all": lambda s, t: call(s, "list_namespaces", limit=100_000),
        "list_namespaces, max_depth=2": lambda s, t: call(s, "list_namespaces", max_depth=2),
        "list_namespaces, suffix": lambda s, t: call(s, "list_namespaces", suffix=("u7", "*")),
        **(
            {"32 gets at once": lambda s, t: gets_at_once(s, list(some(t, 32)))} if bench.asynchronous else {}
        ),
    }


async def gets_at_once(store: Any, numbers: Sequence[int]) -> None:
    await asyncio.gather(*(store.aget(place(no), f"k{no}") for no in numbers))


async def fill(bench: Bench, contenders: Sequence[Contender], ops: Sequence[PutOp]) -> None:
    for start in range(0, len(ops), 500):
        for contender in contenders:
            await bench.call(contender.saver, "batch", ops[start : start + 500])


async def time_all(bench: Bench, contenders: Sequence[Contender], operations: dict[str, Operation]) -> Tables:
    table: dict[str, Values] = {}
    for name, operation in operations.items():
        turns = {contender.name: count(1) for contender in contenders}
        turn_of = {contender.saver: turns[contender.name] for contender in contenders}

        async def work(store: Any, operation: Operation = operation, turn_of: Any = turn_of) -> None:
            await operation(store, next(turn_of[store]))

        for contender in contenders:  # plans are made, connections open
            for _ in range(6):
                await work(contender.saver)
        table[name] = await bench.median_ms(contenders, bench.options.rounds, lambda store: store, work)
    return {f"ms, {bench.kind}": table}


async def items(bench: Bench) -> Tables:
    number = 21_000 if bench.options.full else 2_100
    async with bench.contenders(openers(None)) as contenders:
        await fill(bench, contenders, [PutOp(place(no), f"k{no}", value(no)) for no in range(number)])
        tables = await time_all(bench, contenders, item_operations(bench, number))
    return {f"{number:,} items, {title}": table for title, table in tables.items()}


# -- vectors -------------------------------------------------------------------------------------------


def vector_place(no: int) -> tuple[str, ...]:
    """A tenth has a namespace of its own, and topics of its own: those before the twentieth."""
    return ("memories", "tenth" if no % 10 == 0 else "others")


def vector_value(no: int) -> dict[str, Any]:
    topic = no % 20 if no % 10 == 0 else 20 + no % (TOPICS - 20)
    return {"text": f"{topic} {no}", "no": no}


def vector_operations(bench: Bench) -> dict[str, Operation]:
    call = bench.call

    def query(turn: int) -> str:
        return f"{20 + turn % (TOPICS - 20)} {10**6 + turn}"

    return {
        "put": lambda s, t: call(s, "put", ("memories", "new"), f"k{t}", vector_value(10**5 + t)),
        "batch of 50 puts": lambda s, t: call(
            s,
            "batch",
            [
                PutOp(("memories", "new"), f"k{n}", vector_value(n))
                for n in range(10**6 + t * 50, 10**6 + t * 50 + 50)
            ],
        ),
        "search everything": lambda s, t: call(s, "search", ("memories",), query=query(t)),
        "search a tenth, others' topics": lambda s, t: call(
            s, "search", ("memories", "tenth"), query=query(t)
        ),
        "search everything, filter (half)": lambda s, t: call(
            s, "search", ("memories",), query=query(t), filter={"no": {"$gte": bench.options.vectors // 2}}
        ),
    }


async def returned(bench: Bench, contenders: Sequence[Contender]) -> Tables:
    """Rows of ten and of a hundred; the incumbent compares numbers as texts, so its filter is another."""
    wanted = {
        "a tenth, others' topics, of 10": {"limit": 10},
        "a tenth, others' topics, of 100": {"limit": 100},
        "a tenth, page at 50, of 10": {"limit": 10, "offset": 50},
    }
    table: dict[str, Values] = {name: {} for name in wanted}
    for name, options in wanted.items():
        for contender in contenders:
            found = [
                await bench.call(
                    contender.saver, "search", ("memories", "tenth"), query=f"{topic} 7", **options
                )
                for topic in range(30, 60, 5)
            ]
            table[name][contender.name] = sum(map(len, found)) / len(found)
    return {"rows returned (more is better)": table}


async def vectors(bench: Bench) -> Tables:
    index = {"dims": DIMS, "embed": Topics(), "fields": ["text"]}
    number = bench.options.vectors
    async with bench.contenders(openers(index)) as contenders:
        await fill(
            bench, contenders, [PutOp(vector_place(no), f"k{no}", vector_value(no)) for no in range(number)]
        )
        tables = await time_all(bench, contenders, vector_operations(bench))
        tables |= await returned(bench, contenders)
    return {f"{number:,} vectors of {DIMS}, {title}": table for title, table in tables.items()}


async def run(bench: Bench) -> Tables:
    bench.options.vectors = 20_000 if bench.options.full else 2_000
    tables = {} if bench.options.only == "vectors" else await items(bench)
    return tables if bench.options.only == "items" else tables | await vectors(bench)


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--full", action="store_true", help="as many items and vectors as the README quotes")
    parser.add_argument("--rounds", type=int, default=60, help="times each operation is timed")
    parser.add_argument("--only", choices=["items", "vectors"], help="one half of it")
    harness.execute(run, parser.parse_args(argv))


if __name__ == "__main__":
    main()
