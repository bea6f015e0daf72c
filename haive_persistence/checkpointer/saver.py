"""`Checkpointer`: LangGraph's saver, blocking and asynchronous on one object."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, cast

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

from haive_persistence._awaitable import Settled
from haive_persistence.checkpointer.channel_versions import next_version
from haive_persistence.checkpointer.config import CheckpointConfig
from haive_persistence.checkpointer.parts import Parts, SharedParts
from haive_persistence.checkpointer.versions.calls import VersionCalls
from haive_persistence.codec import SafeSerializer
from haive_persistence.config import LEFT_OUT, EncryptionConfig, PersistenceConfig
from haive_persistence.db import Database, fork_safety
from haive_persistence.db.opening import Source, open_database
from haive_persistence.db.protocol import run_sync
from haive_persistence.errors import ConfigError
from haive_persistence.keys import DataKeys, SealProgress


def _checked_config(config: object) -> CheckpointConfig:
    if config is None:
        return CheckpointConfig()
    if isinstance(config, CheckpointConfig):
        return config
    if isinstance(config, PersistenceConfig):
        raise ConfigError("config= takes a CheckpointConfig: write Checkpointer(PersistenceConfig(…))")
    if isinstance(config, Mapping):
        names = ", ".join(f"{name}=…" for name in config)
        raise ConfigError(f"config= takes a CheckpointConfig, not a dict: write CheckpointConfig({names})")
    raise ConfigError(f"config= takes a CheckpointConfig, not a {type(config).__name__}")


def _open(source: object) -> tuple[Database, bool]:
    hint = "write Checkpointer(config=CheckpointConfig(…))" if isinstance(source, CheckpointConfig) else ""
    return open_database(source, "Checkpointer", hint)


class Checkpointer(VersionCalls, BaseCheckpointSaver[Any]):
    """Keeps a LangGraph graph's state in Postgres.

        graph = builder.compile(checkpointer=Checkpointer("postgresql://…"))

    One object serves `invoke` and `ainvoke`, any number of threads and event loops, and any number of
    conversations. The schema is created and brought up to date on first use.

    Args:
        store: Where to keep it: a `PostgresStore` (its database is shared), a `Database`, a connection
            string, or a `PersistenceConfig`. Left out: HAIVE_CONNECTION_STRING, or the embedded Postgres.
            What `PostgresSaver` takes will do too, a psycopg connection or a psycopg_pool pool: its settings
            are taken, and connections of its own are opened with them.
        pipe: Accepted as `PostgresSaver` does: every operation is one round trip either way.
        serde: A serialiser of your own. The default reads no code: it imports nothing, calls nothing
            and constructs data types only.
        conn: The same as `store` by `PostgresSaver`'s name; give one of the two.
        config: Compression, encryption and memory.

    Raises:
        ConfigError: If the settings contradict each other.
    """

    def __init__(
        self,
        store: Source = LEFT_OUT,
        pipe: object = None,
        serde: SerializerProtocol | None = None,
        *,
        conn: Source = LEFT_OUT,
        config: CheckpointConfig | None = None,
    ) -> None:
        super().__init__(serde=serde or SafeSerializer())
        self.config = _checked_config(config)
        if conn is not LEFT_OUT:
            if store is not LEFT_OUT:
                raise ConfigError("store= and conn= are two names of one argument: give one of them")
            store = conn
        self._database, self._owns_database = _open(store)
        if (encryption := self.config.encryption()) is not None:
            self._database = self._sealed(store, encryption)
        self._data_keys = DataKeys(self._database.queries("keys"), self._database.encryption)
        self._built: Parts | None = None
        self._shared: SharedParts | None = None

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

    def __repr__(self) -> str:
        config = self._database.config
        return (
            f"<{type(self).__name__} {config.masked_connection_string!r} schema={config.schema!r} "
            f"tenant={self._database.tenant!r}>"
        )

    # --- life

    @property
    def database(self) -> Database:
        """The database this saver works on, to be shared with a store."""
        return self._database

    def setup(self) -> Awaitable[None]:
        """Bring the schema up to date now; the first use does it otherwise. May be awaited."""
        self._database.setup()
        return Settled()

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

    def _shared_now(self) -> SharedParts:
        """State that the views of all tenants share under the current `serde`."""
        shared = self._shared
        if shared is None or shared.serde is not self.serde:
            shared = self._shared = SharedParts(self.serde, self.config, self._data_keys)
        return shared

    @property
    def _parts(self) -> Parts:
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
        return next_version(current)

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

    async def arotate_encryption_key(self) -> int:
        """Do what `rotate_encryption_key` does, without blocking the event loop."""
        return await self._data_keys.rotate(self._database.asynchronous)

    def new_data_key(self) -> int:
        """Make a fresh data key, which seals what this object writes from now on. Returns its number.

        Other processes use the new key after they first read a record sealed with it, or after a restart. All
        of them read what is sealed under any of the keys.

        Raises:
            ConfigError: If there is no `encryption_key`.
        """
        return run_sync(self._data_keys.add(self._database.blocking))

    async def anew_data_key(self) -> int:
        """Do what `new_data_key` does, without blocking the event loop."""
        return await self._data_keys.add(self._database.asynchronous)

    def seal_existing(
        self, progress: Callable[[SealProgress], None] | None = None, *, trust_all: bool = False
    ) -> int:
        """Seal this tenant's threads that were written before it had a key.

        Others may read and write meanwhile; each thread is sealed in one transaction. Call it again after a
        crash: it goes on where it was. A store's items are sealed by the store's own `seal_existing`.

        Args:
            progress: Called after each thread with the numbers of threads sealed and of all threads.
            trust_all: Whether to seal whatever plaintext there is. Only for a restored dump: its rows
                do not tell when they were written, and what somebody else wrote into it is sealed, too.

        Returns:
            How many threads were sealed.

        Raises:
            PlaintextRefusedError: For plaintext that was written after the tenant's first key was made.
                Delete the thread, or restore it from a backup.
            ConfigError: If there is no `encryption_key`.
        """
        work = self._parts.seal_threads.seal_existing(self._database.blocking, progress, trust_all=trust_all)
        return run_sync(work)

    async def aseal_existing(
        self, progress: Callable[[SealProgress], None] | None = None, *, trust_all: bool = False
    ) -> int:
        """Do what `seal_existing` does, without blocking the event loop."""
        db = self._database.asynchronous
        return await self._parts.seal_threads.seal_existing(db, progress, trust_all=trust_all)

    # --- blocking

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return a checkpoint with its values, metadata, parent and pending writes.

        Args:
            config: `{"configurable": {"thread_id": …}}`, which means the thread's latest checkpoint;
                `checkpoint_ns` names a subgraph's, `checkpoint_id` a certain one.

        Returns:
            None if there is none. Values are the caller's own: changing them changes no other snapshot.

        Raises:
            InvalidInputError: If the config names no thread, or an id cannot be stored.
            CodecError: If the stored rows are damaged, were changed, or need another encryption key.
            DatabaseError: If the database cannot be reached or refuses; `is_transient` says whether to retry.
        """
        return run_sync(self._parts.reads.get_tuple(self._database.blocking, config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Return checkpoints, newest first, read page by page while they are iterated.

        Args:
            config: The thread to list, or None for all threads of the tenant. Without `checkpoint_ns` it
                includes the checkpoints of subgraphs.
            filter: Metadata that a checkpoint must contain: dicts by key, lists as sets.
            before: Only checkpoints with ids before this config's `checkpoint_id`.
            limit: At most so many.

        Returns:
            An iterator. Where all threads are listed, one that cannot be read stands there as a
            `DamagedCheckpoint`.

        Raises:
            InvalidInputError: If an argument is of another kind.
            CodecError: If rows of the thread asked for are damaged, or need another encryption key.
        """
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
        """Store a checkpoint. LangGraph calls this after each step.

        Channels that are not in `new_versions` keep what the parent has, and parts that are stored already
        are not stored again.

        Args:
            config: The thread, the namespace, and the parent's `checkpoint_id` if it has one.
            checkpoint: Its `id` may be any text; ids sort by time.
            metadata: Found again by `list(filter=…)`. Scalars of the config's metadata are added.
            new_versions: The channels that changed since the parent, with their versions.

        Returns:
            The config that names the stored checkpoint.

        Raises:
            EncodeError: If a value cannot be stored. Nothing was committed; the text says what to write.
            InvalidInputError: If an id or the checkpoint is malformed.
            ConflictError: If the thread is pruned or deleted over and over meanwhile: try again.
        """
        put = self._parts.writes.put(self._database.blocking, config, checkpoint, metadata, new_versions)
        return cast(RunnableConfig, run_sync(put))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what one task wrote, before the checkpoint that is made from it.

        Calling it again with the same task changes nothing, but for errors, interrupts and resumes, which
        replace those of before.

        Args:
            config: Must name a `checkpoint_id`, which need not be stored yet.
            writes: Pairs of a channel and a value.
            task_id: The task's id.
            task_path: Where it stands among the tasks of its step.

        Raises:
            EncodeError: If a value cannot be stored. Nothing was committed.
            InvalidInputError: If there is no `checkpoint_id`, or a write is no pair.
        """
        run_sync(self._parts.writes.put_writes(self._database.blocking, config, writes, task_id, task_path))

    def delete_thread(self, thread_id: Any) -> None:
        """Delete a thread with all its checkpoints, subgraphs and pending writes.

        Nothing happens if it does not exist. A run that still writes to it creates it again.

        Args:
            thread_id: A `str`, `int` or `UUID`.
        """
        run_sync(self._parts.retention.delete_threads(self._database.blocking, [thread_id]))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints that some runs made, with their writes, in whichever threads they are.

        A checkpoint that holds what other runs gave to a `DeltaChannel` is kept: the writes of a run that
        resumed a deleted one, or the only snapshot of what is pruned.

        Args:
            run_ids: The `run_id`s in the checkpoints' metadata, a sequence.

        Raises:
            InvalidInputError: If it is no sequence, or an id cannot be stored.
            CodecError: If rows of a thread are damaged or missing. Nothing of that thread was deleted.
        """
        run_sync(self._parts.retention.delete_for_runs(self._database.blocking, run_ids))

    def copy_thread(self, source_thread_id: Any, target_thread_id: Any) -> None:
        """Copy everything of one thread to another: checkpoints keep their ids, parents and history.

        Other checkpoints of the target stay. Both threads can be written meanwhile; the copy is of one
        moment.

        Args:
            source_thread_id: The thread to copy.
            target_thread_id: The thread to add it to; it is created if it is not there.

        Raises:
            NotFoundError: If there is no source thread in this tenant.
            InvalidInputError: If both are the same thread.
        """
        run_sync(self._parts.copying.copy_thread(self._database.blocking, source_thread_id, target_thread_id))

    def prune(self, thread_ids: Sequence[Any], *, strategy: str = "keep_latest") -> None:
        """Delete old checkpoints of some threads and give their space back.

        Readers and writers go on meanwhile. Ids that are not stored are passed over. LangGraph takes the id
        of a deleted checkpoint for an empty state: do not update or resume from one.

        Args:
            thread_ids: The threads, a sequence.
            strategy: "keep_latest" keeps the latest checkpoint of each namespace, and the ancestors that a
                `DeltaChannel` is rebuilt from; subgraph calls go with the checkpoint they belong to. "delete"
                deletes the threads.

        Raises:
            InvalidInputError: If the strategy is another one, or `thread_ids` no sequence.
            CodecError: If rows of a thread are damaged or missing. Nothing of that thread was deleted.
            ConflictError: If a thread changes faster than it can be read: try again.
        """
        run_sync(self._parts.retention.prune(self._database.blocking, thread_ids, strategy))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return what `DeltaChannel`s are rebuilt from. LangGraph calls this.

        Args:
            config: The checkpoint whose state is wanted.
            channels: Names of channels.

        Returns:
            For each channel the writes since its last stored value, oldest first, and that value as `seed` if
            there is one.

        Raises:
            TamperedError: If rows of a sealed thread are missing that the state was made from.
        """
        return run_sync(self._parts.delta.read(self._database.blocking, config, channels))

    # --- asynchronous

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Do what `get_tuple` does, without blocking the event loop."""
        return await self._parts.reads.get_tuple(self._database.asynchronous, config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Do what `list` does, without blocking the event loop."""
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
        """Do what `put` does, without blocking the event loop."""
        db = self._database.asynchronous
        put = self._parts.writes.put(db, config, checkpoint, metadata, new_versions)
        return cast(RunnableConfig, await put)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Do what `put_writes` does, without blocking the event loop."""
        await self._parts.writes.put_writes(self._database.asynchronous, config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: Any) -> None:
        """Do what `delete_thread` does, without blocking the event loop."""
        await self._parts.retention.delete_threads(self._database.asynchronous, [thread_id])

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Do what `delete_for_runs` does, without blocking the event loop."""
        await self._parts.retention.delete_for_runs(self._database.asynchronous, run_ids)

    async def acopy_thread(self, source_thread_id: Any, target_thread_id: Any) -> None:
        """Do what `copy_thread` does, without blocking the event loop."""
        await self._parts.copying.copy_thread(self._database.asynchronous, source_thread_id, target_thread_id)

    async def aprune(self, thread_ids: Sequence[Any], *, strategy: str = "keep_latest") -> None:
        """Do what `prune` does, without blocking the event loop."""
        await self._parts.retention.prune(self._database.asynchronous, thread_ids, strategy)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Do what `get_delta_channel_history` does, without blocking the event loop."""
        return await self._parts.delta.read(self._database.asynchronous, config, channels)


def _iterate(found: AsyncIterator[CheckpointTuple]) -> Iterator[CheckpointTuple]:
    """A blocking view of an iterator that only uses a blocking `Db`."""
    while True:
        try:
            yield run_sync(cast(Any, found.__anext__()))
        except StopAsyncIteration:
            return
