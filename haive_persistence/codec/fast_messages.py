"""Builds LangChain messages from what `model_dump` wrote, without validating it a second time.

Validation is two thirds of the time it takes to read a thread (8 µs of a message's 11). For the four
ordinary message classes its outcome is known when every field already has exactly the type that the
class demands: pydantic then keeps each value, sets every field, and adds nothing. One function per
class checks exactly this and returns None when in doubt; pydantic then validates that message.

The fast way is taken for a class if its structure is the one these functions were written for, and if
messages built both ways at first use are the same. It does not depend on a release's number.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from itertools import combinations, repeat
from operator import methodcaller
from typing import Any, NamedTuple

import ormsgpack
from langchain_core.messages.ai import AIMessage
from langchain_core.messages.base import BaseMessage
from langchain_core.messages.human import HumanMessage
from langchain_core.messages.system import SystemMessage
from langchain_core.messages.tool import ToolMessage
from langgraph.checkpoint.serde._msgpack import SAFE_MSGPACK_TYPES
from langgraph.checkpoint.serde.jsonplus import EXT_PYDANTIC_V2

from haive_persistence.codec.model_builder import SET_EXTRA, SET_FIELDS, SET_FIELDS_SET, SET_PRIVATE

logger = logging.getLogger("haive_persistence.codec")

_Build = Callable[[dict[str, Any]], Any]
_Key = tuple[str, str]  # of a class: its module and name


class MessageGroup(NamedTuple):
    """Messages of one class: their places among others, and their fields as msgpack."""

    places: list[int]
    cls: _Key
    fields: list[bytes]


_METHOD_PACKED = ormsgpack.packb("model_validate_json")  # which LangGraph names beside the fields
_ENDS_WITH_METHOD = methodcaller("endswith", _METHOD_PACKED)
_ONE, _EXT_8, _EXT_16 = b"\x91", b"\xc7", b"\xc8"  # a list of one; an extension of up to 255 bytes, or 64 kB
_FOUR = b"\x94"  # module, name, fields and method

_TEXT, _MAYBE = "<class 'str'>", "str | None"
_COMMON = {
    "content": "str | list[str | dict]",
    "additional_kwargs": "dict",
    "response_metadata": "dict",
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
"""Per class: its fields with their annotations, in order, and its model validators."""


def _difference(cls: type[BaseMessage]) -> str | None:
    """The first difference of a class's structure from the one the functions below were written for."""
    fields, validators = _SHAPES[cls]
    decorators = cls.__pydantic_decorators__
    checks = {
        "fields": list(_annotations(cls).items()) == list(fields.items()),
        "model validators": set(decorators.model_validators) == validators,
        "field validators": not (
            decorators.field_validators or decorators.validators or decorators.root_validators
        ),
        "model_post_init": cls.__pydantic_post_init__ is None,
        "private attributes": not cls.__private_attributes__,
        "__new__": cls.__new__ is object.__new__,
        "model_config": cls.model_config == {"extra": "allow"},
    }
    return next((name for name, fits in checks.items() if not fits), None)


def _annotations(cls: type[BaseMessage]) -> dict[str, str]:
    """Annotations as text; `dict` is short for `dict[Any, Any]`, as releases write either."""
    return {
        name: "dict"
        if field.annotation is dict
        else str(field.annotation).replace("dict[typing.Any, typing.Any]", "dict")
        for name, field in cls.model_fields.items()
    }


# --- the checks: exact types only, since pydantic converts or copies anything else -------------

_KEYS = tuple(_COMMON)
_AI_KEYS = (*_KEYS, "tool_calls", "invalid_tool_calls", "usage_metadata")
_TOOL_KEYS = (*_KEYS, "tool_call_id", "artifact", "status")
_KEY_SET, _AI_KEY_SET, _TOOL_KEY_SET = set(_KEYS), set(_AI_KEYS), set(_TOOL_KEYS)
_PART = {str, dict}


