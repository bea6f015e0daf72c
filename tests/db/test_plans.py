"""Statements that say so are planned once per connection; others for their parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from haive_persistence.db import Database
from haive_persistence.db.protocol import GENERIC_PLAN, Query, run_sync
from haive_persistence.errors import DatabaseError

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
