"""The parts of a saver, and the state that the tenants of one serialiser share."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from langgraph.checkpoint.serde.base import SerializerProtocol

from haive_persistence.checkpointer.config import CheckpointConfig
from haive_persistence.checkpointer.context import TenantContext
from haive_persistence.checkpointer.copy import Copying
from haive_persistence.checkpointer.delta import DeltaHistory
from haive_persistence.checkpointer.incumbent import LeftBehind
from haive_persistence.checkpointer.reads import Reads
from haive_persistence.checkpointer.retention import Retention
from haive_persistence.checkpointer.seal_threads import SealThreads
from haive_persistence.checkpointer.storage import piece_numbers
from haive_persistence.checkpointer.storage.piece_cache import ProcessCache
from haive_persistence.checkpointer.versions.names import Names
from haive_persistence.checkpointer.versions.parts import Versions
from haive_persistence.checkpointer.versions.views import Views
from haive_persistence.checkpointer.writes import Writes
from haive_persistence.db import Database, fork_safety
from haive_persistence.keys import DataKeys, Sealings

fork_safety.register(piece_numbers.draw)

#: Tenants whose data keys and the like stay in memory.
_MAX_TENANTS = 1000


class Parts(NamedTuple):
    """The parts of a saver, for one serialiser."""

    serde: SerializerProtocol
    keys: Sealings
    context: TenantContext
    reads: Reads
    writes: Writes
    delta: DeltaHistory
    retention: Retention
    copying: Copying
    seal_threads: SealThreads
    versions: Versions


class SharedParts:
    """State that all tenants of one serialiser share: the memory, and the parts of the tenants used last."""

    def __init__(self, serde: SerializerProtocol, config: CheckpointConfig, data_keys: DataKeys) -> None:
        self.serde = serde
        self._config = config
        self._keys = Sealings(data_keys, serde, config.compression, config.max_read_bytes)
        self._cache = ProcessCache(config.cache_bytes)
        self._lock = threading.Lock()
        self._by_tenant: OrderedDict[str, Parts] = OrderedDict()
        self._incumbent: LeftBehind | None = None
        fork_safety.register(self)

    def after_fork(self) -> None:
        """A child must not write into its parent's number blocks."""
        self._lock = threading.Lock()
        self._cache.clear()

    def parts(self, database: Database) -> Parts:
        """The parts of the database's tenant: the same for every view of it, for as long as it is in use."""
        with self._lock:
            parts = self._by_tenant.get(database.tenant)
            if parts is None:
                parts = self._by_tenant[database.tenant] = self._build(database)
                if len(self._by_tenant) > _MAX_TENANTS:
                    self._by_tenant.popitem(last=False)
            self._by_tenant.move_to_end(database.tenant)
            return parts

    def _left_behind(self, database: Database) -> LeftBehind:
        if self._incumbent is None:
            self._incumbent = LeftBehind(database.queries("incumbent"))
        return self._incumbent

    def _build(self, database: Database) -> Parts:
        queries, tenant = database.queries("checkpointer"), database.tenant
        context = TenantContext(queries, tenant, self._cache, self._keys)
        names = Names(context, database.queries("versions"))
        views = Views(context, names)
        reads, seal_threads = Reads(context, self._left_behind(database), views), SealThreads(context, names)
        delta = DeltaHistory(context, reads)
        writes = Writes(context, reads)
        context.seal_thread = seal_threads.seal_thread
        context.settle_plaintext = seal_threads.settle
        return Parts(
            self.serde,
            self._keys,
            context,
            reads,
            writes,
            delta,
            Retention(context, names),
            Copying(context, names),
            seal_threads,
            Versions(context, reads, writes, delta),
        )
