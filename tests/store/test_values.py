"""Values come back exactly as they were put, or are refused before anything is written."""

from __future__ import annotations

import json
import math
import struct
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from enum import Enum
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg.types.json import set_json_loads

from haive_persistence.db import Database
from haive_persistence.documents.values import comparable_json, decode, encode
from haive_persistence.errors import EncodeError, InvalidInputError
from haive_persistence.store import PostgresStore

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=[]), max_size=6)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), ANY_TEXT),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(ANY_TEXT, JSON, max_size=4)
AWKWARD = {
    "nul": "a\0b",
    "key\0": 1,
    "half": "\ud83d",
    "two halves": "\ud83d\ude00",
    "whole": "\U0001f600",
    "nan": math.nan,
    "infinities": [math.inf, -math.inf],
    "minus zero": -0.0,
    "a float": 1e16,
    "great": 1.7976931348623157e308,
    "tiny": 5e-324,
    "long": 10**4000,
    "escape": "\ufdd00000",
    "": "",
}


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, in type and in the order of keys: 1 is not 1.0, 0.0 is not -0.0, NaN is NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OBJECTS)
@example(AWKWARD)
@example({"minus zero": -0.0})
@example({"b": {"one": {"z": 1, "a": [{"d": 1, "c": 2}]}}, "a": 1})
def test_a_value_comes_back_exactly(store: PostgresStore, value: dict[str, Any]) -> None:
    store.put(("n",), "k", value)
    item = store.get(("n",), "k")
    assert item is not None
    assert same(item.value, value)
    (found,) = store.search(("n",))
    assert same(found.value, value)


@given(OBJECTS)
def test_encoding_loses_nothing(value: dict[str, Any]) -> None:
    encoded = encode(value)
    if encoded.exact_json is not None:
        assert same(decode(None, encoded.exact_json), value)
    assert "\\u0000" not in encoded.value
    encoded.value.encode()


@given(ANY_TEXT, ANY_TEXT)
def test_different_texts_look_different(one: str, other: str) -> None:
    assert (comparable_json(one) == comparable_json(other)) == (one == other)


def test_the_common_value_is_kept_once(store: PostgresStore, sql: Callable[..., Any]) -> None:
    store.put(
        ("n",), "plain", {"text": "grün \U0001f600 \\u0000 e+", "n": 1.5, "deep": {"er": [1, None, True]}}
    )
    store.put(("n",), "awkward", AWKWARD)
    kept = sql("SELECT key, exact_json IS NULL FROM haive.store_item WHERE tenant_id = %(tenant)s ORDER BY 1")
    assert kept == [("awkward", False), ("plain", True)]


class Colour(str, Enum):
    RED = "red"


def test_subclasses_come_back_as_json_has_them(store: PostgresStore) -> None:
    value = {"tuple": (1, (2,)), "enum": Colour.RED, "ordered": OrderedDict(b=1, a=2), "odd": "\0"}
    store.put(("n",), "k", value)
    store.put(("n",), "mapping", MappingProxyType({"a": 1}))
    item = store.get(("n",), "k")
    assert item is not None
    assert same(item.value, {"tuple": [1, [2]], "enum": "red", "ordered": {"b": 1, "a": 2}, "odd": "\0"})
    item = store.get(("n",), "mapping")
    assert item is not None
    assert item.value == {"a": 1}


def _endless() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"d": value}
    return value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"when": datetime(2026, 1, 1)}, r"value\['when'\] is a datetime, which is not JSON"),
        ({"a": [{"b": {1, 2}}]}, r"value\['a'\]\[0\]\['b'\] is a set"),
        ({"a": {1: "x"}}, r"value\['a'\] has the key 1: keys of a stored dict are text, write '1'"),
        ({"a": b"bytes"}, "is a bytes"),
        ({"a": _endless()}, "250 levels deep, or contains itself"),
        (_deep(400), "250 levels deep"),
        ([1, 2], "a store value is a dict with text keys, not list"),
        ("text", "not str"),
    ],
)
def test_what_is_no_json_is_refused(store: PostgresStore, trips: list[Any], value: Any, says: str) -> None:
    with pytest.raises(EncodeError, match=says):
        store.put(("n",), "k", value)
    assert not trips


def test_a_number_too_long_to_write_is_refused(store: PostgresStore, trips: list[Any]) -> None:
    with pytest.raises(InvalidInputError, match=r"limit \(4300( digits)?\)"):
        store.put(("n",), "k", {"n": 10**5000})
    assert not trips


def test_the_deepest_value_there_may_be(store: PostgresStore) -> None:
    value = _deep(249)
    store.put(("n",), "k", {"d": value, "odd": "\0"})
    item = store.get(("n",), "k")
    assert item is not None
    assert same(item.value, {"d": value, "odd": "\0"})


def test_one_bad_value_keeps_the_whole_batch_out(store: PostgresStore, trips: list[Any]) -> None:
    from langgraph.store.base import PutOp

    with pytest.raises(EncodeError):
        store.batch([PutOp(("n",), "good", {"a": 1}), PutOp(("n",), "bad", {"a": object()})])
    assert not trips
    assert store.get(("n",), "good") is None


def test_large_values(store: PostgresStore) -> None:
    value = {"text": 'x"\\' * 1_000_000, "list": list(range(50_000))}
    store.put(("n",), "k", value)
    item = store.get(("n",), "k")
    assert item is not None
    assert item.value == value


def test_what_the_application_makes_of_json_changes_nothing(database: Database) -> None:
    """`set_json_loads` is psycopg's, for the whole process."""
    set_json_loads(lambda text: json.loads(text, parse_float=Decimal))
    store = PostgresStore(Database(database.config).for_tenant(database.tenant))
    try:
        store.put(("n",), "k", {"price": 1.5})
        assert type(store.get(("n",), "k").value["price"]) is float  # type: ignore[union-attr]
    finally:
        set_json_loads(json.loads)
        store.close()