def _is_human(fields: dict[str, Any]) -> bool:
    return tuple(fields) == _KEYS and _is_common("human", *fields.values())


def _is_system(fields: dict[str, Any]) -> bool:
    return tuple(fields) == _KEYS and _is_common("system", *fields.values())


def _is_tool(fields: dict[str, Any]) -> bool:
    if tuple(fields) != _TOOL_KEYS:
        return False
    *common, call_id, _, status = fields.values()
    return (
        type(call_id) is str and type(status) is str and status in _STATUSES and _is_common("tool", *common)
    )


def _is_ai(fields: dict[str, Any]) -> bool:
    if tuple(fields) != _AI_KEYS:
        return False
    *common, calls, invalid, usage = fields.values()
    return (
        _is_common("ai", *common)
        and invalid == []
        and (usage is None or _is_usage(usage))
        and _are_tool_calls(calls, common[1])
    )


def _human(fields: dict[str, Any]) -> Any:
    return _make(HumanMessage, fields, _KEY_SET) if _is_human(fields) else None


def _system(fields: dict[str, Any]) -> Any:
    return _make(SystemMessage, fields, _KEY_SET) if _is_system(fields) else None


def _tool(fields: dict[str, Any]) -> Any:
    return _make(ToolMessage, fields, _TOOL_KEY_SET) if _is_tool(fields) else None


def _ai(fields: dict[str, Any]) -> Any:
    return _make(AIMessage, fields, _AI_KEY_SET) if _is_ai(fields) else None


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


class _FieldSets(threading.local):
    def __init__(self) -> None:
        self.by_class: dict[type, set[str]] = {}


_field_sets = _FieldSets()


def begin_value() -> None:
    """Give the messages that are read from now on sets of their own, which say that all fields are set.

    Those of one value share them: each takes as much memory as all else of a short message. An assignment
    adds at most the name of an extra, which `model_fields_set` of the others then has too.
    """
    _field_sets.by_class = {}


def _fields_set(cls: type[BaseMessage], names: Iterable[str]) -> set[str]:
    by_class = _field_sets.by_class
    if cls not in by_class:
        by_class[cls] = set(names)
    return by_class[cls]


def _make(cls: type[BaseMessage], fields: dict[str, Any], names: set[str]) -> Any:
    message = object.__new__(cls)
    SET_FIELDS(message, fields)
    SET_FIELDS_SET(message, _fields_set(cls, names))
    SET_EXTRA(message, {})
    SET_PRIVATE(message, None)
    return message


_STATUSES = ("success", "error")
_NULLABLE_TEXT = {str, type(None)}


def split_messages(parts: Sequence[bytes], prefix: bytes) -> list[MessageGroup] | None:
    """Lists with one message each, by class; None if one is anything else. No field is looked at.

    Each part begins with `prefix`.
    """
    at = len(prefix)
    places: dict[tuple[bytes, bytes], list[int]] = {}
    heads: list[bytes] = []
    for place, part in enumerate(parts):
        list_of_one = part[: at + 2]
        code = at + 4 if list_of_one.endswith(_EXT_16) else at + 3
        group = list_of_one, part[code : code + _LONGEST_HEAD]
        try:
            places[group].append(place)
        except KeyError:
            head = next((head for head in _HEADS if group[1].startswith(head)), None)
            if head is None or list_of_one not in (prefix + _ONE + _EXT_8, prefix + _ONE + _EXT_16):
                return None
            heads.append(head)
            places[group] = [place]
    groups: list[MessageGroup] = []
    for head, ((list_of_one, _), of_kind) in zip(heads, places.items(), strict=True):
        width = 2 if list_of_one.endswith(_EXT_16) else 1
        fields = _packed_fields([parts[place] for place in of_kind], at + 2, width, head)
        if fields is None:
            return None
        groups.append(MessageGroup(of_kind, _HEADS[head], fields))
    return groups


