"""Swapping the import of PostgresSaver: what it is made with is taken, and its threads are not forgotten."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres import PostgresSaver
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool

import haive_persistence
from haive_persistence import CheckpointConfig, PersistenceConfig, PostgresStore, SafeSerializer, errors
from haive_persistence.checkpointer import Checkpointer
from tests.builders import make_checkpoint, store, thread

KWARGS = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row, "application_name": "mine"}


def same(conninfo: str | None, dsn: str) -> bool:
    return conninfo_to_dict(conninfo or "") == conninfo_to_dict(dsn)


def test_a_pool(dsn: str) -> None:
    with ConnectionPool(dsn, min_size=2, max_size=7, timeout=11, kwargs=KWARGS) as pool:
        with Checkpointer(pool) as saver:
            store(saver, {"a": 1}, thread("pool"))
            assert saver.get_tuple(thread("pool")) is not None
            config = saver.database.config
        assert not pool.closed
    assert same(config.connection_string, make_conninfo(dsn, application_name="mine"))
    assert (config.pool_size, config.max_overflow, config.pool_timeout) == (2, 5, 11.0)


def test_an_async_pool(dsn: str) -> None:
    """Its connection string has the password apart, among the arguments of each connection."""
    parts = conninfo_to_dict(dsn)
    password = parts.pop("password")

    async def use() -> None:
        pool: Any = AsyncConnectionPool(
            make_conninfo("", **parts), max_size=4, open=False, kwargs={**KWARGS, "password": password}
        )
        async with pool, Checkpointer(pool) as saver:
            await saver.setup()
            assert await saver.aget_tuple(thread("nobody's")) is None
            assert conninfo_to_dict(saver.database.config.connection_string)["password"] == password

    asyncio.run(use())


def test_a_connection(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection, Checkpointer(connection) as saver:
        store(saver, {"a": 1}, thread("connection"))
        assert same(saver.database.config.connection_string, connection.info.dsn) or "password" in dsn
    with pytest.raises(errors.ConfigError, match=r"give PersistenceConfig\("):
        Checkpointer(connection)


def test_by_the_name_that_the_incumbent_has_for_it(dsn: str) -> None:
    with ConnectionPool(dsn, open=False) as pool, Checkpointer(conn=pool) as saver:
        assert saver.get_tuple(thread("nobody's")) is None
        with pytest.raises(errors.ConfigError, match="give one of them"):
            Checkpointer(store=dsn, conn=pool)


def test_by_the_name_of_the_store(dsn: str) -> None:
    with PostgresStore(dsn) as kept, Checkpointer(store=kept) as saver:
        assert saver.database is kept.database


def test_with_a_pipeline_and_a_serialiser_by_position(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection, connection.pipeline() as pipe:
        serde = SafeSerializer()
        with Checkpointer(connection, pipe, serde) as saver:
            store(saver, {"a": 1}, thread("pipe"))
            assert saver.serde is serde
            assert saver.get_tuple(thread("pipe")) is not None


def test_the_store_takes_what_the_incumbents_does(dsn: str) -> None:
    with ConnectionPool(dsn, min_size=2, max_size=7, timeout=11, kwargs=KWARGS) as pool:
        with PostgresStore(pool) as items:
            items.put(("n",), "pool", {"a": 1})
            config = items.database.config
        assert not pool.closed
    assert same(config.connection_string, make_conninfo(dsn, application_name="mine"))
    assert (config.pool_size, config.max_overflow, config.pool_timeout) == (2, 5, 11.0)
    with (
        psycopg.connect(dsn) as connection,
        connection.pipeline() as pipe,
        PostgresStore(connection, pipe=pipe) as items,
    ):
        assert items.get(("n",), "pool").value == {"a": 1}  # type: ignore[union-attr]
    with pytest.raises(errors.ConfigError, match=r"give PersistenceConfig\("):
        PostgresStore(connection)
    with pytest.raises(errors.ConfigError, match="PostgresStore cannot keep its data in 'dict': give"):
        PostgresStore({})  # type: ignore[arg-type]
    with Checkpointer(dsn) as saver, PostgresStore(saver) as items:
        assert items.database is saver.database
        items.close()
        assert saver.get_tuple(thread("nobody's")) is None


async def test_the_store_takes_an_async_pool(dsn: str) -> None:
    async with AsyncConnectionPool(dsn, max_size=4, open=False) as pool, PostgresStore(pool) as items:
        await items.aput(("n",), "async", {"a": 2})
        assert (await items.aget(("n",), "async")).value == {"a": 2}  # type: ignore[union-attr]


def test_a_pool_that_computes_its_connection_string(dsn: str) -> None:
    pool = ConnectionPool(lambda: dsn, open=False)
    with pytest.raises(errors.ConfigError, match=r"give PersistenceConfig\("):
        Checkpointer(pool)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: Checkpointer(config=PersistenceConfig(connection_string="")),
            "Checkpointer(PersistenceConfig(",
        ),
        (lambda: Checkpointer(config={"compression": None}), "CheckpointConfig(compression="),
        (lambda: Checkpointer(config="zstd"), "takes a CheckpointConfig"),
        (lambda: Checkpointer(CheckpointConfig()), "Checkpointer(config=CheckpointConfig("),
        (lambda: Checkpointer(object()), "a connection string"),
    ],
)
def test_what_to_write_instead(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(errors.ConfigError) as raised:
        make()
    assert says in str(raised.value)


@pytest.fixture
def left_behind(empty_dsn: str) -> str:
    """A database in which PostgresSaver has a thread."""
    with PostgresSaver.from_conn_string(empty_dsn) as old:
        old.setup()
        checkpoint: Any = make_checkpoint({"a": 1})
        old.put(thread("old"), checkpoint, {"source": "loop", "step": 1, "parents": {}}, {"a": 1})
    return empty_dsn


def test_threads_left_behind_are_warned_of_once(left_behind: str) -> None:
    with Checkpointer(left_behind) as saver:
        with pytest.warns(UserWarning, match="haive import langgraph-postgres"):
            assert saver.get_tuple(thread("old")) is None
        assert saver.get_tuple(thread("old")) is None
        assert saver.for_tenant("other").get_tuple(thread("old")) is None


def test_whoever_has_threads_here_is_not_warned(left_behind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Checkpointer(left_behind) as saver:
            store(saver, {"a": 1})
            assert saver.get_tuple(thread("old")) is None


def test_the_saver_is_shown_without_its_password(dsn: str) -> None:
    with Checkpointer(PersistenceConfig(connection_string="postgresql://u:secret@h/db", schema="s")) as saver:
        shown = repr(saver.for_tenant("acme"))
    assert shown == "<Checkpointer 'postgresql://u:***@h/db' schema='s' tenant='acme'>"


def test_the_public_names() -> None:
    assert issubclass(errors.ConfigError, haive_persistence.PersistenceError)
    assert haive_persistence.SafeSerializer().dumps_typed({"a": 1})[0] == "msgpack"


def test_help_is_for_users() -> None:
    """What LangGraph says of its abstract methods is for implementers."""
    for name, member in inspect.getmembers(Checkpointer):
        if name.startswith("_") or not callable(member) or not hasattr(BaseCheckpointSaver, name):
            continue
        if getattr(BaseCheckpointSaver, name) is member or name in ("with_allowlist", "get", "aget"):
            continue
        assert member.__doc__, name
        assert member.__doc__ != getattr(BaseCheckpointSaver, name).__doc__, name
    assert "keep_latest" in (Checkpointer.prune.__doc__ or "")
