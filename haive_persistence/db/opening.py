"""Sources of a `Database`: one to share, settings to make it with, or what LangGraph's own classes take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from haive_persistence.config import PersistenceConfig
from haive_persistence.db.database import Database
from haive_persistence.errors import ConfigError

if TYPE_CHECKING:
    import psycopg

_INSTEAD = 'give PersistenceConfig(connection_string="postgresql://…", pool_size=…) instead'


class HasDatabase(Protocol):
    """Anything that works on a `Database`, such as a `PostgresStore`."""

    @property
    def database(self) -> Database: ...


class PsycopgSource(Protocol):
    """A psycopg connection, or a psycopg_pool pool, of either kind."""

    @property
    def closed(self) -> bool: ...


Source: TypeAlias = "HasDatabase | Database | PersistenceConfig | str | PsycopgSource | None"


def open_database(source: object, user: str, hint: str = "") -> tuple[Database, bool]:
    """The database to work on, and whether its user (a class's name) is to close it.

    Raises ConfigError if the source is none; the text ends with the hint.
    """
    if isinstance(source, Database):
        return source, False
    if source is None or isinstance(source, (str, PersistenceConfig)):
        return Database(source), True
    database = getattr(source, "database", None)
    if isinstance(database, Database):
        return database, False
    if (settings := _settings_of(source)) is not None:
        return Database(settings), True
    hint = hint or (
        "give a connection string, a PersistenceConfig, a Database, a PostgresStore or Checkpointer to share "
        "that of, a psycopg connection or pool, or nothing for the embedded Postgres"
    )
    raise ConfigError(f"{user} cannot keep its data in {type(source).__name__!r}: {hint}")


def _settings_of(source: object) -> PersistenceConfig | None:
    """The settings of a psycopg connection, or of a psycopg_pool pool; None if it is neither.

    Connections of our own are opened with them; the one that was passed is never used.
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
        raise ConfigError(f"the pool computes its connection string with each connection: {_INSTEAD}")
    pool_size = max(pool.min_size, 1)
    return PersistenceConfig(
        connection_string=_joined(conninfo, kwargs),
        pool_size=pool_size,
        max_overflow=max((pool.max_size or pool_size) - pool_size, 0),
        pool_timeout=float(pool.timeout),
    )


def _of_connection(connection: psycopg.Connection[Any]) -> PersistenceConfig:
    if connection.closed:
        raise ConfigError(f"the connection is closed, so that its settings are unknown: {_INSTEAD}")
    parameters: dict[str, Any] = {**connection.info.get_parameters(), "password": connection.info.password}
    return PersistenceConfig(connection_string=_joined("", {k: v for k, v in parameters.items() if v}))


def _joined(conninfo: str, kwargs: dict[str, Any]) -> str:
    """The connection string with those keyword arguments that libpq knows; the others are psycopg's."""
    from psycopg import pq
    from psycopg.conninfo import make_conninfo

    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    return make_conninfo(conninfo, **{key: value for key, value in kwargs.items() if key in known})
