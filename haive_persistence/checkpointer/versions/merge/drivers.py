"""Merge drivers: how a channel merges, read from a compiled graph's reducers."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any, Literal, get_args

from langchain_core.messages.base import BaseMessage

from haive_persistence.checkpointer.versions.merge.policy import Resolver
from haive_persistence.checkpointer.versions.merge.three_way import Path, ThreeWay
from haive_persistence.checkpointer.versions.merge.values import MISSING, same, token
from haive_persistence.errors import InvalidInputError

DriverName = Literal["shape", "messages", "add", "reduced", "pending", "ours", "opaque"]
Driver = DriverName | Resolver
"""A driver's name, or a callable that takes base, ours, theirs and the path and returns the merged value."""
Drivers = Mapping[str, Driver]

NAMES = frozenset(get_args(DriverName))
_NUMBERS = frozenset({int, float, complex, Decimal, Fraction, timedelta})


def drivers_of(graph: Any) -> dict[str, Driver]:
    """The driver of each channel of a compiled graph, by the channel's class and reducer.

    Args:
        graph: A compiled LangGraph graph, of any supported release.

    Returns:
        A driver per channel name, to change and pass as `drivers`.

    Raises:
        InvalidInputError: It has no channels; pass the result of `StateGraph.compile()`.
    """
    channels = getattr(graph, "channels", None)
    if not isinstance(channels, Mapping):
        raise InvalidInputError(f"graph must be a compiled LangGraph graph, not {type(graph).__name__}")
    return {name: _driver_of(channel) for name, channel in channels.items() if class_names(channel)}


def class_names(channel: Any) -> list[str]:
    """The names of LangGraph's channel classes that a channel is of, the nearest first."""
    mro = type(channel).__mro__
    return [cls.__name__ for cls in mro if cls.__module__.startswith("langgraph.channels.")]


def _driver_of(channel: Any) -> Driver:
    match class_names(channel)[0]:
        case "BinaryOperatorAggregate":
            return _driver_of_reducer(channel.operator)
        case "DeltaChannel":
            return _driver_of_reducer(channel.reducer)
        case "Topic":
            return "add" if channel.accumulate else "pending"
        case "EphemeralValue" | "NamedBarrierValue" | "NamedBarrierValueAfterFinish" | "LastValueAfterFinish":
            return "pending"
        case "UntrackedValue":
            return "ours"
        case _:
            return "shape"


def _driver_of_reducer(reducer: Any) -> Driver:
    while isinstance(reducer, partial):
        reducer = reducer.func
    if reducer in (operator.add, operator.iadd, operator.concat, operator.iconcat):
        return "add"
    if reducer is max or reducer is min:
        return partial(_extreme, reducer)
    module, name = (getattr(reducer, part, None) or "" for part in ("__module__", "__name__"))
    return "messages" if module.startswith("langgraph.") and "messages" in name else "reduced"


def _extreme(reducer: Callable[[Any, Any], Any], base: Any, ours: Any, theirs: Any, path: Path) -> Any:
    return reducer(ours, theirs)


def drive(merge: ThreeWay, driver: Driver, base: Any, ours: Any, theirs: Any, path: Path) -> Any:
    """The merged value of a channel by its driver, MISSING if it has none."""
    if same(base, ours):
        return theirs
    if same(base, theirs):
        return ours
    if driver == "ours":
        return ours
    if ours is MISSING or theirs is MISSING:
        if driver == "pending":
            return theirs if ours is MISSING else ours
        return merge.value(base, ours, theirs, path)
    if callable(driver):
        return _call(merge, driver, base, ours, theirs, path)
    if driver == "opaque" and not same(ours, theirs):
        return merge.conflict("add/add" if base is MISSING else "edit/edit", base, ours, theirs, path)
    if driver in ("add", "reduced"):
        merged = _added(merge, base, ours, theirs, path, numbers=driver == "add")
    else:
        merged = pending(base, ours, theirs) if driver == "pending" else MISSING
    return merge.value(base, ours, theirs, path) if merged is MISSING else merged


def _call(merge: ThreeWay, driver: Resolver, base: Any, ours: Any, theirs: Any, path: Path) -> Any:
    try:
        return driver(base, ours, theirs, path)
    except Exception as exc:  # a driver is a user's: its failure must not block a run
        return merge.conflict("driver", base, ours, theirs, path, detail=f"{type(exc).__name__}: {exc}")


def _added(merge: ThreeWay, base: Any, ours: Any, theirs: Any, path: Path, *, numbers: bool) -> Any:
    """The base with what both sides added; MISSING if that is not how they came about."""
    cls = type(ours)
    if cls is not type(theirs):
        return MISSING
    known = base if type(base) is cls else MISSING
    if cls in _NUMBERS:
        if not numbers or (known is MISSING and base is not MISSING):
            return MISSING
        return _sum(cls, ours, theirs, cls() if known is MISSING else known)
    if cls not in (list, tuple, str):
        return MISSING
    before = cls() if known is MISSING else known
    if isinstance(ours, list) and all(isinstance(item, BaseMessage) for item in (*ours, *theirs)):
        merged = merge.items(list(before), ours, theirs, path)
        if merged is not None:
            return merged[0]
    if _begins(ours, before) and _begins(theirs, before):
        return ours + theirs[len(before) :]
    return MISSING


def _sum(cls: type, ours: Any, theirs: Any, base: Any) -> Any:
    if cls is float and all(map(math.isfinite, (ours, theirs, base))):
        return math.fsum((ours, theirs, -base))  # rounded once: the same, whichever side is ours
    return ours + theirs - base


def _begins(whole: Any, start: Any) -> bool:
    return len(whole) >= len(start) and same(whole[: len(start)], start)


def pending(base: Any, ours: Any, theirs: Any) -> Any:
    """The items pending on either side: lists and sets put together; MISSING for anything else.

    Of equal items as many are taken as the side with more of them has.
    """
    if same(ours, theirs):
        return ours
    if type(ours) is not type(theirs):
        return MISSING
    if isinstance(ours, (set, frozenset)):
        before = base if type(base) is type(ours) else type(ours)()
        return (ours & theirs) | (ours - before) | (theirs - before)
    if type(ours) is not list:
        return MISSING
    known = Counter(map(token, ours))
    merged = list(ours)
    for item in theirs:
        key = token(item)
        known[key] -= 1
        if known[key] < 0:
            merged.append(item)
    return merged
