"""Values and words as both renderers show them: what is said, not how it looks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from haive_persistence.checkpointer.versions.diff.model import (
    ChannelSummary,
    Json,
    MapEdited,
    Node,
    Replaced,
    TextEdited,
)
from haive_persistence.checkpointer.versions.diff.text import Edit

_ELIDED: Final = " … "
_AROUND: Final = 60  # unchanged characters that are shown beside an edit
_CONTENTS: Final = ("$items", "$entries")

#: Control characters, what reverses the direction of text, invisible separators, lone surrogates.
_UNSAFE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


class Span(NamedTuple):
    """A run of text: "same", "removed" or "added"."""

    style: str
    text: str


def printable(text: str) -> str:
    """The text with what could act on a terminal, or hide, as escape sequences."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def spans(node: TextEdited) -> Iterator[Span]:
    """The words of a changed text; long runs of what stayed are shortened."""
    before, after = node.before, node.after
    at = 0
    for edit in node.edits:
        yield from _unchanged(before[at : edit.start_before], is_first=at == 0)
        if edit.end_before > edit.start_before:
            yield Span("removed", printable(before[edit.start_before : edit.end_before]))
        if edit.end_after > edit.start_after:
            yield Span("added", printable(after[edit.start_after : edit.end_after]))
        at = edit.end_before
    yield from _unchanged(before[at:], is_first=at == 0, is_last=True)


def _unchanged(text: str, *, is_first: bool, is_last: bool = False) -> Iterator[Span]:
    if len(text) > 2 * _AROUND + len(_ELIDED):
        start = "" if is_first else text[:_AROUND].rsplit(" ", 1)[0]
        end = "" if is_last else text[-_AROUND:].split(" ", 1)[-1]
        text = f"{start}{_ELIDED}{end}"
    if text:
        yield Span("same", printable(text))


def short_type(name: str) -> str:
    """The class's own name."""
    return name.rpartition(".")[2]


def simplified(node: Node) -> Node:
    """A change as it is shown: without the map that names a tuple's type, a short new text as a whole."""
    if isinstance(node, TextEdited) and max(len(node.before), len(node.after)) <= _AROUND:
        is_rewritten = node.edits == (Edit(0, len(node.before), 0, len(node.after)),)
        return Replaced(node.before, node.after) if is_rewritten else node
    if isinstance(node, MapEdited) and len(node.entries) == 1:
        ((key, inner),) = node.entries.items()
        return inner if key in _CONTENTS else node
    return node


def title(value: Json) -> str:
    """The type of an element, if it names one, and its id."""
    if not isinstance(value, dict):
        return ""
    name, own = value.get("$type"), value.get("id")
    words = [short_type(name)] if isinstance(name, str) else []
    words += [str(own)] if type(own) in (str, int) else []
    return printable(" ".join(words))


def preview(value: Json) -> str:
    """The value of an element beside its title: a message's content, or all of it."""
    if isinstance(value, dict) and "id" in value:
        for key in ("content", "text"):
            if value.get(key):
                return brief(value[key])
        rest = {key: part for key, part in value.items() if key not in ("id", "$type")}
        calls = rest.get("tool_calls")
        return brief(calls if calls and "content" in rest else rest)
    return brief(value)


def brief(value: Json) -> str:
    """A JSON value on one line, as Python shows it where JSON has no such type."""
    if isinstance(value, dict):
        return _brief_object(value)
    if isinstance(value, list):
        return f"[{', '.join(map(brief, value))}]"
    return printable(json.dumps(value, ensure_ascii=False))


def _brief_object(value: dict[str, Any]) -> str:
    name = value.get("$type")
    if not isinstance(name, str):
        return f"{{{', '.join(f'{brief(key)}: {brief(part)}' for key, part in value.items())}}}"
    rest = {key: part for key, part in value.items() if key != "$type"}
    name = printable(short_type(name))
    if "digest" in rest:
        size = f"{rest['size']:,} bytes, " if "size" in rest else ""
        return f"{name}({size}digest {str(rest['digest'])[:8]})"
    if rest.keys() in ({"$items"}, {"$entries"}, {"value"}):
        (inner,) = rest.values()
        return f"({', '.join(map(brief, inner))})" if name == "tuple" else f"{name}({brief(inner)})"
    return f"{name}({', '.join(f'{printable(key)}={brief(part)}' for key, part in rest.items())})"


def counts(summary: ChannelSummary) -> str:
    """The counts of a channel in words."""
    named = [(name, getattr(summary, name)) for name in ("added", "removed", "changed", "moved")]
    return ", ".join(f"{count:,} {name}" for name, count in named if count)
