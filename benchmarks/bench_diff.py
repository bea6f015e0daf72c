"""Differences of two states: a chat in which little or all changed, long texts, long lists. No server.

CPU time in ms, medians, interleaved. `haive` compares decoded messages, `tokens` lists of which only
changed pieces are decoded; `jsonpatch` makes a patch of the same states, given as JSON. It knows no ids.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import jsonpatch
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from benchmarks import harness, words
from benchmarks.harness import OURS, Tables, Values
from haive_persistence.checkpointer.versions.diff import TokenList, compare_states, state_json

SEED = 23
TOKENS = "tokens"
CONTENDERS = ("jsonpatch", TOKENS, OURS)
Chat = list[BaseMessage]


def chat(size: int, text: words.Text, mark: str = "m") -> Chat:
    kinds = (HumanMessage, AIMessage)
    return [kinds[n % 2](text(500), id=f"{mark}{n}") for n in range(size)]


def copied(messages: Chat) -> Chat:
    """As decoding makes them: other objects of the same contents."""
    return [type(message).model_validate_json(message.model_dump_json()) for message in messages]


def edited(message: BaseMessage) -> BaseMessage:
    return type(message)(f"{message.text} Indeed.", id=message.id)


def cases(size: int, text: words.Text) -> dict[str, tuple[Chat, Chat]]:
    first = chat(size, text)
    half = size // 2

    def with_second(change: Callable[[Chat], Chat]) -> tuple[Chat, Chat]:
        return first, change(copied(first))

    return {
        "nothing changed": with_second(lambda m: m),
        "one changed": with_second(lambda m: [*m[:half], edited(m[half]), *m[half + 1 :]]),
        "ten more": with_second(lambda m: [*m, *chat(10, text, "new")]),
        "one inserted in front": with_second(lambda m: [*chat(1, text, "new"), *m]),
        "a hundred moved": with_second(lambda m: [*m[half : half + 100], *m[:half], *m[half + 100 :]]),
        "every tenth changed": with_second(
            lambda m: [edited(x) if n % 10 == 0 else x for n, x in enumerate(m)]
        ),
        "all different": (first, chat(size, text, "other")),
    }


def with_tokens(before: Chat, after: Chat) -> Callable[[], Any]:
    """A comparison of lists that know by numbers of pieces which messages are equal."""
    number = {message.model_dump_json(): n for n, message in enumerate([*before, *after])}
    tokens, others = ([number[m.model_dump_json()] for m in messages] for messages in (before, after))
    return lambda: compare_states(
        {"messages": TokenList(tokens, before.__getitem__)},
        {"messages": TokenList(others, after.__getitem__)},
    )


def medians_ms(contenders: dict[str, Callable[[], Any]], count: int) -> Values:
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(count):
        for name, work in contenders.items():
            start = time.process_time()
            work()
            samples[name].append((time.process_time() - start) * 1e3)
    return {name: median(values) for name, values in samples.items()}


def messages_table(size: int, text: words.Text, count: int) -> dict[str, Values]:
    table: dict[str, Values] = {}
    for name, (before, after) in cases(size, text).items():
        states = {"messages": before}, {"messages": after}
        forms = state_json(states[0]), state_json(states[1])
        table[name] = medians_ms(
            {
                "jsonpatch": lambda forms=forms: jsonpatch.make_patch(*forms),
                TOKENS: with_tokens(before, after),
                OURS: lambda states=states: compare_states(*states),
            },
            count,
        )
    states = {"messages": before}, {"messages": after}
    diff = compare_states(*states)
    table["all different: as text"] = medians_ms({OURS: diff.to_text}, count)
    table["all different: as HTML"] = medians_ms({OURS: diff._repr_html_}, count)
    table["all different: as JSON Patch"] = medians_ms({OURS: diff.to_json_patch}, count)
    return table


def others_table(size: int, text: words.Text, count: int) -> dict[str, Values]:
    """Texts and lists of growing size: twice as much should take about twice as long."""
    source = random.Random(SEED)

    def few_words_changed(long: str) -> str:
        return " ".join("changed" if source.random() < 0.05 else word for word in long.split(" "))

    table: dict[str, Values] = {}
    for times in (1, 2, 4):
        long = text(size * 50 * times)
        numbers = [source.randrange(5) for _ in range(size * times)]
        rows = [{"n": source.random(), "text": text(40)} for _ in range(size * times)]
        pairs: dict[str, tuple[Any, Any]] = {
            f"text of {len(long):,} characters, every 20th word changed": (long, few_words_changed(long)),
            f"text of {len(long):,} characters, another text": (long, text(len(long))),
            f"{len(numbers):,} small numbers, shuffled": (numbers, source.sample(numbers, len(numbers))),
            f"{len(rows):,} rows without ids, all different": (rows, [{**row, "n": 0.5} for row in rows]),
        }
        for name, (before, after) in pairs.items():
            work = lambda one=before, other=after: compare_states({"x": one}, {"x": other})  # noqa: E731
            table[name] = medians_ms({OURS: work}, count)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--messages", type=int, default=2000, help="messages of the chat")
    parser.add_argument("--count", type=int, default=7, help="samples to take the median of")
    options = parser.parse_args(argv)
    text = words.text_source(SEED, random_text=options.random_text)
    tables: Tables = {
        f"differences of {options.messages:,} messages, ms": messages_table(
            options.messages, text, options.count
        ),
        "differences of other values, ms": others_table(options.messages, text, max(1, options.count // 2)),
    }
    for title, table in tables.items():
        harness.show(title, table, CONTENDERS)
    if options.json:
        with options.json.open("a") as file:
            print(json.dumps({"about": harness.processor(), "tables": tables}), file=file)


if __name__ == "__main__":
    main()
