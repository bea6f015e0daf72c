"""`Database`: one schema in one Postgres, for blocking and async code alike."""

from __future__ import annotations

import asyncio
import atexit
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from haive_persistence.config import EncryptionConfig, PersistenceConfig
from haive_persistence.db import forks
from haive_persistence.db.protocol import Db
from haive_persistence.db.sql import Queries, load_queries
from haive_persistence.errors import ConfigError, EmbeddedServerError, InvalidIdentifierError

if TYPE_CHECKING:
    from psycopg import Connection

    from haive_persistence.db.embedded import EmbeddedServer
    from haive_persistence.db.pool import AsyncPool, BlockingPool
    from haive_persistence.db.runners import AsyncDb, BlockingDb, RoundTrip
    from haive_persistence.db.session import SessionPlan

#: Told of every round trip, in the thread or task that made it.
StatementHook = Callable[["RoundTrip"], None]


class Database:
    """A schema in a Postgres database, seen as one tenant.

    Nothing is opened before it is needed: the first use starts the embedded server if that is
    what the configuration says, brings the schema up to date and connects. Errors of the
    configuration therefore come from the first use; `setup()` makes it now.
    """

    def __init__(self, config: PersistenceConfig | str | None = None) -> None:
        if not isinstance(config, PersistenceConfig):
            config = PersistenceConfig() if config is None else PersistenceConfig(connection_string=config)
        self._core = Core(config)
        self._tenant = self._core.check_tenant(config.tenant)
        self._encryption = config.encryption

    @property
    def config(self) -> PersistenceConfig:
        return self._core.config

    @property
    def schema(self) -> str:
        return self._core.config.schema

    @property
    def tenant(self) -> str:
        return self._tenant

    @property
    def encryption(self) -> EncryptionConfig | None:
        """The keys under which the rooms seal what they write here; None if they write in the clear."""
        return self._encryption

    @property
    def hooks(self) -> list[StatementHook]:
        """Append a callable to be told of every round trip; costs next to nothing when empty."""
        return self._core.hooks

    @cached_property
    def blocking(self) -> Db:
        """For code that blocks; any number of threads may share it."""
        from haive_persistence.db.runners import BlockingDb

        db: BlockingDb = BlockingDb(self._core, self._tenant)
        return db

    @cached_property
    def asynchronous(self) -> Db:
        """For code under an event loop; any number of tasks and loops may share it."""
        from haive_persistence.db.runners import AsyncDb

        db: AsyncDb = AsyncDb(self._core, self._tenant)
        return db

    def queries(self, room: str) -> Queries:
        """The named queries of `sql/queries/<room>.sql`, for this schema."""
        return load_queries(room, self.schema)

    def for_tenant(self, tenant: str) -> Database:
        """The same database and the same connections, seen as another tenant.

        Raises InvalidIdentifierError unless `tenant` is 1 to 255 characters without NUL.
        """
        return self._view(self._core.check_tenant(tenant), self._encryption)

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
        self._core.plan(look_again=True)

    def connect(self, *, to_build: bool = False) -> Connection[Any]:
        """A connection outside the pools, in autocommit, as the login itself: for DDL and catalogues.

        Tenants are not kept apart on it if the login may bypass that. `to_build`: for an index over many
        rows, so without timeouts and with the memory of `maintenance_work_mem`; behind a transaction pooler
        they stay the login's, since they would stay with the server's connection. Use it as a context
        manager, which closes it. Raises UnavailableError or ConfigError.
        """
        conn = self._core.connect()
        if to_build:
            for setting in self._core.plan().to_build:
                conn.execute(setting)
        return conn

    def exclusively(self, what: str) -> AbstractContextManager[Connection[Any]]:
        """A block that one process at a time may be in, for each `what` in this schema.

        For DDL that several processes may want to run at once. The block gets a connection as `connect`
        makes, in a transaction that is kept if the block succeeds; while it is not used it holds no snapshot,
        so CREATE INDEX CONCURRENTLY can run on another one. Raises MigrationError after a long wait.
        """
        from haive_persistence.db.migrate import only_one

        return only_one(self._core.connect, f"{self.schema}.{what}")

    def close(self) -> None:
        """Close all connections and let go of the embedded server, for every tenant's view.

        Work in progress ends undisturbed. Closing twice does no harm; using the database again
        opens it again.
        """
        self._core.close()

    async def aclose(self) -> None:
        """`close()` for code under an event loop."""
        await asyncio.to_thread(self._core.close)