def _packed_fields(parts: list[bytes], at: int, width: int, head: bytes) -> list[bytes] | None:
    """The packed fields of messages of one class. Their size stands at `at`, in `width` bytes."""
    code = at + width
    sizes = [int.from_bytes(part[at:code], "big") + code + 1 for part in parts]
    if sizes != list(map(len, parts)) or not all(map(_ENDS_WITH_METHOD, parts)):
        return None
    start = code + len(head)
    return [part[start : -len(_METHOD_PACKED)] for part in parts]


def build_all(key: _Key, fields: list[Any]) -> list[Any] | None:
    """Build messages of one class from their fields; None if pydantic must see one of them."""
    if _types(fields) != {dict}:
        return None
    if (build := BUILDERS.get(key)) not in _PROVABLE and build is not None:
        build(fields[0])  # which proves the fast way, and puts it in place
        build = BUILDERS.get(key)
    if build is None:
        return None
    made = _make_all(build, fields) or list(map(build, fields))
    return made if all(message is not None for message in made) else None


def _make_all(build: _Build, fields: list[dict[str, Any]]) -> list[Any] | None:
    """The messages of these fields, if all of them are as most are. Checked and made column by column."""
    found = _PLAIN.get(build)
    if found is None or _types(fields) != {dict}:
        return None
    cls, keys, kind = found
    if set(map(tuple, fields)) != {keys}:
        return None
    content, kwargs, response, kinds, names, ids, *more = zip(*map(dict.values, fields), strict=True)
    if not (
        _types(content) == _types(kinds) == _STR
        and _types(kwargs) == _types(response) == {dict}
        and set(kinds) == {kind}
        and _NULLABLE_TEXT.issuperset(_types(names) | _types(ids))
        and (not more or _are_plain_replies(kwargs, *more))
    ):
        return None
    made = list(map(object.__new__, repeat(cls, len(fields))))
    _each(map(SET_FIELDS, made, fields))
    _each(map(SET_FIELDS_SET, made, repeat(_fields_set(cls, keys))))
    _each(map(SET_EXTRA, made, [{} for _ in made]))
    _each(map(SET_PRIVATE, made, repeat(None)))
    return made


def _types(values: Iterable[Any]) -> set[type]:
    return set(map(type, values))


def _are_plain_replies(kwargs: Any, calls: Any, invalid: Any, usage: Any) -> bool:
    return (
        _types(calls) == _types(invalid) == {list}
        and _types(usage) == {type(None)}
        and not any(map(any, (kwargs, calls, invalid)))
    )


_each = deque[None](maxlen=0).extend


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


# --- the proof at first use -------------------------------------------------------------------

_CONTENTS: tuple[Any, ...] = ("", "text", [], ["a", {"type": "text", "text": "b", "deep": [{"c": None}]}])
_KWARGS: tuple[Any, ...] = ({}, {"refusal": None, "deep": {"list": [1, {"a": 2.5}]}})
_CALLS: tuple[Any, ...] = (
    [],
    [{"name": "f", "args": {"x": 1, "y": [{"z": None}]}, "id": "c", "type": "tool_call"}],
    [{"name": "f", "args": {}, "id": None, "type": "tool_call"}] * 2,
)


def _usages() -> Iterator[dict[str, Any] | None]:
    yield None
    for details in _subsets("input_token_details", "output_token_details"):
        for inputs in _INPUT_SHAPES:
            for outputs in _OUTPUT_SHAPES:
                values = {
                    "input_token_details": dict.fromkeys(inputs, 1),
                    "output_token_details": dict.fromkeys(outputs, 2),
                }
                yield {**dict.fromkeys(_TOKENS, 3), **{name: values[name] for name in details}}


