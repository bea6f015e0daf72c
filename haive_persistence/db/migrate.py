"""Brings a schema to the version this package knows: numbered SQL files, applied once each.

Every file is one transaction, unless it begins with `-- no-transaction`: then its statements,
each ending with a semicolon at the end of a line, run one by one, and each must be repeatable.
Which files ran, and their checksums, is kept in `haive.schema_migration`.

One process at a time migrates a schema. The lock is a transaction's advisory lock on a connection
of its own, so it works through a transaction pooler, and no process waits for it inside a statement:
CREATE INDEX CONCURRENTLY waits for every snapshot, that of a waiting statement included.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg import Connection, sql

from haive_persistence.db.sql import in_schema, sql_root
from haive_persistence.errors import MigrationError

if TYPE_CHECKING:
    from typing_extensions import LiteralString

logger = logging.getLogger("haive_persistence.migrate")

Connect = Callable[[], Connection[Any]]

#: Seconds a migration waits for a table others use before it lets them go first, and how often.
LOCK_TIMEOUT_S = 5.0
LOCK_TRIES = 10
#: Seconds to wait for another process that migrates the same schema.
LOCK_WAIT_S = 900.0

#: Where names without a schema are looked for: not where others may put functions that fit a call better.
SEARCH_PATH = b"search_path = pg_catalog, pg_temp"

_FILE = re.compile(r"(\d{4})_(\w+)\.sql")
_COMMENT = re.compile(r"--[^\n]*")
_CREATED = re.compile(r"^CREATE TABLE haive\.(\w+)", re.MULTILINE)
_NO_TRANSACTION = "-- no-transaction"


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
        return not self.text.startswith(_NO_TRANSACTION)

    def __str__(self) -> str:
        return f"{self.version:04}_{self.name}"


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
    """The migrations that have not run yet, by version and checksum of those that have.

    Raises MigrationError if the schema is newer than `known`, or a file was changed since it ran.
    """
    newest = max((m.version for m in known), default=0)
    if applied and max(applied) > newest:
        raise MigrationError(
            f"the schema is at version {max(applied)} and this haive-persistence knows {newest}: upgrade it"
        )
    for migration in known:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise MigrationError(
                f"{migration}.sql is not what was applied to this schema: the file was changed since. "
                "Install a released version of the package."
            )
    return [m for m in known if m.version not in applied]


def ask_catalog(conn: Connection[Any], query: LiteralString, schema: str) -> tuple[Any, ...] | None:
    """The row of a query about `{schema}` that finds no functions but Postgres's own.

    Several statements that are sent as one are one transaction, and one round trip.
    """
    text = sql.SQL(query).format(schema=sql.Literal(schema)).as_bytes(conn)
    cursor = conn.execute(b"SET LOCAL %s; %s" % (SEARCH_PATH, text))
    cursor.nextset()
    return cursor.fetchone()


def read_applied(conn: Connection[Any], schema: str) -> dict[int, str]:
    """Version and checksum of every migration that ran in `schema`."""
    columns = ask_catalog(
        conn,
        "SELECT array_agg(a.attname::text) FROM pg_class t JOIN pg_namespace s ON s.oid = t.relnamespace"
        " JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0"
        " WHERE s.nspname = {schema} AND t.relname = 'schema_migration' GROUP BY t.oid",
        schema,
    )
    if columns is None:
        return {}
    if not {"version", "name", "checksum"} <= set(columns[0]):
        raise MigrationError(_foreign(schema, ["schema_migration"]))
    query = sql.SQL("SELECT version, checksum FROM {}.schema_migration").format(sql.Identifier(schema))
    return dict(conn.execute(query, prepare=False).fetchall())


def _foreign(schema: str, tables: Sequence[str]) -> str:
    return (
        f"the schema {schema!r} has tables of another program with the names that this one needs: "
        f"{', '.join(tables)}. Choose another schema: PersistenceConfig(schema=…) or HAIVE_SCHEMA"
    )


def is_current(conn: Connection[Any], schema: str) -> bool:
    """Whether nothing is left to do. Raises MigrationError if the schema is not one for us."""
    return not pending(read_applied(conn, schema), migrations())


def migrate(connect: Connect, schema: str, known: Sequence[Migration] | None = None) -> list[Migration]:
    """Apply what is missing and return it. Safe to call from many processes at once.

    `connect` opens an autocommit connection that has no other user; there is one at a time, except for a
    file that cannot run in a transaction. Raises MigrationError; what was applied before the error stays,
    and the next call goes on from there.
    """
    files = migrations() if known is None else known
    done: list[Migration] = []
    while True:
        with connect() as conn:
            left = pending(read_applied(conn, schema), files)
        if not left:
            return done
        with advisory_lock(connect, schema) as holder:
            if left[0].transactional:
                applied = _apply_if_next(holder, schema, left[0], files)
            else:  # the holder has no snapshot that it would wait for
                with connect() as conn:
                    applied = _apply_if_next(conn, schema, left[0], files)
        if applied:
            done.append(left[0])


def _apply_if_next(
    conn: Connection[Any], schema: str, migration: Migration, files: Sequence[Migration]
) -> bool:
    if pending(read_applied(conn, schema), files)[:1] != [migration]:
        return False  # another process has applied it
    logger.info("applying migration %s to the schema %s", migration, schema)
    with _explained(migration):
        _create_schema(conn, schema)
        _apply(conn, schema, migration)
    return True


# -- one at a time ------------------------------------------------------------------------------


@contextmanager
def advisory_lock(connect: Connect, what: str) -> Generator[Connection[Any]]:
    """Wait until no other process is in such a block for the same `what` in this database.

    The block gets the connection that says so, in a transaction that is committed at its end. Raises
    MigrationError if the wait takes longer than `LOCK_WAIT_S`.
    """
    key = hashlib.sha256(f"haive-persistence {what}".encode()).digest()[:8]
    holder = _get_lock(connect, int.from_bytes(key, "big", signed=True), what)
    try:
        yield holder
        if not holder.closed:
            holder.execute("COMMIT")
    finally:
        holder.close()


def _get_lock(connect: Connect, key: int, what: str) -> Connection[Any]:
    """Keeps no connection while it waits: there may be few of them."""
    give_up = time.monotonic() + LOCK_WAIT_S
    pause = 0.02
    while True:
        holder = connect()
        try:
            holder.execute("BEGIN")
            for name in timeouts(holder):
                holder.execute(f"SET LOCAL {name} = 0".encode())
            # Without parameters, so by the simple protocol: the extended one leaves a portal open, and with
            # it the snapshot that CREATE INDEX CONCURRENTLY would wait for.
            if holder.execute(b"SELECT pg_try_advisory_xact_lock(%d)" % key).fetchone() == (True,):
                return holder
        except BaseException:
            holder.close()
            raise
        holder.close()
        if pause == 0.02:
            logger.info("another process is migrating %s; waiting for it", what)
        if time.monotonic() > give_up:
            raise MigrationError(f"another process has been migrating {what} for {LOCK_WAIT_S:.0f} s")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)


def timeouts(conn: Connection[Any]) -> tuple[str, ...]:
    """The server's settings that end a transaction which takes its time."""
    names = ("statement_timeout", "idle_in_transaction_session_timeout")
    return names if conn.info.server_version < 170000 else (*names, "transaction_timeout")


