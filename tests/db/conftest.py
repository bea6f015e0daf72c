from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import Connection

from haive_persistence.db import Database
from tests.db.helpers import Proxy


@pytest.fixture(scope="module")
def _notes(_module_database: Database) -> None:
    """A table with tenants, to write into."""
    with _module_database.connect() as conn:
        conn.execute(
            'CREATE TABLE haive.note (tenant_id text COLLATE "C" NOT NULL, id text NOT NULL, body text,'
            " PRIMARY KEY (tenant_id, id))"
        )
        conn.execute("CALL haive.isolate_tenants('note')")
        role = conn.execute(
            "SELECT 'haive_haive_' || oid FROM pg_database WHERE datname = current_database()"
        )
        conn.execute(f'GRANT SELECT, INSERT, UPDATE, DELETE ON haive.note TO "{role.fetchone()[0]}"')


@pytest.fixture
def notes(_notes: None, database: Database) -> Database:
    """The database with a table `haive.note (tenant_id, id, body)`."""
    return database


@pytest.fixture
def login(admin: Connection, dsn: str) -> Iterator[str]:
    """The connection string of a login that can do nothing special."""
    name = f"user_{uuid.uuid4().hex[:8]}"
    admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    yield psycopg.conninfo.make_conninfo(dsn, user=name, password="secret")
    admin.execute(f"DROP OWNED BY {name}")
    admin.execute(f"DROP ROLE {name}")


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    """A TCP proxy before the server, which can cut connections at a chosen moment."""
    with Proxy(dsn) as running:
        yield running
