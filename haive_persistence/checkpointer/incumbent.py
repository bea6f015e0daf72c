"""Coming from langgraph-checkpoint-postgres: what its savers are made with, the threads they left behind."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, cast

from haive_persistence.config import PersistenceConfig
from haive_persistence.db.protocol import Db
from haive_persistence.db.sql import Queries
from haive_persistence.errors import ConfigError, DatabaseError

if TYPE_CHECKING:
    import psycopg

_WRITE = 'write Checkpointer(PersistenceConfig(connection_string="postgresql://…", pool_size=…))'


def settings_of(source: object) -> PersistenceConfig | None:
    """The settings of a psycopg connection, or of a psycopg_pool pool; None if it is neither.

    The saver opens connections of its own with them, and never uses the one that was passed.
    Raises ConfigError where they cannot be known.
    """
    names = {(cls.__module__.partition(".")[0], cls.__name__) for cls in type(source).__mro__}
    if names & {("psycopg_pool", "ConnectionPool"), ("psycopg_pool", "AsyncConnectionPool")}:
        return _of_pool(cast(Any, source))
    if names & {("psycopg", "Connection"), ("psycopg", "AsyncConnection")}:
        return _of_connection(cast("psycopg.Connection[Any]", source))
    return None


def _of_pool(pool: Any) -> PersistenceConfig:
    conninfo, kwargs = pool.conninfo, pool.kwargs or {}
    if callable(conninfo) or callable(kwargs):
        raise ConfigError(f"the pool computes its connection string with each connection: {_WRITE}")
    pool_size = max(pool.min_size, 1)
    return PersistenceConfig(
        connection_string=_joined(conninfo, kwargs),
        pool_size=pool_size,
        max_overflow=max((pool.max_size or pool_size) - pool_size, 0),
        pool_timeout=float(pool.timeout),
    )


def _of_connection(connection: psycopg.Connection[Any]) -> PersistenceConfig:
    if connection.closed:
        raise ConfigError(f"the connection is closed, so that its settings are unknown: {_WRITE}")
    parameters: dict[str, Any] = {**connection.info.get_parameters(), "password": connection.info.password}
    return PersistenceConfig(connection_string=_joined("", {k: v for k, v in parameters.items() if v}))


def _joined(conninfo: str, kwargs: dict[str, Any]) -> str:
    """The connection string with those keyword arguments that libpq knows; the others are psycopg's."""
    from psycopg import pq
    from psycopg.conninfo import make_conninfo

    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    return make_conninfo(conninfo, **{key: value for key, value in kwargs.items() if key in known})


class LeftBehind:
    """Warns once if the incumbent's tables hold threads and ours hold none."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries
        self._looked = False

    async def warn_once(self, db: Db) -> None:
        """Look, the first time that a thread was asked for which is not stored."""
        if self._looked:
            return
        self._looked = True
        try:
            row = await db.fetch_one(
                self._queries["threads_left_behind"], {"tenant": db.tenant}, idempotent=True
            )
        except DatabaseError:  # a courtesy: whoever may not look has other worries
            return
        if row == (True,):
            warnings.warn(
                "the tables of langgraph-checkpoint-postgres in this database hold threads, and "
                "haive-persistence has none yet: threads that were started with PostgresSaver are not found. "
                "`haive import langgraph-postgres` will carry them over once it is released; until then "
                "continue those threads with PostgresSaver",
                UserWarning,
                stacklevel=2,
            )
