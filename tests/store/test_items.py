"""Items: put, get, delete, search, and batches of them."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    PutOp,
    SearchItem,
    SearchOp,
)
from langgraph.store.memory import InMemoryStore

from haive_persistence.db import Database
from haive_persistence.documents.namespaces import MAX_ID_BYTES
from haive_persistence.errors import InvalidIdentifierError, InvalidInputError
from haive_persistence.store import PostgresStore, statements


def test_put_get_delete(store: PostgresStore) -> None:
    store.put(("users", "ann"), "prefs", {"theme": "dark"})
    item = store.get(("users", "ann"), "prefs")
    assert isinstance(item, Item)
    assert (item.namespace, item.key, item.value) == (("users", "ann"), "prefs", {"theme": "dark"})
    assert item.created_at == item.updated_at
    assert item.created_at.tzinfo is not None
    store.delete(("users", "ann"), "prefs")
    assert store.get(("users", "ann"), "prefs") is None
    store.delete(("users", "ann"), "prefs")


def test_putting_again_keeps_when_it_was_created(store: PostgresStore) -> None:
    store.put(("n",), "k", {"v": 1})
    first = store.get(("n",), "k")
    store.put(("n",), "k", {"v": 2})
    second = store.get(("n",), "k")
    assert first is not None
    assert second is not None
    assert second.value == {"v": 2}
    assert second.created_at == first.created_at
    assert second.updated_at > first.updated_at


async def test_the_same_object_is_asynchronous(store: PostgresStore) -> None:
    await store.aput(("n",), "k", {"v": 1})
    item = await store.aget(("n",), "k")
    assert item is not None
    assert item.value == {"v": 1}
    assert [found.key for found in await store.asearch(("n",))] == ["k"]
    assert await store.alist_namespaces() == [("n",)]
    # and blocking inside a running loop, as notebooks do
    assert store.get(("n",), "k") == item
    await store.adelete(("n",), "k")
    assert await store.aget(("n",), "k") is None


def test_reads_of_a_batch_see_what_was_before_it(store: PostgresStore) -> None:
    store.put(("n",), "old", {"v": 1})
    results = store.batch(
        [
            PutOp(("n",), "new", {"v": 2}),
            GetOp(("n",), "new"),
            GetOp(("n",), "old"),
            PutOp(("n",), "old", None),
            SearchOp(("n",)),
            ListNamespacesOp(),
            GetOp(("n",), "old"),
        ]
    )
    assert results[0] is results[1] is results[3] is None
    assert isinstance(results[2], Item)
    assert [item.key for item in results[4]] == ["old"]  # type: ignore[union-attr]
    assert results[5] == [("n",)]
    assert isinstance(results[6], Item)
    assert [item.key for item in store.search(("n",))] == ["new"]


def test_of_several_puts_to_one_item_the_last_counts(store: PostgresStore) -> None:
    store.batch([PutOp(("n",), "k", {"v": 1}), PutOp(("n",), "k", None), PutOp(("n",), "k", {"v": 3})])
    item = store.get(("n",), "k")
    assert item is not None
    assert item.value == {"v": 3}
    store.batch([PutOp(("n",), "k", {"v": 4}), PutOp(("n",), "k", None)])
    assert store.get(("n",), "k") is None


def test_results_share_nothing(store: PostgresStore) -> None:
    store.put(("n",), "k", {"list": []})
    one, other = store.batch([GetOp(("n",), "k"), GetOp(("n",), "k")])
    assert isinstance(one, Item)
    assert isinstance(other, Item)
    one.value["list"].append(1)
    assert other.value == {"list": []}


def test_search_pages_newest_first(store: PostgresStore) -> None:
    for no in range(25):
        store.put(("n", str(no % 3)), f"k{no}", {"no": no})
    pages = [store.search(("n",), limit=10, offset=offset) for offset in (0, 10, 20, 30)]
    assert [item.value["no"] for page in pages for item in page] == list(range(24, -1, -1))
    assert all(isinstance(item, SearchItem) and item.score is None for item in pages[0])
    assert store.search(("n",), limit=0) == []


def test_items_put_together_have_a_fixed_order(store: PostgresStore) -> None:
    store.batch([PutOp(("n",), f"{no:02}", {"no": no}) for no in range(20)])
    pages = [item.key for offset in range(0, 20, 7) for item in store.search(("n",), limit=7, offset=offset)]
    assert pages == [f"{no:02}" for no in range(20)]


@pytest.mark.parametrize(
    "key", ["", " ", "a\nb", "\u00e9", "'", '"', "\\", "{}", "NULL", ",", "%s", "\U0010ffff"]
)
def test_any_text_is_a_key_and_a_label(store: PostgresStore, key: str) -> None:
    label = key or "x"
    store.batch([PutOp((label,), key, {"v": 1}), PutOp((label, label), key, {"v": 2})])
    found = store.batch([GetOp((label,), key), GetOp((label, label), key)])
    assert [item.value for item in found if isinstance(item, Item)] == [{"v": 1}, {"v": 2}]
    assert store.list_namespaces() == [(label,), (label, label)]
    assert len(store.search((label,))) == 2


@pytest.mark.parametrize(
    ("op", "error", "says"),
    [
        (GetOp(("n",), "a\0"), InvalidIdentifierError, "NUL"),
        (GetOp(("n",), "\ud800"), InvalidIdentifierError, "half a surrogate pair"),
        (GetOp(("\ud800",), "k"), InvalidIdentifierError, "half a surrogate pair"),
        (GetOp(("n",), 7), InvalidIdentifierError, "keys are text"),  # type: ignore[arg-type]
        (GetOp(("n",), "k" * MAX_ID_BYTES), InvalidIdentifierError, "1402 bytes together"),
        (PutOp((), "k", {}), InvalidIdentifierError, "at least one label"),
        (PutOp(("a.b",), "k", {}), InvalidIdentifierError, "periods"),
        (PutOp(("",), "k", {}), InvalidIdentifierError, "empty"),
        (PutOp((1,), "k", {}), InvalidIdentifierError, "must be strings"),  # type: ignore[arg-type]
        (PutOp(("n",), "k", {}, ttl=-1), InvalidInputError, "minutes from 0"),
        (PutOp(("n",), "k", {}, ttl=float("nan")), InvalidInputError, "minutes from 0"),
        (PutOp(("n",), "k", {}, ttl=float("inf")), InvalidInputError, "None for ever"),
        (SearchOp(("n",), limit=-1), InvalidInputError, "limit=-1"),
        (SearchOp(("n",), offset=-1), InvalidInputError, "offset=-1"),
        (SearchOp(("n",), limit=2.5), InvalidInputError, "whole number"),  # type: ignore[arg-type]
        (ListNamespacesOp(max_depth=0), InvalidInputError, "max_depth=0"),
        ("get", InvalidInputError, "str is no operation"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_done(
    store: PostgresStore, trips: list[Any], op: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        store.batch([PutOp(("n",), "other", {"v": 1}), op])
    assert not trips


def test_errors_about_namespaces_are_langgraphs_too(store: PostgresStore) -> None:
    with pytest.raises(InvalidNamespaceError):
        store.batch([PutOp(("a.b",), "k", {})])
    with pytest.raises(InvalidNamespaceError):
        store.put(("langgraph",), "k", {})


def test_an_empty_batch(store: PostgresStore, trips: list[Any]) -> None:
    assert store.batch([]) == []
    assert not trips


async def test_an_empty_batch_asynchronously(store: PostgresStore) -> None:
    assert await store.abatch([]) == []


def test_more_than_one_statement_takes(
    store: PostgresStore, trips: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres unpacks 256 MB of a batch at most."""
    store.put(("big",), "0", {"old": True})
    monkeypatch.setattr(statements, "_PUT_AT_ONCE", 1000)
    trips.clear()
    store.batch([PutOp(("big",), str(no), {"text": str(no) * (no * 30)}) for no in range(30)])
    assert len(trips) == 1
    found = store.search(("big",), limit=2**70)
    assert {int(item.key): item.value["text"] for item in found} == {
        no: str(no) * (no * 30) for no in range(30)
    }
    assert store.search(("big",), offset=2**70) == []
    assert store.list_namespaces(max_depth=2**40, limit=2**80) == [("big",)]


