"""A sealed store: nothing of an item is readable but what is listed, and nothing changed there is returned."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langgraph.store.base import GetOp, PutOp, SearchOp

from haive_persistence import EncryptionConfig
from haive_persistence.db import Database
from haive_persistence.errors import (
    ConfigError,
    EncodeError,
    InvalidIdentifierError,
    InvalidInputError,
    PlaintextRefusedError,
    SealError,
    TamperedError,
    WrongKeyError,
)
from haive_persistence.store import PostgresStore
from tests.builders import LETTERS

KEY = secrets.token_bytes(32)
SECRET = "SECRET-4711"
ENCRYPTION = EncryptionConfig(
    encryption_key=KEY,
    searchable_fields=("ward", "level"),
    readable_fields=("age",),
    readable_embeddings=True,
)
VALUE = {"ward": SECRET, "text": SECRET, "nested": {SECRET: [SECRET]}, "age": 7, "level": 3, "a": None}

Sql = Callable[..., list[tuple[Any, ...]]]


def store_with(database: Database, encryption: EncryptionConfig | None = ENCRYPTION, **options: Any) -> Any:
    """A store of another process."""
    return PostgresStore(database.with_encryption(encryption) if encryption else database, **options)


@pytest.fixture
def sealed(database: Database) -> Iterator[PostgresStore]:
    made = store_with(database)
    yield made
    made.close()


def test_nothing_is_readable_and_everything_comes_back(
    sealed: PostgresStore, database: Database, sql: Sql
) -> None:
    sealed.put(("users", SECRET), SECRET, VALUE, ttl=60)
    sealed.put(("users", "ann"), "other", {"text": SECRET * 100})
    for row, value, payload in sql(
        "SELECT to_jsonb(i) - 'payload', value, payload FROM haive.store_item i WHERE tenant_id = %(tenant)s"
    ):
        assert SECRET not in json.dumps(row)
        assert "users" not in json.dumps(row)
        assert set(value) <= {"ward", "level", "age"}
        assert SECRET.encode() not in payload
    item = store_with(database).get(("users", SECRET), SECRET)
    assert (item.namespace, item.key, item.value) == (("users", SECRET), SECRET, VALUE)
    assert list(item.value) == list(VALUE)


def test_it_is_searched_as_a_store_in_the_clear_is(sealed: PostgresStore, database: Database) -> None:
    clear = PostgresStore(database.for_tenant(f"{database.tenant}-clear"))
    for store in (sealed, clear):
        for no in range(12):
            namespace = ("users", "ann" if no % 2 else "anna", f"t{no % 3}")
            store.put(namespace, f"k{no}", {"ward": f"w{no % 4}", "level": no % 3, "age": no, "x": no})
        store.delete(("users", "ann", "t1"), "k1")

    def found(store: PostgresStore, *prefix: str, **options: Any) -> list[Any]:
        items = store.search(prefix, limit=100, **options)
        return sorted((item.namespace, item.key, json.dumps(item.value)) for item in items)

    for prefix in ((), ("users",), ("users", "ann"), ("users", "an"), ("nobody",)):
        assert found(sealed, *prefix) == found(clear, *prefix)
    for filter_ in (
        {"ward": "w1"},
        {"ward": "w1", "level": 1},
        {"level": {"$eq": 1.0}},
        {"ward": {"$ne": "w1"}},
        {"ward": None},
        {"age": {"$gt": 4, "$lte": 9}},
        {"age": 4, "ward": "w0"},
    ):
        assert found(sealed, "users", filter=filter_) == found(clear, "users", filter=filter_), filter_
    assert len(sealed.search(("users",), limit=4, offset=9)) == 2
    for options in (
        {},
        {"prefix": ("users", "ann")},
        {"suffix": ("t1",)},
        {"prefix": ("users", "*", "t2")},
        {"max_depth": 2},
        {"prefix": ("users",), "suffix": ("t0",), "max_depth": 2},
    ):
        assert sorted(sealed.list_namespaces(**options)) == sorted(clear.list_namespaces(**options)), options
    pages = [sealed.list_namespaces(limit=2, offset=at) for at in range(0, 6, 2)]
    assert sorted(name for page in pages for name in page) == sorted(clear.list_namespaces())
    assert sealed.get(("users", "ann", "t1"), "k1") is None


async def test_batches_of_tasks(sealed: PostgresStore) -> None:
    ops = [PutOp(("n", str(no)), f"k{no}", {"no": no}) for no in range(50)]
    await sealed.abatch([*ops, PutOp(("n", "0"), "k0", None)])
    found = await sealed.abatch([GetOp(("n", str(no)), f"k{no}") for no in range(50)])
    assert found[0] is None
    assert [item.value["no"] for item in found[1:]] == list(range(1, 50))  # type: ignore[union-attr]
    assert len((await sealed.abatch([SearchOp(("n",), limit=100)]))[0]) == 49  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "filter_",
    [
        {"text": SECRET},
        {"age": 7, "ward": SECRET, "text": SECRET},
        {"nested": {"a": 1}},
        {"ward": {"$gt": "a"}},
        {"ward": ["a"]},
        {"ward": {"a": "b"}},
    ],
)
def test_a_filter_on_what_is_sealed_is_refused(sealed: PostgresStore, filter_: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="EncryptionConfig"):
        sealed.search(("n",), filter=filter_)


CHANGED_LAST = (
    "set_byte(payload, octet_length(payload) - 1, get_byte(payload, octet_length(payload) - 1) # 1)"
)


@pytest.mark.parametrize(
    "attack",
    [
        f"UPDATE haive.store_item a SET payload = {CHANGED_LAST} WHERE true",
        "UPDATE haive.store_item a SET payload = b.payload FROM haive.store_item b"
        " WHERE a.tenant_id = b.tenant_id AND a.ctid <> b.ctid",
        "UPDATE haive.store_item a SET payload = substr(payload, 1, octet_length(payload) - 5) WHERE true",
        "UPDATE haive.store_item a SET payload = NULL WHERE true",
        "UPDATE haive.store_item a SET payload = '\\x00', value = '{}' WHERE true",
        "UPDATE haive.store_item a SET key = key || 'A' WHERE true",
        "UPDATE haive.store_item a SET namespace = 'users.ann.' || key || '.' WHERE true",
    ],
    ids=["bit", "swap", "cut", "plaintext", "plaintext payload", "key", "namespace"],
)
def test_what_was_changed_is_an_error(
    sealed: PostgresStore, database: Database, sql: Sql, attack: str
) -> None:
    sealed.put(("users", "ann"), "one", {"text": "1"})
    sealed.put(("users", "ann"), "two", {"text": "2"})
    sql(f"{attack} AND a.tenant_id = %(tenant)s")
    with pytest.raises(SealError):
        store_with(database).search(())


def test_items_swapped_between_names_do_not_open(sealed: PostgresStore, database: Database, sql: Sql) -> None:
    sealed.put(("users", "ann"), "pin", {"text": "1"})
    sealed.put(("users", "bob"), "pin", {"text": "2"})
    sql("UPDATE haive.store_item SET namespace = namespace || '_' WHERE tenant_id = %(tenant)s")
    sql(
        "UPDATE haive.store_item a SET namespace = rtrim(b.namespace, '_') FROM haive.store_item b"
        " WHERE a.tenant_id = %(tenant)s AND b.tenant_id = a.tenant_id AND a.ctid <> b.ctid"
    )
    for user in ("ann", "bob"):
        assert (
            store_with(database).get(("users", user), "pin") is None
        )  # its key is another for each namespace
        with pytest.raises(TamperedError):
            store_with(database).search(("users", user))


@pytest.mark.parametrize(
    "attack",
    [
        "UPDATE haive.store_item a SET namespace = rtrim(a.namespace, '.') || '.' || b.namespace",
        "UPDATE haive.store_item a SET namespace = b.namespace || a.namespace",
        "UPDATE haive.store_item a SET namespace = split_part(b.namespace, '.', 1) || '.' || a.namespace",
        "UPDATE haive.store_item a SET namespace = split_part(a.namespace, '.', 2) || '.'",
        "UPDATE haive.store_item a SET namespace = split_part(a.namespace, '.', 1) || '.' "
        "|| split_part(b.namespace, '.', 2) || '.'",
        "UPDATE haive.store_item a SET namespace = b.namespace",
    ],
)
def test_labels_of_several_namespaces_make_no_other(
    sealed: PostgresStore, database: Database, sql: Sql, attack: str
) -> None:
    sealed.put(("users", "ann"), "pin", {"text": "1"})
    sealed.put(("projects", "secret"), "plan", {"text": "2"})
    sql(
        f"{attack} FROM haive.store_item b WHERE a.tenant_id = %(tenant)s AND b.tenant_id = a.tenant_id"
        " AND a.ctid <> b.ctid AND a.ctid = (SELECT min(ctid) FROM haive.store_item WHERE tenant_id = %(tenant)s)"
    )
    store = store_with(database)
    stored = {("users", "ann"), ("projects", "secret"), ("users",), ("projects",)}
    for options in ({}, {"max_depth": 1}, {"prefix": ("*",), "max_depth": 2}, {"suffix": ("*",)}):
        try:
            listed = set(store.list_namespaces(**options))
        except TamperedError:
            listed = set()
        assert listed <= stored
    with pytest.raises(TamperedError):
        store.search(())


def test_items_of_another_tenant_do_not_open(sealed: PostgresStore, database: Database, sql: Sql) -> None:
    sealed.put(("n",), "k", {"a": 1})
    other = sealed.for_tenant(f"{database.tenant}-2")
    other.put(("m",), "x", {"a": 1})
    sql(
        "UPDATE haive.store_item SET tenant_id = %(other)s WHERE tenant_id = %(tenant)s",
        other=f"{database.tenant}-2",
    )
    assert other.get(("n",), "k") is None  # its names are sealed for their tenant, too
    with pytest.raises(SealError):
        other.search(())


def test_a_forged_plaintext_item_is_refused(sealed: PostgresStore, sql: Sql) -> None:
    sealed.put(("n",), "k", {"a": 1})
    sql(
        "INSERT INTO haive.store_item (tenant_id, namespace, key, created_at, updated_at, value)"
        " VALUES (%(tenant)s, 'n.', 'forged', now() - interval '1 year', now() - interval '1 year', '{}')"
    )
    assert sealed.get(("n",), "forged") is None
    for read in (lambda: sealed.search(()), sealed.list_namespaces):
        with pytest.raises(PlaintextRefusedError):
            read()


def test_a_wrong_key_and_no_key_are_errors(sealed: PostgresStore, database: Database) -> None:
    sealed.put(("n",), "k", {"a": 1})
    wrong = store_with(database, EncryptionConfig(encryption_key=secrets.token_bytes(32)))
    for use in (lambda s: s.get(("n",), "k"), lambda s: s.put(("n",), "k", {"a": 2}), lambda s: s.search(())):
        with pytest.raises(WrongKeyError, match="older_encryption_keys"):
            use(wrong)
    keyless = PostgresStore(database)
    with pytest.raises(WrongKeyError):
        keyless.search(())
    with pytest.raises(PlaintextRefusedError, match="HAIVE_ENCRYPTION_KEY"):
        keyless.put(("n",), "k", {"a": 2})
    with pytest.raises(PlaintextRefusedError):
        keyless.batch([PutOp(("n",), "a", {"a": 2}), PutOp(("n",), "b", {"a": 2}), PutOp(("n",), "c", None)])
    for keys in (["k"], ["k", "other"]):  # it would not find them, and delete nothing
        with pytest.raises(PlaintextRefusedError, match="HAIVE_ENCRYPTION_KEY"):
            keyless.batch([PutOp(("n",), key, None) for key in keys])
    assert sealed.get(("n",), "k").value == {"a": 1}  # type: ignore[union-attr]
    assert len(sealed.search(())) == 1


@pytest.mark.parametrize(
    "read",
    [
        lambda store: store.get(("n",), "k"),
        lambda store: store.search(("n",)),
        lambda store: store.list_namespaces(),
    ],
    ids=["get", "search", "list_namespaces"],
)
def test_a_process_without_the_key_is_told_why_nothing_is_found(
    sealed: PostgresStore, database: Database, read: Callable[[PostgresStore], Any]
) -> None:
    keyless = PostgresStore(database)
    read(PostgresStore(database))  # the tenant is empty, and has no key
    sealed.put(("n",), "k", {"a": 1})
    for _ in range(2):
        with pytest.raises(WrongKeyError, match="HAIVE_ENCRYPTION_KEY"):
            read(keyless)


async def test_tasks_without_the_key_are_refused(sealed: PostgresStore, database: Database) -> None:
    await sealed.aput(("n",), "k", {"a": 1})
    with pytest.raises(PlaintextRefusedError):
        await PostgresStore(database).aput(("n",), "k", {"a": 2})


def test_reading_makes_no_key(sealed: PostgresStore, sql: Sql) -> None:
    assert sealed.get(("n",), "k") is None
    assert sealed.search(()) == []
    assert sealed.list_namespaces() == []
    sealed.delete(("n",), "k")
    assert sql("SELECT count(*) FROM haive.data_key WHERE tenant_id = %(tenant)s") == [(0,)]


def test_processes_that_run_learn_of_a_new_data_key(sealed: PostgresStore, database: Database) -> None:
    from haive_persistence import Checkpointer

    other = store_with(database)
    sealed.put(("n",), "k", {"a": 1})
    assert other.get(("n",), "k").value == {"a": 1}
    Checkpointer(database.with_encryption(ENCRYPTION)).new_data_key()
    third = store_with(database)
    third.put(("n",), "k", {"a": 2})
    assert other.get(("n",), "k").value == {"a": 2}
    assert [item.value for item in sealed.search(("n",))] == [{"a": 2}]


def test_keys_that_a_restored_backup_does_not_have(
    sealed: PostgresStore, sql: Sql, database: Database
) -> None:
    """What runs seals with a key that is stored, or its items could not be read after a restart."""
    sealed.put(("n",), "k", {"a": 1})
    sql("DELETE FROM haive.data_key WHERE tenant_id = %(tenant)s")
    sql("DELETE FROM haive.store_item WHERE tenant_id = %(tenant)s")
    sealed.put(("n",), "k", {"a": 2})
    assert store_with(database).get(("n",), "k").value == {"a": 2}


def test_vectors_beside_sealed_items_are_asked_for(database: Database) -> None:
    plain = EncryptionConfig(encryption_key=KEY)
    with pytest.raises(ConfigError, match="readable_embeddings"):
        store_with(database, plain, index=LETTERS)
    store = store_with(database, index=LETTERS)
    store.put(("n",), "a", {"text": "aaa", "ward": "w"})
    store.put(("n",), "b", {"text": "bbb", "ward": "w"})
    store.put(("m",), "c", {"text": "aaa", "ward": "w"})
    found = store.search(("n",), query="aab", filter={"ward": "w"})
    assert [(item.key, item.value["text"]) for item in found] == [("a", "aaa"), ("b", "bbb")]
    assert found[0].namespace == ("n",)


def test_what_cannot_be_stored_is_refused_before_anything_is_sent(
    sealed: PostgresStore, trips: list[Any]
) -> None:
    for value in ({"a": object()}, {1: 2}, [1]):
        with pytest.raises(EncodeError):
            sealed.put(("n",), "k", value)  # type: ignore[arg-type]
    assert trips == []
    with pytest.raises(InvalidIdentifierError, match="sealed"):
        sealed.put(("n" * 700,), "k" * 500, {"a": 1})


def test_values_that_json_cannot_hold_come_back(sealed: PostgresStore) -> None:
    value = {
        "nul": "a\0b",
        "half": "\ud83d",
        "minus zero": -0.0,
        "a float": 1e16,
        "ward": "\ud83d\0",
        "b": 1,
        "a": 1,
    }
    sealed.put(("n",), "k", value)
    item = sealed.get(("n",), "k")
    assert item is not None
    assert repr(item.value) == repr(value)
    assert len(sealed.search((), filter={"ward": "\ud83d\0"})) == 1


def test_expiry(sealed: PostgresStore, sql: Sql) -> None:
    sealed.put(("n",), "k", {"a": 1}, ttl=1)
    sql("UPDATE haive.store_item SET expires_at = now() - interval '1 minute' WHERE tenant_id = %(tenant)s")
    assert sealed.get(("n",), "k") is None
    assert sealed.sweep_ttl() == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"searchable_fields": "ward"},
        {"readable_fields": [1]},
        {"searchable_fields": ["a"], "readable_fields": ["a"]},
        {"readable_embeddings": "yes"},
    ],
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        EncryptionConfig(encryption_key=KEY, **wrong)


def test_key_order_comes_back(store: PostgresStore, sealed: PostgresStore, database: Database) -> None:
    many = {f"key{no}": no for no in range(300, 0, -1)}
    value = {
        "zebra": 1,
        "a": {"long name": 1, "b": [{"y": 1, "x": {"q": 1, "p": 2}}, {"x": 1, "y": 2}]},
        "é": 1,
        "many": many,
        "one": {"b": {"bb": 1, "a": 2}},
    }
    clear = store.for_tenant(f"{database.tenant}-clear")
    for tried in (clear, sealed):
        tried.put(("n",), "k", value)
        tried.put(("n",), "m", {"messages": [{"role": "user", "content": "x"}] * 3})
        for found in (tried.get(("n",), "k"), next(i for i in tried.search(("n",)) if i.key == "k")):
            assert found is not None
            assert json.dumps(found.value) == json.dumps(value)
        item = tried.get(("n",), "m")
        assert item is not None
        assert (
            json.dumps(item.value)
            == '{"messages": [' + ", ".join(['{"role": "user", "content": "x"}'] * 3) + "]}"
        )


def test_a_value_that_was_changed_by_hand_is_read(store: PostgresStore, sql: Sql) -> None:
    store.put(("n",), "k", {"b": 1, "a": {"d": 1, "c": 2}})
    sql('UPDATE haive.store_item SET value = \'{"c": {"y": 1, "x": {"a": 1, "b": 2}}, "a": 1, "b": 2}\'')
    assert store.get(("n",), "k").value == {"c": {"y": 1, "x": {"a": 1, "b": 2}}, "a": 1, "b": 2}  # type: ignore[union-attr]
