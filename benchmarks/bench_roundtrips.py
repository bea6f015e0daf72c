"""Round trips: for how many of them each operation waits when the server is far away.

A proxy between the contenders and the server delays what passes, in both directions. The longer an
operation takes than without the delay, in units of the delay, is what it waits for; exchanges
are how often a client spoke after it had been answered, on all connections together.
"""

from __future__ import annotations

import asyncio
import operator
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Annotated, Any

from langgraph.graph import START, StateGraph
from langgraph.store.base import GetOp
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from typing_extensions import TypedDict

from benchmarks import harness, words
from benchmarks.bench_raw import Writer
from benchmarks.harness import SAVERS, STORES, WITH_SERVER, Bench, Contender, Openers, Tables, Values

SEED = 17
Operations = dict[str, Callable[[], Awaitable[Any]]]


class Proxy:
    """Forwards connections to a Postgres server, everything late by `delay_s`, in a thread of its own."""

    def __init__(self, dsn: str) -> None:
        target = conninfo_to_dict(dsn)
        self.host, self.server_port = str(target.get("host", "localhost")), int(target.get("port") or 5432)
        self.delay_s = 0.0
        self.exchanges = 0
        self.port = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        loop, ready = asyncio.new_event_loop(), threading.Event()

        async def listen() -> None:
            server = await asyncio.start_server(self.connected, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()

        thread = threading.Thread(
            target=lambda: (loop.create_task(listen()), loop.run_forever()), daemon=True
        )
        thread.start()
        ready.wait()
        yield
        loop.call_soon_threadsafe(loop.stop)
        thread.join()

    def route(self, dsn: str) -> str:
        return make_conninfo(dsn, host="127.0.0.1", port=self.port)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.host.startswith("/"):
            far = await asyncio.open_unix_connection(f"{self.host}/.s.PGSQL.{self.server_port}")
        else:
            far = await asyncio.open_connection(self.host, self.server_port)
        spoke: list[str] = ["server"]
        await asyncio.gather(
            self.forward(reader, far[1], "client", spoke), self.forward(far[0], writer, "server", spoke)
        )

    async def forward(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, who: str, spoke: list[str]
    ) -> None:
        loop = asyncio.get_running_loop()
        while data := await source.read(1 << 16):
            self.exchanges += who == "client" and spoke[0] == "server"
            spoke[0] = who
            loop.call_later(self.delay_s, sink.write, data)
        loop.call_later(self.delay_s, sink.close)


class Turn(TypedDict):
    said: Annotated[list[str], operator.add]


def chain(nodes: int, saver: Any) -> Any:
    """A graph of so many nodes in a row."""
    builder = StateGraph(Turn)
    for number in range(nodes):
        builder.add_node(f"node{number}", lambda state: {"said": ["answered"]})
        builder.add_edge(f"node{number - 1}" if number else START, f"node{number}")
    return builder.compile(checkpointer=saver)


def on_saver(bench: Bench, contender: Contender) -> Operations:
    saver = contender.saver
    text = words.text_source(SEED, random_text=bench.options.random_text)
    writer = Writer(saver, {"configurable": {"thread_id": "raw", "checkpoint_ns": ""}}, [text(500)])
    steps = writer.steps(deadline=float("inf"))
    writes: list[Any] = []

    def turn(nodes: int) -> Callable[[], Awaitable[Any]]:
        graph, config = chain(nodes, saver), {"configurable": {"thread_id": f"chain of {nodes}"}}
        return lambda: bench.call(graph, "invoke", {"said": [text(500)]}, config)

    async def put() -> None:
        arguments, writes[:] = next(steps)
        writer.config = await bench.call(saver, "put", writer.config, *arguments)

    return {
        "chat turn: 1 node, 3 checkpoints": turn(1),
        "turn of 3 nodes, 5 checkpoints": turn(3),
        "put": put,
        "put_writes": lambda: bench.call(saver, "put_writes", writer.config, *writes),
        "get_tuple": lambda: bench.call(saver, "get_tuple", writer.config),
        "list(limit=10)": lambda: bench.call(saver, "list", writer.config, limit=10),
    }


def on_store(bench: Bench, contender: Contender) -> Operations:
    store = contender.saver
    gets = [GetOp(("users", str(number)), "profile") for number in range(10)]
    return {
        "store put": lambda: bench.call(store, "put", ("users", "1"), "profile", {"name": "Ada"}),
        "store get": lambda: bench.call(store, "get", ("users", "1"), "profile"),
        "store search": lambda: bench.call(store, "search", ("users",), limit=10),
        "store batch, 10 gets, 10 namespaces": lambda: bench.call(store, "batch", gets),
    }


async def timed(proxy: Proxy, work: Callable[[], Awaitable[Any]]) -> tuple[float, int]:
    """Seconds and exchanges of one call."""
    start, before = time.perf_counter(), proxy.exchanges
    await work()
    return time.perf_counter() - start, proxy.exchanges - before


async def compare(
    bench: Bench, proxy: Proxy, openers: Openers, operations: Callable[[Bench, Contender], Operations]
) -> tuple[dict[str, Values], dict[str, Values]]:
    """For every operation and contender the round trips waited for, and the exchanges."""
    waits: dict[str, Values] = {}
    exchanges: dict[str, Values] = {}
    delay_s = bench.options.rtt / 2e3
    async with bench.contenders(openers, route=proxy.route) as contenders:
        mine = {contender.name: operations(bench, contender) for contender in contenders}
        for name in next(iter(mine.values())):
            for contender in contenders:
                near, far = [
                    await sample(bench, proxy, mine[contender.name][name], d) for d in (0.0, delay_s)
                ]
                waits.setdefault(name, {})[contender.name] = (far[0] - near[0]) / (2 * delay_s)
                exchanges.setdefault(name, {})[contender.name] = far[1]
    return waits, exchanges


async def sample(
    bench: Bench, proxy: Proxy, work: Callable[[], Awaitable[Any]], delay_s: float
) -> tuple[float, float]:
    """Medians of seconds and exchanges at this delay, after a call that warms caches and statements."""
    proxy.delay_s = delay_s
    results = [await timed(proxy, work) for _ in range(bench.options.rounds + 1)][1:]
    return median(seconds for seconds, _ in results), median(exchanges for _, exchanges in results)


async def run(bench: Bench) -> Tables:
    proxy = Proxy(bench.server.dsn)
    with proxy.running():
        waits: dict[str, Values] = {}
        exchanges: dict[str, Values] = {}
        for openers, operations in ((SAVERS, on_saver), (STORES, on_store)):
            there = {name: opener for name, opener in openers.items() if name in WITH_SERVER}
            more_waits, more_exchanges = await compare(bench, proxy, there, operations)
            waits |= more_waits
            exchanges |= more_exchanges
            proxy.delay_s = 0.0
    return {
        f"round trips waited for, at {bench.options.rtt:g} ms each, {bench.kind}": waits,
        f"exchanges with the server, {bench.kind}": exchanges,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--rtt", type=float, default=20.0, help="milliseconds that a round trip takes")
    parser.add_argument("--rounds", type=int, default=9, help="calls to take the median of")
    harness.execute(run, parser.parse_args(argv))


if __name__ == "__main__":
    main()
