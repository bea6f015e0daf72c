"""Merges of whole checkpoints: state, and LangGraph's bookkeeping of which nodes are due. Pure: no database.

LangGraph runs a node if a channel that triggers it is available and has a greater version than the node
has seen. Versions of two branches cannot be compared, so it is decided per side which nodes are due, and the
merged versions are made to say the union. `docs/design/0007-merge.md` gives the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from haive_persistence.checkpointer.versions.merge.channels import Channels, Role, merge_trigger
from haive_persistence.checkpointer.versions.merge.conflicts import Conflict
from haive_persistence.checkpointer.versions.merge.drivers import Driver, Drivers
from haive_persistence.checkpointer.versions.merge.policy import Policy, Rule
from haive_persistence.checkpointer.versions.merge.states import checked_drivers, merge_channels
from haive_persistence.checkpointer.versions.merge.three_way import ThreeWay
from haive_persistence.checkpointer.versions.merge.values import MISSING, same
from haive_persistence.errors import InvalidInputError

Versions = Mapping[str, Any]
Pair = tuple[str, str]
"""A node, and a channel that triggers it."""

_INTERRUPT = "__interrupt__"  # in versions_seen: what an interrupt before a node has seen
_SNAPSHOT_BUMPS = "__snapshot_bumps__"  # in versions_seen: notes of LangGraph's own, of no node
_OLDEST = 3  # the first format with the channel names of today
_EMPTY: Mapping[str, Any] = {"channel_values": {}, "channel_versions": {}, "versions_seen": {}}


@dataclass(frozen=True, kw_only=True)
class MergedCheckpoint:
    """The result of a merge of checkpoints."""

    checkpoint: dict[str, Any]
    """The checkpoint to put, as a child of ours."""
    new_versions: dict[str, Any]
    """The versions of the channels that must be stored; empty if there was nothing to merge."""
    changed: frozenset[str]
    """The channels whose value differs from ours."""
    conflicts: tuple[Conflict, ...]
    """Where both sides changed the same thing differently; the checkpoint has ours there."""


def merge_checkpoints(
    base: Mapping[str, Any] | None,
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    *,
    next_version: Callable[[Any, None], Any],
    graph: Any | None = None,
    drivers: Drivers | None = None,
    policy: Policy | Rule | None = None,
    checkpoint_id: str | None = None,
) -> MergedCheckpoint:
    """Merge two checkpoints of one namespace. Nothing is written, and no argument is changed.

    A node is due in the merged checkpoint if it is due in ours or in theirs, unless it was due in the base
    already and the other side is past it; and if a join is complete only now. It makes nothing else run.

    Args:
        base: The merge base; None if there is none. A `DeltaChannel`'s value must be in `channel_values`,
            plain or as a snapshot: this function reads no ancestors.
        ours: The checkpoint that is merged into, likewise.
        theirs: The checkpoint that is merged, likewise.
        next_version: The saver's `get_next_version`.
        graph: The compiled graph, for its reducers and channels. Without it, values merge by their shape.
        drivers: As for `merge_states`; they override the graph's.
        policy: As for `merge_states`.
        checkpoint_id: The id of the merged checkpoint; a new one by default.

    Returns:
        The checkpoint to put as a child of ours, with the versions to store.

    Raises:
        MergeConflictError: A conflict's policy is "fail". Change one side, or give another policy.
        InvalidInputError: The value of a `DeltaChannel` is missing, or a checkpoint was written by an old
            LangGraph; the text says what to do.
    """
    merge = ThreeWay(policy)
    channels = Channels(graph)
    known: dict[str, Driver] = {**channels.drivers, **checked_drivers(drivers)}
    sides = _Sides(channels, *(_Side(side) for side in (base or _EMPTY, ours, theirs)))
    values = sides.merge_values(merge, known)
    merge.raise_failed()
    changed = frozenset(
        name for name in sides.roles if not same(values.get(name, MISSING), sides.ours.value(name))
    )
    due = sides.due_pairs(values)
    stale = changed | {channel for node, channel in due if not sides.is_due(sides.ours, node, channel)}
    if stale:
        stale |= {name for name, role in sides.roles.items() if role == "delta" and name in values}
    versions = dict(sides.ours.versions)
    if stale:
        versions |= dict.fromkeys(sorted(stale), next_version(sides.highest_version(), None))
    return MergedCheckpoint(
        checkpoint={
            **ours,
            "id": checkpoint_id or str(uuid6()),
            "ts": datetime.now(timezone.utc).isoformat(),
            "channel_values": {
                name: _DeltaSnapshot(value) if sides.roles[name] == "delta" and stale else value
                for name, value in values.items()
            },
            "channel_versions": versions,
            "versions_seen": sides.seen(values, versions, due) if stale else sides.ours.copied_seen(),
            "updated_channels": None,  # LangGraph skips nodes whose triggers are not in it
        },
        new_versions={name: versions[name] for name in sorted(stale)},
        changed=changed,
        conflicts=tuple(merge.conflicts),
    )


class _Side:
    """One of the three checkpoints."""

    def __init__(self, checkpoint: Mapping[str, Any]) -> None:
        if checkpoint["channel_versions"] and checkpoint["v"] < _OLDEST:
            raise InvalidInputError(
                f"checkpoint {checkpoint['id']} has format {checkpoint['v']} of an old LangGraph: "
                "copy it with graph.update_state(config, None, as_node='__copy__'), and merge that"
            )
        self.values: Mapping[str, Any] = checkpoint["channel_values"]
        self.versions: Versions = checkpoint["channel_versions"]
        self.nodes: Mapping[str, Versions] = checkpoint["versions_seen"]

    def value(self, name: str) -> Any:
        """The channel's value, MISSING if it has none."""
        value = self.values.get(name, MISSING)
        return value.value if isinstance(value, _DeltaSnapshot) else value

    def has_snapshot(self, name: str) -> bool:
        return isinstance(self.values.get(name), _DeltaSnapshot)

    def copied_seen(self) -> dict[str, dict[str, Any]]:
        return {node: dict(seen) for node, seen in self.nodes.items()}


