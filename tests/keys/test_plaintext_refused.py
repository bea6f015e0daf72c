"""A process without the key cannot write into a sealed tenant, not even while the first key is being made."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from haive_persistence import Checkpointer, EncryptionConfig, PostgresStore
from haive_persistence.db import Database
from haive_persistence.errors import PlaintextRefusedError, WrongKeyError
from tests.builders import until
from tests.checkpointer.conftest import store, thread

KEY = secrets.token_bytes(32)
ENCRYPTION = EncryptionConfig(encryption_key=KEY)
TABLES = ("thread", "piece", "checkpoint", "pending_write", "store_item")


@pytest.fixture
def admin(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def rows(admin: psycopg.Connection[Any], tenant: str) -> Callable[[], list[tuple[Any, ...]]]:
    """How many rows of the tenant each table has, and the newest of them."""

    def count() -> list[tuple[Any, ...]]:
        query = "SELECT count(*), max(xmin::text::bigint) FROM haive.{} WHERE tenant_id = %s"
        return [admin.execute(query.format(table), (tenant,)).fetchone() for table in TABLES]  # type: ignore[misc,arg-type]

    return count


def wait_for_lock(admin: psycopg.Connection[Any], query: str) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
    until(lambda: admin.execute(waiting, (f"%{query}%",)).fetchone() != (0,))


def insert_key(conn: psycopg.Connection[Any], tenant: str) -> None:
    conn.execute("INSERT INTO haive.data_key (tenant_id, key_no, wrapped) VALUES (%s, 1, '\\x00')", (tenant,))


@pytest.mark.parametrize(
    "write",
    [
        lambda saver, config: store(saver, {"a": 2}, thread("new")),
        lambda saver, config: store(saver, {"a": 2}, config),
        lambda saver, config: saver.put_writes(config, [("a", 2)], "task"),
        lambda saver, config: saver.put_writes(
            thread("new", checkpoint_id="1f1e537d-cb50-613a-8000-5f4a9e8196aa"), [("a", 2)], "task"
        ),
        lambda saver, config: saver.copy_thread("t", "copy"),
    ],
    ids=["new thread", "next checkpoint", "pending write", "pending write first", "copy"],
)
def test_writing_without_the_key_is_refused(
    database: Database,
    rows: Callable[[], list[tuple[Any, ...]]],
    write: Callable[[Checkpointer, Any], Any],
) -> None:
    keyless = Checkpointer(database)
    config = store(keyless, {"a": 1})
    config = store(keyless, {"a": 1, "b": 1}, config)  # runs, and remembers the thread
    store(Checkpointer(database.with_encryption(ENCRYPTION)), {"a": 1}, thread("sealed"))
    before = rows()
    with pytest.raises(PlaintextRefusedError, match="HAIVE_ENCRYPTION_KEY"):
        write(keyless, config)
    with pytest.raises((PlaintextRefusedError, WrongKeyError)):
        write(Checkpointer(database), config)  # and one that has just started
    assert rows() == before


def test_deleting_runs_without_the_key_is_refused(database: Database) -> None:
    """Their checkpoints are found by hashes that need the key: nothing would be deleted, and nobody told."""
    sealed = Checkpointer(database.with_encryption(ENCRYPTION))
    store(sealed, {"a": 1}, run_id="run")
    with pytest.raises(PlaintextRefusedError, match="HAIVE_ENCRYPTION_KEY"):
        Checkpointer(database).delete_for_runs(["run"])
    sealed.delete_for_runs(["run"])
    assert sealed.get_tuple(thread()) is None


async def test_tasks_are_refused_one_by_one(database: Database) -> None:
    keyless = Checkpointer(database)
    store(Checkpointer(database.with_encryption(ENCRYPTION)), {"a": 1})
    with pytest.raises(PlaintextRefusedError):
        await keyless.aput(thread("x"), {**_checkpoint()}, {}, {"a": 1})
    other = keyless.for_tenant(f"{database.tenant}-plain")
    await other.aput(thread("x"), {**_checkpoint()}, {}, {"a": 1})
    assert await other.aget_tuple(thread("x")) is not None


def _checkpoint() -> Any:
    from tests.checkpointer.conftest import make_checkpoint

    return make_checkpoint({"a": 1})


def test_a_new_thread_that_waits_for_the_first_key_is_refused(
    database: Database, admin: psycopg.Connection[Any], dsn: str, rows: Callable[[], list[tuple[Any, ...]]]
) -> None:
    """Its statement began before the key was committed, and must see it all the same."""
    keyless = Checkpointer(database)
    before = rows()
    with psycopg.connect(dsn) as maker, ThreadPoolExecutor() as pool:
        maker.execute("LOCK TABLE haive.data_key IN EXCLUSIVE MODE")
        put = pool.submit(store, keyless, {"a": 1})
        wait_for_lock(admin, "INSERT INTO")
        insert_key(maker, database.tenant)
        maker.commit()
        with pytest.raises(PlaintextRefusedError):
            put.result()
    assert rows() == before


def test_a_checkpoint_that_waits_for_the_first_key_is_refused(
    database: Database, admin: psycopg.Connection[Any], dsn: str, rows: Callable[[], list[tuple[Any, ...]]]
) -> None:
    keyless = Checkpointer(database)
    config = store(keyless, {"a": 1})
    with psycopg.connect(dsn) as maker, ThreadPoolExecutor() as pool:
        maker.execute("UPDATE haive.thread SET epoch = epoch WHERE tenant_id = %s", (database.tenant,))
        put = pool.submit(store, keyless, {"a": 2}, config)
        wait_for_lock(admin, "FOR SHARE")
        insert_key(maker, database.tenant)
        before = rows()[1:]
        maker.commit()
        with pytest.raises(PlaintextRefusedError):
            put.result()
    assert rows()[1:] == before


def test_the_first_key_waits_for_plaintext_under_way(
    database: Database, admin: psycopg.Connection[Any], dsn: str
) -> None:
    """What it records as the moment is after all plaintext that was accepted."""
    sealing = Checkpointer(database.with_encryption(ENCRYPTION))
    with psycopg.connect(dsn) as writer, ThreadPoolExecutor() as pool:
        assert writer.execute("SELECT haive.accepts_plaintext(%s)", (database.tenant,)).fetchone() == (True,)
        put = pool.submit(store, sealing, {"a": 1})
        wait_for_lock(admin, "LOCK TABLE")
        writer.execute(
            "INSERT INTO haive.thread (thread_key, epoch, tenant_id, thread_id)"
            " VALUES (gen_random_uuid(), 1, %s, 'late')",
            (database.tenant,),
        )
        writer.commit()
        put.result()
    found = admin.execute(
        "SELECT plaintext_threads FROM haive.data_key WHERE tenant_id = %s", (database.tenant,)
    )
    assert found.fetchone() == (True,)


def test_a_login_without_rights_delays_nobody(
    database: Database, admin: psycopg.Connection[Any], dsn: str, connected: Callable[..., Database]
) -> None:
    """It may hold any advisory lock, but none of a table that it was not granted."""
    login, tenant = f"stranger_{secrets.token_hex(4)}", database.tenant
    admin.execute(f"CREATE ROLE {login} LOGIN PASSWORD 'x'")
    try:
        with psycopg.connect(dsn, user=login, password="x") as stranger, psycopg.connect(dsn) as writer:
            for table in ("data_key", "thread"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege), stranger.transaction():
                    stranger.execute(f"LOCK TABLE haive.{table} IN ACCESS SHARE MODE")
            stranger.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 7203))", (tenant,))
            impatient = connected(tenant=tenant, lock_timeout="2s")
            store(Checkpointer(impatient), {"a": 1})
            PostgresStore(impatient).put(("n",), "k", {"a": 1})
            store(Checkpointer(impatient.with_encryption(ENCRYPTION)), {"a": 1}, thread("sealed"))
            writer.execute("SELECT haive.accepts_plaintext('x'), haive.check_data_key('x', NULL, NULL)")
            held = writer.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            )
            assert held.fetchone() == (0,)
    finally:
        admin.execute(f"DROP ROLE {login}")


def test_writers_and_the_first_key_at_once(
    database: Database, admin: psycopg.Connection[Any], connected: Callable[..., Database]
) -> None:
    """Writers without the key run until they are refused; none goes on."""
    stop = threading.Event()

    def write(number: int) -> int:
        saver, done = Checkpointer(connected(tenant=database.tenant)), 0
        while not stop.is_set():
            try:
                config = store(saver, {"a": done}, thread(f"{number}-{done // 3}"))
                store(saver, {"a": done, "b": 1}, config)
            except PlaintextRefusedError:
                return done
            done += 1
        return -1

    with ThreadPoolExecutor() as pool:
        writing = [pool.submit(write, number) for number in range(4)]
        sealing = Checkpointer(database.with_encryption(ENCRYPTION))
        until(
            lambda: (
                admin.execute(
                    "SELECT count(*) FROM haive.checkpoint WHERE tenant_id = %s", (database.tenant,)
                ).fetchone()[0]
                > 60
            )
        )  # type: ignore[index]
        store(sealing, {"a": 1}, thread("sealed"))
        try:
            assert all(writer.result(timeout=30) >= 0 for writer in writing)
        finally:
            stop.set()
