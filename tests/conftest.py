"""One embedded server per test session, a database per module, a fresh tenant per test.

`HAIVE_TEST_DSN=postgresql://superuser@host/postgres pytest` runs the tests on a server of yours.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from haive_persistence.config import PersistenceConfig
from haive_persistence.db import Database, embedded
from haive_persistence.db.embedded import EmbeddedServer
from haive_persistence.errors import ConfigError
from tests.builders import RoundTrips


def pytest_configure() -> None:
    # Up to Python 3.13 asking for the main thread's loop makes one, once, that nobody closes: pytest-asyncio asks.
    asyncio.set_event_loop(None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    with _pgvector_may_be_missing():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    with _pgvector_may_be_missing():
        yield


NO_PGVECTOR = "this server has no pgvector"


@pytest.fixture
def pgvector(dsn: str) -> None:
    """Skips the test on a server of yours that has no pgvector, where the test itself would not say so."""
    with psycopg.connect(dsn) as conn:
        if not conn.execute("SELECT FROM pg_available_extensions WHERE name = 'vector'").rowcount:
            pytest.skip(NO_PGVECTOR)


@contextmanager
def _pgvector_may_be_missing() -> Iterator[None]:
    """On a server of yours, what needs an extension that it does not have is skipped."""
    try:
        yield
    except (ConfigError, psycopg.errors.FeatureNotSupported) as error:
        missing = "needs pgvector" in str(error) or 'extension "vector" is not available' in str(error)
        if "HAIVE_TEST_DSN" in os.environ and missing:
            pytest.skip(NO_PGVECTOR)
        raise


class GivenServer:
    """A server that was there before the tests; `root` is where an embedded one may be started."""

    def __init__(self, given: str, root: Path) -> None:
        self._given = given
        self.root = root

    def dsn(self, dbname: str = "postgres") -> str:
        return make_conninfo(self._given, dbname=dbname)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer | GivenServer]:
    """The embedded Postgres of this test session, in a directory of its own; or HAIVE_TEST_DSN's."""
    if given := os.environ.get("HAIVE_TEST_DSN"):
        with tempfile.TemporaryDirectory(prefix="haive-test-") as parent:
            Path(parent).chmod(0o755)  # as root, an embedded server runs as another user
            yield GivenServer(given, Path(parent) / "data")
        return
    directory = Path(tempfile.mkdtemp(prefix="haive-test-"))
    running = embedded.attach(directory, {"fsync": "off", "max_connections": "200"})
    yield running
    running.close()
    shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _new_database(server: EmbeddedServer | GivenServer) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}")
    yield server.dsn(name)
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def dsn(server: EmbeddedServer | GivenServer) -> Iterator[str]:
    """An empty database for the module."""
    with _new_database(server) as made:
        yield made


@pytest.fixture
def empty_dsn(server: EmbeddedServer | GivenServer) -> Iterator[str]:
    """An empty database for this test alone."""
    with _new_database(server) as made:
        yield made


@pytest.fixture(scope="module")
def _module_database(dsn: str) -> Iterator[Database]:
    database = Database(PersistenceConfig(connection_string=dsn))
    database.setup()
    yield database
    database.close()


@pytest.fixture
def tenant() -> str:
    """A tenant nobody else uses."""
    return f"tenant-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def database(_module_database: Database, tenant: str) -> Database:
    """The module's database, migrated, seen as a tenant that has nothing yet."""
    return _module_database.for_tenant(tenant)


@pytest.fixture
def connected(dsn: str) -> Iterator[Callable[..., Database]]:
    """Makes a Database of one's own on the module's database, with settings: `connected(pool_size=1)`."""
    with ExitStack() as opened:

        def make(**settings: Any) -> Database:
            made = Database(PersistenceConfig(**{"connection_string": dsn, **settings}))
            opened.callback(made.close)
            return made

        yield make


@pytest.fixture
def admin(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """The superuser, on the module's database."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def trips(database: Database) -> Iterator[RoundTrips]:
    """The round trips made since the test began, or since `trips.clear()`."""
    made = RoundTrips()
    database.hooks.append(made.append)
    yield made
    database.hooks.remove(made.append)
