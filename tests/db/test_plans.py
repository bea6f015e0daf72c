"""Statements that say so are planned once per connection; others for their parameters."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from haive_persistence import Checkpointer
from haive_persistence.db import Database
from haive_persistence.db.protocol import GENERIC_PLAN, Query, run_sync
from haive_persistence.errors import DatabaseError
from tests.builders import store, thread

GENERIC = Query("SELECT 1 FROM haive.thread WHERE tenant_id = %(tenant)s" + GENERIC_PLAN)
OTHER = Query("SELECT 2 FROM haive.thread WHERE tenant_id = %(tenant)s")
PLANS = Query("SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement LIKE %(text)s")


@pytest.fixture
def database(connected: Callable[..., Database]) -> Database:
    """Its statements are prepared, whatever the environment says."""
    made = connected(pooler="session", prepare_threshold=0, pool_size=1, max_overflow=0)
    made.setup()
    return made


def fetch(database: Database, query: Query, **params: Any) -> list[tuple[Any, ...]]:
    return run_sync(database.blocking.fetch_all(query, params))


def test_one_plan_for_all_parameters(database: Database) -> None:
    for _ in range(3):
        fetch(database, GENERIC)
        fetch(database, OTHER)
    assert fetch(database, PLANS, text="SELECT 1 FROM%") == [(3, 0)]
    assert fetch(database, PLANS, text="SELECT 2 FROM%") == [(0, 3)]


def test_a_failure_leaves_the_next_statement_its_plan(database: Database) -> None:
    """A setting that was rolled back is set again."""
    with pytest.raises(DatabaseError):
        fetch(database, Query("SELECT 1 / 0, %(tenant)s" + GENERIC_PLAN))
    fetch(database, Query(GENERIC.replace("1", "3")))
    with pytest.raises(DatabaseError):
        fetch(database, Query("SELECT 1 / 0, %(tenant)s"))
    fetch(database, Query(OTHER.replace("2", "4")))
    assert fetch(database, PLANS, text="SELECT 3 FROM%") == [(1, 0)]
    assert fetch(database, PLANS, text="SELECT 4 FROM%") == [(0, 1)]


def test_tables_that_were_empty_are_not_read_as_a_whole_when_they_have_grown(
    database: Database, admin: psycopg.Connection[Any]
) -> None:
    """One plan serves until the next ANALYZE, however small the tables were when it was made."""
    admin.execute("VACUUM ANALYZE")
    saver = Checkpointer(database)
    first = store(saver, {"messages": list(range(20)), "text": "x" * 300})
    saver.put_writes(first, [("text", "y" * 300)], "task")
    second = store(saver, {"messages": list(range(21)), "text": "y" * 300}, first)
    for config in (first, second, thread()):
        Checkpointer(database).get_tuple(config)
        saver.get_delta_channel_history(config=config, channels=["other"])
    seen = set()
    for name, text in fetch(database, Query("SELECT name, statement FROM pg_prepared_statements")):
        values = ", ".join(["NULL"] * len(set(re.findall(r"\$\d+", text))))
        if text.endswith(GENERIC_PLAN):
            explain = Query(f"EXPLAIN EXECUTE {name}({values})" + GENERIC_PLAN)
            plan = "\n".join(line for (line,) in fetch(database, explain))
            assert "Seq Scan" not in plan, text
            seen |= set(re.findall(r"using (\w+) on", plan))
    assert seen == {"thread_pkey", "checkpoint_pkey", "pending_write_pkey", "piece_pkey"}


def test_other_statements_may_read_a_whole_table(database: Database) -> None:
    fetch(database, GENERIC)
    assert fetch(database, Query("SHOW enable_seqscan")) == [("on",)]
