"""`Checkpointer`: LangGraph's saver, blocking and asynchronous on one object."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Generator, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple, Protocol, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from typing_extensions import Self

from haive_persistence.checkpointer.config import CheckpointConfig
from haive_persistence.checkpointer.context import TenantContext
from haive_persistence.checkpointer.copy import Copying
from haive_persistence.checkpointer.delta import DeltaHistory
from haive_persistence.checkpointer.ids import shown
from haive_persistence.checkpointer.reads import Reads
from haive_persistence.checkpointer.retention import Retention
from haive_persistence.checkpointer.storage.piece_cache import ProcessCache
from haive_persistence.checkpointer.writes import Writes
from haive_persistence.codec import SafeSerializer
from haive_persistence.config import LEFT_OUT, EncryptionConfig, PersistenceConfig
from haive_persistence.db import Database, fork_safety
from haive_persistence.db.protocol import run_sync
from haive_persistence.errors import ConfigError, InvalidInputError
from haive_persistence.keys import DataKeys, Sealings

#: Tenants whose data keys and the like stay in memory.
MAX_TENANTS = 1000


class HasDatabase(Protocol):
    """Anything that works on a `Database`, such as a `PostgresStore`."""

    @property
    def database(self) -> Database: ...


class _Done:
    """The result of a call that has finished and may be awaited all the same."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


class _Parts(NamedTuple):
    """What a saver is made of, for one serialiser."""

    serde: SerializerProtocol
    keys: Sealings
    context: TenantContext
    reads: Reads
    writes: Writes
    delta: DeltaHistory
    retention: Retention
    copying: Copying


class _Shared:
    """What all tenants of one serialiser share: the memory, and the parts of the tenants used last."""

    def __init__(self, serde: SerializerProtocol, config: CheckpointConfig, data_keys: DataKeys) -> None:
        self.serde = serde
        self._config = config
        self._keys = Sealings(data_keys, serde, config.compression)
        self._cache = ProcessCache(config.cache_bytes)
        self._lock = threading.Lock()
        self._by_tenant: OrderedDict[str, _Parts] = OrderedDict()
        fork_safety.register(self)

    def after_fork(self) -> None:
        """A child must not write into its parent's number blocks."""
        self._lock = threading.Lock()
        self._cache.clear()

    def parts(self, database: Database) -> _Parts:
        """The parts of the database's tenant: the same for every view of it, for as long as it is in use."""
        with self._lock:
            parts = self._by_tenant.get(database.tenant)
            if parts is None:
                parts = self._by_tenant[database.tenant] = self._build(database)
                if len(self._by_tenant) > MAX_TENANTS:
                    self._by_tenant.popitem(last=False)
            self._by_tenant.move_to_end(database.tenant)
            return parts

    def _build(self, database: Database) -> _Parts:
        queries, tenant = database.queries("checkpointer"), database.tenant
        context = TenantContext(queries, tenant, self._cache, self._keys)
        reads = Reads(context)
        return _Parts(
            self.serde,
            self._keys,
            context,
            reads,
            Writes(context, reads),
            DeltaHistory(context, reads),
            Retention(context),
            Copying(context),
        )


