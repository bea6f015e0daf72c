"""A file-editing agent: 200 files of 5 kB in a dict channel with a merge reducer, one edited per step.

The floor is what all distinct versions of all files come to, each compressed by itself (zstd).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Annotated, Any

import zstandard
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from benchmarks import harness, words
from benchmarks.harness import Bench, Contender, Tables
from benchmarks.threads import PARTS, Thread, costs, grow, reads

SEED = 11
Files = dict[str, str]


def merge(files: Files, edited: Files) -> Files:
    return {**files, **edited}


class Project(TypedDict):
    files: Annotated[Files, merge]
    task: str


class Agent(Thread):
    """Each step is asked for one task and edits one file."""

    def __init__(self, bench: Bench, contender: Contender, files: Files, edits: Sequence[Files]) -> None:
        self.files, self.edits = files, edits
        super().__init__(bench, contender)

    def compile(self, saver: Any) -> Any:
        builder = StateGraph(Project)
        builder.add_node("edit", lambda state: {"files": self.edits[self.done]})
        builder.add_edge(START, "edit")
        return builder.compile(checkpointer=saver)

    def said(self) -> Any:
        task = {"task": f"edit {next(iter(self.edits[self.done]))}"}
        return task if self.done else task | {"files": self.files}


def project(bench: Bench) -> tuple[Files, list[Files]]:
    """The files to begin with, and for every step the one that changes: a paragraph is rewritten."""
    options = bench.options
    text = words.text_source(SEED, random_text=options.random_text)
    paragraphs = {
        f"src/module_{n:03}.py": [text(options.bytes // 10 - 1) for _ in range(10)]
        for n in range(options.files)
    }
    first = {name: "\n".join(body) for name, body in paragraphs.items()}
    return first, list(edits(paragraphs, text, steps(bench)))


def edits(paragraphs: dict[str, list[str]], text: words.Text, count: int) -> Iterator[Files]:
    chance = Random(SEED)
    for _ in range(count):
        name = chance.choice(list(paragraphs))
        body = paragraphs[name]
        body[chance.randrange(len(body))] = text(len(body[0]))
        yield {name: "\n".join(body)}


def steps(bench: Bench) -> int:
    return int(max(1, bench.options.steps // PARTS) * PARTS)


def compressed_bytes(files: Files, changes: Sequence[Files]) -> int:
    versions = {*files.values(), *(body for change in changes for body in change.values())}
    compressor = zstandard.ZstdCompressor(level=3)
    return sum(len(compressor.compress(body.encode())) for body in versions)


async def run(bench: Bench) -> Tables:
    files, changes = project(bench)
    async with bench.contenders() as contenders:
        agents = [Agent(bench, contender, files, changes) for contender in contenders]
        await grow(agents, steps(bench))
        table = costs(agents, "step") | await reads(bench, agents, history=20)
    floor = compressed_bytes(files, changes)
    table["disk, times all versions compressed"] = {
        name: megabytes * 1e6 / floor for name, megabytes in table["disk MB"].items()
    }
    title = f"files, {len(files)} of {bench.options.bytes} bytes, {len(changes)} edits, {bench.kind}"
    return {f"{title}; all distinct versions, compressed: {floor / 1e6:.2f} MB": table}


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--bytes", type=int, default=5000, help="size of a file")
    parser.add_argument("--steps", type=int, default=300)
    harness.add_durability(parser)
    harness.execute(run, parser.parse_args(argv))


if __name__ == "__main__":
    main()
