"""What format 1 wrote stays readable: the files in `fixtures` are never rewritten.

python -m tests.codec.test_fixtures    # writes the files of cases that have none yet
"""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.types import Command, Interrupt, Send

from haive_persistence.codec import Codec, Keyring, Sealer, blind_index, context
from haive_persistence.codec.compress import CURRENT_DICTIONARY
from tests.codec import sample_types as t
from tests.codec.same import same

FIXTURES = Path(__file__).parent / "fixtures" / "format1.hex"
KEY, MASTER = bytes(range(32)), bytes(range(100, 132))
AAD = context("acme", "piece", uuid.UUID(int=1), 7)
PLAIN, SEALED = Codec(), Codec(sealer=Sealer({1: KEY}))
LANGGRAPH = Codec(JsonPlusSerializer(), compression=None)

CALL = {"name": "search", "args": {"query": "weather"}, "id": "call_1", "type": "tool_call"}
USAGE = {"input_tokens": 12, "output_tokens": 3, "total_tokens": 15, "input_token_details": {"cache_read": 4}}
MESSAGES = [
    SystemMessage("Be brief."),
    HumanMessage("What is the weather?", id="m1", name="ada"),
    AIMessage("", id="m2", tool_calls=[CALL], usage_metadata=USAGE, response_metadata={"model_name": "x"}),
    ToolMessage("sunny", tool_call_id="call_1", id="m3", artifact={"raw": [1, 2]}),
    AIMessage([{"type": "text", "text": "It is sunny."}], id="m4"),
]
VALUES: dict[str, Any] = {
    "null": None,
    "bytes": b"\x00\xff",
    "bytearray": bytearray(b"ab"),
    "scalars": [True, -1, 2**64 - 1, 1.5, float("-inf"), float("nan"), -0.0, "a\0é", None],
    "exotic": [2**100, -(2**70), "\ud800", {t.Level.HIGH: 1, (1, "x"): 2}, {1: "a", None: "b"}],
    "times": [
        dt.datetime(2024, 10, 27, 1, 30, tzinfo=ZoneInfo("Europe/London"), fold=1),
        dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc),
        dt.timezone(dt.timedelta(hours=-3), "BRT"),
    ],
    "standard": [{1, 2}, frozenset({(1, 2)}), Decimal("1.50"), uuid.UUID(int=5), dt.timedelta(1, 2)],
    "messages": MESSAGES,
    "document": Document("text", metadata={"page": 1}, id="d1"),
    "control": [Send("n", {"a": 1}), Send("n", 1, timeout=2.0), Command(goto="x"), Interrupt("why?", id="i")],
    "snapshot": _DeltaSnapshot(MESSAGES[:1]),
    "model": t.Person(name="Ada", tags={"x"}, address=t.Address(street="s"), level=t.Level.HIGH),
    "own-types": [t.Leaf([1]), t.Pair(1, 2), t.Point.CORNER, t.Outer.Status.DONE, t.Tags(["a"])],
    "array": {"a": np.arange(4.0).reshape(2, 2).tolist()},
    "large": {"text": "A longer text. " * 4000},
}


def cases() -> dict[str, tuple[Codec, Any]]:
    """The name of a line to the codec and the value that it was written with."""
    found: dict[str, tuple[Codec, Any]] = {}
    for name, value in VALUES.items():
        found[name] = PLAIN, value
        found[f"{name}.langgraph"] = LANGGRAPH, value
        if name in ("null", "messages", "scalars", "model"):
            found[f"{name}.sealed"] = SEALED, value
            found[f"{name}.raw"] = Codec(compression=None), value
    for name in ("exotic", "times", "own-types", "large"):  # not, or not exactly, or too long
        del found[f"{name}.langgraph"]
    return found


def read_lines() -> dict[str, str]:
    lines = FIXTURES.read_text().splitlines() if FIXTURES.exists() else []
    return dict(line.split() for line in lines)


LINES = read_lines()


def stored(name: str) -> bytes:
    return bytes.fromhex(LINES[name])


@pytest.mark.parametrize("name", cases())
def test_format_1_is_readable(name: str) -> None:
    codec, value = cases()[name]
    reader = PLAIN if codec is LANGGRAPH else codec
    read = reader.decode(stored(name), AAD)
    assert same(read, value, tuples=codec is not LANGGRAPH)


@pytest.mark.parametrize("name", [name for name in cases() if "sealed" not in name])
def test_format_1_is_still_written(name: str) -> None:
    """Not required for good, but a change must be noticed: it makes a new format, or new fixtures."""
    codec, value = cases()[name]
    dumped = codec.dump(value)
    assert Codec().unpack(stored(name), AAD) == dumped


def test_wrapped_key_and_blind_index() -> None:
    assert Keyring(MASTER).current_id == LINES["master-key-id"]
    assert Keyring(MASTER).unwrap(stored("wrapped-data-key"), "acme", 1) == KEY
    assert blind_index(KEY, "user", "ada") == stored("blind-index")
    assert Keyring("correct horse battery staple").current_id == LINES["passphrase-key-id"]


def test_every_dictionary_is_kept() -> None:
    for number in range(1, CURRENT_DICTIONARY + 1):
        assert PLAIN.decode(stored(f"dictionary-{number}"), AAD) == MESSAGES


def add_missing() -> None:
    made = {name: codec.encode(value, AAD).hex() for name, (codec, value) in cases().items()}
    made["wrapped-data-key"] = Keyring(MASTER).wrap(KEY, "acme", 1).hex()
    made["master-key-id"] = Keyring(MASTER).current_id
    made["passphrase-key-id"] = Keyring("correct horse battery staple").current_id
    made["blind-index"] = blind_index(KEY, "user", "ada").hex()
    made[f"dictionary-{CURRENT_DICTIONARY}"] = PLAIN.encode(MESSAGES, AAD).hex()
    FIXTURES.parent.mkdir(exist_ok=True)
    with FIXTURES.open("a") as file:
        file.writelines(f"{name} {text}\n" for name, text in made.items() if name not in LINES)


if __name__ == "__main__":
    add_missing()
