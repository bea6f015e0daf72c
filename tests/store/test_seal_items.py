"""Turning encryption on for a store that has items."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from langgraph.store.base import GetOp, PutOp

from haive_persistence import EncryptionConfig
from haive_persistence.db import Database
from haive_persistence.errors import ConfigError, PlaintextRefusedError
from haive_persistence.store import PostgresStore, seal_items
from tests.builders import LETTERS, until

KEY = secrets.token_bytes(32)
OPTIONS: dict[str, Any] = {"encryption_key": KEY, "searchable_fields": ("kind",), "readable_embeddings": True}
REFUSING = EncryptionConfig(**OPTIONS)
ACCEPTING = EncryptionConfig(**OPTIONS, accept_earlier_plaintext=True)

Sql = Callable[..., list[tuple[Any, ...]]]


def with_key(database: Database, encryption: EncryptionConfig = REFUSING, **options: Any) -> PostgresStore:
    """A store of another process."""
    return PostgresStore(database.with_encryption(encryption), **options)


def fill(store: PostgresStore, count: int = 30) -> None:
    store.batch(
        [
            PutOp(("users", f"u{no % 3}"), f"k{no}", {"z": no, "kind": f"k{no % 2}", "text": "abc"[no % 3]})
            for no in range(count)
        ]
    )
    store.put(("users", "awkward"), "k", {"nul": "\0", "b": 1, "a": -0.0}, ttl=90)


def content(store: PostgresStore) -> list[Any]:
    found = store.search((), limit=1000)
    return sorted(
        (item.namespace, item.key, json.dumps(item.value), item.created_at, item.updated_at) for item in found
    )


def plaintext(sql: Sql) -> int:
    return int(
        sql("SELECT count(*) FROM haive.store_item WHERE tenant_id = %(tenant)s AND payload IS NULL")[0][0]
    )


def test_items_are_sealed_as_they_were(
    store: PostgresStore, database: Database, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal_items, "_AT_ONCE", 10)
    fill(store)
    before = content(store)
    ttls = sql("SELECT expires_at FROM haive.store_item WHERE ttl_minutes = 90")
    told: list[Any] = []
    sealing = with_key(database)
    assert sealing.seal_existing(told.append) == 31
    assert [tuple(one) for one in told] == [(10, 31), (20, 31), (30, 31), (31, 31)]
    assert plaintext(sql) == 0
    assert sql("SELECT expires_at FROM haive.store_item WHERE ttl_minutes = 90") == ttls
    assert content(with_key(database)) == before
    assert len(sealing.search(("users",), filter={"kind": "k1"}, limit=100)) == 15
    assert sealing.seal_existing() == 0


async def test_sealing_does_not_block(store: PostgresStore, database: Database, sql: Sql) -> None:
    fill(store)
    assert await with_key(database).aseal_existing() == 31
    assert plaintext(sql) == 0


def test_vectors_follow_their_items(store: PostgresStore, database: Database) -> None:
    indexed = PostgresStore(database, index=LETTERS)  # type: ignore[arg-type]
    fill(indexed)
    before = [(i.key, i.score) for i in indexed.search(("users", "u1"), query="b", limit=5)]
    sealed = with_key(database, index=LETTERS)
    sealed.seal_existing()
    found = sealed.search(("users", "u1"), query="b", limit=100)
    assert len(found) == 10
    assert {(i.key, i.score) for i in found} >= set(before)


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.get(("users", "u1"), "k1"),
        lambda s: s.search(("users",)),
        lambda s: s.list_namespaces(),
        lambda s: s.put(("users", "u1"), "k1", {"new": 1}),
        lambda s: s.delete(("users", "u1"), "k1"),
    ],
    ids=["get", "search", "list", "put", "delete"],
)
def test_what_is_older_is_refused_until_it_is_sealed(
    store: PostgresStore, database: Database, sql: Sql, use: Callable[[PostgresStore], Any]
) -> None:
    """Nothing is missing without an error."""
    fill(store)
    with pytest.raises(PlaintextRefusedError, match="seal_existing"):
        use(with_key(database))
    assert plaintext(sql) == 31


@pytest.mark.parametrize("key_exists", [False, True])
def test_what_is_older_is_sealed_when_it_is_read(
    store: PostgresStore, database: Database, sql: Sql, key_exists: bool
) -> None:
    fill(store)
    before = content(store)
    if key_exists:
        with_key(database, ACCEPTING).put(("other",), "k", {"a": 1})
        assert plaintext(sql) == 31
    accepting = with_key(database, ACCEPTING)
    assert accepting.get(("users", "u1"), "k1").value["z"] == 1  # type: ignore[union-attr]
    assert plaintext(sql) == (21 if key_exists else 31)
    assert [row for row in content(accepting) if row[0] != ("other",)] == before
    assert set(accepting.list_namespaces()) >= {("users", "u0"), ("users", "awkward")}
    created = accepting.get(("users", "u2"), "k2").created_at  # type: ignore[union-attr]
    accepting.batch([PutOp(("users", "u2"), "k2", {"new": 1}), PutOp(("users", "u2"), "k5", None)])
    item, gone = accepting.batch([GetOp(("users", "u2"), "k2"), GetOp(("users", "u2"), "k5")])
    assert gone is None
    assert item.value == {"new": 1}  # type: ignore[union-attr]
    assert item.created_at == created  # type: ignore[union-attr]
    accepting.seal_existing()
    assert plaintext(sql) == 0
    assert len(content(with_key(database))) == 30 + key_exists


def test_plaintext_forged_later_is_refused(store: PostgresStore, database: Database, sql: Sql) -> None:
    fill(store)
    with_key(database, ACCEPTING).put(("other",), "k", {"a": 1})
    sql("UPDATE haive.store_item SET value = '{\"forged\": 1}' WHERE tenant_id = %(tenant)s AND key = 'k1'")
    accepting = with_key(database, ACCEPTING)
    for use in (
        accepting.seal_existing,
        lambda: accepting.get(("users", "u1"), "k1"),
        lambda: content(accepting),
    ):
        with pytest.raises(PlaintextRefusedError):
            use()
    assert accepting.get(("users", "u0"), "k0") is not None
    assert with_key(database).seal_existing(trust_all=True) > 0


def test_plaintext_forged_while_sealing_waits_is_refused(
    store: PostgresStore, database: Database, sql: Sql, dsn: str
) -> None:
    """The row comes from a transaction that began after the sealing statement."""
    fill(store)
    with_key(database, ACCEPTING).put(("other",), "k", {"a": 1})
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    mine = "tenant_id = %(tenant)s AND namespace = 'users.u0.' AND key = "
    with ThreadPoolExecutor(1) as pool, psycopg.connect(dsn) as holder:
        lock = f"SELECT FROM haive.store_item WHERE {mine} 'k0' FOR UPDATE"
        holder.execute(lock.encode(), {"tenant": database.tenant})
        sealing = pool.submit(with_key(database).seal_existing)
        until(lambda: bool(sql(waiting)))
        sql("SELECT pg_current_xact_id()")
        sql(f"UPDATE haive.store_item SET value = '{{\"forged\": 1}}' WHERE {mine} 'k12'")
        holder.rollback()
        with pytest.raises(PlaintextRefusedError):
            sealing.result()


def test_several_processes_and_writers_at_once(
    store: PostgresStore,
    database: Database,
    sql: Sql,
    connected: Callable[..., Database],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seal_items, "_AT_ONCE", 20)
    fill(store, 300)
    stop = threading.Event()

    def own(encryption: EncryptionConfig) -> PostgresStore:
        return PostgresStore(connected(tenant=database.tenant, encryption=encryption))

    def write(user: str) -> int:
        writer, done = own(ACCEPTING), 0
        while not stop.is_set() or done < 3:
            writer.put(("users", user), "k1", {"done": done})
            assert writer.get(("users", user), "k1").value == {"done": done}  # type: ignore[union-attr]
            done += 1
        return done

    with ThreadPoolExecutor(8) as pool:
        writers = {user: pool.submit(write, user) for user in ("u1", "new")}
        sealers = [pool.submit(own(REFUSING).seal_existing) for _ in range(3)]
        for sealer in sealers:
            sealer.result(timeout=60)
        stop.set()
        done = {user: writer.result(timeout=60) for user, writer in writers.items()}
    assert plaintext(sql) == 0
    final = with_key(database)
    assert len(final.search((), limit=1000)) == 302
    for user in ("u1", "new"):
        assert final.get(("users", user), "k1").value == {"done": done[user] - 1}  # type: ignore[union-attr]


def test_it_needs_a_key(store: PostgresStore) -> None:
    with pytest.raises(ConfigError, match="encryption_key"):
        store.seal_existing()


@pytest.mark.parametrize("read", ["get", "search"])
def test_reading_without_the_key_leaves_what_is_to_be_sealed(database: Database, sql: Sql, read: str) -> None:
    """It would make the items younger than the key by setting the time at which they expire."""
    clear = PostgresStore(database, ttl={"default_ttl": 90, "refresh_on_read": True})
    fill(clear)
    keyed = with_key(database, ACCEPTING)
    keyed.put(("mine",), "k", {"sealed": True})

    def expiry() -> list[tuple[Any, ...]]:
        return sql(
            "SELECT expires_at FROM haive.store_item WHERE tenant_id = %(tenant)s ORDER BY namespace, key"
        )

    before = expiry()
    if read == "get":
        assert clear.get(("users", "u0"), "k0") is not None
    else:
        assert clear.search(("users", "u0"))
    assert expiry() == before
    assert keyed.seal_existing() == 31
