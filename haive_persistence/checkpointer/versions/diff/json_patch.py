"""A diff as a JSON Patch (RFC 6902) over the JSON form of states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from haive_persistence.checkpointer.versions.diff.model import (
    Added,
    Json,
    ListEdited,
    MapEdited,
    MembersEdited,
    Node,
    Removed,
)

Operation = dict[str, Any]

_MOST_MOVE_STEPS: Final = (
    2_000_000  # elements shifted by "move" operations; beyond, moved ones are added again
)


def operations(channels: Mapping[str, Node]) -> list[Operation]:
    """The operations that make the first state's JSON form the second's, in the order they apply."""
    return list(_map(channels, ""))


def pointer(path: str, token: str | int) -> str:
    """The JSON Pointer (RFC 6901) of an entry below `path`."""
    return f"{path}/{str(token).replace('~', '~0').replace('/', '~1')}"


def copied(value: Json) -> Json:
    """A copy of a JSON value that shares nothing that can be changed."""
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    return [copied(part) for part in value] if isinstance(value, list) else value


def _add(path: str, value: Json) -> Operation:
    return {"op": "add", "path": path, "value": copied(value)}


def _remove(path: str) -> Operation:
    return {"op": "remove", "path": path}


def _map(entries: Mapping[str, Node], path: str) -> Iterator[Operation]:
    for key, node in entries.items():
        yield from _node(node, pointer(path, key))


def _node(node: Node, path: str) -> Iterator[Operation]:
    match node:
        case Added(after):
            yield _add(path, after)
        case Removed():
            yield _remove(path)
        case MapEdited(entries):
            yield from _map(entries, path)
        case ListEdited():
            yield from _list(node, path)
        case MembersEdited(removed, added):
            yield from (_remove(pointer(path, at)) for at, _ in reversed(removed))
            yield from (_add(pointer(path, at), value) for at, value in added)
        case _:
            yield {"op": "replace", "path": path, "value": copied(node.after)}


def _list(node: ListEdited, path: str) -> Iterator[Operation]:
    """Removals from the end on, moves, additions from the start on, then what changed inside.

    A list that keeps no element is replaced.
    """
    removed = [e for e in node.elements if e.after is None]
    moved = [e for e in node.elements if e.moved]
    added = [e for e in node.elements if e.before is None]
    changed = [e for e in node.elements if e.change is not None]
    if len(moved) * node.length_before > _MOST_MOVE_STEPS:
        removed, added, moved = [*removed, *moved], [*added, *moved], []
        changed = [e for e in changed if not e.moved]
    if len(removed) == node.length_before > 1:
        value = [copied(e.value) for e in sorted(added, key=lambda e: e.after or 0)]
        yield {"op": "replace", "path": path, "value": value}
        return
    gone = sorted((e.before for e in removed if e.before is not None), reverse=True)
    yield from (_remove(pointer(path, at)) for at in gone)
    new = {e.after: e.value for e in added if e.after is not None}
    if moved:
        yield from _moves(node, set(gone), set(new), path)
    yield from (_add(pointer(path, at), new[at]) for at in sorted(new))
    for element in changed:
        if element.change is not None and element.after is not None:
            yield from _node(element.change, pointer(path, element.after))


def _moves(node: ListEdited, gone: set[int], new: set[int], path: str) -> Iterator[Operation]:
    """Take each moved element behind the one that it follows in the second list."""
    moved = {e.after: e.before for e in node.elements if e.moved and e.before is not None}
    out_of_order = set(moved.values())
    current = [at for at in range(node.length_before) if at not in gone]
    others = iter([at for at in current if at not in out_of_order])
    order = [moved[at] if at in moved else next(others) for at in range(node.length_after) if at not in new]
    for n, element in enumerate(order):
        if element not in out_of_order:
            continue
        start = current.index(element)
        del current[start]
        end = current.index(order[n - 1]) + 1 if n else 0
        current.insert(end, element)
        if start != end:
            yield {"op": "move", "from": pointer(path, start), "path": pointer(path, end)}