class Core:
    """What all views of one database share: its connections, and how they came to be."""

    def __init__(self, config: PersistenceConfig) -> None:
        self.config = config
        self.hooks: list[StatementHook] = []
        if config.echo_sql:
            from haive_persistence.db.echo import echo

            self.hooks.append(echo)
        self._forget_connections()
        self._server: EmbeddedServer | None = None
        self._plan: SessionPlan | None = None
        _cores.add(self)
        forks.begins_anew(self)

    def _forget_connections(self) -> None:
        self._lock = threading.RLock()
        self._blocking: BlockingPool | None = None
        self._loops: dict[asyncio.AbstractEventLoop, AsyncPool] = {}

    @staticmethod
    def check_tenant(tenant: object) -> str:
        if (
            not isinstance(tenant, str)
            or not 0 < len(tenant) <= 255
            or "\0" in tenant
            or not _encodes(tenant)
        ):
            raise InvalidIdentifierError(f"tenant={tenant!r}: use a text of 1 to 255 characters without NUL")
        return tenant

    # -- first use ----------------------------------------------------------------------------

    def plan(self, *, look_again: bool = False) -> SessionPlan:
        """How to set connections up; finding out includes bringing the schema up to date."""
        with self._lock:
            if self._plan is None or look_again:
                from haive_persistence.db.session import prepare

                self._plan = prepare(self.connect, self.config)
            return self._plan

    def conninfo(self) -> str:
        """Where to connect to. Starts the embedded server if that is what is wanted."""
        from haive_persistence.db.connecting import with_defaults

        if self.config.connection_string is not None:
            return with_defaults(self.config.connection_string, self.config)
        try:
            return with_defaults(self._embedded().dsn(), self.config)
        except EmbeddedServerError:  # it was stopped, and cleaned up after itself
            self.revive()
            return with_defaults(self._embedded().dsn(), self.config)

    def _embedded(self) -> EmbeddedServer:
        with self._lock:
            if self._server is None:
                from haive_persistence.db import embedded

                self._server = embedded.attach(self.config.data_dir, self.config.embedded_settings)
                atexit.unregister(_close_all)  # the last registered runs first: connections
                atexit.register(_close_all)  # are closed before the server is stopped
            return self._server

    def revive(self) -> None:
        """After a failure to connect: start the embedded server again if it has died."""
        if self.config.connection_string is None:
            self._embedded().ensure_running()

    def connect(self) -> Connection[Any]:
        from haive_persistence.db.connecting import connect_directly

        return connect_directly(self)

    # -- pools --------------------------------------------------------------------------------

    def blocking_pool(self) -> BlockingPool:
        forks.look()
        if self._blocking is None:
            from haive_persistence.db.pool import BlockingPool

            with self._lock:
                if self._blocking is None:
                    self._blocking = BlockingPool(self)
                return self._blocking
        return self._blocking

    async def async_pool(self) -> AsyncPool:
        forks.look()
        loop = asyncio.get_running_loop()
        pool = self._loops.get(loop)
        if pool is None:
            from haive_persistence.db.pool import AsyncPool

            for other, of_other in list(self._loops.items()):
                if other.is_closed():
                    self.forget(other, of_other)
            pool = self._loops[loop] = AsyncPool(self)
        if not pool.is_open:
            await pool.open()
        return pool

    def forget(self, loop: asyncio.AbstractEventLoop, pool: AsyncPool) -> None:
        """Drop the pool of an event loop that has ended, or whose pool is another one by now."""
        if self._loops.get(loop) is pool:
            del self._loops[loop]
        pool.slots.close()

    def close(self) -> None:
        with self._lock:
            pools = [self._blocking, *self._loops.values()]
            self._blocking = None
            self._loops = {}
            server, self._server = self._server, None
            self._plan = None
        for pool in pools:
            if pool is not None:
                pool.slots.close()
        if server is not None:
            server.close()

    def after_fork(self) -> None:
        """In a forked child: the parent's connections are not ours, not even to close."""
        forks.leave_alone((self._blocking, self._loops))
        self._forget_connections()


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates
        return False
    return True


_cores: weakref.WeakSet[Core] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for core in list(_cores):
        core.close()
