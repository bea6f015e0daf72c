"""Tenants do not see each other; under row-level security every statement uses the index it is meant to."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from langgraph.store.base import GetOp, PutOp, SearchOp

from haive_persistence.db import Database, Query, Statement
from haive_persistence.db.protocol import run_sync
from haive_persistence.db.schema_lint import distribution_findings, isolation_findings, upsert_findings
from haive_persistence.documents.items import ItemCodec
from haive_persistence.embedding import LargeScopes
from haive_persistence.store import PostgresStore
from haive_persistence.store.statements import Statements
from tests.builders import LETTERS

NAMES = ["a", "a_", "a%", "a.", "a.b", "", "A"]


def test_tenants_are_apart(database: Database) -> None:
    tenants = [f"{database.tenant} {name}" for name in NAMES]
    stores = [PostgresStore(database, index=LETTERS).for_tenant(name) for name in tenants]  # type: ignore[arg-type]
    for no, store in enumerate(stores):
        store.put(("n", str(no)), "k", {"text": f"of tenant {no}", "no": no})
        store.put(("n",), "same key", {"text": "all have it", "no": no})
    for no, store in enumerate(stores):
        assert [item.value["no"] for item in store.search(())] == [no, no]
        assert [item.value["no"] for item in store.search(("n",), query="text")] == [no, no]
        assert store.list_namespaces() == [("n",), ("n", str(no))]
        other = (no + 1) % len(stores)
        assert store.get(("n", str(other)), "k") is None
        store.delete(("n", str(other)), "k")
    assert all(len(store.search(())) == 2 for store in stores)


def test_tables_and_queries_are_fit(database: Database, dsn: str) -> None:
    """The vector table is made at run time, so the catalogue is looked at again with it there."""
    store = PostgresStore(database, index=LETTERS)  # type: ignore[arg-type]
    store.setup()
    ((role,),) = run_sync(database.blocking.fetch_all(Query("SELECT current_user")))
    with psycopg.connect(dsn) as conn:
        assert isolation_findings(conn, "haive", role) == []
        assert distribution_findings(conn, "haive") == []
    assert upsert_findings(dict(database.queries("store"))) == []


def test_every_statement_names_the_tenant(database: Database) -> None:
    """Citus routes by it; the policy's comparison does not reach the planner of the coordinator."""
    for name, text in database.queries("store").items():
        if ".store_item" in text or ".store_vector" in text:
            ddl = any(word in text for word in ("CREATE ", "ALTER ", "DROP ", "GRANT "))
            assert ddl or "%(tenant)s" in text, name


def test_without_a_tenant_there_is_nothing(store: PostgresStore, dsn: str, database: Database) -> None:
    store.put(("n",), "k", {})
    ((role,),) = run_sync(database.blocking.fetch_all(Query("SELECT current_user")))
    with psycopg.connect(dsn) as conn:
        conn.execute(f'SET ROLE "{role}"')
        assert conn.execute("SELECT count(*) FROM haive.store_item").fetchone() == (0,)


# -- plans ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(module_database: Database) -> PostgresStore:
    """Two tenants, 3,000 items each in 300 namespaces, with vectors; no statistics yet."""
    for tenant in ("another", f"full-{uuid.uuid4().hex[:8]}"):
        store = PostgresStore(module_database.for_tenant(tenant), index=LETTERS)  # type: ignore[arg-type]
        for start in range(0, 3000, 1000):
            store.batch(
                [
                    PutOp(("u", str(no % 300)), f"k{no}", {"text": f"text of {no}", "no": no})
                    for no in range(start, start + 1000)
                ]
            )
    return store


@pytest.fixture(params=["no statistics", "analyzed"])
def planned(full: PostgresStore, dsn: str, request: pytest.FixtureRequest) -> PostgresStore:
    with psycopg.connect(dsn, autocommit=True) as conn:
        if request.param == "analyzed":
            conn.execute("ANALYZE haive.store_item, haive.store_vector_27")
        else:
            for table in ("store_item", "store_vector_27"):
                conn.execute("DELETE FROM pg_statistic WHERE starelid = %s::regclass", (f"haive.{table}",))
    return full


