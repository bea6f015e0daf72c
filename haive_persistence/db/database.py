"""`Database`: one place in one Postgres, reached blocking and asynchronously."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from haive_persistence.config import PersistenceConfig
from haive_persistence.db.protocol import Db, Query
from haive_persistence.db.sql import load_queries

if TYPE_CHECKING:
    from psycopg import Connection

    from haive_persistence.db.embedded import EmbeddedServer
    from haive_persistence.db.session import SessionPlan

#: Called after every round trip: what was sent, milliseconds, rows that came back.
StatementHook = Callable[[str, float, int], None]


class Database:
    """A schema in a Postgres database, for one tenant.

    Nothing is opened before it is needed: the first use starts the embedded server if that is
    what the configuration says, brings the schema up to date and opens a connection.
    """

    def __init__(self, config: PersistenceConfig | str | None = None) -> None:
        if not isinstance(config, PersistenceConfig):
            config = PersistenceConfig() if config is None else PersistenceConfig(connection_string=config)
        self._core = _Core(config)
        self._tenant = config.tenant

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
    def hooks(self) -> list[StatementHook]:
        """Called after every round trip, in the thread or task that made it."""
        return self._core.hooks

    @property
    def blocking(self) -> Db:
        """For code that blocks."""
        from haive_persistence.db.runners import BlockingDb

        return BlockingDb(self._core, self._tenant)

    @property
    def asynchronous(self) -> Db:
        """For code under an event loop."""
        from haive_persistence.db.runners import AsyncDb

        return AsyncDb(self._core, self._tenant)

    def queries(self, room: str) -> Mapping[str, Query]:
        """The named queries of `sql/queries/<room>.sql`, in this database's schema."""
        return load_queries(room, self.schema)

    def for_tenant(self, tenant: str) -> Database:
        """The same database and the same pools, seen as another tenant."""
        other = object.__new__(Database)
        other._core = self._core
        other._tenant = tenant
        return other

    def setup(self) -> None:
        """Bring the schema up to date now instead of on first use. Does nothing the second time."""
        self._core.plan()

    def close(self) -> None:
        """Close the connections and let go of the embedded server. Safe to call twice."""
        self._core.close()

    async def aclose(self) -> None:
        """Like `close`, for the connections of the running event loop too."""
        await self._core.aclose()


class _Core:
    """What every view of one database shares."""

    def __init__(self, config: PersistenceConfig) -> None:
        self.config = config
        self.hooks: list[StatementHook] = []
        self.lock = threading.Lock()
        self._plan: SessionPlan | None = None
        self._server: EmbeddedServer | None = None
        self._blocking: Any = None
        self._loops: dict[Any, Any] = {}

    # -- first use ----------------------------------------------------------------------------

    def plan(self) -> SessionPlan:
        if self._plan is None:
            with self.lock:
                if self._plan is None:
                    self._plan = self._prepare()
        return self._plan

    async def aplan(self) -> SessionPlan:
        return self._plan or await asyncio.to_thread(self.plan)

    def _prepare(self) -> SessionPlan:
        from haive_persistence.db.session import prepare

        return prepare(self.connect, self.config)

    def conninfo(self) -> str:
        if self.config.connection_string is not None:
            return self.config.connection_string
        if self._server is None:
            from haive_persistence.db import embedded

            self._server = embedded.attach(self.config.data_dir, self.config.embedded_settings)
        return self._server.dsn()

    def connect(self) -> Connection[tuple[Any, ...]]:
        import psycopg

        return psycopg.connect(self.conninfo(), autocommit=True)

    # -- pools --------------------------------------------------------------------------------

    def blocking_pool(self) -> Any:
        if self._blocking is None:
            plan = self.plan()
            from psycopg_pool import ConnectionPool

            with self.lock:
                if self._blocking is None:
                    self._blocking = ConnectionPool(
                        self.conninfo(),
                        min_size=0,
                        max_size=self.config.pool_size + self.config.max_overflow,
                        timeout=self.config.pool_timeout,
                        kwargs={"autocommit": True, "prepare_threshold": self.config.prepares_after},
                        configure=plan.configure,
                        open=True,
                    )
        return self._blocking

    async def async_pool(self) -> Any:
        loop = asyncio.get_running_loop()
        pool = self._loops.get(loop)
        if pool is None:
            plan = await self.aplan()
            from psycopg_pool import AsyncConnectionPool

            if loop in self._loops:
                return self._loops[loop]
            pool = self._loops[loop] = AsyncConnectionPool(
                self.conninfo(),
                min_size=0,
                max_size=self.config.pool_size + self.config.max_overflow,
                timeout=self.config.pool_timeout,
                kwargs={"autocommit": True, "prepare_threshold": self.config.prepares_after},
                configure=plan.aconfigure,
                open=False,
            )
            await pool.open()
        return pool

    def close(self) -> None:
        with self.lock:
            pool, self._blocking = self._blocking, None
            server, self._server = self._server, None
            self._plan = None
        if pool is not None:
            pool.close()
        if server is not None:
            server.close()

    async def aclose(self) -> None:
        pool = self._loops.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.close()
        await asyncio.to_thread(self.close)
