"""The 'json' type of LangGraph releases before msgpack is readable."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import pathlib
import re
import uuid
from collections import deque
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from langchain_core.agents import AgentAction
from langchain_core.documents import Document
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langgraph.types import Send

from haive_persistence.codec import SafeSerializer

SERDE = SafeSerializer()


def lc2(*path: str, **more: Any) -> dict[str, Any]:
    return {"lc": 2, "type": "constructor", "id": list(path), **more}


def read(value: Any, serde: SafeSerializer = SERDE) -> Any:
    return serde.loads_typed(("json", json.dumps(value).encode()))


STANDARD = [
    (lc2("builtins", "set", args=[[1, 2]]), {1, 2}),
    (lc2("builtins", "frozenset", args=[[[1, 2]]]), frozenset({(1, 2)})),
    (lc2("collections", "deque", args=[[1]]), deque([1])),
    (lc2("uuid", "UUID", args=["0" * 31 + "1"]), uuid.UUID(int=1)),
    (lc2("decimal", "Decimal", args=["1.50"]), Decimal("1.50")),
    (lc2("pathlib", "PosixPath", args=["/", "a"]), pathlib.Path("/a")),
    (lc2("pathlib", "PosixPath", args=[]), pathlib.Path()),
    (lc2("re", "compile", args=["a", 2]), re.compile("a", 2)),
    (lc2("ipaddress", "IPv4Address", args=["10.0.0.1"]), ipaddress.ip_address("10.0.0.1")),
    (lc2("datetime", "date", args=[2024, 2, 29]), dt.date(2024, 2, 29)),
    (lc2("datetime", "timedelta", args=[1, 2, 3]), dt.timedelta(1, 2, 3)),
    (
        lc2("datetime", "timezone", args=[lc2("datetime", "timedelta", args=[0, 3600, 0])]),
        dt.timezone(dt.timedelta(hours=1)),
    ),
    (lc2("datetime", "time", kwargs={"hour": 1, "minute": 2, "tzinfo": None, "fold": 0}), dt.time(1, 2)),
    (lc2("zoneinfo", "ZoneInfo", args=["UTC"]), ZoneInfo("UTC")),
    # LangGraph itself reads this one as None since it ignores methods
    (
        lc2("datetime", "datetime", method="fromisoformat", args=["2024-02-29T01:02:03+00:00"]),
        dt.datetime(2024, 2, 29, 1, 2, 3, tzinfo=dt.timezone.utc),
    ),
    (lc2("langgraph", "types", "Send", kwargs={"node": "n", "arg": {"a": 1}}), Send("n", {"a": 1})),
    (lc2("langchain_core", "messages", "human", "HumanMessage", kwargs={"content": "x"}), HumanMessage("x")),
]


@pytest.mark.parametrize(("written", "expected"), STANDARD, ids=str)
def test_standard_values(written: Any, expected: Any) -> None:
    assert read([written]) == [expected]
    assert type(read(written)) is type(expected)


@pytest.mark.parametrize("strict", [True, None])
@pytest.mark.parametrize(
    "value",
    [
        HumanMessage("hi", id="1"),
        SystemMessage("be kind"),
        AIMessage("", tool_calls=[{"name": "f", "args": {"x": 1}, "id": "c", "type": "tool_call"}]),
        ToolMessage("r", tool_call_id="c"),
        RemoveMessage(id="1"),
        Document("text", metadata={"a": 1}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_messages(value: Any, strict: bool | None) -> None:
    serde = SafeSerializer(allowed_msgpack_modules=strict)
    assert read({"messages": [dumpd(value)]}, serde) == {"messages": [value]}


def test_other_data_of_langchain_unless_strict() -> None:
    action = AgentAction("tool", "input", "log")
    assert read(dumpd(action)) == action
    assert read(dumpd(action), SafeSerializer(allowed_msgpack_modules=None)) == dumpd(action)


def test_plain_json() -> None:
    assert read({"a": [1, 2.5, None, True, "x"]}) == {"a": [1, 2.5, None, True, "x"]}


def test_what_cannot_be_rebuilt_stays_what_it_was() -> None:
    """LangGraph reads it as None."""
    value = lc2("uuid", "UUID", args=["nonsense"])
    assert read({"a": value}) == {"a": value}
