"""The calls of `Checkpointer` about branches and tags, asynchronous; `blocking.py` has them blocking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from haive_persistence.checkpointer.versions.blocking import BlockingVersions
from haive_persistence.checkpointer.versions.records import (
    Branch,
    Merge,
    Operation,
    Restored,
    Said,
    Tag,
    Ways,
)

if TYPE_CHECKING:
    from haive_persistence.checkpointer.parts import Parts
    from haive_persistence.checkpointer.versions.diff import Diff
    from haive_persistence.checkpointer.versions.merge.drivers import Drivers
    from haive_persistence.checkpointer.versions.merge.policy import Policy, Rule
    from haive_persistence.db import Database


class VersionCalls:
    """Branches and tags of threads: a part of `Checkpointer`."""

    _database: Database

    @property
    def _parts(self) -> Parts:
        raise NotImplementedError

    @property
    def blocking(self) -> BlockingVersions:
        """The same calls, blocking."""
        return BlockingVersions(self._parts.versions, self._database)

    async def create_branch(
        self,
        from_checkpoint: Any,
        branch_name: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        thread_id: Any = None,
        by: str | None = None,
        why: str | None = None,
    ) -> Branch:
        """Make a branch that starts at a checkpoint. Nothing is copied.

        Run a graph on it with `graph.invoke(…, branch.config)`: only this branch shows what the run puts.
        A branch of an interrupted checkpoint can be resumed with an answer of its own.

        Args:
            from_checkpoint: The checkpoint: its id, a config, a record that has a config (a
                `CheckpointTuple`, a `StateSnapshot`, a `Branch`, a `Tag`), or with `thread_id` the name of a
                branch, which means its latest, or of a tag.
            branch_name: A name that no branch of the thread has, and no tag had.
            metadata: What JSON can say, stored with it.
            thread_id: The thread, if `from_checkpoint` is a name, or an id that several threads have.
            by: Who does it, for the log.
            why: Why, for the log.

        Returns:
            The branch.

        Raises:
            NotFoundError: If there is no such checkpoint.
            NameTakenError: If the name is used.
            InvalidInputError: If the checkpoint is a subgraph's, or is named in another way.
        """
        db = self._database.asynchronous
        return await self._parts.versions.refs.create_branch(
            db, from_checkpoint, branch_name, metadata or {}, Said(by, why), thread_id
        )

    async def branches(self, thread_id: Any, *, unnamed: bool = False) -> Sequence[Branch]:
        """Return the branches of a thread, `main` first, then by when they were made.

        Args:
            thread_id: The thread.
            unnamed: Whether to include lines that have no name any more, because their branch was deleted or
                moved elsewhere. They are called "@" and a number, and read and run by that name.

        Raises:
            NotFoundError: If there is no such thread.
        """
        db = self._database.asynchronous
        return await self._parts.versions.refs.branches(db, thread_id, unnamed=unnamed)

    async def rename_branch(
        self, thread_id: Any, name: str, new_name: str, *, by: str | None = None, why: str | None = None
    ) -> Branch:
        """Give a branch another name. Runs on it that have put something go on.

        The old name is not found any more.

        Args:
            thread_id: The thread.
            name: The branch.
            new_name: A name that no branch of the thread has, and no tag had.
            by: Who does it, for the log.
            why: Why, for the log.

        Returns:
            The branch under its new name.

        Raises:
            NotFoundError: If there is no such branch.
            NameTakenError: If the new name is used.
            ProtectedError: If the branch is protected.
        """
        db = self._database.asynchronous
        return await self._parts.versions.refs.rename_branch(db, thread_id, name, new_name, Said(by, why))

    async def delete_branch(
        self, thread_id: Any, name: str, *, by: str | None = None, why: str | None = None
    ) -> None:
        """Take a branch's name away. Its checkpoints stay until the thread is pruned.

        Branches that start on it, and tags, stay as they are. Runs on it that are under way go on; nothing
        shows what they put.

        Args:
            thread_id: The thread.
            name: The branch; `main` cannot be deleted.
            by: Who does it, for the log.
            why: Why, for the log.

        Raises:
            NotFoundError: If there is no such branch.
            ProtectedError: If it is protected.
            InvalidInputError: If it is `main`.
        """
        await self._parts.versions.refs.delete_branch(
            self._database.asynchronous, thread_id, name, Said(by, why)
        )

    async def protect_branch(
        self,
        thread_id: Any,
        name: str,
        protected: bool = True,
        *,
        by: str | None = None,
        why: str | None = None,
    ) -> Branch:
        """Let runs add to a branch no more, or again. A protected one is neither renamed nor deleted.

        Args:
            thread_id: The thread.
            name: The branch, or `main`.
            protected: False lets runs add to it again.
            by: Who does it, for the log.
            why: Why, for the log.

        Returns:
            The branch.

        Raises:
            NotFoundError: If there is no such branch.
        """
        db = self._database.asynchronous
        return await self._parts.versions.refs.protect_branch(
            db, thread_id, name, Said(by, why), protected=protected
        )

    async def create_tag(
        self,
        checkpoint: Any,
        name: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        thread_id: Any = None,
        by: str | None = None,
        why: str | None = None,
    ) -> Tag:
        """Name a checkpoint for good: the name never comes to mean another one.

        Args:
            checkpoint: The checkpoint, named as in `create_branch`.
            name: A name that no branch of the thread has, and no tag had.
            metadata: What JSON can say, stored with it.
            thread_id: The thread, if `checkpoint` is a name, or an id that several threads have.
            by: Who does it, for the log.
            why: Why, for the log.

        Returns:
            The tag; `graph.get_state(tag.config)` is the state it names.

        Raises:
            NotFoundError: If there is no such checkpoint.
            NameTakenError: If the name is or was used.
            InvalidInputError: If the checkpoint is a subgraph's, or is named in another way.
        """
        db = self._database.asynchronous
        return await self._parts.versions.refs.create_tag(
            db, checkpoint, name, metadata or {}, Said(by, why), thread_id
        )

    async def tags(self, thread_id: Any) -> Sequence[Tag]:
        """Return the tags of a thread, by when they were made.

        Raises:
            NotFoundError: If there is no such thread.
        """
        return await self._parts.versions.refs.tags(self._database.asynchronous, thread_id)

    async def delete_tag(
        self, thread_id: Any, name: str, *, by: str | None = None, why: str | None = None
    ) -> None:
        """Delete a tag. Its name is not used again, so it is never taken for another checkpoint.

        Args:
            thread_id: The thread.
            name: The tag.
            by: Who does it, for the log.
            why: Why, for the log.

        Raises:
            NotFoundError: If there is no such tag.
        """
        await self._parts.versions.refs.delete_tag(
            self._database.asynchronous, thread_id, name, Said(by, why)
        )

    async def log(self, thread_id: Any) -> Sequence[Operation]:
        """Return what was done to the names of a thread, oldest first: by whom, when and why."""
        return await self._parts.versions.refs.log(self._database.asynchronous, thread_id)

    async def restore(
        self,
        checkpoint_id: Any,
        validate_schema: bool = False,
        *,
        thread_id: Any = None,
        by: str | None = None,
        why: str | None = None,
    ) -> Restored:
        """Move the checkpoint's branch back to it. What came after stays: `undo` moves it there again.

        No code runs and nothing is repeated: `side_effects` says which tool calls were made since. A run that
        is under way goes on where it was, and does not move the branch.

        Args:
            checkpoint_id: The checkpoint, named as in `create_branch`.
            validate_schema: Whether to refuse a state with values of classes that this process cannot build.
            thread_id: The thread, for a name, or an id that several threads have.
            by: Who does it, for the log.
            why: Why, for the log.

        Returns:
            The state, as a mapping of its channels.

        Raises:
            NotFoundError: If there is no such checkpoint.
            ProtectedError: If the branch is protected.
            InvalidInputError: If it is the name of a branch, a subgraph's checkpoint, or not valid.
        """
        said = Said(by, why)
        return await self._parts.versions.moves.restore(
            self._database.asynchronous, checkpoint_id, said, thread_id, validate_schema=validate_schema
        )

    async def undo(
        self, thread_id: Any, operation: Any = None, *, by: str | None = None, why: str | None = None
    ) -> Operation:
        """Take back what was done to a branch or tag. Undoing that again does it once more.

        Args:
            thread_id: The thread.
            operation: One of `log(thread_id)`, or its id; None is the last one.
            by: Who does it, for the log.
            why: Why, for the log.

        Returns:
            The operation that this is.

        Raises:
            NotFoundError: If there is no such operation, or what it changed was pruned.
            ConflictError: If something was done since to the same branch or tag: undo that first.
            NameTakenError: If the name was used since for something else.
        """
        said = Said(by, why)
        return await self._parts.versions.moves.undo(self._database.asynchronous, thread_id, operation, said)

    async def compare(
        self,
        checkpoint_a: Any,
        checkpoint_b: Any,
        include_details: bool = True,
        *,
        thread_id: Any = None,
    ) -> Diff:
        """Find everything that differs between two states.

        Messages are recognised by their ids, dicts are compared per key, texts per word. A `DeltaChannel` is
        compared by what it is rebuilt from: its last stored value, and the writes since.

        Args:
            checkpoint_a: The first state: a checkpoint, named as in `create_branch`, or a dict of channels.
            checkpoint_b: The second one. It may be in another thread.
            include_details: False finds only which channels differ, and in how many entries.
            thread_id: The thread, for names, or ids that several threads have.

        Returns:
            The differences, false if there are none; `to_text()`, `to_json_patch()` and a notebook show them.

        Raises:
            NotFoundError: If there is no such checkpoint.
            InvalidInputError: If a checkpoint is named in another way.
        """
        return await self._parts.versions.comparing.compare(
            self._database.asynchronous,
            checkpoint_a,
            checkpoint_b,
            thread_id,
            include_details=include_details,
        )

    async def merge(
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
        """Merge a branch, or a checkpoint, into a branch of the same thread.

        Three-way, from the latest state that both came from. What only one side changed is taken; messages
        are united by their ids, dicts per key, channels with reducers by them. What both changed in ways that
        exclude each other is a conflict: the branch's own value stands, and `resolve` decides it any time
        later. Nothing runs: the merged thread runs on with the nodes that were due on either side.

        Args:
            thread_id: The thread.
            source: The branch or tag to merge, a checkpoint's id, or a config.
            into: The branch that is moved to the result.
            graph: The compiled graph, for its reducers. Without it values merge by their shape; a thread with
                a `DeltaChannel` needs it.
            policy: What decides conflicts: "primary_wins" (of `into`), "secondary_wins", "union", "fail", a
                callable, or a dict of these by channel path. Without one they are recorded.
            drivers: How channels merge, instead of the graph's reducers: see docs/design/0007-merge.md.
            by: Who does it, for the log.
            why: Why, for the log.

        Returns:
            The merge, with its conflicts and the tool calls that came in by it.

        Raises:
            MergeConflictError: If the policy of a conflict is "fail". Nothing was changed.
            NotFoundError: If there is no such branch or checkpoint, or what is needed of it was pruned.
            InvalidInputError: If a `DeltaChannel` needs the graph, or an argument is of another kind.
            ConflictError: If the branch moves faster than it can be merged into: try again.
        """
        return await self._parts.versions.merging.merge(
            self._database.asynchronous, thread_id, source, into, Ways(graph, drivers, policy), Said(by, why)
        )

    async def resolve(
        self,
        merge: Merge,
        choices: Mapping[Any, Any],
        *,
        by: str | None = None,
        why: str | None = None,
    ) -> Merge:
        """Decide conflicts of a merge, on the head of its branch as it is now.

        Args:
            merge: The merge.
            choices: For the number of a conflict, or its path ("config.model"): "ours", "theirs", "base", a
                value, or a callable that takes the `Conflict` and returns one.
            by: Who does it, for the log.
            why: Why, for the log.

        Returns:
            The merge as it is now, with the conflicts that are left.

        Raises:
            InvalidInputError: If a choice names no conflict, or its place is gone. Nothing was changed.
        """
        db = self._database.asynchronous
        return await self._parts.versions.merging.resolve(db, merge, choices, Said(by, why))

    async def cherry_pick(
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
        """Apply to a branch what one checkpoint changed.

        Args:
            thread_id: The thread.
            checkpoint: The checkpoint, named as in `create_branch`; its change is that since its parent.
            onto: The branch that is moved to the result.
            graph: As for `merge`.
            policy: As for `merge`.
            drivers: As for `merge`.
            by: Who does it, for the log.
            why: Why, for the log.

        Returns:
            The merge, with its conflicts.

        Raises:
            NotFoundError: If there is no such checkpoint, or its parent was pruned.
            InvalidInputError: If it has no parent. As for `merge` otherwise.
        """
        ways, said = Ways(graph, drivers, policy), Said(by, why)
        return await self._parts.versions.merging.apply(
            self._database.asynchronous, thread_id, checkpoint, onto, ways, said, is_revert=False
        )

    async def revert(
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
        """Take back on a branch what one checkpoint changed, and keep what came after it.

        Args:
            thread_id: The thread.
            checkpoint: The checkpoint, named as in `create_branch`; its change is that since its parent.
            on: The branch that is moved to the result.
            graph: As for `merge`.
            policy: As for `merge`.
            drivers: As for `merge`.
            by: Who does it, for the log.
            why: Why, for the log.

        Returns:
            The merge, with its conflicts.

        Raises:
            NotFoundError: If there is no such checkpoint, or its parent was pruned.
            InvalidInputError: If it has no parent. As for `merge` otherwise.
        """
        ways, said = Ways(graph, drivers, policy), Said(by, why)
        return await self._parts.versions.merging.apply(
            self._database.asynchronous, thread_id, checkpoint, on, ways, said, is_revert=True
        )
