"""A search's `filter`, as conditions in SQL.

A filter is taken apart into conditions that each look at one place in the value. The condition's
text comes from `where_…` queries in store.sql; places and operands are bound parameters, always.
Semantics are `InMemoryStore`'s, made typed: a missing field equals None; a dict without operators
matches a dict that has at least these fields; a list matches a list of the same length. Numbers
are compared as numbers, texts as texts in code-point order; a boolean is not a number, and a value
of another type is neither less nor greater (InMemoryStore raises there, or compares "10" with 9).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from haive_persistence.errors import InvalidInputError
from haive_persistence.store.arrays import text_array
from haive_persistence.store.values import check, escaped, look_alike

_ORDER = {"$gt": "gt", "$gte": "gte", "$lt": "lt", "$lte": "lte"}
_KNOWN = ("$eq", "$ne", *_ORDER)


class Condition(NamedTuple):
    """One `where_…` query of store.sql and what is bound to it."""

    query: str
    path: str
    operand: str


def compile_filter(wanted: Mapping[str, Any] | None) -> list[Condition]:
    """The conditions that must all hold.

    Raises InvalidInputError for an operator that is unknown or given an operand it cannot use.
    """
    if not wanted:
        return []
    if not isinstance(wanted, Mapping):
        raise InvalidInputError(f"a filter is a dict of fields, not {type(wanted).__name__}")
    check(dict(wanted), "filter")
    return [condition for field, test in wanted.items() for condition in _field((field,), test)]


def _field(path: tuple[str, ...], test: Any) -> Iterator[Condition]:
    if isinstance(test, Mapping):
        if any(key.startswith("$") for key in test):
            for operator, operand in test.items():
                yield _operator(path, operator, operand)
        else:
            yield _condition("where_object", path, "")
            for field, inner in test.items():
                yield from _field((*path, field), inner)
    elif isinstance(test, list | tuple):
        yield _condition("where_list", path, str(len(test)))
        for no, inner in enumerate(test):
            yield from _field((*path, str(no)), inner)
    else:
        yield _operator(path, "$eq", test)


def _operator(path: tuple[str, ...], operator: str, operand: Any) -> Condition:
    if operator not in _KNOWN:
        raise InvalidInputError(
            f"filter operator {operator!r} of {path[-1]!r} is unknown; there are {', '.join(_KNOWN)}"
        )
    if _has_nan(operand):
        raise InvalidInputError(
            f"filter of {path[-1]!r}: NaN equals nothing, so nothing could be found by it"
        )
    if operator in ("$eq", "$ne"):
        return _condition(f"where_{operator[1:]}", path, look_alike(operand))
    if isinstance(operand, str):
        return _condition(f"where_text_{_ORDER[operator]}", path, escaped(operand))
    if isinstance(operand, bool):
        return _condition(f"where_boolean_{_ORDER[operator]}", path, look_alike(operand))
    if isinstance(operand, int | float):
        return _condition(f"where_number_{_ORDER[operator]}", path, look_alike(operand))
    raise InvalidInputError(
        f"filter operator {operator!r} of {path[-1]!r} compares numbers, texts or booleans, not {type(operand).__name__}"
    )


def _condition(query: str, path: tuple[str, ...], operand: str) -> Condition:
    return Condition(query, text_array(map(escaped, path)), operand)


def _has_nan(operand: Any) -> bool:
    if isinstance(operand, float):
        return math.isnan(operand)
    if isinstance(operand, Mapping):
        return any(map(_has_nan, operand.values()))
    return isinstance(operand, list | tuple) and any(map(_has_nan, operand))
