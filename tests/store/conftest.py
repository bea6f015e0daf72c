"""A store on a tenant of its own, and looks behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
import pytest

from haive_persistence.db import Database
from haive_persistence.store import PostgresStore


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


@pytest.fixture
def trips(database: Database) -> Iterator[list[Any]]:
    """The round trips made since the test began, or since `trips.clear()`."""
    made: list[Any] = []
    database.hooks.append(made.append)
    yield made
    database.hooks.remove(made.append)


def letters(texts: Sequence[str]) -> list[list[float]]:
    """An embedding: how often each letter occurs, and a one that keeps it from being zero."""
    return [[float(text.count(chr(97 + no))) for no in range(26)] + [1.0] for text in texts]


LETTERS = {"dims": 27, "embed": letters, "fields": ["text"]}
