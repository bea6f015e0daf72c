"""Every text that a query of `sql/queries` can become, planned by the real server."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from psycopg import Connection

from haive_persistence import PostgresStore
from haive_persistence.checkpointer.statements import WriteStatements
from haive_persistence.db import Database, load_queries
from haive_persistence.db.sql import Queries, sql_root
from haive_persistence.embedding.config import read_index

PLANNED = re.compile(r"(SELECT|INSERT|UPDATE|DELETE|WITH)\b")
INDEXES = [
    {"dims": 3, "embed": lambda _: [], "distance_type": distance, "ann_index_config": {"vector_type": kind}}
    for distance in ("l2", "inner_product", "cosine")
    for kind in ("vector", "halfvec")
]


def filters(queries: Queries) -> list[str]:
    wheres = ("where_contains", "where_matches", "where_eq", "where_ne")
    every = [f"AND {queries.part(where, number=str(number))}" for number, where in enumerate(wheres)]
    return ["", *every, " ".join(every)]


def store_texts(queries: Queries) -> Iterator[tuple[str, str]]:
    scopes, refreshing = ("", f"AND {queries.part('where_in_scope')}"), ("", queries.part("refreshed"))
    for refresh in ("", queries.part("refreshed_gets")):
        yield "get_items", queries.render("get_items", refreshing=refresh)
    for scope, filter_, refresh in itertools.product(scopes, filters(queries), refreshing):
        yield "search_items", queries.render("search_items", scope=scope, filters=filter_, refreshing=refresh)
    for index in map(read_index, INDEXES):
        filled = queries.fill(
            **index.slots("public"),
            dims="3",
            index=index.index,
            method=index.method("public"),
            items_regclass="haive.store_item",
            vectors_regclass=f"haive.{index.table}",
        )
        for name in ("search_exact", "search_near", "search_all"):
            for filter_, refresh in itertools.product(filters(queries), refreshing):
                yield name, filled.render(name, filters=filter_, refreshing=refresh)
        yield from filled.items()


def texts(room: str) -> list[tuple[str, str]]:
    """All texts of a room, with the names of their queries."""
    queries = load_queries(room)
    found: list[tuple[str, str]] = list(queries.items())
    if room == "checkpointer":
        found += WriteStatements(queries).variants()
        for name in ("list_all", "list_thread", "list_namespace", "list_one"):
            for check in ("", queries.part("has_signature")):
                found.append((name, queries.render(name, signature_check=check)))
    elif room == "store":
        found += store_texts(queries)
    assert {name for name, _ in found} == set(queries.templates), "texts that this test does not know"
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def planner(_module_database: Database) -> Iterator[Connection[Any]]:
    """A connection that no policy applies to, on a schema with all the tables, and that prefers indexes."""
    for index in INDEXES:
        PostgresStore(_module_database, index=index).setup()  # type: ignore[arg-type]
    with _module_database.connect() as conn:
        conn.execute(
            "SET enable_seqscan = off; SET enable_bitmapscan = off; SET plan_cache_mode = force_generic_plan"
        )
        yield conn


def plan(conn: Connection[Any], text: str) -> list[dict[str, Any]]:
    """The nodes of a query's generic plan."""
    names = dict.fromkeys(re.findall(r"%\((\w+)\)s", text))
    for number, name in enumerate(names, 1):
        text = text.replace(f"%({name})s", f"${number}")
    conn.execute(f"PREPARE planned AS {text.replace('%%', '%')}".encode())
    values = f"({', '.join(['NULL'] * len(names))})" if names else ""
    (found,) = conn.execute(f"EXPLAIN (VERBOSE, FORMAT JSON) EXECUTE planned{values}".encode()).fetchone()
    conn.execute("DEALLOCATE planned")
    return list(nodes(found[0]["Plan"]))


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from nodes(child)


def conditions(node: dict[str, Any]) -> str:
    return json.dumps([value for key, value in node.items() if key.endswith(("Cond", "Filter"))])


def scans(conn: Connection[Any], text: str) -> list[dict[str, Any]]:
    """The nodes that read or change rows of a tenant's tables; new rows have their tenant as a value."""
    found = [node for node in plan(conn, text) if node.get("Schema") == "haive"]
    return [node for node in found if node["Node Type"] != "ModifyTable"]


ROOMS = sorted(path.stem for path in (sql_root() / "queries").glob("*.sql"))


@pytest.mark.parametrize("room", ROOMS)
def test_every_text_is_planned_and_names_the_tenant(planner: Connection[Any], room: str) -> None:
    seen = 0
    for name, text in texts(room):
        if not PLANNED.match(text):
            continue  # DDL, which the tests of the store's tables run
        for node in scans(planner, text):
            seen += 1
            assert re.search(r"tenant_id = \(?\$\d", conditions(node)), (name, text, node)
    assert seen or room == "schema_lint"


#: Queries about more than one thread, by what they look up instead.
ACROSS = {"list_all": "listing_key", "threads_of_runs": "run_key"}


def test_the_checkpointer_looks_rows_up_by_their_thread(planner: Connection[Any]) -> None:
    for name, text in texts("checkpointer"):
        for node in scans(planner, text):
            if node["Relation Name"] == "data_key":
                assert "tenant_id" in node.get("Index Cond", ""), name
            elif name not in ACROSS or node["Relation Name"] != "checkpoint":
                assert "thread_key" in node.get("Index Cond", ""), (name, node)
