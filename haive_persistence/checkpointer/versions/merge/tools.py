"""Tool calls and their results in lists of messages: LangChain's, or dicts of the chat format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.messages.base import BaseMessage

Id = Any


def calls_of(message: Any) -> list[str]:
    """The ids of the tool calls that a message makes."""
    fields = _fields(message)
    calls: list[Any] = []
    for name in ("tool_calls", "invalid_tool_calls"):
        found = fields.get(name)
        if isinstance(found, list):
            calls += found
    return [call["id"] for call in calls if isinstance(call, dict) and isinstance(call.get("id"), str)]


def answered_calls(message: Any) -> list[str]:
    """The id of the tool call that a message is the result of, in a list; empty for any other message."""
    call = _fields(message).get("tool_call_id")
    return [call] if isinstance(call, str) else []


def _fields(message: Any) -> Mapping[str, Any]:
    if isinstance(message, BaseMessage):
        return message.__dict__
    return message if isinstance(message, dict) else {}


def results_behind_calls(merged: Mapping[Id, Any], *sides: Mapping[Id, Any]) -> list[Id]:
    """The order of the merged items, each result directly behind its call if it was so on a side.

    Models refuse a conversation in which anything stands between a call and its results.
    """
    there = _adjacent(merged)
    displaced = {
        id_: call
        for side in sides
        for id_, call in _adjacent(side).items()
        if id_ in merged and id_ not in there
    }
    if not displaced:
        return list(merged)
    calls = {call for item in merged.values() for call in calls_of(item)}
    waiting: dict[str, list[Id]] = {}
    for id_ in merged:
        if displaced.get(id_) in calls:
            waiting.setdefault(displaced[id_], []).append(id_)
    moved = {id_ for ids in waiting.values() for id_ in ids}
    order: list[Id] = []
    open_calls: list[str] = []
    for id_, item in merged.items():
        if id_ in moved:
            continue
        if not set(answered_calls(item)) & set(open_calls):
            order += [one for call in open_calls for one in waiting.pop(call, ())]
            open_calls = calls_of(item)
        order.append(id_)
    return [*order, *(one for call in open_calls for one in waiting.pop(call, ()))]


def _adjacent(messages: Mapping[Id, Any]) -> dict[Id, str]:
    """The results directly behind their calls or the calls' other results, and the call of each."""
    found: dict[Id, str] = {}
    open_calls: list[str] = []
    for id_, message in messages.items():
        answered = answered_calls(message)
        if answered and answered[0] in open_calls:
            found[id_] = answered[0]
        else:
            open_calls = calls_of(message)
    return found
