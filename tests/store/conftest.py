"""A store on a tenant of its own, and looks behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from haive_persistence.db import Database
from haive_persistence.store import PostgresStore
from tests.builders import LETTERS, letters

__all__ = ["LETTERS", "letters"]


@pytest.fixture(scope="module")
def module_database(_module_database: Database) -> Database:
    """The module's database, for fixtures that outlive a test."""
    return _module_database


@pytest.fixture
def store(database: Database) -> Iterator[PostgresStore]:
    made = PostgresStore(database)
    yield made
    made.close()


@pytest.fixture
def sql(dsn: str, tenant: str) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    """Runs SQL as the administrator, who sees all tenants; `%(tenant)s` is the test's."""
    with psycopg.connect(dsn, autocommit=True) as conn:

        def run(text: str, **params: object) -> list[tuple[Any, ...]]:
            cursor = conn.execute(text, {"tenant": tenant, **params})
            return cursor.fetchall() if cursor.description else []

        yield run