def test_many_items_at_once(store: PostgresStore) -> None:
    store.batch(
        [PutOp(("n", str(no % 50)), f"k{no}", {"no": no, "nul": "\0" * (no % 2)}) for no in range(3000)]
    )
    results = store.batch([GetOp(("n", str(no % 50)), f"k{no}") for no in range(-1, 3000)])
    assert results[0] is None
    assert [item.value["no"] for item in results[1:] if isinstance(item, Item)] == list(range(3000))
    store.batch([PutOp(("n", str(no % 50)), f"k{no}", None) for no in range(3000)])
    assert store.search(()) == []


class SameAsInMemory(RuleBasedStateMachine):
    """Any sequence of batches, blocking or not, gives what InMemoryStore gives."""

    database: Database

    @initialize()
    def begin(self) -> None:
        self.ours = PostgresStore(self.database.for_tenant(uuid.uuid4().hex))
        self.theirs = InMemoryStore()
        self.loop = asyncio.new_event_loop()

    def teardown(self) -> None:
        self.loop.close()

    namespaces = st.lists(st.sampled_from(["a", "b", "ab", "a_", "a%", "A"]), min_size=1, max_size=3).map(
        tuple
    )
    keys = st.sampled_from(["k", "kk", "\\"])
    values = st.dictionaries(st.sampled_from("xy"), st.integers(2, 5), max_size=2)
    reads = st.one_of(
        st.tuples(namespaces, keys).map(lambda args: GetOp(*args)),
        st.tuples(st.just(()) | namespaces, st.none() | values).map(lambda args: SearchOp(*args, limit=1000)),
        (st.none() | st.integers(1, 3)).map(lambda depth: ListNamespacesOp(max_depth=depth, limit=1000)),
    )
    writes = st.tuples(namespaces, keys, st.none() | values).map(lambda args: PutOp(*args))

    @rule(ops=st.lists(st.one_of(reads, writes), max_size=6), blocking=st.booleans())
    def batch(self, ops: list[Any], blocking: bool) -> None:
        expected = self.theirs.batch(ops)
        found = self.ours.batch(ops) if blocking else self.loop.run_until_complete(self.ours.abatch(ops))
        assert [_comparable(result) for result in found] == [_comparable(result) for result in expected]

    @invariant()
    def all_is_there(self) -> None:
        assert _comparable(self.ours.search((), limit=1000)) == _comparable(
            self.theirs.search((), limit=1000)
        )


def _comparable(result: Any) -> Any:
    """Namespaces that were emptied stay listed in memory, and orders differ: compare what is there."""
    if isinstance(result, Item):
        return (result.namespace, result.key, sorted(result.value.items()))
    if isinstance(result, list):
        return sorted((_comparable(part) for part in result if isinstance(part, Item)), key=repr)
    return result


def test_any_batches_are_as_in_memory(module_database: Database) -> None:
    machine = type("Machine", (SameAsInMemory,), {"database": module_database})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=40, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
