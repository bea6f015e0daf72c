"""The result of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from haive_persistence.checkpointer.versions.diff.json_patch import copied, operations
from haive_persistence.checkpointer.versions.diff.model import (
    Added,
    Change,
    ChannelSummary,
    Json,
    ListEdited,
    MapEdited,
    MembersEdited,
    Node,
    Removed,
    TextEdited,
)
from haive_persistence.checkpointer.versions.diff.render_html import to_html
from haive_persistence.checkpointer.versions.diff.render_text import DEFAULT_WIDTH, to_rich, to_text
from haive_persistence.checkpointer.versions.diff.show import counts, printable, simplified
from haive_persistence.errors import InvalidInputError

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Diff:
    """The differences between two states; true if there are any.

    It holds JSON values only (see `state_json`), so it can be stored, sent and shown without the classes of
    the state. Nothing in it changes when the states do.

    Attributes:
        channels: The channels that differ, as a tree of changes.
        names: What the two states are called when the diff is shown.
        has_details: False if it was made with `include_details=False`.
    """

    channels: Mapping[str, Node]
    names: tuple[str, str] = ("before", "after")
    has_details: bool = True

    def __bool__(self) -> bool:
        return bool(self.channels)

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        """The counts on one line: a console shows it."""
        shown = "; ".join(f"{printable(name)}: {counts(one)}" for name, one in self.summary.items())
        return f"<Diff {shown or 'no differences'}>"

    @property
    def summary(self) -> dict[str, ChannelSummary]:
        """The numbers of entries that changed, for each channel that differs."""
        return {channel: _summary(node) for channel, node in self.channels.items()}

    @property
    def changes(self) -> tuple[Change, ...]:
        """Everything that differs, one record each; empty without details."""
        return tuple(_map_changes(self.channels, (), None)) if self.has_details else ()

    def to_dict(self) -> dict[str, Json]:
        """The diff as JSON.

        Returns:
            `names`, `has_details`, `summary` by channel (`kind`, `added`, `removed`, `changed`, `moved`),
            and `changes` (see `Change`).
        """
        return {
            "names": list(self.names),
            "has_details": self.has_details,
            "summary": {channel: one.to_dict() for channel, one in self.summary.items()},
            "changes": copied([change.to_dict() for change in self.changes]),
        }

    def to_json_patch(self) -> list[dict[str, Any]]:
        """The diff as a JSON Patch (RFC 6902).

        Returns:
            Operations that make `state_json` of the first state `state_json` of the second, exactly.

        Raises:
            InvalidInputError: The diff has no details. Compare with `include_details=True`.
        """
        if not self.has_details:
            raise InvalidInputError("this diff has no details to patch with: use include_details=True")
        return operations(self.channels)

    def to_text(self, *, color: bool = False, width: int = DEFAULT_WIDTH) -> str:
        """The diff as text to read: a line for each change, words of a text marked `[-old-]{+new+}`.

        Control characters of a state are escaped, so that it cannot act on a terminal.

        Args:
            color: Mark changes with ANSI colours instead. Needs the package `rich`; plain without it.
            width: Columns. Texts that changed are wrapped, other values cut.

        Returns:
            Lines without a line break at the end; "no differences" if there are none.
        """
        return to_text(self, color=color, width=width)

    def __rich__(self) -> Any:
        return to_rich(self, DEFAULT_WIDTH)

    def _repr_html_(self) -> str:
        return to_html(self)


def _summary(node: Node) -> ChannelSummary:
    if isinstance(node, Added):
        return ChannelSummary("added", added=1)
    if isinstance(node, Removed):
        return ChannelSummary("removed", removed=1)
    match simplified(node):
        case MapEdited(entries):
            added = sum(isinstance(entry, Added) for entry in entries.values())
            removed = sum(isinstance(entry, Removed) for entry in entries.values())
            return ChannelSummary("changed", added, removed, len(entries) - added - removed)
        case MembersEdited(removed_members, added_members):
            return ChannelSummary("changed", len(added_members), len(removed_members))
        case ListEdited(_, _, elements):
            return ChannelSummary(
                "changed",
                sum(element.before is None for element in elements),
                sum(element.after is None for element in elements),
                sum(element.change is not None for element in elements),
                sum(element.moved for element in elements),
            )
        case _:
            return ChannelSummary("changed", changed=1)


def _map_changes(entries: Mapping[str, Node], path: Path, id: str | int | None) -> Iterator[Change]:
    for key, node in entries.items():
        yield from _changes(node, (*path, key), id)


def _changes(node: Node, path: Path, id: str | int | None) -> Iterator[Change]:
    match node:
        case Added(after):
            yield Change("added", path, after=after, id=id)
        case Removed(before):
            yield Change("removed", path, before, id=id)
        case TextEdited(before, after, edits):
            yield Change("changed", path, before, after, id, edits)
        case MapEdited(entries):
            yield from _map_changes(entries, path, id)
        case MembersEdited(removed, added):
            yield from (Change("removed", (*path, at), value, id=id) for at, value in removed)
            yield from (Change("added", (*path, at), after=value, id=id) for at, value in added)
        case ListEdited():
            yield from _list_changes(node, path, id)
        case _:
            yield Change("changed", path, node.before, node.after, id)


def _list_changes(node: ListEdited, path: Path, id: str | int | None) -> Iterator[Change]:
    for element in node.elements:
        own = element.id if element.id is not None else id
        if element.after is None:
            yield Change("removed", (*path, element.before or 0), element.value, id=own)
            continue
        here = (*path, element.after)
        if element.before is None:
            yield Change("added", here, after=element.value, id=own)
        if element.moved:
            yield Change("moved", here, element.before, element.after, own)
        if element.change is not None:
            yield from _changes(element.change, here, own)
