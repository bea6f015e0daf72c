"""`PostgresStore`: LangGraph's store on Postgres, blocking and asynchronous on one object."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, cast

from langgraph.store.base import BaseStore, Op, Result, TTLConfig
from typing_extensions import Self

from haive_persistence._awaitable import Settled, SettledInt, SweeperHandle
from haive_persistence.config import LEFT_OUT, PersistenceConfig
from haive_persistence.db import Database
from haive_persistence.db.opening import Source, open_database
from haive_persistence.db.protocol import run_sync
from haive_persistence.embedding import PostgresIndexConfig
from haive_persistence.errors import ConfigError, InvalidInputError
from haive_persistence.keys import SealProgress
from haive_persistence.store.batch import Batch
from haive_persistence.store.engine import Shared
from haive_persistence.store.sweeper import Sweeper

_SWEEP_INTERVAL_MINUTES = 5
_TTL_MINUTES = ("default_ttl", "sweep_interval_minutes")
_TTL_SWITCHES = ("refresh_on_read", "omit_expired")


class PostgresStore(BaseStore):
    """Keeps items, and finds them again by namespace, by their fields and by meaning.

        store = PostgresStore("postgresql://…")
        store.put(("users", "ann"), "prefs", {"theme": "dark"})
        await store.aget(("users", "ann"), "prefs")
        graph = builder.compile(checkpointer=Checkpointer(store), store=store)

    One object serves blocking and async code, any number of threads and event loops. The schema is created
    and brought up to date on first use. Values are JSON; they come back exactly as they were put, or are
    refused.

    Args:
        conn: A connection string, a `PersistenceConfig`, a `Database` or a `Checkpointer` (its database is
            shared), or nothing for the embedded Postgres. What LangGraph's store takes will do too, a psycopg
            connection or a psycopg_pool pool: its settings are taken, and connections opened with them.
        pipe: Accepted for compatibility: every batch is one round trip either way.
        index: What to search by meaning: {"dims": 1536, "embed": <LangChain Embeddings or function>,
            "fields": ["text"]}, and optionally "distance_type" and "ann_index_config", as
            `PostgresIndexConfig` says.
        ttl: Defaults for expiry, in minutes: {"default_ttl": 60, "refresh_on_read": True,
            "sweep_interval_minutes": 5}. Expired items are not returned, swept or not, unless you set
            "omit_expired": False.

    Raises:
        ConfigError: If `conn`, `index` or `ttl` is none of these, or settings contradict each other.
    """

    __slots__ = ("__dict__",)

    supports_ttl = True

    def __init__(
        self,
        conn: Source = LEFT_OUT,
        *,
        pipe: object = None,
        index: PostgresIndexConfig | None = None,
        ttl: TTLConfig | None = None,
    ) -> None:
        super().__init__()
        self._database, self._owns_database = open_database(conn, "PostgresStore")
        self.index_config = index
        self.ttl_config = _checked_ttl(ttl)
        self._shared = Shared(self._database, index)
        self._engine = self._shared.engine(self._database)
        self._sweeper = Sweeper()
        self._is_view = False
        self._sweepers = weakref.WeakSet([self._sweeper])  # those of views for tenants, too

    @classmethod
    def from_conn_string(
        cls,
        conn_string: str,
        *,
        pipeline: bool = False,
        pool_config: Mapping[str, Any] | None = None,
        index: PostgresIndexConfig | None = None,
        ttl: TTLConfig | None = None,
    ) -> Self:
        """A store for a connection string, to be used with `with` or `async with`.

        `pipeline` is accepted for compatibility: every batch is one round trip either way. Of `pool_config`,
        "max_size" and "timeout" (seconds) count; connections are opened when they are needed.
        """
        pool = dict(pool_config or {})
        settings: dict[str, Any] = {}
        if pool.get("max_size"):
            settings |= {"pool_size": pool["max_size"], "max_overflow": 0}
        if pool.get("timeout"):
            settings["pool_timeout"] = pool["timeout"]
        return cls(PersistenceConfig(connection_string=conn_string, **settings), index=index, ttl=ttl)

    def __repr__(self) -> str:
        config = self._database.config
        return (
            f"<{type(self).__name__} {config.masked_connection_string!r} schema={config.schema!r} "
            f"tenant={self._database.tenant!r}>"
        )

    # --- life

    @property
    def database(self) -> Database:
        """The database of the items; others, such as a `Checkpointer`, may share it."""
        return self._database

    @property
    def embeddings(self) -> Any:
        """The embedding model of `index=`, or None."""
        return self._engine.embeddings

    def for_tenant(self, tenant: str) -> Self:
        """The same store on the same connections, for another tenant's items."""
        other = copy.copy(self)
        other._database = self._database.for_tenant(tenant)
        other._owns_database = False
        other._engine = self._shared.engine(other._database)
        other._sweeper = Sweeper()
        other._is_view = True
        self._sweepers.add(other._sweeper)
        return other

    @property
    def blocking(self) -> BlockingPostgresStore:
        """Blocking twins, of the same names, of the async methods that are not LangGraph's."""
        return BlockingPostgresStore(self)

    async def initialize(
        self, create_schema: bool = True, run_migrations: bool = True, check_version: bool = True
    ) -> None:
        """Reach the server now instead of on first use, and make what is missing there.

        Args:
            create_schema: Whether the schema may be created.
            run_migrations: Whether it may be brought up to date.
            check_version: Whether to fail if it then is not what this package needs.

        Raises:
            UnavailableError: If the server cannot be reached.
            MigrationError: If the schema is missing or old and may not be changed, or is newer than this
                package.
        """
        await self._engine.initialize(self._engine.asynchronous, create_schema, run_migrations, check_version)

    def setup(self) -> Awaitable[None]:
        """Bring schema, vector table and index up to date now, as the first use does. Blocks; may be awaited.

        An index over many vectors takes minutes to build; others can read and write meanwhile.
        """
        run_sync(self._engine.setup(self._engine.blocking))
        return Settled()

    def close(self) -> None:
        """Stop the sweepers, those of tenants' views included; close the connections if it opened them."""
        self._stop_sweepers()
        if self._owns_database:
            self._database.close()

    async def aclose(self) -> None:
        """`close` that does not block."""
        await self._engine.asynchronous.run_blocking(self._stop_sweepers)
        if self._owns_database:
            await self._database.aclose()

    def _stop_sweepers(self) -> None:
        for sweeper in [self._sweeper] if self._is_view else list(self._sweepers):
            sweeper.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # --- items; get, put, search, delete and list_namespaces are BaseStore's and come here

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Run operations: one round trip and one transaction, unless vectors are searched for.

        Reads see what was there before the batch; of several puts to one item the last counts.

        Raises:
            InvalidInputError: For an operation that cannot be done; then none of the batch was.
            EncodeError: For a value that is not JSON; likewise.
        """
        return run_sync(self._engine.run(self._engine.blocking, self._checked(ops)))

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """`batch` for code under an event loop.

        What several tasks ask in the same tick goes to the server together.
        """
        return await self._engine.ask(self._checked(ops))

    def _checked(self, ops: Iterable[Op]) -> Batch:
        return self._engine.check(ops, expired=(self.ttl_config or {}).get("omit_expired") is False)

    # --- encryption

    def seal_existing(
        self, progress: Callable[[SealProgress], None] | None = None, *, trust_all: bool = False
    ) -> int:
        """Seal this tenant's items that were written before it had a key.

        Others may read and write meanwhile; some hundred items are sealed per transaction. Call it again
        after a crash: it goes on where it was. Threads are sealed by `Checkpointer.seal_existing`.

        Args:
            progress: Called after each transaction with the numbers of items sealed and of all items.
            trust_all: Whether to seal whatever plaintext there is. Only for a restored dump: its rows
                do not tell when they were written, and what somebody else wrote into it is sealed, too.

        Returns:
            How many items were sealed.

        Raises:
            PlaintextRefusedError: For plaintext that was written after the tenant's first key was made.
            ConfigError: If there is no `encryption_key`.
        """
        return run_sync(self._engine.seal_existing(self._engine.blocking, progress, trust_all))

    async def aseal_existing(
        self, progress: Callable[[SealProgress], None] | None = None, *, trust_all: bool = False
    ) -> int:
        """`seal_existing` that does not block."""
        return await self._engine.seal_existing(self._engine.asynchronous, progress, trust_all)

    # --- expiry

    def sweep_ttl(self) -> SettledInt:
        """Delete this tenant's expired items and return how many there were. Blocks; may be awaited."""
        return SettledInt(run_sync(self._engine.sweep(self._engine.blocking)))

    async def asweep_ttl(self) -> int:
        """`sweep_ttl` that does not block."""
        return await self._engine.sweep(self._engine.asynchronous)

    def start_ttl_sweeper(self, sweep_interval_minutes: float | None = None) -> SweeperHandle:
        """Sweep in a thread, every so many minutes: as said here, in `ttl=`, or 5.

        Returns:
            A future of `concurrent.futures`: cancel it to stop. Without `ttl=` it is done already.

        Raises:
            InvalidInputError: If the interval is not above 0.
        """
        if not self.ttl_config:
            handle = SweeperHandle()
            handle.set_result(None)
            return handle
        minutes = sweep_interval_minutes
        if minutes is None:
            minutes = self.ttl_config.get("sweep_interval_minutes") or _SWEEP_INTERVAL_MINUTES
        elif not _is_positive(minutes):
            raise InvalidInputError(f"sweep_interval_minutes={minutes!r}: give a number above 0, or None")
        return self._sweeper.start(self, float(minutes) * 60)

    def stop_ttl_sweeper(self, timeout: float | None = None) -> SettledInt:
        """Whether the sweeper has stopped, waiting up to `timeout` seconds for a sweep that runs."""
        return SettledInt(self._sweeper.stop(timeout))


