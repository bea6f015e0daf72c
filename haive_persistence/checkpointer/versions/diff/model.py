"""The tree of changes that a comparison makes. All values in it are JSON; no object of a state is in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from haive_persistence.checkpointer.versions.diff.text import Edit

Json = Any
"""None, bool, int, float, str, a list of these or a dict of these with text keys."""

Kind = Literal["added", "removed", "changed", "moved"]


@dataclass(frozen=True, slots=True)
class Added:
    """A value that only the second state has."""

    after: Json


@dataclass(frozen=True, slots=True)
class Removed:
    """A value that only the first state has."""

    before: Json


@dataclass(frozen=True, slots=True)
class Replaced:
    """A value instead of another one."""

    before: Json
    after: Json


@dataclass(frozen=True, slots=True)
class TextEdited:
    """A text in which words changed."""

    before: str
    after: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True)
class MapEdited:
    """Entries or fields that changed, by their keys."""

    entries: Mapping[str, Node]


@dataclass(frozen=True, slots=True)
class MembersEdited:
    """Elements of a set: each that was removed or added, with its position among all of its side."""

    removed: tuple[tuple[int, Json], ...]
    added: tuple[tuple[int, Json], ...]


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a list that was added, removed, moved or changed.

    `before` and `after` are its positions, None where it does not exist. `value` is its JSON form: of the
    second list, or of the first if it was removed. `change` is what changed inside.
    """

    before: int | None
    after: int | None
    id: str | int | None
    value: Json
    moved: bool = False
    change: Node | None = None


@dataclass(frozen=True, slots=True)
class ListEdited:
    """Elements of a list that changed, in reading order, and the lengths of both lists."""

    length_before: int
    length_after: int
    elements: tuple[Element, ...]


Node = Added | Removed | Replaced | TextEdited | MapEdited | MembersEdited | ListEdited


@dataclass(frozen=True, slots=True)
class ChannelSummary:
    """The numbers of entries of a channel that changed.

    Entries are a list's elements, a dict's keys, an object's fields, a set's elements. Any other value is one
    entry. An element that moved and changed counts twice.

    Attributes:
        kind: "added" or "removed" if only one state has the channel, else "changed".
        added: Entries that only the second state has.
        removed: Entries that only the first state has.
        changed: Entries that differ.
        moved: Elements of a list, recognised by their id, that stand in another order.
    """

    kind: Kind
    added: int = 0
    removed: int = 0
    changed: int = 0
    moved: int = 0

    def to_dict(self) -> dict[str, Json]:
        """The counts as JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs.

    Attributes:
        kind: "added", "removed", "changed" or "moved".
        path: Channel, then keys, field names and positions, as in the JSON form of the second state (of the
            first one for what was removed). It is a JSON Pointer's reference tokens.
        before: The JSON form in the first state; None if it is not there. For "moved", the position.
        after: The JSON form in the second state; None if it is not there. For "moved", the position.
        id: The `id` of the list element that this is, or is part of: a message's, say.
        edits: For a changed text, the parts that were replaced, as offsets in characters.
    """

    kind: Kind
    path: tuple[str | int, ...]
    before: Json = None
    after: Json = None
    id: str | int | None = None
    edits: tuple[Edit, ...] = ()

    def to_dict(self) -> dict[str, Json]:
        """The change as JSON; a changed text has its edits beside both texts."""
        made: dict[str, Json] = {"kind": self.kind, "path": list(self.path)}
        if self.kind != "added":
            made["before"] = self.before
        if self.kind != "removed":
            made["after"] = self.after
        if self.id is not None:
            made["id"] = self.id
        if self.edits:
            made["edits"] = [list(edit) for edit in self.edits]
        return made