class _Sides:
    """Base, ours and theirs, and the roles of their channels."""

    def __init__(self, channels: Channels, base: _Side, ours: _Side, theirs: _Side) -> None:
        self._channels = channels
        self.base, self.ours, self.theirs = base, ours, theirs
        self._all = (base, ours, theirs)
        names = dict.fromkeys([*ours.values, *theirs.values, *ours.versions, *theirs.versions])
        self.roles: dict[str, Role] = {name: self._role(name) for name in names}

    def _role(self, name: str) -> Role:
        role = self._channels.role(name, *(side.value(name) for side in self._all))
        if role == "state" and any(side.has_snapshot(name) for side in self._all):
            return "delta"
        if role == "delta" and any(name in s.versions and s.value(name) is MISSING for s in self._all):
            raise InvalidInputError(
                f"the checkpoints lack the value of the DeltaChannel {name!r}: read it from the ancestors, "
                "with get_delta_channel_history and the graph's reducer, and put it into channel_values"
            )
        return role

    def merge_values(self, merge: ThreeWay, drivers: Drivers) -> dict[str, Any]:
        """The merged value of each channel that has one."""
        states = [
            {
                name: value
                for name, role in self.roles.items()
                if role in ("state", "delta") and (value := side.value(name)) is not MISSING
            }
            for side in self._all
        ]
        values = merge_channels(merge, drivers, *states)
        for name, role in self.roles.items():
            if role not in ("state", "delta"):
                value = self._merge_trigger(merge, name, role)
                if value is not MISSING:
                    values[name] = value
        return values

    def _merge_trigger(self, merge: ThreeWay, name: str, role: Role) -> Any:
        """By versions, since a trigger that is written again has the same value, mostly None."""
        base, ours, theirs = (side.value(name) for side in self._all)
        if not self._is_written(self.theirs, name):
            return ours
        if not self._is_written(self.ours, name):
            return theirs
        return merge_trigger(merge, self._channels, name, role, base, ours, theirs)

    def _is_written(self, side: _Side, name: str) -> bool:
        return bool(side.versions.get(name) != self.base.versions.get(name))

    def highest_version(self) -> Any:
        return max([*self.ours.versions.values(), *self.theirs.versions.values()], default=None)

    # --- which nodes are due

    def is_due(self, side: _Side, node: str, channel: str) -> bool:
        """True if LangGraph runs the node on this side, because of this channel."""
        if node != _INTERRUPT and not self._is_available(channel, side.value(channel)):
            return False
        if channel not in side.versions:
            return False
        seen = side.nodes.get(node, {}).get(channel)
        return seen is None or bool(side.versions[channel] > seen)

    def _is_available(self, channel: str, value: Any) -> bool:
        return self._channels.is_available(channel, self.roles.get(channel, "state"), value)

    def _pairs(self) -> list[Pair]:
        nodes = dict.fromkeys([*self.ours.nodes, *self.theirs.nodes])
        return [
            (node, channel)
            for node in nodes
            if node not in (_INTERRUPT, _SNAPSHOT_BUMPS)
            for channel in sorted(self._triggers(node))
        ]

    def _triggers(self, node: str) -> set[str]:
        seen = {channel for side in self._all for channel in side.nodes.get(node, ())}
        return {channel for channel in seen | self._channels.triggers(node) if channel in self.roles}

    def due_pairs(self, values: Mapping[str, Any]) -> set[Pair]:
        """The nodes to run after the merge, with the channels that say so."""
        return {
            pair
            for pair in self._pairs()
            if self._is_available(pair[1], values.get(pair[1], MISSING))
            and (self._is_due_in_merge(*pair) or not self._was_available(pair[1]))
        }

    def _is_due_in_merge(self, node: str, channel: str) -> bool:
        ours, theirs = (self.is_due(side, node, channel) for side in (self.ours, self.theirs))
        if ours and theirs:
            return True
        side = self.ours if ours else self.theirs
        inherited = self.is_due(self.base, node, channel) and not self._is_written(side, channel)
        return (ours or theirs) and not inherited

    def _was_available(self, channel: str) -> bool:
        return any(self._is_available(channel, side.value(channel)) for side in (self.ours, self.theirs))

    # --- what the merged checkpoint says about it

    def seen(
        self, values: Mapping[str, Any], versions: Versions, due: set[Pair]
    ) -> dict[str, dict[str, Any]]:
        """The merged versions_seen, by which exactly these nodes are due."""
        merged: dict[str, dict[str, Any]] = {node: {} for node in (*self.ours.nodes, *self.theirs.nodes)}
        for node, channel in self._pairs():
            available = self._is_available(channel, values.get(channel, MISSING))
            self._see(merged, node, channel, versions, (node, channel) in due, available)
        if _INTERRUPT in merged:
            for channel in versions:
                is_due = self._is_due_in_merge(_INTERRUPT, channel)
                self._see(merged, _INTERRUPT, channel, versions, is_due, True)
        if _SNAPSHOT_BUMPS in merged:
            merged[_SNAPSHOT_BUMPS] = dict(self.ours.nodes.get(_SNAPSHOT_BUMPS, {}))
        return merged

    def _see(
        self,
        merged: dict[str, dict[str, Any]],
        node: str,
        channel: str,
        versions: Versions,
        is_due: bool,
        available: bool,
    ) -> None:
        version = versions.get(channel)
        found = [
            seen
            for side in (self.ours, self.theirs)
            if (seen := side.nodes.get(node, {}).get(channel)) is not None
        ]
        if is_due:
            found = [seen for seen in found if version is not None and seen < version]
        elif available and version is not None and (not found or found[0] < version):
            found = [version]
        if found:
            merged[node][channel] = found[0]
