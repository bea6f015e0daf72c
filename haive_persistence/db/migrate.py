"""Brings a schema to the version this package knows: numbered SQL files, applied once each.

Every file is one transaction, unless its first line is `-- no-transaction`: then its statements
run one by one and must each be repeatable. Which files ran, and their checksums, is kept in
`haive.schema_migration`.

Only one process migrates at a time. The lock is a transaction-level advisory lock held by a
connection of its own: it works through a transaction pooler, and it cannot stand in the way of
CREATE INDEX CONCURRENTLY, which waits for every open snapshot. For the same reason the others
poll: a statement that waits for a lock holds a snapshot.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from haive_persistence.db.sql import in_schema, sql_root
from haive_persistence.errors import MigrationError

if TYPE_CHECKING:
    from psycopg import Connection

    Connect = Callable[[], Connection[tuple[Any, ...]]]

logger = logging.getLogger("haive_persistence.migrate")

_FILE = re.compile(r"(\d{4})_(\w+)\.sql")
_LOCK_TIMEOUT = "10s"


class Migration(NamedTuple):
    """One file of `sql/migrations`."""

    version: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def transactional(self) -> bool:
        return not self.text.startswith("-- no-transaction")


@lru_cache(maxsize=1)
def migrations() -> tuple[Migration, ...]:
    """All migrations this package has, oldest first."""
    found = [
        Migration(int(match[1]), match[2], path.read_text(encoding="utf-8"))
        for path in sorted((sql_root() / "migrations").iterdir())
        if (match := _FILE.fullmatch(path.name))
    ]
    return tuple(found)


def pending(applied: dict[int, str], known: Sequence[Migration]) -> list[Migration]:
    """What has not run yet. Raises MigrationError if the database is newer, or a file changed."""
    newest = max((m.version for m in known), default=0)
    if applied and max(applied) > newest:
        raise MigrationError(
            f"the schema is at version {max(applied)}, this haive-persistence knows {newest}: upgrade the package"
        )
    for migration in known:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise MigrationError(
                f"migration {migration.version:04}_{migration.name} is not the one that was applied to this "
                "schema: its file was changed. Install the released package again."
            )
    return [m for m in known if m.version not in applied]


def read_applied(conn: Connection[Any], schema: str) -> dict[int, str]:
    """Version and checksum of every migration that ran in `schema`."""
    table = f'"{schema}".schema_migration'
    (there,) = conn.execute("SELECT to_regclass(%s) IS NOT NULL", (table,)).fetchone() or (False,)
    if not there:
        return {}
    return dict(conn.execute(f"SELECT version, checksum FROM {table}").fetchall())


def is_current(conn: Connection[Any], schema: str) -> bool:
    """Whether nothing is left to do. Raises MigrationError if the schema is newer, or not ours."""
    return not pending(read_applied(conn, schema), migrations())


def migrate(connect: Connect, schema: str, known: Sequence[Migration] | None = None) -> list[Migration]:
    """Apply what is missing and return it. Safe to call from many processes at once.

    `connect` opens an autocommit connection that nobody else uses. Raises MigrationError.
    """
    files = migrations() if known is None else known
    done: list[Migration] = []
    with connect() as conn, _only_one(connect, schema):
        _create_schema(conn, schema)
        for migration in pending(read_applied(conn, schema), files):
            logger.info("applying migration %04d_%s to schema %s", migration.version, migration.name, schema)
            _apply(conn, schema, migration)
            done.append(migration)
    return done


@contextmanager
def _only_one(connect: Connect, schema: str) -> Iterator[None]:
    key = int.from_bytes(hashlib.sha256(f"haive.migrate.{schema}".encode()).digest()[:8], "big", signed=True)
    with connect() as holder:
        delay = 0.02
        while True:
            holder.execute("BEGIN")
            holder.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            if holder.execute("SELECT pg_try_advisory_xact_lock(%s)", (key,)).fetchone() == (True,):
                break
            holder.execute("ROLLBACK")
            time.sleep(delay)
            delay = min(delay * 1.5, 0.5)
        try:
            yield
        finally:
            holder.execute("ROLLBACK")


def _create_schema(conn: Connection[Any], schema: str) -> None:
    there = conn.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone()
    if not there:
        conn.execute(f'CREATE SCHEMA "{schema}"')


def _apply(conn: Connection[Any], schema: str, migration: Migration) -> None:
    record = (
        f'INSERT INTO "{schema}".schema_migration (version, name, checksum) VALUES (%s, %s, %s)',
        (migration.version, migration.name, migration.checksum),
    )
    text = in_schema(migration.text, schema)
    if migration.transactional:
        with conn.transaction():
            conn.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            conn.execute(text)
            conn.execute(*record)
        return
    for statement in re.split(r";\s*$", text, flags=re.MULTILINE):
        if statement.strip():
            conn.execute(statement)
    conn.execute(*record)
