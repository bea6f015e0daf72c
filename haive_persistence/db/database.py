"""`Database`: one schema in one Postgres, for blocking and async code alike."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from haive_persistence.config import LEFT_OUT, EncryptionConfig, PersistenceConfig, check_tenant
from haive_persistence.db import fork_safety
from haive_persistence.db.driver import require_driver
from haive_persistence.db.hooks import StatementHook, log_round_trip
from haive_persistence.db.protocol import Db
from haive_persistence.db.sql import Queries, load_queries
from haive_persistence.errors import ClosedError, ConfigError

if TYPE_CHECKING:
    from psycopg import Connection

    from haive_persistence.db.pools import Pools
    from haive_persistence.db.runners import AsyncDb, BlockingDb
    from haive_persistence.db.server import Server


class Database:
    """A schema in a Postgres database, seen as one tenant.

    Nothing is opened before it is needed: the first use starts the embedded server if that is
    what the configuration says, brings the schema up to date and connects. Errors of the
    configuration therefore come from the first use; `setup()` makes it now.
    """

    def __init__(self, config: PersistenceConfig | str | None = LEFT_OUT) -> None:
        """`config` is the settings, or a connection string alone; left out, they come from HAIVE_ variables.

        None is taken for a variable that is not set: without HAIVE_CONNECTION_STRING it is the embedded
        Postgres, which is warned of. Raises ConfigError.
        """
        config = _read_config(config)
        self._core = _Core(config)
        self._tenant = check_tenant(config.tenant)
        self._encryption = config.encryption

    def __repr__(self) -> str:
        where = self.config.masked_connection_string
        return f"<Database {where!r} schema={self.schema!r} tenant={self.tenant!r}>"

    @property
    def config(self) -> PersistenceConfig:
        """The settings, as they were given or found in the environment."""
        return self._core.config

    @property
    def schema(self) -> str:
        """The schema that holds the tables."""
        return self._core.config.schema

    @property
    def tenant(self) -> str:
        """The tenant that this view reads and writes."""
        return self._tenant

    @property
    def encryption(self) -> EncryptionConfig | None:
        """The keys under which the rooms seal what they write here; None if they write in the clear."""
        return self._encryption

    @property
    def hooks(self) -> list[StatementHook]:
        """Append a callable, which is called after every round trip; costs next to nothing when empty."""
        return self._core.hooks

    @cached_property
    def blocking(self) -> Db:
        """For code that blocks; any number of threads may share it."""
        require_driver()
        from haive_persistence.db.runners import BlockingDb

        db: BlockingDb = BlockingDb(self._core.pools, self._core.hooks, self._tenant)
        return db

    @cached_property
    def asynchronous(self) -> Db:
        """For code under an event loop; any number of tasks and loops may share it."""
        require_driver()
        from haive_persistence.db.runners import AsyncDb

        db: AsyncDb = AsyncDb(self._core.pools, self._core.hooks, self._tenant)
        return db

    def queries(self, room: str) -> Queries:
        """The named queries of `sql/queries/<room>.sql`, for this schema."""
        return load_queries(room, self.schema)

    def for_tenant(self, tenant: str) -> Database:
        """The same database and the same connections, seen as another tenant.

        Raises InvalidIdentifierError unless `tenant` is 1 to 255 characters without NUL.
        """
        return self._view(check_tenant(tenant), self._encryption)

    def with_encryption(self, encryption: EncryptionConfig) -> Database:
        """The same database and the same connections, sealed under these keys.

        Raises ConfigError if the database has other keys already.
        """
        if self._encryption is not None and not self._encryption.has_keys_of(encryption):
            raise ConfigError(
                "two encryption_keys for one database: set the key once, in PersistenceConfig(encryption=…)"
            )
        return self._view(self._tenant, self._encryption or encryption)

    def _view(self, tenant: str, encryption: EncryptionConfig | None) -> Database:
        other = object.__new__(Database)
        other._core, other._tenant, other._encryption = self._core, tenant, encryption
        return other

    def setup(self) -> None:
        """Reach the server and bring the schema up to date now, also if it was before and is gone again.

        Raises ConfigError, UnavailableError or MigrationError, each saying what to do.
        """
        self._core.pools.plan(refresh=True)

    def connect(self, *, for_ddl: bool = False) -> Connection[Any]:
        """A connection outside the pools, in autocommit, as the login itself: for DDL and catalogs.

        Tenants are not kept apart on it if the login may bypass that. `for_ddl`: for an index over many
        rows, so without timeouts and with the memory of `maintenance_work_mem`; behind a transaction pooler
        they stay the login's, since they would stay with the server's connection. Use it as a context
        manager, which closes it. Raises UnavailableError or ConfigError.
        """
        conn = self._core.server.connect()
        if for_ddl:
            for setting in self._core.pools.plan().ddl_settings:
                conn.execute(setting)
        return conn

    def advisory_lock(self, what: str) -> AbstractContextManager[Connection[Any]]:
        """A block that one process at a time may be in, for each `what` in this schema.

        For DDL that several processes may want to run at once. The block gets a connection as `connect`
        makes, in a transaction that is kept if the block succeeds; while it is not used it holds no snapshot,
        so CREATE INDEX CONCURRENTLY can run on another one. Raises MigrationError after a long wait.
        """
        from haive_persistence.db.migrate import advisory_lock

        return advisory_lock(self._core.server.connect, f"{self.schema}.{what}")

    def close(self) -> None:
        """Close the database for good, for all who share it: tenants' views, savers and stores on it.

        Their later calls raise ClosedError; work in progress ends undisturbed. Closing twice does no harm. A
        saver or store that was made on a Database leaves it open when it is closed itself; one that made its
        own closes it. The embedded server is stopped by the last process that uses it.
        """
        self._core.close()

    async def aclose(self) -> None:
        """`close()` for code under an event loop."""
        await asyncio.to_thread(self._core.close)


def _read_config(given: object) -> PersistenceConfig:
    if given is None:
        given = os.environ.get("HAIVE_CONNECTION_STRING") or None
    if given is None or isinstance(given, str):
        return PersistenceConfig(connection_string=given)
    if isinstance(given, PersistenceConfig):
        return given
    raise ConfigError(
        f"a Database is made from a PersistenceConfig or a connection string, not from a "
        f"{type(given).__name__}: write Database(PersistenceConfig(connection_string=…))"
    )


class _Core:
    """Server, pools and hooks, which all views of one database share."""

    def __init__(self, config: PersistenceConfig) -> None:
        self.config = config
        self.hooks: list[StatementHook] = [log_round_trip] if config.echo_sql else []
        self._lock = threading.RLock()
        self._server: Server | None = None
        self._pools: Pools | None = None
        self._closed = False
        _cores.add(self)
        fork_safety.register(self)

    def after_fork(self) -> None:
        self._lock = threading.RLock()

    @property
    def server(self) -> Server:
        with self._lock:
            self._check_open()
            if self._server is None:
                require_driver()
                from haive_persistence.db.server import Server  # the driver takes 50 ms, which can wait

                self._server = Server(self.config, on_attach=_close_before_detaching)
            return self._server

    @property
    def pools(self) -> Pools:
        if self._pools is not None:  # closed ones say so themselves
            return self._pools
        with self._lock:
            self._check_open()
            if self._pools is None:
                require_driver()
                from haive_persistence.db.pools import Pools

                self._pools = Pools(self.server)
            return self._pools

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError

    def close(self) -> None:
        with self._lock:
            self._closed = True
            pools, server = self._pools, self._server
        if pools is not None:
            pools.close()
        if server is not None:
            server.close()


_cores: weakref.WeakSet[_Core] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for core in list(_cores):
        core.close()


def _close_before_detaching() -> None:
    """Run `_close_all` first of what runs at exit: the last that is registered."""
    atexit.unregister(_close_all)
    atexit.register(_close_all)