# -- one file -----------------------------------------------------------------------------------


def _create_schema(conn: Connection[Any], schema: str) -> None:
    # Looked for first: IF NOT EXISTS wants the right to create one even if there is nothing to do.
    found = conn.execute("SELECT FROM pg_namespace WHERE nspname = %s", (schema,), prepare=False).fetchone()
    if found is None:
        conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))


def _apply(conn: Connection[Any], schema: str, migration: Migration) -> None:
    text = in_schema(migration.text, schema)
    if migration.transactional:
        _refuse_foreign_tables(conn, schema, migration)
        _apply_in_transaction(conn, schema, migration, text.encode())
        return
    _drop_invalid_indexes(conn, schema, text)
    for statement in statements(text):
        conn.execute(statement.encode())
    _record(conn, schema, migration)


def _refuse_foreign_tables(conn: Connection[Any], schema: str, migration: Migration) -> None:
    found = conn.execute(
        "SELECT t.relname FROM pg_class t JOIN pg_namespace s ON s.oid = t.relnamespace"
        " WHERE s.nspname = %s AND t.relname = ANY (%s) ORDER BY 1",
        (schema, _CREATED.findall(migration.text)),
        prepare=False,
    ).fetchall()
    if found:
        raise MigrationError(_foreign(schema, [name for (name,) in found]))


def _apply_in_transaction(conn: Connection[Any], schema: str, migration: Migration, text: bytes) -> None:
    for left in reversed(range(LOCK_TRIES)):
        try:
            with conn.transaction():
                conn.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S * 1000:.0f}ms'".encode())
                conn.execute(b"SET LOCAL " + SEARCH_PATH)
                conn.execute(text)
                _record(conn, schema, migration)
            return
        except psycopg.errors.LockNotAvailable:
            if not left:
                raise
            logger.info("a table that %s changes is in use; trying again", migration)
            time.sleep(LOCK_TIMEOUT_S / 5)


def _record(conn: Connection[Any], schema: str, migration: Migration) -> None:
    conn.execute(
        sql.SQL("INSERT INTO {}.schema_migration (version, name, checksum) VALUES (%s, %s, %s)").format(
            sql.Identifier(schema)
        ),
        (migration.version, migration.name, migration.checksum),
        prepare=False,
    )


def statements(text: str) -> list[str]:
    """The statements of a file that does not run as a whole."""
    parts = re.split(r";[ \t]*$", _COMMENT.sub("", text), flags=re.MULTILINE)
    return [part.strip() for part in parts if part.strip()]


def _drop_invalid_indexes(conn: Connection[Any], schema: str, text: str) -> None:
    """Remove what an interrupted CREATE INDEX CONCURRENTLY left: it would count as existing."""
    found = conn.execute(
        "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " JOIN pg_namespace s ON s.oid = c.relnamespace WHERE s.nspname = %s AND NOT i.indisvalid",
        (schema,),
        prepare=False,
    ).fetchall()
    for (name,) in found:
        if re.search(rf"\b{re.escape(name)}\b", text):
            logger.warning(
                "the index %s was left unfinished by an interrupted migration; building it again", name
            )
            conn.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(schema, name)))


@contextmanager
def _explained(migration: Migration) -> Generator[None]:
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationError(
            f"this login may not apply {migration}: {error}\nRun setup() once as the owner of the schema, or "
            "as a role that may create one; whoever uses it after that needs no such right."
        ) from error
    except psycopg.errors.LockNotAvailable as error:
        raise MigrationError(
            f"{migration} could not get hold of a table that is in constant use; try again at a quieter time"
        ) from error
    except psycopg.Error as error:
        raise MigrationError(
            f"{migration} failed: {error}\nNothing of it was committed unless it says so."
        ) from error
