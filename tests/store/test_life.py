"""Opening, setting up, sharing and closing a store."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.store.base import PutOp

from haive_persistence.checkpointer import Checkpointer
from haive_persistence.config import PersistenceConfig
from haive_persistence.db import Database
from haive_persistence.db.embedded import EmbeddedServer
from haive_persistence.errors import ClosedError, ConfigError, MigrationError
from haive_persistence.store import PostgresStore
from tests.builders import LETTERS


def test_as_the_incumbent_is_used(empty_dsn: str) -> None:
    with PostgresStore.from_conn_string(empty_dsn) as store:
        store.setup()
        store.put(("n",), "k", {"v": 1})
        assert store.get(("n",), "k") is not None
    with PostgresStore.from_conn_string(
        empty_dsn,
        pipeline=True,
        pool_config={"min_size": 1, "max_size": 3, "timeout": 5},
        ttl={"default_ttl": 1},
    ) as store:
        assert (store.database.config.pool_size, store.database.config.pool_timeout) == (3, 5)
        assert store.get(("n",), "k") is not None
        store.start_ttl_sweeper()
        store.stop_ttl_sweeper()


def test_its_repr_names_server_schema_and_tenant_and_no_password() -> None:
    store = PostgresStore(PersistenceConfig(connection_string="postgresql://u:secret@h/d", schema="mine"))
    shown = repr(store.for_tenant("acme"))
    assert shown == "<PostgresStore 'postgresql://u:***@h/d' schema='mine' tenant='acme'>"


async def test_as_the_asynchronous_incumbent_is_used(empty_dsn: str) -> None:
    async with PostgresStore.from_conn_string(empty_dsn, index=LETTERS) as store:  # type: ignore[arg-type]
        await store.setup()
        await store.aput(("n",), "k", {"text": "a"})
        assert len(await store.asearch(("n",), query="a")) == 1
        await store.start_ttl_sweeper()
        assert await store.stop_ttl_sweeper()


def test_nothing_has_to_be_called(empty_dsn: str) -> None:
    store = PostgresStore(PersistenceConfig(connection_string=empty_dsn, schema="other"))
    store.put(("n",), "k", {"v": 1})
    assert store.database.schema == "other"
    store.close()
    store.close()
    with pytest.raises(ClosedError):
        store.get(("n",), "k")


@pytest.mark.parametrize("schema", ["other", "Haive", "a_1"])
def test_any_schema(empty_dsn: str, schema: str) -> None:
    config = PersistenceConfig(connection_string=empty_dsn, schema=schema)
    with PostgresStore(config, index=LETTERS) as store:  # type: ignore[arg-type]
        store.setup()
        store.put(("n", "m"), "k", {"text": "abc"}, ttl=1)
        assert (
            len(store.search(("n",), query="abc")) == len(store.search(("n",), filter={"text": "abc"})) == 1
        )
        assert store.list_namespaces() == [("n", "m")]
        store.delete(("n", "m"), "k")
        assert store.sweep_ttl() == 0


def test_pgvector_elsewhere_than_in_the_search_path(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute('CREATE SCHEMA "Ext ensions"')
        conn.execute('GRANT USAGE ON SCHEMA "Ext ensions" TO PUBLIC')
        conn.execute('CREATE EXTENSION vector SCHEMA "Ext ensions"')
    with PostgresStore(empty_dsn, index=LETTERS) as store:  # type: ignore[arg-type]
        store.put(("n",), "k", {"text": "abc"})
        assert len(store.search(("n",), query="abc")) == 1


@pytest.mark.parametrize("without", ["create", "index"])
def test_a_login_without_the_right_to_make_tables(empty_dsn: str, without: str) -> None:
    index: Any = LETTERS if without == "index" else None
    with PostgresStore(empty_dsn, index=index) as owner:
        owner.setup()
        owner.put(("n",), "k", {"text": "abc"})
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute("CREATE EXTENSION IF NOT EXISTS vector")
        conn.execute("DROP ROLE IF EXISTS guest")
        conn.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
        conn.execute("GRANT USAGE ON SCHEMA haive TO guest")
        conn.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA haive TO guest")
        info = psycopg.conninfo.conninfo_to_dict(empty_dsn)
        guest = psycopg.conninfo.make_conninfo(empty_dsn, user="guest", password="guest", host=info["host"])
        try:
            with PostgresStore(guest, index=LETTERS) as store:  # type: ignore[arg-type]
                if without == "index":
                    assert len(store.search(("n",), query="abc")) == 1
                else:
                    with pytest.raises(MigrationError, match="may not make the table store_vector_27"):
                        store.put(("n",), "k", {"text": "abc"})
                assert store.get(("n",), "k") is not None
        finally:
            conn.execute("DROP OWNED BY guest")
            conn.execute("DROP ROLE guest")


async def test_initialize(empty_dsn: str) -> None:
    async with PostgresStore(empty_dsn, index=LETTERS) as store:  # type: ignore[arg-type]
        with pytest.raises(MigrationError, match="there is no schema 'haive', and create_schema=False"):
            await store.initialize(create_schema=False)
        with pytest.raises(MigrationError, match=r"lacks 0001_base, .*0003_store.* and run_migrations=False"):
            await store.initialize(run_migrations=False)
        await store.initialize(run_migrations=False, check_version=False)
        await store.initialize(create_schema=True, run_migrations=True, check_version=True)
        await store.initialize(create_schema=False)
        store.blocking.initialize(run_migrations=False)
        store.blocking.initialize()


@pytest.mark.usefixtures("pgvector")
def test_setting_up_at_once(empty_dsn: str) -> None:
    """Of eight concurrent setups of the incumbent seven failed."""
    stores = [PostgresStore(empty_dsn, index=LETTERS) for _ in range(8)]  # type: ignore[arg-type]
    errors: list[BaseException] = []

    def setup(store: PostgresStore) -> None:
        try:
            store.setup()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=setup, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for store in stores:
        store.close()


def test_sharing_a_database(database: Database) -> None:
    store = PostgresStore(database)
    saver = Checkpointer(store)
    assert saver.database is store.database is database
    store.put(("n",), "k", {})
    store.close()
    assert PostgresStore(database).get(("n",), "k") is not None


def test_other_things_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot keep its data in 'int': give a connection"):
        PostgresStore(5)  # type: ignore[arg-type]


def test_the_embedded_server_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: EmbeddedServer
) -> None:
    monkeypatch.setenv("HAIVE_CONNECTION_STRING", server.dsn())
    with PostgresStore() as store:
        assert store.database.config.connection_string == server.dsn()
    monkeypatch.delenv("HAIVE_CONNECTION_STRING")
    assert PostgresStore().database.config.connection_string is None


@pytest.mark.usefixtures("pgvector")
def test_threads_and_tasks_at_once(database: Database) -> None:
    store = PostgresStore(database, index=LETTERS)  # type: ignore[arg-type]
    errors: list[BaseException] = []

    def blocking(no: int) -> None:
        try:
            for turn in range(20):
                store.put(("t", str(no)), str(turn), {"text": f"{no} {turn}"})
                assert store.get(("t", str(no)), str(turn)) is not None
        except BaseException as error:
            errors.append(error)

    async def task(no: int) -> None:
        for turn in range(20):
            await store.aput(("a", str(no)), str(turn), {"text": f"{no} {turn}"})
            assert await store.aget(("a", str(no)), str(turn)) is not None

    async def tasks() -> None:
        await asyncio.gather(*map(task, range(10)))

    threads = [threading.Thread(target=blocking, args=(no,)) for no in range(6)]
    threads.append(threading.Thread(target=lambda: asyncio.run(tasks())))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store.search((), limit=1000)) == 6 * 20 + 10 * 20
    assert len(store.search((), query="5 5", limit=1000)) == 6 * 20 + 10 * 20


def test_batches_over_the_same_items_do_not_deadlock(store: PostgresStore, trips: list[Any]) -> None:
    """Each is sent once: the database would send one again that was the victim of a deadlock."""
    errors: list[BaseException] = []

    def write(numbers: list[int]) -> None:
        try:
            for turn in range(60):
                store.batch(
                    [PutOp(("n",), str(no), None if (no + turn) % 3 else {"v": turn}) for no in numbers]
                )
        except BaseException as error:
            errors.append(error)

    numbers = list(range(40))
    orders = (numbers, numbers[::-1], numbers, numbers[::-1])
    threads = [threading.Thread(target=write, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(trips) == 4 * 60
