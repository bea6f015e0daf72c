"""Equality as a user of stored state means it: types, NaN, -0.0, zones and the order of dicts count.

Not so which fields of a model were set and which defaulted: LangGraph's format does not hold it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict, deque
from enum import Enum
from typing import Any
from zoneinfo import ZoneInfo

from pydantic import BaseModel


def same(left: Any, right: Any, *, tuples: bool = True) -> bool:
    """Whether two values cannot be told apart; without `tuples` a tuple counts as a list."""
    return _form(left, tuples) == _form(right, tuples)


def _form(value: Any, tuples: bool) -> Any:
    """A value's form as nested tuples that compare exactly."""
    cls = type(value)
    if cls is tuple and not tuples:
        cls = list
    return (cls.__module__, cls.__qualname__, _parts(value, tuples))


def _parts(value: Any, tuples: bool) -> Any:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, float):
        return "nan" if math.isnan(value) else (value, math.copysign(1, value))
    if isinstance(value, BaseModel):
        return _model(value, tuples)
    if isinstance(value, (list, tuple)):
        return tuple(_form(part, tuples) for part in value)
    if isinstance(value, deque):
        return value.maxlen, tuple(_form(part, tuples) for part in value)
    if isinstance(value, BaseException):
        return _form(value.args, tuples), _form(vars(value), tuples)
    if isinstance(value, defaultdict):
        return value.default_factory, _parts(dict(value), tuples)
    if isinstance(value, dict):
        return tuple((_form(key, True), _form(part, tuples)) for key, part in value.items())
    if isinstance(value, (set, frozenset)):
        return frozenset(_form(part, True) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return tuple(_form(getattr(value, field.name), tuples) for field in dataclasses.fields(value))
    return _simple(value, tuples)


def _model(value: BaseModel, tuples: bool) -> Any:
    return _form(value.__dict__, tuples), _form(value.__pydantic_extra__, tuples)


def _simple(value: Any, tuples: bool) -> Any:
    if isinstance(value, int):
        return hex(value)
    if hasattr(value, "get_secret_value"):
        return value.get_secret_value()
    if hasattr(value, "tzinfo"):
        return repr(value.replace(tzinfo=None)), value.fold, _form(value.tzinfo, tuples)
    if isinstance(value, ZoneInfo):
        return value.key
    if isinstance(value, re.Pattern):
        return value.pattern, value.flags
    if hasattr(value, "__slots__") and not hasattr(value, "__dict__") and cls_slots(value):
        return tuple(_form(getattr(value, slot), tuples) for slot in cls_slots(value))
    return repr(value) if type(value).__module__ != "decimal" else str(value)


def cls_slots(value: Any) -> tuple[str, ...]:
    """The slots of LangGraph's own classes, which have no useful repr."""
    if not type(value).__module__.startswith("langgraph"):
        return ()
    return tuple(slot for slot in type(value).__slots__ if not slot.startswith("__"))
