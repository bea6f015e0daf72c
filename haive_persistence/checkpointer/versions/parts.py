"""The parts of version control, each made when it is first used: most processes never import them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from haive_persistence.checkpointer.context import TenantContext
from haive_persistence.checkpointer.delta import DeltaHistory
from haive_persistence.checkpointer.reads import Reads
from haive_persistence.checkpointer.writes import Writes

if TYPE_CHECKING:
    from haive_persistence.checkpointer.versions.comparing import Comparing
    from haive_persistence.checkpointer.versions.merging import Merging
    from haive_persistence.checkpointer.versions.moves import Moves
    from haive_persistence.checkpointer.versions.refs import Refs


class Versions:
    """Version control of one tenant's threads."""

    def __init__(self, context: TenantContext, reads: Reads, writes: Writes, delta: DeltaHistory) -> None:
        self._context = context
        self._reads = reads
        self._writes = writes
        self._delta = delta

    @cached_property
    def refs(self) -> Refs:
        """Branches and tags."""
        from haive_persistence.checkpointer.versions.refs import Refs

        return Refs(self._context, self._reads.views)

    @cached_property
    def moves(self) -> Moves:
        """Restore and undo."""
        from haive_persistence.checkpointer.versions.moves import Moves

        return Moves(self._context, self._reads, self.refs)

    @cached_property
    def merging(self) -> Merging:
        """Merge, cherry-pick, revert and resolve."""
        from haive_persistence.checkpointer.versions.merging import Merging

        locator = self.refs.locator
        return Merging(self._context, self._reads, self._writes, self._delta, locator, self.moves)

    @cached_property
    def comparing(self) -> Comparing:
        """Differences."""
        from haive_persistence.checkpointer.versions.comparing import Comparing

        return Comparing(self._reads, self._delta, self.refs.locator)
