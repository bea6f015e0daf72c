"""Namespaces are matched by whole labels, and listed as they are now."""

from __future__ import annotations

import enum
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from langgraph.store.base import GetOp, ListNamespacesOp, MatchCondition, PutOp
from langgraph.store.memory import InMemoryStore

from haive_persistence.db import Database
from haive_persistence.documents.namespaces import from_text, scope, to_text
from haive_persistence.errors import InvalidIdentifierError, InvalidInputError
from haive_persistence.store import PostgresStore

LABELS = st.one_of(
    st.sampled_from(
        ["a", "b", "ab", "a_b", "a%", "_", "%", "*", "a-", "a!", "a/", "\\", "a\n", "A", "\x01", "\U0010ffff"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters=".\0"), min_size=1, max_size=3),
)
NAMESPACES = st.lists(LABELS, min_size=1, max_size=4).map(tuple)


@given(NAMESPACES, NAMESPACES)
def test_a_scope_is_what_begins_with_these_labels(
    prefix: tuple[str, ...], namespace: tuple[str, ...]
) -> None:
    assert from_text(to_text(namespace)) == namespace
    low, high = (bound.encode() for bound in scope(prefix))
    assert (low <= to_text(namespace).encode() < high) == (namespace[: len(prefix)] == prefix)
    low, high = (bound.encode() for bound in scope(()))
    assert low <= to_text(namespace).encode() < high


def _conditions(draw: st.DrawFn, namespaces: list[tuple[str, ...]]) -> tuple[MatchCondition, ...]:
    path = st.sampled_from(namespaces).flatmap(
        lambda ns: st.tuples(
            *(st.sampled_from([label, "*"]) for label in ns[: draw(st.integers(1, len(ns)))])
        )
    )
    kinds = st.sampled_from(["prefix", "suffix"])
    return tuple(MatchCondition(draw(kinds), draw(path)) for _ in range(draw(st.integers(0, 2))))


@st.composite
def _listings(draw: st.DrawFn) -> tuple[list[tuple[str, ...]], ListNamespacesOp]:
    namespaces = draw(st.lists(NAMESPACES, min_size=1, max_size=12))
    depth = draw(st.none() | st.integers(1, 4))
    return namespaces, ListNamespacesOp(_conditions(draw, namespaces), depth, 1000)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_listings())
@example(([("a",), ("a", "b", "c"), ("a", "b"), ("a-",)], ListNamespacesOp(None, 2, 1000)))
@example(
    (
        [("users", "alice"), ("users", "alice\n"), ("users", "malice")],
        ListNamespacesOp((MatchCondition("suffix", ("alice",)),), None, 1000),
    )
)
@example(
    (
        [("a", "b"), ("a", "b", "a")],
        ListNamespacesOp(
            (MatchCondition("prefix", ("a", "b")), MatchCondition("suffix", ("a",))), None, 1000
        ),
    )
)
def test_listing_is_that_of_the_store_in_memory(database: Database, case: Any) -> None:
    namespaces, op = case
    ours, theirs = PostgresStore(database.for_tenant(uuid.uuid4().hex)), InMemoryStore()
    puts = [PutOp(namespace, "k", {}) for namespace in namespaces]
    ours.batch(puts)
    theirs.batch(puts)
    (expected,) = theirs.batch([op])
    (found,) = ours.batch([op])
    assert isinstance(found, list)
    assert isinstance(expected, list)
    assert found == sorted(expected, key=lambda namespace: to_text(namespace).encode())  # type: ignore[arg-type]
    pages = [ours.batch([op._replace(limit=3, offset=offset)])[0] for offset in range(0, 15, 3)]
    assert [namespace for page in pages for namespace in page] == found  # type: ignore[union-attr]


def test_a_prefix_ends_at_a_label(store: PostgresStore) -> None:
    """GHSA-47pj-3jcm-6whg: ('user_1',) also read 'user_12', and 'userX1'."""
    for namespace in [
        ("user_1",),
        ("user_1", "docs"),
        ("user_12",),
        ("userX1",),
        ("user%1",),
        ("user",),
        ("USER_1",),
    ]:
        store.put(namespace, "k", {"of": list(namespace)})
    assert {item.namespace for item in store.search(("user_1",))} == {("user_1",), ("user_1", "docs")}
    assert {item.namespace for item in store.search(("user",))} == {("user",)}
    assert store.search(("use",)) == store.search(("user_",)) == store.search(("%",)) == []
    assert store.list_namespaces(prefix=("user_1",)) == [("user_1",), ("user_1", "docs")]
    assert store.list_namespaces(suffix=("user_1",)) == [("user_1",)]
    assert store.get(("user%",), "k") is None


