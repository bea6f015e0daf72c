"""Filters find what InMemoryStore finds, by type, and nothing gets into the SQL."""

from __future__ import annotations

import math
import uuid
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from langgraph.store.memory import InMemoryStore

from haive_persistence.db import Database
from haive_persistence.errors import EncodeError, InvalidInputError
from haive_persistence.store import PostgresStore

FIELDS = st.sampled_from(["a", "b", "", "a.b", "v0", '"', "\\", "é", "nul\0", "\ud800", "%s", "{", "0"])
# A boolean is no number here, and Python's True == 1: neither 0 nor 1 occurs as a number.
NUMBERS = st.one_of(
    st.integers(2, 12),
    st.integers(-(10**30), -2),
    st.floats(allow_nan=False).filter(lambda number: number not in (0, 1)),
    st.just(10**400),
)
TEXTS = st.one_of(st.text(max_size=4), st.sampled_from(["9", "10", "Z", "a", "ä", "\ufdd0", "\0", "\udfff"]))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=3),
    max_leaves=6,
)
ITEMS = st.lists(st.dictionaries(FIELDS, VALUES, max_size=4), min_size=1, max_size=6)


@st.composite
def _questions(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Items, and a filter made of parts of theirs and of other things."""
    items = draw(ITEMS)
    parts = [part for item in items for part in item.values()] or [None]
    value = st.one_of(st.sampled_from(parts), VALUES)
    test = st.one_of(value, st.dictionaries(st.sampled_from(["$eq", "$ne"]), value, min_size=1))
    return items, draw(
        st.dictionaries(FIELDS, st.one_of(test, st.dictionaries(FIELDS, test, max_size=2)), max_size=3)
    )


def _found(store: Any, items: list[dict[str, Any]], wanted: dict[str, Any]) -> set[str]:
    for no, item in enumerate(items):
        store.put(("n",), str(no), item)
    return {item.key for item in store.search(("n",), filter=wanted, limit=100)}


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_questions())
@example(([{"a": 1.5}, {}, {"a": None}], {"a": None}))
@example(([{"a": 2}, {}, {"a": "2"}], {"a": {"$ne": 2}}))
@example(([{"a": [2, {"b": 3}]}, {"a": [2]}, {"a": 2}], {"a": [2, {"b": {"$ne": 4}}]}))
@example(([{"a": {"b": 2, "c": 3}}, {"a": {"b": 2}}], {"a": {"$eq": {"b": 2}}}))
@example(([{"a": {"0": 2}}, {"a": [2]}], {"a": {"0": 2}}))
@example(([{"a": "\0"}, {"a": "\ufdd00000"}, {"a": "0000"}], {"a": "\0"}))
@example(([{"a": float("inf")}, {"a": 1e308}, {"a": 10**400}], {"a": float("inf")}))
@example(([{"a": -0.0}, {"a": 2}], {"a": 0.0}))
def test_equality_is_that_of_the_store_in_memory(database: Database, case: Any) -> None:
    items, wanted = case
    store = PostgresStore(database.for_tenant(uuid.uuid4().hex))
    assert _found(store, items, wanted) == _found(InMemoryStore(), items, wanted)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NUMBERS, min_size=1, max_size=8), NUMBERS, st.sampled_from(["$gt", "$gte", "$lt", "$lte"]))
def test_numbers_are_ordered_as_numbers(
    database: Database, numbers: list[Any], bound: Any, operator: str
) -> None:
    compare = {
        "$gt": lambda n: n > bound,
        "$gte": lambda n: n >= bound,
        "$lt": lambda n: n < bound,
        "$lte": lambda n: n <= bound,
    }
    store = PostgresStore(database.for_tenant(uuid.uuid4().hex))
    found = _found(store, [{"n": number} for number in numbers], {"n": {operator: bound}})
    assert found == {str(no) for no, number in enumerate(numbers) if compare[operator](number)}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=3), min_size=1, max_size=8), st.text(max_size=3))
def test_texts_are_ordered_by_code_point(database: Database, texts: list[str], bound: str) -> None:
    store = PostgresStore(database.for_tenant(uuid.uuid4().hex))
    found = _found(store, [{"t": text} for text in texts], {"t": {"$gte": bound}})
    plain = "\0\ufdd0"
    if not any(c in text for c in plain for text in [*texts, bound]):
        assert found == {str(no) for no, text in enumerate(texts) if text >= bound}


def test_nine_is_less_than_ten(store: PostgresStore) -> None:
    """The incumbent returned 28 for the first and 4 for the second: it compared texts (langgraph #7684)."""
    for number in range(30):
        store.put(("n",), str(number), {"n": number, "flag": number % 2 == 0, "text": str(number)})
    assert len(store.search(("n",), filter={"n": {"$gte": 10}}, limit=100)) == 20
    assert len(store.search(("n",), filter={"n": {"$gt": 5}}, limit=100)) == 24
    assert len(store.search(("n",), filter={"n": {"$gt": 5, "$lte": 7.5}}, limit=100)) == 2
    assert len(store.search(("n",), filter={"text": {"$gt": "5"}}, limit=100)) == 4
    assert len(store.search(("n",), filter={"flag": {"$gt": False}}, limit=100)) == 15


def test_things_of_different_types_are_not_ordered(store: PostgresStore) -> None:
    for no, value in enumerate(["10", 10, True, None, [10], {"a": 10}]):
        store.put(("n",), str(no), {"v": value})
    store.put(("n",), "missing", {})
    assert [item.key for item in store.search(("n",), filter={"v": {"$gt": 9}})] == ["1"]
    assert [item.key for item in store.search(("n",), filter={"v": {"$gt": "1"}})] == ["0"]
    assert [item.key for item in store.search(("n",), filter={"v": 1})] == []


def test_nan_equals_nothing(store: PostgresStore) -> None:
    store.put(("n",), "nan", {"a": math.nan})
    store.put(("n",), "one", {"a": 1})
    for wanted in (math.nan, {"$eq": math.nan}, {"$gte": math.nan}, {"$lt": math.nan}, [math.nan]):
        assert store.search(("n",), filter={"a": wanted}) == []
    for unwanted in (math.nan, {"b": [math.nan]}):
        assert len(store.search(("n",), filter={"a": {"$ne": unwanted}})) == 2
    assert [item.key for item in store.search(("n",), filter={"a": {"$gt": -math.inf}})] == ["one"]


def test_nested_fields_take_operators(store: PostgresStore) -> None:
    store.put(("n",), "old", {"born": {"year": 1999, "place": "Ulm"}})
    store.put(("n",), "new", {"born": {"year": 2010, "place": "Ulm"}})
    store.put(("n",), "other", {"born": "2010"})
    wanted = {"born": {"place": "Ulm", "year": {"$gte": 2000}}}
    assert [item.key for item in store.search(("n",), filter=wanted)] == ["new"]
    assert len(store.search(("n",), filter={"born": {"year": {"$ne": 2010}}})) == 1


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"a": {"$regex": "x"}}, r"'\$regex' of 'a' is unknown; there are \$eq"),
        ({"a": {"$eq": 1, "b": 2}}, "'b' of 'a' is unknown"),
        ({"a": {"$gt": None}}, "compares numbers, texts or booleans, not NoneType"),
        ({"a": {"$lt": [1]}}, "not list"),
        (["a"], "a filter is a dict of fields, not list"),
    ],
)
def test_what_cannot_be_asked_is_said(store: PostgresStore, wanted: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        store.search(("n",), filter=wanted)


def test_a_filter_that_is_no_json_is_refused(store: PostgresStore) -> None:
    with pytest.raises(EncodeError, match=r"filter\['a'\] is a object, which is not JSON"):
        store.search(("n",), filter={"a": object()})


@pytest.mark.parametrize(
    "attack", ["') OR true --", '" == 1 || true', "a'; DROP TABLE store_item; --", "$.*", "%(x)s"]
)
def test_fields_and_operands_are_never_code(store: PostgresStore, attack: str) -> None:
    store.put(("n",), "innocent", {"a": 1})
    store.put(("n",), "named", {attack: attack})
    assert store.search(("n",), filter={attack: 1}) == []
    assert store.search(("n",), filter={"a": {"$gt": attack}}) == []
    assert [item.key for item in store.search(("n",), filter={attack: attack})] == ["named"]
    assert [item.key for item in store.search(("n",), filter={attack: {"$eq": attack}})] == ["named"]


def test_a_dict_in_a_list_matches_dicts_only(store: PostgresStore) -> None:
    """A missing field equals None, but what is no dict has no fields to miss."""
    for key, part in {"number": 5, "text": "t", "list": [1], "null": None, "dict": {"x": 1}}.items():
        store.put(("n",), key, {"a": [part]})
    for wanted in ({"a": [{}]}, {"a": [{"b": None}]}, {"a": [{"b": {"$ne": 1}}]}):
        assert [item.key for item in store.search(("n",), filter=wanted)] == ["dict"], wanted