class Checkpointer(BaseCheckpointSaver[Any]):
    """Keeps a LangGraph graph's state in Postgres.

        graph = builder.compile(checkpointer=Checkpointer("postgresql://…"))

    One object serves `invoke` and `ainvoke`, any number of threads and event loops, and any number of
    conversations. The schema is created and brought up to date on first use.

    Args:
        store: Where to keep it: a `PostgresStore` (its database is shared), a `Database`, a connection
            string, or a `PersistenceConfig`. Left out: HAIVE_CONNECTION_STRING, or the embedded Postgres.
        config: Compression, encryption and memory.
        serde: A serialiser of your own. The default reads no code: it imports nothing, calls nothing
            and constructs data types only.

    Raises:
        ConfigError: If the settings contradict each other.
    """

    def __init__(
        self,
        store: HasDatabase | Database | PersistenceConfig | str | None = LEFT_OUT,
        *,
        config: CheckpointConfig | None = None,
        serde: SerializerProtocol | None = None,
    ) -> None:
        super().__init__(serde=serde or SafeSerializer())
        self.config = config or CheckpointConfig()
        self._owns_database = False
        if isinstance(store, Database):
            self._database = store
        elif store is None or isinstance(store, (str, PersistenceConfig)):
            self._database = Database(store)
            self._owns_database = True
        elif isinstance(getattr(store, "database", None), Database):
            self._database = store.database
        else:
            raise ConfigError(
                f"Checkpointer cannot keep its data in a {type(store).__name__}: give a PostgresStore, "
                "a Database, a PersistenceConfig, a connection string, or nothing for the embedded Postgres"
            )
        if (encryption := self.config.encryption()) is not None:
            self._database = self._sealed(store, encryption)
        self._data_keys = DataKeys(self._database.queries("keys"), self._database.encryption)
        self._built: _Parts | None = None
        self._shared: _Shared | None = None

    def _sealed(self, store: object, encryption: EncryptionConfig) -> Database:
        if self._database.encryption is None and hasattr(store, "database"):
            raise ConfigError(
                f"this {type(store).__name__} would write plaintext beside a sealed checkpointer: make both "
                "on one PersistenceConfig(encryption=EncryptionConfig(encryption_key=…))"
            )
        return self._database.with_encryption(encryption)

    @classmethod
    def from_conn_string(cls, conn_string: str, *, pipeline: bool = False, **options: Any) -> Self:
        """A saver for a connection string, to be used with `with` or `async with`.

        `pipeline` is accepted for compatibility: every operation is one round trip either way.
        """
        return cls(conn_string, **options)

    # --- life

    @property
    def database(self) -> Database:
        return self._database

    def setup(self) -> Awaitable[None]:
        """Bring the schema up to date now; nobody must call it. May be awaited."""
        self._database.setup()
        return _Done()

    def close(self) -> None:
        """Close the connections, if this object opened them."""
        if self._owns_database:
            self._database.close()

    async def aclose(self) -> None:
        """Close the connections, if this object opened them."""
        if self._owns_database:
            await self._database.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def for_tenant(self, tenant: str) -> Checkpointer:
        """The same saver on the same connections, for another tenant's threads."""
        self._shared = self._shared_now()
        view = copy(self)
        view._database = self._database.for_tenant(tenant)
        view._owns_database = False
        view._built = None
        return view

    def _shared_now(self) -> _Shared:
        """What the views of all tenants share under the current `serde`."""
        shared = self._shared
        if shared is None or shared.serde is not self.serde:
            shared = self._shared = _Shared(self.serde, self.config, self._data_keys)
        return shared

    @property
    def _parts(self) -> _Parts:
        """The logic for the current `serde`: `with_allowlist` makes a shallow copy and changes that.

        What one serialiser decoded is never handed out under another, stricter one.
        """
        fork_safety.check_pid()
        parts = self._built
        if parts is None or parts.serde is not self.serde:
            parts = self._built = self._shared_now().parts(self._database)
        return parts

    def get_next_version(self, current: Any, channel: None) -> Any:
        """The version after `current`: the next integer, or text as imported threads have it."""
        if current is None:
            return 1
        if isinstance(current, (int, float)):
            return current + 1
        number, _, fraction = current.partition(".") if isinstance(current, str) else ("", "", "")
        if not number.isdecimal() or len(number) > 100:
            raise InvalidInputError(f"{shown(current)} is no version of a channel: versions are numbers")
        return f"{int(number) + 1:032}.{fraction or '0'}"

    def rotate_encryption_key(self) -> int:
        """Wrap this tenant's data keys under the current `encryption_key`. No data is rewritten.

        The key they were wrapped by must be among `older_encryption_keys`; no tenant whose keys were rotated
        needs it any more.

        Returns:
            How many data keys were wrapped by another key.

        Raises:
            WrongKeyError: If a data key was wrapped by a key that is not configured.
            ConfigError: If there is no `encryption_key`.
        """
        return run_sync(self._data_keys.rotate(self._database.blocking))

    def new_data_key(self) -> int:
        """Make a fresh data key, which seals what this object writes from now on. Returns its number.

        Other processes use the new key after they first read a record sealed with it, or after a restart. All
        of them read what is sealed under any of the keys.

        Raises:
            ConfigError: If there is no `encryption_key`.
        """
        return run_sync(self._data_keys.add(self._database.blocking))

    # --- blocking

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return run_sync(self._parts.reads.get_tuple(self._database.blocking, config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        found = self._parts.reads.list(
            self._database.blocking, config, filter=filter, before=before, limit=limit
        )
        return _iterate(found)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        put = self._parts.writes.put(self._database.blocking, config, checkpoint, metadata, new_versions)
        return cast(RunnableConfig, run_sync(put))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        run_sync(self._parts.writes.put_writes(self._database.blocking, config, writes, task_id, task_path))

    def delete_thread(self, thread_id: Any) -> None:
        run_sync(self._parts.retention.delete_threads(self._database.blocking, [thread_id]))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints that some runs made, with their writes, in whichever threads they are.

        A checkpoint that holds what other runs gave to a `DeltaChannel` is kept: the writes of a run that
        resumed a deleted one, or the only snapshot of what is pruned.
        """
        run_sync(self._parts.retention.delete_for_runs(self._database.blocking, run_ids))

    def copy_thread(self, source_thread_id: Any, target_thread_id: Any) -> None:
        run_sync(self._parts.copying.copy_thread(self._database.blocking, source_thread_id, target_thread_id))

    def prune(self, thread_ids: Sequence[Any], *, strategy: str = "keep_latest") -> None:
        run_sync(self._parts.retention.prune(self._database.blocking, thread_ids, strategy))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return run_sync(self._parts.delta.read(self._database.blocking, config, channels))

    # --- asynchronous

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return await self._parts.reads.get_tuple(self._database.asynchronous, config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        db = self._database.asynchronous
        async for found in self._parts.reads.list(db, config, filter=filter, before=before, limit=limit):
            yield found

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        db = self._database.asynchronous
        put = self._parts.writes.put(db, config, checkpoint, metadata, new_versions)
        return cast(RunnableConfig, await put)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await self._parts.writes.put_writes(self._database.asynchronous, config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: Any) -> None:
        await self._parts.retention.delete_threads(self._database.asynchronous, [thread_id])

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        await self._parts.retention.delete_for_runs(self._database.asynchronous, run_ids)

    async def acopy_thread(self, source_thread_id: Any, target_thread_id: Any) -> None:
        await self._parts.copying.copy_thread(self._database.asynchronous, source_thread_id, target_thread_id)

    async def aprune(self, thread_ids: Sequence[Any], *, strategy: str = "keep_latest") -> None:
        await self._parts.retention.prune(self._database.asynchronous, thread_ids, strategy)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return await self._parts.delta.read(self._database.asynchronous, config, channels)


def _iterate(found: AsyncIterator[CheckpointTuple]) -> Iterator[CheckpointTuple]:
    """A blocking view of an iterator that only uses a blocking `Db`."""
    while True:
        try:
            yield run_sync(cast(Any, found.__anext__()))
        except StopAsyncIteration:
            return
