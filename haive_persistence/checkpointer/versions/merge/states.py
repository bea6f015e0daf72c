"""Three-way merges of whole states: mappings of channel names to values. Pure: no database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from haive_persistence.checkpointer.versions.merge.conflicts import Conflict
from haive_persistence.checkpointer.versions.merge.drivers import NAMES, Driver, Drivers, drive
from haive_persistence.checkpointer.versions.merge.policy import Policy, Rule
from haive_persistence.checkpointer.versions.merge.three_way import ThreeWay
from haive_persistence.checkpointer.versions.merge.values import MISSING, same
from haive_persistence.errors import InvalidInputError

State = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The result of a merge."""

    values: dict[str, Any]
    """The merged state. It shares its parts with the merged ones: copy before changing it in place."""
    changed: frozenset[str]
    """The channels whose merged value differs from ours, those that are gone included."""
    conflicts: tuple[Conflict, ...]
    """Where both sides changed the same thing differently; `values` has ours there."""


def merge_states(
    base: State,
    ours: State,
    theirs: State,
    *,
    drivers: Drivers | None = None,
    policy: Policy | Rule | None = None,
) -> Merged:
    """Merge two states that began as one. Nothing is written, and no argument is changed.

    Args:
        base: The state that both came from.
        ours: The state that is merged into; it stands wherever there is a conflict.
        theirs: The state that is merged.
        drivers: How each channel merges: what `drivers_of(graph)` returns, or your own names and callables.
            Channels without one merge by the shape of their values.
        policy: What decides conflicts: one rule for all, or a rule per path. Without one, ours is taken
            and the conflict recorded.

    Returns:
        The merged values, the channels that differ from ours, and the conflicts.

    Raises:
        MergeConflictError: A conflict's policy is "fail". Change one side, or give another policy.
        InvalidInputError: A driver or a policy is unknown; the text lists what there is.
    """
    merge = ThreeWay(policy)
    known = checked_drivers(drivers)
    values = merge_channels(merge, known, base, ours, theirs)
    merge.raise_failed()
    changed = frozenset(
        name for name in {*ours, *theirs} if not same(values.get(name, MISSING), ours.get(name, MISSING))
    )
    return Merged(values=values, changed=changed, conflicts=tuple(merge.conflicts))


def merge_channels(
    merge: ThreeWay, drivers: Drivers, base: State, ours: State, theirs: State
) -> dict[str, Any]:
    """The merged value of each channel that has one."""
    if same(dict(ours), dict(theirs)):  # also where equal changes are added: see 0007
        return dict(ours)
    values: dict[str, Any] = {}
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        before, one, other = (side.get(name, MISSING) for side in (base, ours, theirs))
        value = drive(merge, drivers.get(name, "shape"), before, one, other, (name,))
        if value is not MISSING:
            values[name] = value
    return values


def cherry_pick(
    parent_of_picked: State,
    picked: State,
    onto: State,
    *,
    drivers: Drivers | None = None,
    policy: Policy | Rule | None = None,
) -> Merged:
    """Apply what one checkpoint changed to another state.

    Args:
        parent_of_picked: The state before the change.
        picked: The state after it.
        onto: The state to change; it stands wherever there is a conflict.
        drivers: As for `merge_states`.
        policy: As for `merge_states`.

    Returns:
        The changed state, as `merge_states` gives it.

    Raises:
        MergeConflictError: A conflict's policy is "fail". Change one side, or give another policy.
    """
    return merge_states(parent_of_picked, onto, picked, drivers=drivers, policy=policy)


def revert(
    picked: State,
    parent_of_picked: State,
    onto: State,
    *,
    drivers: Drivers | None = None,
    policy: Policy | Rule | None = None,
) -> Merged:
    """Take what one checkpoint changed out of a later state.

    Args:
        picked: The state after the change.
        parent_of_picked: The state before it.
        onto: The state to change; it stands wherever there is a conflict.
        drivers: As for `merge_states`.
        policy: As for `merge_states`.

    Returns:
        The changed state, as `merge_states` gives it.

    Raises:
        MergeConflictError: A conflict's policy is "fail". Change one side, or give another policy.
    """
    return merge_states(picked, onto, parent_of_picked, drivers=drivers, policy=policy)


def checked_drivers(drivers: Drivers | None) -> dict[str, Driver]:
    """The drivers. Raises InvalidInputError if one is unknown."""
    for name, driver in (drivers or {}).items():
        if not callable(driver) and driver not in NAMES:
            raise InvalidInputError(
                f"the driver of {name!r} must be one of {sorted(NAMES)} or a callable, not {driver!r}"
            )
    return dict(drivers or {})
