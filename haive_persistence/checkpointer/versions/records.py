"""Records that calls return: branches, tags and operations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from haive_persistence.checkpointer.versions.merge import Conflict
    from haive_persistence.checkpointer.versions.merge.drivers import Drivers
    from haive_persistence.checkpointer.versions.merge.policy import Policy, Rule
    from haive_persistence.checkpointer.versions.side_effects import ToolCall


class Said(NamedTuple):
    """The caller's words about an operation."""

    by: str | None
    why: str | None


class Ways(NamedTuple):
    """The ways of a merge: the graph, drivers that override its reducers, and what decides conflicts."""

    graph: Any | None = None
    drivers: Drivers | None = None
    policy: Policy | Rule | None = None


def config_of(thread_id: Any, branch: str | None, checkpoint_id: str | None = None) -> dict[str, Any]:
    """The config that runs a graph on a branch, from its head or from a certain checkpoint."""
    configurable: dict[str, Any] = {"thread_id": thread_id}
    if branch is not None:
        configurable["branch"] = branch
    if checkpoint_id is not None:
        configurable |= {"checkpoint_ns": "", "checkpoint_id": checkpoint_id}
    return {"configurable": configurable}


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A branch of a thread."""

    name: str
    """The name; "@" and a number for what has no name any more."""
    thread_id: Any
    base: str | None
    """The id of the checkpoint that it starts from; None for the line on which the thread began."""
    is_protected: bool = False
    """True if runs may not add to it."""
    created_at: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """The config to run a graph on it with."""
        return config_of(self.thread_id, self.name)


@dataclass(frozen=True, kw_only=True)
class Tag:
    """A name for a checkpoint, which never comes to mean another one."""

    name: str
    thread_id: Any
    checkpoint_id: str
    branch: str | None
    """The branch on which the checkpoint was tagged; None for `main`."""
    created_at: datetime
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """The config of the checkpoint."""
        return config_of(self.thread_id, self.branch, self.checkpoint_id)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A change to the names of a thread."""

    id: str
    at: datetime
    """When, by the server's clock."""
    kind: str
    """The name of the call that did it, such as `create_branch`."""
    name: str
    """The branch or tag, by its name at that time."""
    by: str | None
    why: str | None
    details: Mapping[str, Any]
    """What it changed: see `docs/guide.md`."""


@dataclass(frozen=True, kw_only=True)
class Restored(Mapping[str, Any]):
    """The state that a branch was moved back to: a mapping of its channels, of the caller's own."""

    state: Mapping[str, Any]
    thread_id: Any
    branch: str | None
    """The branch that was moved; None for `main`."""
    checkpoint_id: str
    side_effects: tuple[ToolCall, ...]
    """Tool calls that were made after that state, and that nothing takes back or repeats by itself."""

    @property
    def config(self) -> dict[str, Any]:
        """The config to run a graph on the branch with."""
        return config_of(self.thread_id, self.branch)

    def __getitem__(self, channel: str) -> Any:
        return self.state[channel]

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


@dataclass(frozen=True, kw_only=True)
class Merge:
    """A merge, or a cherry-pick or a revert."""

    thread_id: Any
    branch: str | None
    """The branch that was merged into; None for `main`."""
    checkpoint_id: str
    """The head of the branch afterwards."""
    conflicts: tuple[Conflict, ...]
    """Changes of both sides that exclude each other: the state has ours there. See `resolve`."""
    is_fast_forward: bool
    """True if the branch had nothing of its own since: it was moved, and nothing was merged."""
    is_changed: bool
    """False if there was nothing to merge."""
    side_effects: tuple[ToolCall, ...]
    """Tool calls that came in by the merge. They were made on the other branch, and are not repeated."""

    @property
    def config(self) -> dict[str, Any]:
        """The config to run a graph on the branch with."""
        return config_of(self.thread_id, self.branch)
