"""Text and messages for the scenarios: seeded, so that every contender stores the same bytes."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from itertools import accumulate

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

SYLLABLES = [
    a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "ow", "ist")
]
PRINTABLE = string.digits + string.ascii_letters + "!#$%&()*+,-./:;<=>?@[]^_{|}~ "

Text = Callable[[int], str]


def realistic(seed: int, vocabulary: int = 20_000) -> Text:
    """Sentences over a made-up vocabulary; word frequencies follow Zipf's law, as in natural language."""
    source = random.Random(seed)
    words = [
        "".join(source.choices(SYLLABLES, k=source.choice((1, 1, 2, 2, 3, 4)))) for _ in range(vocabulary)
    ]
    weights = list(accumulate(1 / rank for rank in range(1, vocabulary + 1)))

    def text(size: int) -> str:
        picked = source.choices(words, cum_weights=weights, k=size // 3 + 1)
        stops = source.choices((" ", " ", " ", " ", " ", " ", ", ", ". "), k=len(picked))
        return "".join(part for pair in zip(picked, stops, strict=True) for part in pair)[:size]

    return text


def incompressible(seed: int) -> Text:
    """Random printable characters: about 6.5 bits each, whatever compresses them."""
    source = random.Random(seed)
    return lambda size: "".join(source.choices(PRINTABLE, k=size))


def text_source(seed: int, *, random_text: bool) -> Text:
    return incompressible(seed) if random_text else realistic(seed)


def human(content: str) -> HumanMessage:
    return HumanMessage(content)


def reply(content: str, *, metadata: bool = False) -> BaseMessage:
    """What a chat model answers; with `metadata`, as much as a hosted model adds to it."""
    if not metadata:
        return AIMessage(content)
    used = {"input_tokens": 1234, "output_tokens": 120, "total_tokens": 1354}
    about = {
        "model_name": "fake-1",
        "finish_reason": "stop",
        "system_fingerprint": "fp_0a1b2c",
        "logprobs": None,
    }
    return AIMessage(content, response_metadata=about, usage_metadata=used)
