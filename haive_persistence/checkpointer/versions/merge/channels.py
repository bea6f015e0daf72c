"""Roles of LangGraph's channels: which hold state, which trigger nodes, and when one is available."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from haive_persistence.checkpointer.versions.merge.drivers import (
    Driver,
    class_names,
    drivers_of,
    pending,
)
from haive_persistence.checkpointer.versions.merge.three_way import Path, ThreeWay
from haive_persistence.checkpointer.versions.merge.values import MISSING, same

Role = Literal["state", "delta", "ephemeral", "topic", "barrier", "deferred", "deferred_barrier"]

TASKS = "__pregel_tasks"
_ROLES: dict[str, Role] = {
    "DeltaChannel": "delta",
    "EphemeralValue": "ephemeral",
    "NamedBarrierValue": "barrier",
    "NamedBarrierValueAfterFinish": "deferred_barrier",
    "LastValueAfterFinish": "deferred",
}


class Channels:
    """The channels of a graph; without one, as their names and values tell."""

    def __init__(self, graph: Any | None) -> None:
        self.drivers: dict[str, Driver] = {} if graph is None else drivers_of(graph)
        self._specs: Mapping[str, Any] = {
            name: channel
            for name, channel in (getattr(graph, "channels", None) or {}).items()
            if class_names(channel)
        }
        self._nodes: Mapping[str, Any] = getattr(graph, "nodes", None) or {}

    def triggers(self, node: str) -> set[str]:
        """The channels that trigger a node, as far as the graph is known."""
        return set(getattr(self._nodes.get(node), "triggers", ()))

    def role(self, name: str, *values: Any) -> Role:
        """The role of a channel that has these values on the three sides."""
        spec = self._specs.get(name)
        if spec is not None:
            cls = class_names(spec)[0]
            return "topic" if cls == "Topic" and not spec.accumulate else _ROLES.get(cls, "state")
        return _role_by_name(name, any(_is_deferred(value) for value in values))

    def is_available(self, name: str, role: Role, value: Any) -> bool:
        """True if LangGraph lets a channel with this stored value trigger nodes."""
        spec = self._specs.get(name)
        if spec is not None:
            if value is not MISSING:
                return bool(spec.from_checkpoint(value).is_available())
            return role == "delta" or bool(spec.is_available())
        if value is MISSING:
            return False
        match role:
            case "topic":
                return bool(value)
            case "barrier":
                return _is_complete(name, value)
            case "deferred" | "deferred_barrier":
                return bool(value[1])
            case _:
                return True


def _role_by_name(name: str, is_deferred: bool) -> Role:
    if name == TASKS:
        return "topic"
    if name.startswith("join:"):
        return "deferred_barrier" if is_deferred else "barrier"
    if name.startswith(("branch:to:", "__start__")):
        return "deferred" if is_deferred else "ephemeral"
    return "state"


def _is_deferred(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[1], bool)


def _is_complete(name: str, names: set[str]) -> bool:
    """True if a barrier has all names: LangGraph calls it join:a+b:c, and the names are among a and b."""
    expected = name.split(":")[1]
    return len("+".join(names)) == len(expected)


def merge_trigger(
    merge: ThreeWay, channels: Channels, name: str, role: Role, base: Any, ours: Any, theirs: Any
) -> Any:
    """The value of a trigger channel that both sides have written since the base: all that is pending."""
    path: Path = (name,)
    if ours is MISSING or theirs is MISSING or same(ours, theirs):
        return theirs if ours is MISSING else ours
    if role == "topic":
        return pending(MISSING, ours, theirs)
    if role == "barrier" or role == "deferred_barrier":
        for side in (ours, theirs):
            if channels.is_available(name, role, side):
                return side
        if role == "barrier":
            return pending(base, ours, theirs)
        return pending(MISSING if base is MISSING else base[0], ours[0], theirs[0]), False
    if role == "deferred":
        before = MISSING if base is MISSING else base[0]
        return merge.value(before, ours[0], theirs[0], path), ours[1] or theirs[1]
    return merge.value(MISSING, ours, theirs, path)
