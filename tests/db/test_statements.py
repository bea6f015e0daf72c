"""Every text that a query of `sql/queries` can become, planned by the real server."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from langgraph.store.base import PutOp
from psycopg import Connection

from haive_persistence import Checkpointer, PostgresStore
from haive_persistence.checkpointer.statements import WriteStatements
from haive_persistence.config import EncryptionConfig
from haive_persistence.db import Database, RoundTrip, load_queries
from haive_persistence.db.sql import Queries, sql_root
from haive_persistence.embedding.config import read_index
from tests.builders import store as put
from tests.builders import thread

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
    for name in ("list_namespaces", "list_matching"):
        for witness in ("", queries.part("witness_item")):
            yield name, queries.render(name, witness=witness)
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
        for name in ("get_latest", "get_one", "get_ancestors"):
            for more in ("", queries.part("first_pieces")):
                found.append((name, queries.render(name, more=more)))
        for name in ("list_all", "list_thread", "list_namespace", "list_one"):
            for check in ("", queries.part("has_signature")):
                found.append((name, queries.render(name, signature_check=check)))
    elif room == "versions":
        for guard in ("", queries.part("tenant_has_no_data_key")):
            found.append(("create_branch", queries.render("create_branch", data_key_check=guard)))
        for name in ("view_namespace", "view_thread"):
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


def explained(conn: Connection[Any], text: str) -> dict[str, Any]:
    """A query's generic plan, with what is true of all of it."""
    names = dict.fromkeys(re.findall(r"%\((\w+)\)s", text))
    for number, name in enumerate(names, 1):
        text = text.replace(f"%({name})s", f"${number}")
    conn.execute(f"PREPARE planned AS {text.replace('%%', '%')}".encode())
    values = f"({', '.join(['NULL'] * len(names))})" if names else ""
    (found,) = conn.execute(f"EXPLAIN (VERBOSE, FORMAT JSON) EXECUTE planned{values}".encode()).fetchone()
    conn.execute("DEALLOCATE planned")
    return found[0]  # type: ignore[no-any-return]


def plan(conn: Connection[Any], text: str) -> list[dict[str, Any]]:
    """The nodes of a query's generic plan."""
    return list(nodes(explained(conn, text)["Plan"]))


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


#: Queries whose plans look dear to the planner, with what is set for them.
DEAR = {
    "checkpointer": ("prefer_order", {"list_all"}),
    "store": ("search_settings", {"search_exact", "search_near", "search_all"}),
}


@pytest.mark.parametrize("room", DEAR)
def test_dear_plans_are_not_compiled(planner: Connection[Any], room: str) -> None:
    """Compiling takes seconds. A server without a compiler shows nothing here."""
    settings, names = DEAR[room]
    with planner.transaction(force_rollback=True):
        planner.execute("SET LOCAL jit_above_cost = 0")
        params = {"ef_search": "40", "max_scan_tuples": "100", "probes": "1"}
        planner.execute(load_queries(room)[settings], params)
        for name, text in texts(room):
            if name in names:
                assert "JIT" not in explained(planner, text), name


#: Queries about more than one thread, by what they look up instead.
ACROSS = {
    "list_all": "listing_key",
    "threads_of_runs": "run_key",
    "line_of_checkpoint": "listing_key",
    "checkpoints_by_id": "listing_key",
}


@pytest.mark.parametrize("room", ["checkpointer", "versions"])
def test_the_checkpointer_looks_rows_up_by_their_thread(planner: Connection[Any], room: str) -> None:
    for name, text in texts(room):
        for node in scans(planner, text):
            if node["Relation Name"] == "data_key":
                assert "tenant_id" in node.get("Index Cond", ""), name
            elif name != "count_threads" and (name not in ACROSS or node["Relation Name"] != "checkpoint"):
                assert "thread_key" in node.get("Index Cond", ""), (name, node)


def use_everything(saver: Checkpointer, store: PostgresStore, *, filters: bool) -> None:
    """Call every public operation that reads or writes; sealed fields take no `filters`."""
    first = put(saver, {"messages": list(range(20)), "n": 1}, user="ann", run_id="run")
    saver.put_writes(first, [("n", 2)], "task")
    put(saver, {"messages": list(range(21)), "n": 2}, first, user="ann")
    saver.get_tuple(first)
    for config in (None, thread(), first, {"configurable": {"thread_id": "t"}}):
        list(saver.list(config, filter={"user": "ann"}, limit=2))
        list(saver.list(config, before=first))
    versions = saver.blocking
    branch = versions.create_branch(first, "branch")
    versions.create_tag("branch", "tag", thread_id="t")
    put(saver, {"messages": list(range(22)), "n": 3}, saver.get_tuple(branch.config).config, user="ann")
    for config in (branch.config, first | {"configurable": first["configurable"] | {"branch": "branch"}}):
        list(saver.list(config, filter={"user": "ann"}, limit=2))
        saver.get_delta_channel_history(config=config, channels=["messages"])
    versions.create_branch(first["configurable"]["checkpoint_id"], "by id", thread_id="t")
    versions.create_branch(branch, "of a branch")
    versions.protect_branch("t", "main")
    versions.protect_branch("t", "main", False)
    versions.rename_branch("t", "of a branch", "renamed")
    versions.delete_branch("t", "renamed")
    versions.delete_tag("t", "tag")
    other = versions.create_branch(first, "other")
    put(saver, {"messages": [0], "n": 7}, saver.get_tuple(other.config).config, user="bob")
    merge = versions.merge("t", "other")
    versions.resolve(merge, {0: "theirs"})
    versions.revert("t", merge.checkpoint_id)
    versions.undo("t")
    versions.restore(first)
    versions.compare("main", "other", thread_id="t")
    versions.branches("t"), versions.tags("t"), versions.log("t")
    saver.copy_thread("t", "copy")
    saver.prune(["t"])
    saver.delete_for_runs(["run"])
    saver.get_delta_channel_history(config=thread(), channels=["messages"])
    saver.delete_thread("copy")
    for key in ("1", "2", "3"):
        store.put(("a", "b"), key, {"text": "x", "n": 1}, ttl=1)
    store.batch(
        [PutOp(("a",), "k", {"text": "y"}), PutOp(("a", "b"), "1", None), PutOp(("a", "b"), "2", None)]
    )
    store.get(("a",), "k")
    store.search(("a",), filter={"n": {"$gt": 0}} if filters else None)
    store.search(("a",), query="x", filter={"text": "y"} if filters else None)
    store.list_namespaces(prefix=("a",), max_depth=1)
    store.list_namespaces(suffix=("b",))
    store.sweep_ttl()
    store.delete(("a",), "k")


@pytest.mark.parametrize("sealed", [False, True])
def test_every_statement_that_is_sent_names_the_tenant(
    planner: Connection[Any], database: Database, sealed: bool
) -> None:
    sent: list[RoundTrip] = []
    key = "correct horse battery" if sealed else None
    view = (
        database.with_encryption(EncryptionConfig(encryption_key=key, readable_embeddings=True))
        if key
        else database
    )
    store = PostgresStore(view, index={"dims": 3, "embed": lambda texts: [[1.0, 2.0, 3.0] for _ in texts]})  # type: ignore[typeddict-item]
    database.hooks.append(sent.append)
    use_everything(Checkpointer(view), store, filters=not sealed)
    database.hooks.remove(sent.append)
    planned = 0
    for text in dict.fromkeys(text for trip in sent for text in trip.statements):
        if PLANNED.match(text):
            for node in scans(planner, text):
                planned += 1
                assert re.search(r"tenant_id = \(?\$\d", conditions(node)), (text, node)
    assert planned > 30