def _samples(cls: type[BaseMessage]) -> Iterator[dict[str, Any]]:
    """Fields, as stored, of every form that the fast way of this class takes."""
    kind = cls.model_fields["type"].default
    base: dict[str, Any] = {
        "content": "text",
        "additional_kwargs": {},
        "response_metadata": {},
        "type": kind,
        "name": None,
        "id": None,
    }
    more: dict[type, dict[str, Any]] = {
        AIMessage: {"tool_calls": [], "invalid_tool_calls": [], "usage_metadata": None},
        ToolMessage: {"tool_call_id": "c", "artifact": None, "status": "success"},
    }
    base |= more.get(cls, {})
    choices: dict[str, tuple[Any, ...]] = {
        "content": _CONTENTS,
        "additional_kwargs": _KWARGS,
        "response_metadata": _KWARGS,
        "name": ("n",),
        "id": ("i",),
        "tool_calls": _CALLS,
        "usage_metadata": tuple(_usages()),
        "artifact": ("text", {"rows": [[1, 2], {"a": None}]}, [1, (2,)]),
        "status": _STATUSES,
    }
    for name in base.keys() & choices.keys():
        for value in choices[name]:
            yield {**base, name: value}


def _is_same(one: Any, other: Any) -> bool:
    """True if two values are equal, type by type and in the same order."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)


def _is_proven(cls: type[BaseMessage], build: _Build) -> bool:
    """True if the fast way builds what validation builds, for every sample."""
    for fields in _samples(cls):
        fast, validated = build(deepcopy(fields)), cls(**deepcopy(fields))
        if fast is None or not (
            _is_same(vars(fast), vars(validated))
            and _is_same(fast.__pydantic_fields_set__, validated.__pydantic_fields_set__)
            and _is_same(fast.__pydantic_extra__, validated.__pydantic_extra__)
            and fast.__pydantic_private__ is validated.__pydantic_private__ is None
        ):
            return False
    return True


def _reason(cls: type[BaseMessage], build: _Build) -> str | None:
    """Why the fast way cannot be taken for a class, or None."""
    try:
        if (different := _difference(cls)) is not None:
            return f"its {different} changed"
        return None if _is_proven(cls, build) else "its validation changed"
    except Exception as exc:  # whatever a later release does: the ordinary way is always right
        return f"it could not be compared ({type(exc).__name__})"


def _prove_first(key: _Key, cls: type[BaseMessage], build: _Build) -> _Build:
    """A stand-in for `build` that at its first call puts `build` in its own place, or nothing."""

    def first(fields: dict[str, Any]) -> Any:
        reason = _reason(cls, build)
        if reason is None:
            BUILDERS[key] = build
            return build(fields)
        if BUILDERS.pop(key, None) is not None:
            text = "Reading each %s with validation, which takes three times as long: %s. Upgrade %s."
            logger.warning(text, cls.__name__, reason, "haive-persistence")
        return None

    return first


_BUILD: dict[type[BaseMessage], _Build] = {
    HumanMessage: _human,
    SystemMessage: _system,
    AIMessage: _ai,
    ToolMessage: _tool,
}

_PLAIN: dict[_Build, tuple[type[BaseMessage], tuple[str, ...], str]] = {
    _human: (HumanMessage, _KEYS, "human"),
    _system: (SystemMessage, _KEYS, "system"),
    _ai: (AIMessage, _AI_KEYS, "ai"),
}

_PROVABLE = frozenset(_BUILD.values())

BUILDERS: dict[_Key, _Build] = {}
"""Per message class: the message of these fields, or None if pydantic must see them."""

for _cls, _build in _BUILD.items():
    if (_key := (_cls.__module__, _cls.__name__)) in SAFE_MSGPACK_TYPES:
        BUILDERS[_key] = _prove_first(_key, _cls, _build)

_HEADS: dict[bytes, _Key] = {
    bytes((EXT_PYDANTIC_V2,)) + _FOUR + b"".join(map(ormsgpack.packb, key)): key for key in BUILDERS
}
"""How an extension begins that holds a message, without its size."""
_LONGEST_HEAD = max(map(len, _HEADS), default=0)

ORDINARY: dict[type, Callable[[dict[str, Any]], bool]] = {
    HumanMessage: _is_human,
    SystemMessage: _is_system,
    AIMessage: _is_ai,
    ToolMessage: _is_tool,
}
"""Per message class: True if validating these fields gives a message with exactly these fields."""
