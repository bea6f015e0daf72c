"""Writes of tasks that finished before a merge, carried to the same tasks of the merged checkpoint.

A step may be half done: one node has finished, another failed or waits in an interrupt. The finished one's
writes belong to its task, whose id comes from the checkpoint's id. Without them it would run a second time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from haive_persistence.checkpointer.versions.merge.channels import TASKS
from haive_persistence.checkpointer.versions.merge.values import token

Write = tuple[str, Any]
"""A channel, and what is written to it."""

_PULL, _PUSH = "__pregel_pull", "__pregel_push"
_NULL_TASK = "00000000-0000-0000-0000-000000000000"  # of updates that no node made: Command(update=…)
_RESUME = "__resume__"
_NOT_CARRIED = frozenset({"__interrupt__", "__error__", "__error_source_node__"})  # the task runs again


@dataclass(frozen=True, kw_only=True)
class Step:
    """A checkpoint, and how far its next step has come."""

    checkpoint: Mapping[str, Any]
    tasks: Sequence[Any]
    """`graph.get_state(config).tasks`."""
    writes: Sequence[tuple[str, str, Any]] = ()
    """The checkpoint's pending writes: task id, channel and value."""


def carry_writes(ours: Step, theirs: Step, merged: Step) -> dict[str, list[Write]]:
    """The writes to put for the merged checkpoint, so that no finished task runs again.

    Interrupts and errors are not carried: those tasks run again, and ask again. Answers to a task are.

    Args:
        ours: The checkpoint that was merged into.
        theirs: The checkpoint that was merged.
        merged: The merged checkpoint, after it was put; its own writes are ignored.

    Returns:
        The writes by task id, to pass to `put_writes`. Where both sides finished a task, ours.
    """
    there = {place: task.id for place, task in _places(merged)}
    carried: dict[str, list[Write]] = {}
    for side in (theirs, ours):
        written = _by_task(side.writes)
        for place, task in _places(side):
            if place in there and task.id in written:
                carried[there[place]] = written[task.id]
    updates = _updates(_by_task(ours.writes).get(_NULL_TASK, []), _by_task(theirs.writes).get(_NULL_TASK, []))
    return {**carried, **({_NULL_TASK: updates} if updates else {})}


def _by_task(writes: Iterable[tuple[str, str, Any]]) -> dict[str, list[Write]]:
    found: dict[str, list[Write]] = {}
    for task_id, channel, value in writes:
        if channel not in _NOT_CARRIED:
            found.setdefault(task_id, []).append((channel, value))
    return found


def _updates(ours: list[Write], theirs: list[Write]) -> list[Write]:
    """Updates outside of tasks: theirs only of channels that ours leave alone.

    A Command's answer is not carried: the task it was for has it, and it would answer the next question too.
    """
    known = {channel for channel, _ in ours}
    writes = [*ours, *(write for write in theirs if write[0] not in known)]
    return [write for write in writes if write[0] != _RESUME]


def _places(step: Step) -> list[tuple[Hashable, Any]]:
    """The tasks, by what they are in any checkpoint: a node, or a Send and its number among equals."""
    sends = step.checkpoint["channel_values"].get(TASKS, ())
    equals: Counter[Hashable] = Counter()
    found: list[tuple[Hashable, Any]] = []
    for task in step.tasks:
        kind, at = task.path[:2]
        if kind == _PULL:
            found.append((task.name, task))
        elif kind == _PUSH and isinstance(at, int) and at < len(sends):
            key = token(sends[at])
            found.append(((key, equals[key]), task))
            equals[key] += 1
    return found