def _explain(store: PostgresStore, statements: list[Statement]) -> str:
    """The generic plan of the last of some statements, as the tenant's own connections make it."""
    *before, last = statements
    force = Statement(Query("SELECT set_config('plan_cache_mode', 'force_generic_plan', true)"))
    explained = Statement(Query(f"EXPLAIN (COSTS OFF) {last.query}"), last.params)
    return "\n".join(
        line for (line,) in run_sync(store.database.blocking.batch([force, *before, explained]))[-1]
    )


def _steps(store: PostgresStore, ops: list[Any]) -> list[Statement]:
    statements = _statements(store, ops)
    return [step.statement for step in statements.reads() + statements.writes({})]


def _statements(store: PostgresStore, ops: list[Any], queries: Any = None) -> Statements:
    engine = store._engine
    return Statements(
        engine.check(ops), engine._queries, store.database.tenant, ItemCodec(), None, vector_queries=queries
    )


def _near(store: PostgresStore, way: str, **options: Any) -> list[Statement]:
    engine = store._engine
    queries = run_sync(engine._vector_queries(engine.blocking))
    assert engine._index is not None
    statements = _statements(store, [SearchOp(("u", "7"), query="text", **options)], queries)
    (opened,) = statements.open_searches(engine._index, LargeScopes(), {"text": [1.0] * 27})
    opened.vectors.query = way
    settings = Statement(engine._queries["search_settings"], engine._index.settings)
    return [settings, statements.vector_search(opened)]


def test_gets_look_into_the_primary_key(planned: PostgresStore) -> None:
    plan = _explain(planned, _steps(planned, [GetOp(("u", "7"), "k7"), GetOp(("u", "8"), "k8")]))
    assert "Index Scan using store_item_pkey" in plan
    assert "key = w.key" in plan.replace("(key = (w.key)::text)", "key = w.key")
    assert "Seq Scan" not in plan


def test_a_search_reads_its_scope_only(planned: PostgresStore) -> None:
    plan = _explain(planned, _steps(planned, [SearchOp(("u", "7"), {"no": {"$gt": 5}})]))
    assert "store_item_pkey" in plan
    assert "(namespace >= " in plan.partition("Index Cond")[2].partition("\n")[0]
    assert "Seq Scan" not in plan


def test_deletes_go_by_the_primary_key(planned: PostgresStore) -> None:
    one = _steps(planned, [PutOp(("u", "7"), "k7", None)])
    several = _steps(planned, [PutOp(("u", "7"), "k7", None), PutOp(("u", "8"), "k8", None)])
    for plan in (_explain(planned, [statement]) for statement in one + several):
        assert "Index Scan using store_item_pkey" in plan
        assert "Seq Scan" not in plan


def test_a_small_scope_is_measured_by_the_primary_key(planned: PostgresStore) -> None:
    plan = _explain(planned, _near(planned, "search_exact", filter={"no": 7}))
    assert "using store_vector_27_pkey" in plan
    assert "hnsw" not in plan
    assert "Seq Scan" not in plan


def test_a_large_scope_is_searched_by_its_index(planned: PostgresStore) -> None:
    for options in ({}, {"filter": {"no": 7}}):
        plan = _explain(planned, _near(planned, "search_near", **options))
        ranked = plan.partition("CTE ranked")[2].partition("CTE")[0]
        assert "Index Scan using store_vector_27_hnsw_cosine" in ranked
        assert "Index Scan using store_item_pkey" in ranked
        assert "Sort" not in ranked


def test_without_its_index_a_scope_goes_from_items_to_vectors(planned: PostgresStore) -> None:
    plan = _explain(planned, _near(planned, "search_all", filter={"no": 7}))
    assert "using store_vector_27_pkey" in plan
    assert "hnsw" not in plan


@pytest.fixture
def sweep_plan(planned: PostgresStore) -> Callable[[], str]:
    params = {"tenant": planned.database.tenant, "limit": 1000}
    return lambda: _explain(planned, [Statement(planned.database.queries("store")["sweep_items"], params)])


def test_sweeping_finds_what_expired(sweep_plan: Callable[[], str]) -> None:
    assert "store_item_expiry" in sweep_plan()
