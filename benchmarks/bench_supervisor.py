"""The chat of `bench_chat` inside a supervisor with two subgraphs that receive the messages.

The supervisor routes every turn to one of the subgraphs (`--both`: to both, one after the other;
the second answers). Each is a graph of its own, whose checkpoints LangGraph keeps in a namespace
of its own. The plain chat runs beside it: the same words, the same savers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command

from benchmarks import harness
from benchmarks.bench_chat import Chat, add_options, texts, turns
from benchmarks.harness import Bench, Tables
from benchmarks.threads import costs, grow, reads

PERSISTENT = {name: opener for name, opener in harness.SAVERS.items() if name != "memory"}


class Supervised(Chat):
    def compile(self, saver: Any) -> Any:
        both = self.bench.options.both
        builder = StateGraph(MessagesState)
        builder.add_node("supervisor", self.route, destinations=("researcher", "writer"))
        builder.add_node("researcher", self.worker(self.listen if both else self.answer))
        builder.add_node("writer", self.worker(self.answer))
        builder.add_edge(START, "supervisor")
        if both:
            builder.add_edge("researcher", "writer")
        return builder.compile(checkpointer=saver)

    def worker(self, node: Any) -> Any:
        builder = StateGraph(MessagesState)
        builder.add_node("work", node)
        builder.add_edge(START, "work")
        return builder.compile()

    def route(self, state: Any) -> Command[str]:
        first = self.bench.options.both or self.done % 2 == 0
        return Command(goto="researcher" if first else "writer")

    def listen(self, state: Any) -> dict[str, Any]:
        return {"messages": []}


async def run(bench: Bench) -> Tables:
    said, count = texts(bench.options), turns(bench.options)
    async with bench.contenders() as contenders:
        supervised = [Supervised(bench, contender, said) for contender in contenders]
        await grow(supervised, count)
        table = costs(supervised) | await reads(bench, supervised, history=min(50, count))
    async with bench.contenders(PERSISTENT) as contenders:
        plain = [Chat(bench, contender, said) for contender in contenders]
        await grow(plain, count)
    table["disk, times that of the plain chat"] = {
        one.contender.name: table["disk MB"][one.contender.name] * 1e6 / one.disk[-1] for one in plain
    }
    shape = "both subgraphs" if bench.options.both else "one of two subgraphs"
    return {f"supervisor, {count} turns, {shape} per turn, {bench.kind}": table}


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    add_options(parser, turns=1000)
    parser.add_argument("--both", action="store_true", help="every turn passes through both subgraphs")
    harness.execute(run, parser.parse_args(argv))


if __name__ == "__main__":
    main()
