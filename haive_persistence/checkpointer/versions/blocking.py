"""The calls of `Checkpointer` about branches and tags, for code without an event loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from haive_persistence.checkpointer.versions.records import (
    Branch,
    Merge,
    Operation,
    Restored,
    Said,
    Tag,
    Ways,
)
from haive_persistence.db.protocol import run_sync

if TYPE_CHECKING:
    from haive_persistence.checkpointer.versions.diff import Diff
    from haive_persistence.checkpointer.versions.merge.drivers import Drivers
    from haive_persistence.checkpointer.versions.merge.policy import Policy, Rule
    from haive_persistence.checkpointer.versions.parts import Versions
    from haive_persistence.db import Database


class BlockingVersions:
    """The calls of `Checkpointer` about branches and tags, for code without an event loop."""

    def __init__(self, versions: Versions, database: Database) -> None:
        self._versions = versions
        self._db = database.blocking

    def create_branch(
        self,
        from_checkpoint: Any,
        branch_name: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        thread_id: Any = None,
        by: str | None = None,
        why: str | None = None,
    ) -> Branch:
        """Do what `Checkpointer.create_branch` does."""
        said = Said(by, why)
        return run_sync(
            self._versions.refs.create_branch(
                self._db, from_checkpoint, branch_name, metadata or {}, said, thread_id
            )
        )

    def branches(self, thread_id: Any, *, unnamed: bool = False) -> Sequence[Branch]:
        """Do what `Checkpointer.branches` does."""
        return run_sync(self._versions.refs.branches(self._db, thread_id, unnamed=unnamed))

    def rename_branch(
        self, thread_id: Any, name: str, new_name: str, *, by: str | None = None, why: str | None = None
    ) -> Branch:
        """Do what `Checkpointer.rename_branch` does."""
        return run_sync(self._versions.refs.rename_branch(self._db, thread_id, name, new_name, Said(by, why)))

    def delete_branch(
        self, thread_id: Any, name: str, *, by: str | None = None, why: str | None = None
    ) -> None:
        """Do what `Checkpointer.delete_branch` does."""
        run_sync(self._versions.refs.delete_branch(self._db, thread_id, name, Said(by, why)))

    def protect_branch(
        self,
        thread_id: Any,
        name: str,
        protected: bool = True,
        *,
        by: str | None = None,
        why: str | None = None,
    ) -> Branch:
        """Do what `Checkpointer.protect_branch` does."""
        said = Said(by, why)
        return run_sync(
            self._versions.refs.protect_branch(self._db, thread_id, name, said, protected=protected)
        )

    def create_tag(
        self,
        checkpoint: Any,
        name: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        thread_id: Any = None,
        by: str | None = None,
        why: str | None = None,
    ) -> Tag:
        """Do what `Checkpointer.create_tag` does."""
        said = Said(by, why)
        return run_sync(
            self._versions.refs.create_tag(self._db, checkpoint, name, metadata or {}, said, thread_id)
        )

    def tags(self, thread_id: Any) -> Sequence[Tag]:
        """Do what `Checkpointer.tags` does."""
        return run_sync(self._versions.refs.tags(self._db, thread_id))

    def delete_tag(self, thread_id: Any, name: str, *, by: str | None = None, why: str | None = None) -> None:
        """Do what `Checkpointer.delete_tag` does."""
        run_sync(self._versions.refs.delete_tag(self._db, thread_id, name, Said(by, why)))

    def log(self, thread_id: Any) -> Sequence[Operation]:
        """Do what `Checkpointer.log` does."""
        return run_sync(self._versions.refs.log(self._db, thread_id))

    def restore(
        self,
        checkpoint_id: Any,
        validate_schema: bool = False,
        *,
        thread_id: Any = None,
        by: str | None = None,
        why: str | None = None,
    ) -> Restored:
        """Do what `Checkpointer.restore` does."""
        said = Said(by, why)
        return run_sync(
            self._versions.moves.restore(
                self._db, checkpoint_id, said, thread_id, validate_schema=validate_schema
            )
        )

    def undo(
        self, thread_id: Any, operation: Any = None, *, by: str | None = None, why: str | None = None
    ) -> Operation:
        """Do what `Checkpointer.undo` does."""
        return run_sync(self._versions.moves.undo(self._db, thread_id, operation, Said(by, why)))

    def compare(
        self,
        checkpoint_a: Any,
        checkpoint_b: Any,
        include_details: bool = True,
        *,
        thread_id: Any = None,
    ) -> Diff:
        """Do what `Checkpointer.compare` does."""
        return run_sync(
            self._versions.comparing.compare(
                self._db, checkpoint_a, checkpoint_b, thread_id, include_details=include_details
            )
        )

    def merge(
        self,
        thread_id: Any,
        source: Any,
        into: str = "main",
        *,
        graph: Any | None = None,
        policy: Policy | Rule | None = None,
        drivers: Drivers | None = None,
        by: str | None = None,
        why: str | None = None,
    ) -> Merge:
        """Do what `Checkpointer.merge` does."""
        ways, said = Ways(graph, drivers, policy), Said(by, why)
        return run_sync(self._versions.merging.merge(self._db, thread_id, source, into, ways, said))

    def resolve(
        self,
        merge: Merge,
        choices: Mapping[Any, Any],
        *,
        by: str | None = None,
        why: str | None = None,
    ) -> Merge:
        """Do what `Checkpointer.resolve` does."""
        return run_sync(self._versions.merging.resolve(self._db, merge, choices, Said(by, why)))

    def cherry_pick(
        self,
        thread_id: Any,
        checkpoint: Any,
        onto: str = "main",
        *,
        graph: Any | None = None,
        policy: Policy | Rule | None = None,
        drivers: Drivers | None = None,
        by: str | None = None,
        why: str | None = None,
    ) -> Merge:
        """Do what `Checkpointer.cherry_pick` does."""
        ways, said = Ways(graph, drivers, policy), Said(by, why)
        return run_sync(
            self._versions.merging.apply(self._db, thread_id, checkpoint, onto, ways, said, is_revert=False)
        )

    def revert(
        self,
        thread_id: Any,
        checkpoint: Any,
        on: str = "main",
        *,
        graph: Any | None = None,
        policy: Policy | Rule | None = None,
        drivers: Drivers | None = None,
        by: str | None = None,
        why: str | None = None,
    ) -> Merge:
        """Do what `Checkpointer.revert` does."""
        ways, said = Ways(graph, drivers, policy), Said(by, why)
        return run_sync(
            self._versions.merging.apply(self._db, thread_id, checkpoint, on, ways, said, is_revert=True)
        )
