"""The table and index that a store's `index=` needs, made when first wanted.

A table per vector type and width: tenants and versions of a program may embed differently side by
side. It is made with its index in one transaction; an index that is added to a table later, or
replaces one whose build was cut off, is built CONCURRENTLY, outside of any.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, cast

import psycopg

from haive_persistence.db import Database, Db, error_mapping
from haive_persistence.db.migrate import SEARCH_PATH
from haive_persistence.db.sql import Queries
from haive_persistence.embedding.config import VectorIndex
from haive_persistence.errors import ConfigError, MigrationError

if TYPE_CHECKING:
    from psycopg import Connection

logger = logging.getLogger("haive_persistence.store")

#: The first pgvector whose HNSW index survives VACUUM.
OLDEST_PGVECTOR = (0, 8, 4)


class VectorSchema:
    """The vector table and index of one database, as far as they are known."""

    def __init__(self, database: Database, index: VectorIndex) -> None:
        self._database = database
        self._index = index
        self._queries = database.queries("store")
        self._names = {name: f'"{database.schema}"."{name}"' for name in (index.table, index.index)}
        self._filled: Queries | None = None

    @property
    def queries(self) -> Queries | None:
        """The store's queries for this index, once the table is known to be there."""
        return self._filled

    async def is_ready(self, db: Db, *, needs_index: bool = True) -> bool:
        """Look whether all is there (searches work without an index): one round trip."""
        row = await db.fetch_one(self._queries["inspect_vectors"], self._wanted(), idempotent=True)
        schema, version, table, index = cast("tuple[str | None, str, bool, bool | None]", row)
        if schema is None or not table or not (index or self._index.kind != "hnsw" or not needs_index):
            return False
        _check_version(version, self._index)
        self._filled = self._queries.fill(**self._index.slots(schema))
        return True

    def make(self) -> None:
        """Make what is missing. Safe to call from many processes at once.

        Raises ConfigError without a pgvector that will do, MigrationError without the right to make tables.
        """
        try:
            with self._database.connect() as conn:
                _, _, is_there, _ = self._inspect(conn)
            with self._database.advisory_lock("vectors") as holder:
                if not is_there:
                    self._make(holder)
                else:  # an index is built outside of any transaction
                    with self._database.connect(for_ddl=True) as conn:
                        self._rebuild_index(conn)
        except psycopg.errors.InsufficientPrivilege as error:
            raise MigrationError(
                f"this login may not make the table {self._index.table} that index= needs; let the owner of "
                f"schema {self._database.schema!r} call setup() on a store with this index= once. ({error})"
            ) from error
        except psycopg.Error as error:
            raise error_mapping.from_driver(error) from error

    def _wanted(self) -> dict[str, str]:
        return {"table": self._names[self._index.table], "index": self._names[self._index.index]}

    def _make(self, conn: Connection[Any]) -> None:
        schema, version, is_there, _ = self._inspect(conn)
        if schema is None:
            schema, version = self._extend(conn)
        _check_version(version, self._index)
        if not is_there:  # or another process was quicker
            self._create(conn, schema)

    def _rebuild_index(self, conn: Connection[Any]) -> None:
        """Make an index that is missing or was not finished."""
        schema, version, _, index = self._inspect(conn)
        assert schema is not None
        _check_version(version, self._index)
        if self._index.kind != "flat" and index is not True:
            self._reindex(conn, schema, broken=index is False)

    def _inspect(self, conn: Connection[Any]) -> tuple[str | None, str, bool, bool | None]:
        row = conn.execute(self._queries["inspect_vectors"].encode(), self._wanted()).fetchone()
        return cast("tuple[str | None, str, bool, bool | None]", row)

    def _extend(self, conn: Connection[Any]) -> tuple[str, str]:
        try:
            with conn.transaction():
                conn.execute(self._queries["create_extension"].encode())
        except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateObject):
            pass  # a store of another schema was quicker: IF NOT EXISTS checks only once
        except psycopg.Error as error:
            raise ConfigError(
                "index= needs pgvector in this database: install it on the server and, as an administrator, "
                f"run CREATE EXTENSION vector. ({error})"
            ) from error
        schema, version, *_ = self._inspect(conn)
        return cast(str, schema), version

    def _create(self, conn: Connection[Any], schema: str) -> None:
        conn.execute(b"SET LOCAL " + SEARCH_PATH)
        conn.execute(self._ddl("create_vectors", schema))
        if self._index.fits_page:
            conn.execute(self._ddl("store_plain", schema))
        conn.execute(self._ddl("isolate_vectors", schema))
        conn.execute(self._ddl("share_vectors", schema))
        if self._index.kind == "hnsw":
            conn.execute(self._ddl("create_index", schema))

    def _reindex(self, conn: Connection[Any], schema: str, *, broken: bool) -> None:
        """An ivfflat index finds its lists in the vectors there are; before there are any it can wait."""
        if broken:
            logger.warning("the index %s was never finished; building it again", self._index.index)
            conn.execute(self._ddl("drop_index", schema))
        if self._index.kind == "ivfflat" and conn.execute(self._ddl("any_vector", schema)).fetchone() == (
            False,
        ):
            return
        logger.info("building the index %s", self._index.index)
        conn.execute(self._ddl("create_index_concurrently", schema))

    def _ddl(self, name: str, pgvector_schema: str) -> bytes:
        filled = self._queries.fill(
            **self._index.slots(pgvector_schema),
            dims=str(self._index.dims),
            index=self._index.index,
            method=self._index.method(pgvector_schema),
            items_regclass=f'"{self._database.schema}".store_item',
            vectors_regclass=f'"{self._database.schema}".{self._index.table}',
        )
        return filled[name].encode()


def _check_version(version: str, index: VectorIndex) -> None:
    found = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if index.kind != "flat" and found < OLDEST_PGVECTOR:
        oldest = ".".join(map(str, OLDEST_PGVECTOR))
        raise ConfigError(
            f"pgvector {version} loses rows from {index.kind} indexes when it vacuums: upgrade to {oldest} "
            "and run ALTER EXTENSION vector UPDATE, or use ann_index_config={'kind': 'flat'}"
        )
