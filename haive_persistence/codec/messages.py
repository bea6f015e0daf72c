"""Builds LangChain messages from what `model_dump` wrote, without validating it a second time.

Validation is two thirds of the time it takes to read a thread (8 µs of a message's 11). For the four
ordinary message classes its outcome is known when every field already has exactly the type that the
class demands: pydantic then keeps each value, sets every field as given, and adds nothing. `_BUILD`
holds one function per class that checks exactly this and returns None when in doubt; such a message
goes the ordinary way. Which classes this was read off and tested against is `_fits`: any other
release or shape of LangChain's classes, and every subclass, also goes the ordinary way.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import langchain_core
from langchain_core.messages.ai import AIMessage
from langchain_core.messages.base import BaseMessage
from langchain_core.messages.human import HumanMessage
from langchain_core.messages.system import SystemMessage
from langchain_core.messages.tool import ToolMessage
from langgraph.checkpoint.serde._msgpack import SAFE_MSGPACK_TYPES

from haive_persistence.codec.models import SET_EXTRA, SET_FIELDS, SET_FIELDS_SET, SET_PRIVATE

_TESTED_BELOW = (1, 8)
"""LangChain releases (major, minor) from this one on have not been compared with validation yet."""

_ANY, _TEXT, _MAYBE = "dict[typing.Any, typing.Any]", "<class 'str'>", "str | None"
_COMMON = {
    "content": f"str | list[str | {_ANY}]",
    "additional_kwargs": _ANY,
    "response_metadata": _ANY,
    "type": None,
    "name": _MAYBE,
    "id": _MAYBE,
}
_SHAPES: dict[type[BaseMessage], tuple[dict[str, str | None], set[str]]] = {
    HumanMessage: ({**_COMMON, "type": "typing.Literal['human']"}, set()),
    SystemMessage: ({**_COMMON, "type": "typing.Literal['system']"}, set()),
    AIMessage: (
        {
            **_COMMON,
            "type": "typing.Literal['ai']",
            "tool_calls": "list[langchain_core.messages.tool.ToolCall]",
            "invalid_tool_calls": "list[langchain_core.messages.content.InvalidToolCall]",
            "usage_metadata": "langchain_core.messages.ai.UsageMetadata | None",
        },
        {"_backwards_compat_tool_calls"},
    ),
    ToolMessage: (
        {
            **_COMMON,
            "type": "typing.Literal['tool']",
            "tool_call_id": _TEXT,
            "artifact": "typing.Any",
            "status": "typing.Literal['success', 'error']",
        },
        {"coerce_args"},
    ),
}


def _fits(cls: type[BaseMessage]) -> bool:
    """Whether this class is the one whose validation the functions below stand in for."""
    version = tuple(int(part) for part in langchain_core.__version__.split(".")[:2])
    if version >= _TESTED_BELOW:
        return False
    fields, validators = _SHAPES[cls]
    decorators = cls.__pydantic_decorators__
    return (
        {name: str(field.annotation) for name, field in cls.model_fields.items()} == fields
        and list(cls.model_fields) == list(fields)
        and set(decorators.model_validators) == validators
        and not (decorators.field_validators or decorators.validators or decorators.root_validators)
        and cls.__pydantic_post_init__ is None
        and cls.model_config == {"extra": "allow"}
    )


# --- the checks: exact types only, since pydantic converts or copies anything else -------------

_KEYS = tuple(_COMMON)
_AI_KEYS = (*_KEYS, "tool_calls", "invalid_tool_calls", "usage_metadata")
_TOOL_KEYS = (*_KEYS, "tool_call_id", "artifact", "status")
_KEY_SET, _AI_KEY_SET, _TOOL_KEY_SET = set(_KEYS), set(_AI_KEYS), set(_TOOL_KEYS)
_PART = {str, dict}


def _human(fields: dict[str, Any]) -> Any:
    if tuple(fields) == _KEYS and _is_common("human", *fields.values()):
        return _make(HumanMessage, fields, _KEY_SET)
    return None


def _system(fields: dict[str, Any]) -> Any:
    if tuple(fields) == _KEYS and _is_common("system", *fields.values()):
        return _make(SystemMessage, fields, _KEY_SET)
    return None


def _tool(fields: dict[str, Any]) -> Any:
    if tuple(fields) != _TOOL_KEYS:
        return None
    *common, call_id, _, status = fields.values()
    if type(call_id) is str and type(status) is str and status in _STATUSES and _is_common("tool", *common):
        return _make(ToolMessage, fields, _TOOL_KEY_SET)
    return None


def _ai(fields: dict[str, Any]) -> Any:
    if tuple(fields) != _AI_KEYS:
        return None
    *common, calls, invalid, usage = fields.values()
    if (
        _is_common("ai", *common)
        and invalid == []
        and (usage is None or _is_usage(usage))
        and _are_tool_calls(calls, common[1])
    ):
        return _make(AIMessage, fields, _AI_KEY_SET)
    return None


def _is_common(
    expected: str, content: Any, kwargs: Any, response: Any, kind: Any, name: Any, own: Any
) -> bool:
    return (
        (type(content) is str or (type(content) is list and _PART.issuperset(map(type, content))))
        and type(kwargs) is dict
        and type(response) is dict
        and type(kind) is str
        and kind == expected
        and (name is None or type(name) is str)
        and (own is None or type(own) is str)
    )


def _make(cls: type[BaseMessage], fields: dict[str, Any], names: set[str]) -> Any:
    message = object.__new__(cls)
    SET_FIELDS(message, fields)
    SET_FIELDS_SET(message, names.copy())
    SET_EXTRA(message, {})
    SET_PRIVATE(message, None)
    return message


_STATUSES = ("success", "error")


def _are_tool_calls(calls: Any, kwargs: dict[Any, Any]) -> bool:
    if type(calls) is not list:
        return False
    if not calls:  # then the class's validator would parse what it finds here
        return "tool_calls" not in kwargs
    return all(map(_is_tool_call, calls))


_STR = {str}
_CALL_KEYS = ("name", "args", "id", "type")


def _is_tool_call(call: Any) -> bool:
    return (
        type(call) is dict
        and tuple(call) == _CALL_KEYS
        and type(call["name"]) is str
        and type(call["args"]) is dict
        and _STR.issuperset(map(type, call["args"]))
        and (call["id"] is None or type(call["id"]) is str)
        and type(call["type"]) is str
        and call["type"] == "tool_call"
    )


def _subsets(*keys: str) -> set[tuple[str, ...]]:
    """All ways to leave out some of these keys, in this order."""
    return {chosen for count in range(len(keys) + 1) for chosen in combinations(keys, count)}


_TOKENS = ("input_tokens", "output_tokens", "total_tokens")
_USAGE_SHAPES = {_TOKENS + details for details in _subsets("input_token_details", "output_token_details")}
_INPUT_SHAPES = _subsets("audio", "cache_creation", "cache_read")
_OUTPUT_SHAPES = _subsets("audio", "reasoning")
_INT = {int}
_NONE: dict[str, int] = {}


def _is_usage(usage: Any) -> bool:
    if type(usage) is not dict or tuple(usage) not in _USAGE_SHAPES:
        return False
    if len(usage) == 3:
        return _INT.issuperset(map(type, usage.values()))
    return (
        _INT.issuperset(type(usage[key]) for key in _TOKENS)
        and _is_detail(usage.get("input_token_details", _NONE), _INPUT_SHAPES)
        and _is_detail(usage.get("output_token_details", _NONE), _OUTPUT_SHAPES)
    )


def _is_detail(detail: Any, shapes: set[tuple[str, ...]]) -> bool:
    return type(detail) is dict and tuple(detail) in shapes and _INT.issuperset(map(type, detail.values()))


_BUILD: dict[type[BaseMessage], Callable[[dict[str, Any]], Any]] = {
    HumanMessage: _human,
    SystemMessage: _system,
    AIMessage: _ai,
    ToolMessage: _tool,
}

BUILDERS = {
    (cls.__module__, cls.__name__): build
    for cls, build in _BUILD.items()
    if _fits(cls) and (cls.__module__, cls.__name__) in SAFE_MSGPACK_TYPES
}
"""Per message class: the message of these fields, or None if pydantic must see them."""
