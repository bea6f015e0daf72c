"""Resolving recorded conflicts, any time after the merge. Pure: no database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from haive_persistence.checkpointer.versions.merge.conflicts import Conflict
from haive_persistence.checkpointer.versions.merge.items import around, ids_of
from haive_persistence.checkpointer.versions.merge.values import MISSING, parts_of, rebuild
from haive_persistence.errors import InvalidInputError

Choice = Any
"""A side ("ours", "theirs", "base"), a callable that takes the Conflict and returns a value, or a value."""


def resolve(
    values: Mapping[str, Any],
    conflicts: Sequence[Conflict],
    choices: Mapping[int | str | tuple[Any, ...], Choice],
) -> tuple[dict[str, Any], tuple[Conflict, ...]]:
    """Apply choices to a state that was merged with conflicts. No argument is changed.

    Args:
        values: The merged state, or what became of it since.
        conflicts: The conflicts of the merge.
        choices: For a conflict's number (from 0), or its path ("config.model" or ("config", "model")):
            "ours", "theirs" or "base"; or the value to put there; or a callable that takes the Conflict
            and returns the value. The side that was taken leaves the value as it is now.

    Returns:
        The state with these choices, and the conflicts that are left.

    Raises:
        InvalidInputError: A choice names no conflict, or the place of one is gone; nothing was changed.
    """
    chosen = {number: choice for key, choice in choices.items() for number in _numbers(conflicts, key)}
    state: Any = dict(values)
    for number in sorted(chosen):
        state = _apply(state, conflicts[number], chosen[number])
    return state, tuple(found for number, found in enumerate(conflicts) if number not in chosen)


def _numbers(conflicts: Sequence[Conflict], key: int | str | tuple[Any, ...]) -> list[int]:
    if isinstance(key, int):
        numbers = [key] if 0 <= key < len(conflicts) else []
    else:
        numbers = [
            number
            for number, found in enumerate(conflicts)
            if key in (found.path, ".".join(map(str, found.path)))
        ]
    if not numbers:
        raise InvalidInputError(
            f"there is no conflict {key!r}: name one by its number, 0 to {len(conflicts) - 1}, or by its path"
        )
    return numbers


def _apply(state: Any, conflict: Conflict, choice: Choice) -> Any:
    if isinstance(choice, str) and choice in ("ours", "theirs", "base"):
        if choice == conflict.taken:
            return state
        value = getattr(conflict, choice)
    else:
        value = choice(conflict) if callable(choice) else choice
    if conflict.kind == "order":
        return _update(state, conflict, lambda items: _reordered(items, value))
    return _update(state, conflict, lambda _: value)


def _update(state: Any, conflict: Conflict, change: Callable[[Any], Any]) -> Any:
    """The state with the change at the conflict's path; what is above it is copied."""
    *above, last = conflict.path
    containers = [state]
    for key in above:
        containers.append(_get(containers[-1], key))
        if containers[-1] is MISSING:
            raise InvalidInputError(
                f"{conflict} can no longer be resolved: {key!r} is gone from the state; "
                f"choose {conflict.taken!r}"
            )
    value = change(_get(containers[-1], last))
    for container, key in zip(reversed(containers), reversed(conflict.path), strict=True):
        value = _put(container, key, value, conflict.after)
    return value


def _get(container: Any, key: Any) -> Any:
    if type(container) is list:
        ids = ids_of(container) or []
        return container[ids.index(key)] if key in ids else MISSING
    parts = parts_of(container)
    if isinstance(parts, dict):
        return parts.get(key, MISSING)
    at = _position(container, key)
    return parts[at] if parts is not None and 0 <= at < len(parts) else MISSING


def _position(container: Any, key: Any) -> int:
    names = getattr(type(container), "_fields", ())
    return names.index(key) if key in names else key if isinstance(key, int) else -1


def _put(container: Any, key: Any, value: Any, after: tuple[Any, ...]) -> Any:
    if type(container) is list:
        return _put_item(container, key, value, after)
    parts = parts_of(container)
    if isinstance(parts, dict):
        return rebuild(container, container, _put_key(parts, key, value))
    assert parts is not None  # `_get` found something in it
    at = _position(container, key)
    return rebuild(container, container, [*parts[:at], value, *parts[at + 1 :]])


def _put_key(known: dict[Any, Any], key: Any, value: Any) -> dict[Any, Any]:
    if value is MISSING:
        return {name: part for name, part in known.items() if name != key}
    return {**known, key: value}


def _put_item(items: list[Any], id_: Any, value: Any, after: tuple[Any, ...]) -> list[Any]:
    ids = ids_of(items) or []
    new = [] if value is MISSING else [value]
    if id_ in ids:
        at = ids.index(id_)
        return [*items[:at], *new, *items[at + 1 :]]
    before = next((ids.index(other) for other in after if other in ids), -1 if not after else len(items))
    at = before + 1
    return [*items[:at], *new, *items[at:]]


def _reordered(items: Any, ids: Any) -> Any:
    known = ids_of(items) if isinstance(items, list) else None
    if known is None or not isinstance(ids, list):
        raise InvalidInputError(
            "an order is resolved by a side or a list of ids, on a list whose items have ids"
        )
    by_id = dict(zip(known, items, strict=True))
    spine = [id_ for id_ in ids if id_ in by_id]
    return [by_id[id_] for id_ in around(spine, known)]
