"""The comparison itself: walks two values side by side, and into what differs only."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from haive_persistence.checkpointer.versions.diff.canonical import (
    MAX_DEPTH,
    enter,
    equal,
    json_text,
    members_json,
    packs_equal,
    to_json,
)
from haive_persistence.checkpointer.versions.diff.lists import Match, align, element_id
from haive_persistence.checkpointer.versions.diff.model import (
    Added,
    Element,
    ListEdited,
    MapEdited,
    MembersEdited,
    Node,
    Removed,
    Replaced,
    TextEdited,
)
from haive_persistence.checkpointer.versions.diff.shapes import ATOM, LIST, MAP, TEXT
from haive_persistence.checkpointer.versions.diff.text import word_edits
from haive_persistence.checkpointer.versions.diff.tokens import TokenState
from haive_persistence.checkpointer.versions.diff.views import view
from haive_persistence.errors import InvalidInputError

Path = frozenset[int]
_CHANGED = Replaced(None, None)  # of a comparison without details


class Comparer:
    """Compares values. Without details, entries of a channel are equal or not, and nothing is rendered."""

    def __init__(self, *, details: bool) -> None:
        self._details = details

    def channels(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Node]:
        """The channels that differ, in the order of the first state, then of the second."""
        changed: dict[str, Node] = {}
        for channel in dict.fromkeys((*before, *after)):
            if type(channel) is not str:
                raise InvalidInputError(f"channels are named by text, not by {type(channel).__name__}")
            node = self._channel(before, after, channel)
            if node is not None:
                changed[channel] = node
        return changed

    def _channel(self, before: Mapping[str, Any], after: Mapping[str, Any], channel: str) -> Node | None:
        if channel not in before:
            return Added(self._json(after[channel], 1))
        if channel not in after:
            return Removed(self._json(before[channel], 1))
        if _token(before, channel) == _token(after, channel) is not None:
            return None
        value, other = before[channel], after[channel]
        if type(value) is type(other) and packs_equal(value, other):
            return None
        return self._values(value, other, 1, frozenset())

    def _json(self, value: Any, depth: int) -> Any:
        return to_json(value, depth) if self._details else None

    def _inside(self, before: Any, after: Any, depth: int, path: Path) -> Node | None:
        """The differences inside an entry of a container."""
        if self._details:
            return self._values(before, after, depth, path)
        return None if equal(before, after, depth) else _CHANGED

    def _values(self, before: Any, after: Any, depth: int, path: Path) -> Node | None:
        if before is after:
            return None
        (kind, parts), (other_kind, others) = view(before), view(after)
        if kind != other_kind:
            return Replaced(self._json(before, depth), self._json(after, depth))
        if kind == TEXT:
            return self._texts(parts, others)
        if kind == ATOM or depth > MAX_DEPTH:
            return self._atoms(to_json(before, depth), to_json(after, depth))
        path = enter(path, before)
        if kind == MAP:
            return self._maps(parts, others, depth, path)
        return self._lists(parts, others, depth, path) if kind == LIST else _members(parts, others, depth)

    def _texts(self, before: str, after: str) -> Node | None:
        if before == after:
            return None
        return TextEdited(before, after, word_edits(before, after) if self._details else ())

    def _atoms(self, before: Any, after: Any) -> Node | None:
        return None if json_text(before) == json_text(after) else Replaced(before, after)

    def _maps(self, before: dict[str, Any], after: dict[str, Any], depth: int, path: Path) -> Node | None:
        entries: dict[str, Node] = {}
        for key, value in before.items():
            if key not in after:
                entries[key] = Removed(self._json(value, depth + 1))
            elif (node := self._entry(key, value, after[key], depth + 1, path)) is not None:
                entries[key] = node
        for key, value in after.items():
            if key not in before:
                entries[key] = Added(self._json(value, depth + 1))
        return MapEdited(entries) if entries else None

    def _entry(self, key: str, before: Any, after: Any, depth: int, path: Path) -> Node | None:
        if key in _CONTENTS:  # a tuple's or an ordered dict's: entries are what these hold
            return self._values(before, after, depth, path)
        return self._inside(before, after, depth, path)

    # --- lists ---

    def _lists(self, before: Sequence[Any], after: Sequence[Any], depth: int, path: Path) -> Node | None:
        elements: dict[int, Element] = {}
        start, end, matches = align(before, after, depth)
        for match in matches:
            element = self._element(before, after, match, depth, path)
            if element is not None:
                elements[match.before] = element
        kept, kept_there = {m.before for m in matches}, {m.after for m in matches}
        for i in range(start, len(before) - end):
            if i not in kept:
                value = before[i]
                elements[i] = Element(i, None, element_id(value), self._json(value, depth + 1))
        added: dict[int, Element] = {}
        for j in range(start, len(after) - end):
            if j not in kept_there:
                value = after[j]
                added[j] = Element(None, j, element_id(value), self._json(value, depth + 1))
        if not elements and not added:
            return None
        return ListEdited(len(before), len(after), tuple(_in_reading_order(start, matches, elements, added)))

    def _element(
        self, before: Sequence[Any], after: Sequence[Any], match: Match, depth: int, path: Path
    ) -> Element | None:
        i, j = match.before, match.after
        change = None if match.is_equal else self._inside(before[i], after[j], depth + 1, path)
        if change is None and not match.moved:
            return None
        value = after[j]
        return Element(i, j, element_id(value), self._json(value, depth + 1), match.moved, change)


def _token(state: Mapping[str, Any], channel: str) -> Hashable:
    return state.tokens[channel] if isinstance(state, TokenState) else None


_CONTENTS = frozenset({"$items", "$entries"})


def _in_reading_order(
    start: int, matches: list[Match], elements: dict[int, Element], added: dict[int, Element]
) -> list[Element]:
    """Those of the first list where they stood, but the moved and added ones where they stand now."""
    fixed = sorted(match.before for match in matches if not match.moved)
    places: list[tuple[float, float, Element]] = []
    position = {match.before: match.after for match in matches}
    nearest, n = start - 1.0, 0
    for i in sorted(elements):
        while n < len(fixed) and fixed[n] <= i:
            nearest, n = float(position[fixed[n]]), n + 1
        element = elements[i]
        place = nearest + 0.5 if element.after is None else float(element.after)
        places.append((place, i, element))
    places += [(float(j), -1, element) for j, element in added.items()]
    return [element for *_, element in sorted(places, key=lambda place: place[:2])]


def _members(before: Any, after: Any, depth: int) -> Node | None:
    forms, others = members_json(before, depth), members_json(after, depth)
    removed = tuple((n, form) for n, (text, form) in enumerate(forms.items()) if text not in others)
    added = tuple((n, form) for n, (text, form) in enumerate(others.items()) if text not in forms)
    return MembersEdited(removed, added) if removed or added else None
