"""Comparing stored states, and states at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haive_persistence.checkpointer.delta import DeltaHistory
from haive_persistence.checkpointer.ids import Address, decode_id
from haive_persistence.checkpointer.reads import Reads
from haive_persistence.checkpointer.retention import COUNTERS
from haive_persistence.checkpointer.versions.diff import Diff, compare_states
from haive_persistence.checkpointer.versions.locate import Locator
from haive_persistence.checkpointer.versions.names import MAIN
from haive_persistence.db.protocol import Db
from haive_persistence.errors import NotFoundError

#: How the names of LangGraph's own channels begin: inputs, tasks, edges.
_INTERNAL = ("__", "branch:to:", "join:")


class Comparing:
    """Compares one tenant's states."""

    def __init__(self, reads: Reads, delta: DeltaHistory, locator: Locator) -> None:
        self._reads = reads
        self._delta = delta
        self._locator = locator

    async def compare(
        self, db: Db, before: object, after: object, thread_id: object, *, include_details: bool
    ) -> Diff:
        """Compare two checkpoints or states: see `Checkpointer.compare`."""
        first, first_name = await self._state(db, before, thread_id)
        second, second_name = await self._state(db, after, thread_id)
        return compare_states(first, second, include_details=include_details, names=(first_name, second_name))

    async def _state(self, db: Db, named: object, thread_id: object) -> tuple[Mapping[str, Any], str]:
        if isinstance(named, Mapping) and "configurable" not in named:
            return named, "state"
        located = await self._locator.locate(db, named, thread_id)
        found = await self._reads.get_tuple(db, located.config_or_head())
        if found is None:
            raise NotFoundError(f"there is no checkpoint {_called(located)!r} to compare")
        stored = found.checkpoint["channel_values"]
        values = {name: value for name, value in stored.items() if not name.startswith(_INTERNAL)}
        metadata: Mapping[str, Any] = found.metadata
        rebuilt = [name for name in metadata.get(COUNTERS) or () if name not in values]
        histories = await self._delta.read(db, found.config, rebuilt) if rebuilt else {}
        for name, history in histories.items():
            if history["writes"] or "seed" in history:
                values[name] = {
                    "seed": history.get("seed"),
                    "writes": [value for _, _, value in history["writes"]],
                }
        return values, _called(located)


def _called(address: Address) -> str:
    """The name of a checkpoint where it is shown."""
    branch = address.branch or MAIN
    return branch if address.checkpoint_id is None else decode_id(address.checkpoint_id)