def _checked_ttl(ttl: Any) -> TTLConfig | None:
    """The settings, if they are numbers and truths. Raises ConfigError otherwise."""
    settings: object = ttl
    if settings is not None and not isinstance(settings, Mapping):
        raise ConfigError(
            f'ttl is a {type(ttl).__name__}: give a dict, such as {{"default_ttl": 60}} (minutes)'
        )
    for name, value in cast("Mapping[str, object]", settings or {}).items():
        if name in _TTL_MINUTES:
            if value is not None and not _is_positive(value):
                raise ConfigError(f"ttl[{name!r}] = {value!r}: give minutes above 0, or None")
        elif name not in _TTL_SWITCHES:
            known = ", ".join((*_TTL_MINUTES, *_TTL_SWITCHES))
            raise ConfigError(f"ttl[{name!r}] is no setting: there are {known}")
        elif type(value) is not bool:
            raise ConfigError(f"ttl[{name!r}] = {value!r}: write True or False")
    checked: TTLConfig | None = ttl
    return checked


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


class BlockingPostgresStore:
    """The blocking twins of a store's own async methods."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store

    def initialize(
        self, create_schema: bool = True, run_migrations: bool = True, check_version: bool = True
    ) -> None:
        """`PostgresStore.initialize`, blocking."""
        engine = self._store._engine
        run_sync(engine.initialize(engine.blocking, create_schema, run_migrations, check_version))
