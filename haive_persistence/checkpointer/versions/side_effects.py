"""The tool calls in a state: what happened, and is not taken back by going back to an older state. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, ToolMessage


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A tool call that a model asked for."""

    id: str | None
    name: str
    args: Mapping[str, Any]
    is_answered: bool
    """True if its result is known; otherwise it may have run or not."""


def tool_calls(values: Iterable[Any]) -> dict[Any, ToolCall]:
    """The tool calls in some values: in messages, lists and dicts of them."""
    calls: dict[Any, ToolCall] = {}
    answered: set[str] = set()
    for message in _messages(list(values), 0):
        if isinstance(message, ToolMessage):
            answered.add(message.tool_call_id)
            continue
        for no, call in enumerate(message.tool_calls):
            key = call.get("id") or (message.id, no)
            calls[key] = ToolCall(id=call.get("id"), name=call["name"], args=call["args"], is_answered=False)
    return {
        key: ToolCall(id=c.id, name=c.name, args=c.args, is_answered=True) if key in answered else c
        for key, c in calls.items()
    }


def calls_since(then: Iterable[Any], now: Iterable[Any]) -> tuple[ToolCall, ...]:
    """The tool calls in the values of now that those of then do not have, or have without a result."""
    before = tool_calls(then)
    return tuple(
        call
        for key, call in tool_calls(now).items()
        if key not in before or (call.is_answered and not before[key].is_answered)
    )


_MAX_DEPTH = 4  # of containers that are looked into


def _messages(value: Any, depth: int) -> Iterator[AIMessage | ToolMessage]:
    if isinstance(value, (AIMessage, ToolMessage)):
        yield value
    elif depth < _MAX_DEPTH and type(value) in (list, tuple, dict):
        for part in value.values() if type(value) is dict else value:
            yield from _messages(part, depth + 1)
