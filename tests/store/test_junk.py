"""Wrong settings and arguments are errors of ours, before anything is sent."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from langgraph.store.base import GetOp, ListNamespacesOp, MatchCondition, PutOp, SearchOp
from psycopg.conninfo import make_conninfo

from haive_persistence import PersistenceConfig
from haive_persistence.db import Database
from haive_persistence.errors import ConfigError, InvalidInputError, PersistenceError
from haive_persistence.store import PostgresStore
from tests.builders import LETTERS, letters

HALF = "\ud83d"


@pytest.mark.parametrize(
    "wrong",
    [
        {"dims": "16"},
        {"dims": True},
        {"dims": 2.0},
        {"dims": None},
        {"dims": 0},
        {"embed": None},
        {"embed": 5},
        {"embed": "no such model"},
        {"fields": 5},
        {"fields": [5]},
        {"distance_type": "far"},
        {"distance_type": ["cosine"]},
        {"ann_index_config": "hnsw"},
        {"ann_index_config": {"kind": 5}},
        {"ann_index_config": {"kind": "hnsw", "m": "16"}},
        {"ann_index_config": {"kind": "hnsw", "ef": 16}},
        {"ann_index_config": {"vector_type": "bit"}},
        {"field": ["text"]},
    ],
    ids=str,
)
def test_wrong_index_is_said_at_construction(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="index"):
        PostgresStore("postgresql://nowhere", index={"dims": 27, "embed": letters, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["index", 5, [("dims", 3)]])
def test_an_index_that_is_no_dict(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="index is a"):
        PostgresStore("postgresql://nowhere", index=wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        60,
        {"default_ttl": "60"},
        {"default_ttl": -1},
        {"sweep_interval_minutes": 0},
        {"sweep_interval_minutes": float("nan")},
        {"refresh_on_read": "yes"},
        {"omit_expired": 0},
        {"default": 60},
    ],
    ids=str,
)
def test_wrong_ttl_is_said_at_construction(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="ttl"):
        PostgresStore("postgresql://nowhere", ttl=wrong)


@pytest.mark.parametrize("minutes", [0, -1, "5", True, float("inf")])
def test_the_interval_of_a_sweeper_is_above_zero(minutes: Any) -> None:
    store = PostgresStore("postgresql://nowhere", ttl={"default_ttl": 1})
    with pytest.raises(InvalidInputError, match="sweep_interval_minutes"):
        store.start_ttl_sweeper(minutes)


@pytest.mark.parametrize(
    "op",
    [
        GetOp((HALF,), "k"),
        GetOp(("n",), HALF),
        GetOp(("n",), 5),  # type: ignore[arg-type]
        GetOp((5,), "k"),  # type: ignore[arg-type]
        GetOp("n", None),  # type: ignore[arg-type]
        PutOp((HALF,), "k", {"a": 1}),
        PutOp(("n",), "k" + HALF, {"a": 1}),
        PutOp(("n\0",), "k", {"a": 1}),
        PutOp(("n",), "k", {"a": 1}, ttl="soon"),  # type: ignore[arg-type]
        PutOp(("n",), "k", {"a": 10**5000}),
        PutOp(("n",), "k", "text"),  # type: ignore[arg-type]
        SearchOp((HALF,)),
        SearchOp(("n",), limit="5"),  # type: ignore[arg-type]
        SearchOp(("n",), limit=1.5),  # type: ignore[arg-type]
        SearchOp(("n",), limit=True),
        SearchOp(("n",), offset=None),  # type: ignore[arg-type]
        SearchOp(("n",), offset=-1),
        SearchOp(("n",), filter="a=1"),  # type: ignore[arg-type]
        SearchOp(("n",), filter={5: 1}),  # type: ignore[dict-item]
        SearchOp(("n",), filter={"a": {"$gt": None}}),
        SearchOp(("n",), filter={"a": {"$like": "x"}}),
        SearchOp(("n",), filter={"a": object()}),
        SearchOp(5),  # type: ignore[arg-type]
        SearchOp((5,)),  # type: ignore[arg-type]
        SearchOp("n"),  # type: ignore[arg-type]
        ListNamespacesOp(limit="5"),  # type: ignore[arg-type]
        ListNamespacesOp(max_depth=0),
        ListNamespacesOp(max_depth="2"),  # type: ignore[arg-type]
        ListNamespacesOp((MatchCondition("prefix", (HALF,)),)),
        ListNamespacesOp((MatchCondition("middle", ("n",)),)),  # type: ignore[arg-type]
        ListNamespacesOp((MatchCondition("prefix", (5,)),)),  # type: ignore[arg-type]
        "get",
        None,
    ],
)
def test_wrong_arguments_are_errors_of_ours(store: PostgresStore, trips: list[Any], op: Any) -> None:
    with pytest.raises(PersistenceError):
        store.batch([op])
    assert trips == []


def test_a_query_without_an_index_is_warned_of_once(
    store: PostgresStore, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    store.put(("n",), "k", {"text": "a"})
    with caplog.at_level(logging.WARNING, "haive_persistence.store"):
        assert len(store.search(("n",), query="what?")) == 1
        assert len(store.for_tenant(database.tenant).search(("n",), query="again?")) == 1
    assert [record.message for record in caplog.records if "index=" in record.message] != []
    assert len(caplog.records) == 1


@pytest.fixture
def reader_dsn(dsn: str, database: Database) -> str:
    """A login that may only read."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        if conn.execute("SELECT FROM pg_roles WHERE rolname = 'only_reads'").fetchone() is None:
            conn.execute("CREATE ROLE only_reads LOGIN PASSWORD 'reads'")
        conn.execute("GRANT USAGE ON SCHEMA haive TO only_reads")
        conn.execute("GRANT SELECT ON ALL TABLES IN SCHEMA haive TO only_reads")
    return make_conninfo(dsn, user="only_reads", password="reads")


@pytest.mark.parametrize("how", ["role", "transaction"])
def test_a_store_is_read_where_nothing_can_be_written(
    database: Database, reader_dsn: str, dsn: str, how: str
) -> None:
    """Times of expiry are not set again there."""
    writer = PostgresStore(database, index=LETTERS)  # type: ignore[arg-type]
    writer.put(("n",), "k", {"text": "abc"}, ttl=5)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("GRANT SELECT ON ALL TABLES IN SCHEMA haive TO only_reads")
    options = "-c default_transaction_read_only=on"
    given = reader_dsn if how == "role" else make_conninfo(dsn, options=options)
    config = PersistenceConfig(connection_string=given, tenant=database.tenant)
    with PostgresStore(config, index=LETTERS) as reader:  # type: ignore[arg-type]
        assert reader.get(("n",), "k") is not None
        assert len(reader.search(("n",), filter={"text": "abc"})) == 1
        assert len(reader.search(("n",), query="abc")) == 1
        assert reader.list_namespaces() == [("n",)]
        with pytest.raises(PersistenceError):
            reader.put(("n",), "k", {"text": "abc"})


def test_views_of_a_tenant_share_what_is_known(store: PostgresStore, tenant: str) -> None:
    assert store.for_tenant(f"{tenant}-a")._engine is store.for_tenant(f"{tenant}-a")._engine
    store.for_tenant(f"{tenant}-a").put(("n",), "k", {"a": 1})
    assert store.get(("n",), "k") is None


def test_names_that_no_text_is(store: PostgresStore) -> None:
    read: Callable[..., Any] = store.get
    with pytest.raises(PersistenceError, match="surrogate"):
        read((HALF,), "k")
