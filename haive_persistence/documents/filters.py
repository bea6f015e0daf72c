"""A search's `filter`, as a few conditions in SQL.

    {"color": "red", "by": {"id": 7}, "size": {"$gt": 9}}

becomes `value @> {"color": "red", "by": {"id": 7}}`, the fastest way to ask for equality, and the
jsonpath predicate `strict ($."size" > $v0)`. Fields and operands are bound parameters, always. Both
compare by type: numbers as numbers, texts as texts in code-point order, and things of different types
not at all, which for jsonpath is "unknown" and finds nothing. Only `$eq` and `$ne` with a list or a
dict, which neither can compare, are conditions of their own.

Semantics are `InMemoryStore`'s, made typed: a missing field equals None; a dict without operators
matches a dict that has at least these fields; a list matches a list of the same length, part by
part. A boolean is not a number, and "10" is neither less nor greater than 9.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from haive_persistence.documents.arrays import text_array
from haive_persistence.documents.values import check, comparable_json, escaped, quoted
from haive_persistence.errors import InvalidInputError

_ORDER = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_KNOWN = ("$eq", "$ne", *_ORDER)


Path = tuple["str | int", ...]


class Condition(NamedTuple):
    """One part `where_…` of store.sql and what is bound to it."""

    query: str
    path: str
    operand: str


def compile_filter(wanted: Any) -> list[Condition]:
    """The conditions that must all hold.

    Raises InvalidInputError for an operator that is unknown or given an operand it cannot use.
    """
    if not wanted:
        return []
    if not isinstance(wanted, Mapping):
        raise InvalidInputError(f"a filter is a dict of fields, not {type(wanted).__name__}")
    check(dict(wanted), "filter")
    compiled = _Compiler()
    for name, test in wanted.items():
        compiled.field((name,), test)
    return compiled.conditions()


Tree = dict[str, "Tree | str"]


class _Compiler:
    """Collects equalities, predicates and their operands, and what is neither."""

    def __init__(self) -> None:
        self._equalities: Tree = {}
        self._tests: list[str] = []
        self._operands: list[str] = []
        self._compound: list[Condition] = []

    def conditions(self) -> list[Condition]:
        conditions = []
        if self._equalities:
            conditions.append(Condition("where_contains", "", _object(self._equalities)))
        if self._tests:
            operands: Tree = {f"v{no}": operand for no, operand in enumerate(self._operands)}
            predicate = "strict " + " && ".join(self._tests)
            conditions.append(Condition("where_matches", predicate, _object(operands)))
        return conditions + self._compound

    def field(self, path: Path, test: Any) -> None:
        if isinstance(test, Mapping):
            self._dict(path, test)
        elif isinstance(test, list | tuple):
            at = _at(path)
            self._tests.append(f'({at}.type() == "array" && {at}.size() == {len(test)})')
            for no, part in enumerate(test):
                self.field((*path, no), part)
        else:
            self._operator(path, "$eq", test)

    def _dict(self, path: Path, test: Mapping[str, Any]) -> None:
        if any(key.startswith("$") for key in test):
            for operator, operand in test.items():
                self._operator(path, operator, operand)
            return
        if not self._contains(path, {}):
            self._tests.append(f'({_at(path)}.type() == "object")')
        for name, inner in test.items():
            self.field((*path, name), inner)

    def _contains(self, path: Path, leaf: Tree | str) -> bool:
        """Ask for equality by containment, which knows nothing of places in a list."""
        tree = self._equalities
        if any(isinstance(step, int) for step in path):
            return False
        *above, last = map(str, path)
        for step in above:
            inner = tree.setdefault(step, {})
            assert isinstance(inner, dict)  # a field is asked for once
            tree = inner
        tree.setdefault(last, leaf)
        return True

    def _operator(self, path: Path, operator: str, operand: Any) -> None:
        if operator not in _KNOWN:
            raise InvalidInputError(
                f"filter operator {operator!r} of {path[-1]!r} is unknown; there are {', '.join(_KNOWN)}"
            )
        if _has_nan(operand):  # which is equal, less and greater than nothing
            if operator != "$ne":
                self._tests.append("(1 == 0)")
            return
        if operator in _ORDER:
            if not isinstance(operand, str | int | float):
                raise InvalidInputError(
                    f"filter operator {operator!r} of {path[-1]!r} compares numbers, texts or booleans, "
                    f"not {type(operand).__name__}"
                )
            self._tests.append(f"({_at(path)} {_ORDER[operator]} {self._bind(operand)})")
        elif isinstance(operand, Mapping | list | tuple):
            steps = text_array(escaped(str(step)) for step in path)
            self._compound.append(Condition(f"where_{operator[1:]}", steps, comparable_json(operand)))
        elif operator == "$ne" or operand is None or not self._contains(path, comparable_json(operand)):
            self._tests.append(self._equal(_at(path), operand, unequal=operator == "$ne"))

    def _equal(self, at: str, operand: Any, *, unequal: bool) -> str:
        """A field that is missing, or of another type, makes a comparison unknown."""
        if operand is None:
            equal = f"(({at} == null) is unknown || {at} == null)"
            return f"(!{equal})" if unequal else equal
        equal = f"({at} == {self._bind(operand)})"
        return f"({equal} is unknown || !{equal})" if unequal else equal

    def _bind(self, operand: Any) -> str:
        self._operands.append(comparable_json(operand))
        return f"$v{len(self._operands) - 1}"


def _object(tree: Tree) -> str:
    parts = (
        f"{quoted(name)}:{inner if isinstance(inner, str) else _object(inner)}"
        for name, inner in tree.items()
    )
    return "{" + ",".join(parts) + "}"


def _at(path: Path) -> str:
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{quoted(step)}" for step in path)


def _has_nan(operand: Any) -> bool:
    if isinstance(operand, float):
        return math.isnan(operand)
    if isinstance(operand, Mapping):
        return any(map(_has_nan, operand.values()))
    return isinstance(operand, list | tuple) and any(map(_has_nan, operand))
