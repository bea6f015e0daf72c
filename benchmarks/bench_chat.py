"""A chat thread: one model node, `add_messages`, two messages of 500 bytes per turn.

Disk, WAL, time per turn at the start and at the end, growth, and what reading costs at the end.
`--delta` keeps the messages in LangGraph's DeltaChannel instead of a plain channel.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Annotated, Any

from langchain_core.messages import AnyMessage
from langgraph.channels import DeltaChannel
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import _messages_delta_reducer
from typing_extensions import TypedDict

from benchmarks import harness, words
from benchmarks.harness import Bench, Contender, Tables
from benchmarks.threads import PARTS, Thread, costs, grow, reads

SEED = 7


class DeltaState(TypedDict):
    messages: Annotated[list[AnyMessage], DeltaChannel(_messages_delta_reducer)]


class Chat(Thread):
    """The model says what comes next in a list of texts written beforehand."""

    def __init__(self, bench: Bench, contender: Contender, texts: Sequence[str]) -> None:
        self.texts = texts
        super().__init__(bench, contender)

    def compile(self, saver: Any) -> Any:
        builder = StateGraph(DeltaState if self.bench.options.delta else MessagesState)
        builder.add_node("model", self.answer)
        builder.add_edge(START, "model")
        return builder.compile(checkpointer=saver)

    def said(self) -> Any:
        return {"messages": [words.human(self.texts[2 * self.done])]}

    def answer(self, state: Any) -> dict[str, Any]:
        return {
            "messages": [words.reply(self.texts[2 * self.done + 1], metadata=self.bench.options.metadata)]
        }


def texts(options: Namespace) -> list[str]:
    """What is said: for every turn a question and an answer."""
    text = words.text_source(SEED, random_text=options.random_text)
    return [text(options.bytes) for _ in range(2 * turns(options))]


def turns(options: Namespace) -> int:
    return int(max(1, options.turns // PARTS) * PARTS)


async def run(bench: Bench) -> Tables:
    said = texts(bench.options)
    async with bench.contenders() as contenders:
        chats = [Chat(bench, contender, said) for contender in contenders]
        await grow(chats, turns(bench.options))
        table = costs(chats) | await reads(bench, chats)
    channel = "DeltaChannel" if bench.options.delta else "plain channel"
    return {f"chat, {turns(bench.options)} turns, {channel}, {bench.kind}": table}


def add_options(parser: ArgumentParser, turns: int) -> None:
    parser.add_argument("--turns", type=int, default=turns)
    parser.add_argument("--bytes", type=int, default=500, help="size of a message")
    parser.add_argument("--delta", action="store_true", help="messages in a DeltaChannel")
    parser.add_argument("--metadata", action="store_true", help="replies carry a hosted model's metadata")
    harness.add_durability(parser)


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    add_options(parser, turns=1000)
    harness.execute(run, parser.parse_args(argv))


if __name__ == "__main__":
    main()