def test_a_namespace_is_listed_while_it_holds_an_item(store: PostgresStore, sql: Callable[..., Any]) -> None:
    store.put(("a", "b"), "one", {})
    store.put(("a", "b"), "two", {})
    store.put(("a", "gone"), "k", {}, ttl=10)
    sql("UPDATE haive.store_item SET expires_at = now() WHERE tenant_id = %(tenant)s AND ttl_minutes = 10")
    assert store.list_namespaces() == [("a", "b")]
    store.delete(("a", "b"), "one")
    assert store.list_namespaces() == [("a", "b")]
    store.delete(("a", "b"), "two")
    assert store.list_namespaces() == []


def test_a_namespace_is_never_lost_to_a_race(store: PostgresStore) -> None:
    """One thread empties the namespace while another fills it: whoever is last, the listing tells."""

    def work(no: int) -> None:
        for _ in range(60):
            store.put(("n",), f"k{no}", {})
            store.delete(("n",), f"k{no}")
        store.put(("n",), f"k{no}", {})

    threads = [threading.Thread(target=work, args=(no,)) for no in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.list_namespaces() == [("n",)]
    assert len(store.search(("n",))) == 4


@pytest.mark.parametrize("depth", [None, 1, 2, 3])
def test_many_namespaces(store: PostgresStore, depth: int | None) -> None:
    store.batch([PutOp(("u", f"{no % 700:04}", "m"), f"k{no}", {}) for no in range(2100)])
    listed = store.list_namespaces(max_depth=depth, limit=5000)
    width = depth or 3
    assert listed == sorted({("u", f"{no:04}", "m")[:width] for no in range(700)})
    assert store.list_namespaces(prefix=("u", "0042"), max_depth=depth) == [("u", "0042", "m")[:width]]
    assert store.list_namespaces(suffix=("0699", "*")) == [("u", "0699", "m")]


class Place(str, enum.Enum):
    USERS = "users"
    PREFS = "prefs"


def test_labels_and_keys_of_a_str_enum_are_their_text(store: PostgresStore) -> None:
    store.batch([PutOp((Place.USERS,), Place.PREFS, {"n": 1}), PutOp((Place.USERS,), "other", {"n": 2})])
    store.put((Place.USERS, "ann"), "k", {"n": 3})
    assert store.get(("users",), "prefs").value == {"n": 1}  # type: ignore[union-attr]
    assert store.get(("users", "ann"), "k").value == {"n": 3}  # type: ignore[union-attr]
    assert [found and found.value for found in store.batch([GetOp((Place.USERS,), Place.PREFS)])] == [
        {"n": 1}
    ]
    assert store.list_namespaces(prefix=(Place.USERS,)) == [("users",), ("users", "ann")]
    assert len(store.search((Place.USERS,))) == 3


def test_an_unknown_match_is_said(store: PostgresStore) -> None:
    with pytest.raises(InvalidInputError, match="'infix': write 'prefix' or 'suffix'"):
        store.batch([ListNamespacesOp((MatchCondition("infix", ("a",)),))])  # type: ignore[arg-type]
    assert store.batch([ListNamespacesOp((MatchCondition("prefix", ()),))]) == [[]]


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.put("users", "k", {"a": 1}),
        lambda store: store.get("users", "k"),
        lambda store: store.delete("users", "k"),
        lambda store: store.search("users"),
        lambda store: store.list_namespaces(prefix="users"),
    ],
    ids=["put", "get", "delete", "search", "list"],
)
def test_text_is_no_namespace(use: Callable[[Any], Any]) -> None:
    """LangGraph's own stores take its letters for labels."""
    with pytest.raises(InvalidIdentifierError, match=r"write .*\('users',"):
        use(PostgresStore("postgresql://nowhere"))
