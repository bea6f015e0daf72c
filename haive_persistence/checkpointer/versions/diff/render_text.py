"""A diff as text: lines of styled words, plain or with the colours of `rich`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from io import StringIO
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, NamedTuple

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
from haive_persistence.checkpointer.versions.diff.show import (
    Span,
    brief,
    counts,
    preview,
    printable,
    simplified,
    spans,
    title,
)

if TYPE_CHECKING:
    from haive_persistence.checkpointer.versions.diff.result import Diff

DEFAULT_WIDTH: Final = 100
_MIN_WIDTH: Final = 30
_STYLES: Final = {  # with a star: whole lines, which begin with a sign
    "removed": "red strike",
    "added": "green",
    "removed*": "red",
    "added*": "green",
    "moved*": "cyan",
    "head": "bold",
    "same": "",
}
_MARKS: Final = {"removed": ("[-", "-]"), "added": ("{+", "+}")}
_ARROW: Final = " → "


class Line(NamedTuple):
    """Spans after an indentation, in levels; long ones continue below themselves."""

    level: int
    spans: tuple[Span, ...]


def to_text(diff: Diff, *, color: bool, width: int) -> str:
    width = max(width, _MIN_WIDTH)
    if color and (text := to_rich(diff, width)) is not None and not isinstance(text, str):
        from rich.console import Console

        out = StringIO()
        console = Console(file=out, force_terminal=True, color_system="standard", legacy_windows=False)
        console.print(text, soft_wrap=True, end="")
        return out.getvalue()
    return "\n".join(_plain(line, width) for line in _lines(diff, width))


def to_rich(diff: Diff, width: int) -> Any:
    """A `rich.text.Text`; plain text if the package is not installed."""
    try:
        from rich.text import Text
    except ImportError:
        return to_text(diff, color=False, width=width)
    made = Text()
    for n, line in enumerate(_lines(diff, width)):
        made.append("\n" if n else "")
        for style, run in groupby(_wrapped(line, width), key=lambda span: span.style):
            made.append("".join(span.text for span in run), _STYLES[style])
    return made


# --- lines ----------------------------------------------------------------------------------------


def _lines(diff: Diff, width: int) -> Iterator[Line]:
    if not diff:
        yield Line(0, (Span("same", "no differences"),))
        return
    before, after = map(printable, diff.names)
    yield Line(0, (Span("removed*", f"--- {before}"),))
    yield Line(0, (Span("added*", f"+++ {after}"),))
    for channel, summary in diff.summary.items():
        node = diff.channels[channel]
        if diff.has_details and not _has_entries(node):
            yield from _entry(0, channel, node, width)
            continue
        name = Span("head", printable(channel))
        yield Line(0, (name, Span("same", f": {counts(summary)}")))
        if diff.has_details:
            yield from _inside(1, node, width)


def _has_entries(node: Node) -> bool:
    return isinstance(node, (MapEdited, ListEdited, MembersEdited))


def _entry(level: int, key: str, node: Node, width: int) -> Iterator[Line]:
    """A key, and what changed there; on one line where it fits."""
    name, node = printable(key), simplified(node)
    match node:
        case Added(after):
            yield Line(level, (Span("added*", _cut(f"+ {name}: {brief(after)}", level, width)),))
        case Removed(before):
            yield Line(level, (Span("removed*", _cut(f"- {name}: {brief(before)}", level, width)),))
        case Replaced(before, after):
            yield from _replaced(level, Span("head", f"{name}:"), brief(before), brief(after), width)
        case TextEdited():
            yield Line(level, (Span("head", f"{name}: "), *spans(node)))
        case _:
            yield Line(level, (Span("head", f"{name}:"),))
            yield from _inside(level + 1, node, width)


def _replaced(level: int, name: Span, before: str, after: str, width: int) -> Iterator[Line]:
    if 2 * level + len(name.text) + len(before) + len(after) + 4 <= width:
        yield Line(level, (name, Span("same", " "), Span("removed*", before), _TO, Span("added*", after)))
        return
    yield Line(level, (name,))
    yield Line(level + 1, (Span("removed*", _cut(f"- {before}", level + 1, width)),))
    yield Line(level + 1, (Span("added*", _cut(f"+ {after}", level + 1, width)),))


_TO: Final = Span("same", _ARROW)


def _inside(level: int, node: Node, width: int) -> Iterator[Line]:
    node = simplified(node)
    match node:
        case MapEdited(entries):
            yield from _entries(level, entries, width)
        case ListEdited(_, _, elements):
            for element in elements:
                yield from _element(level, element, width)
        case MembersEdited(removed, added):
            for _, value in removed:
                yield Line(level, (Span("removed*", _cut(f"- {brief(value)}", level, width)),))
            for _, value in added:
                yield Line(level, (Span("added*", _cut(f"+ {brief(value)}", level, width)),))
        case TextEdited():
            yield Line(level, tuple(spans(node)))
        case Replaced(before, after):
            yield Line(level, (Span("removed*", _cut(f"- {brief(before)}", level, width)),))
            yield Line(level, (Span("added*", _cut(f"+ {brief(after)}", level, width)),))
        case _:
            pass


def _entries(level: int, entries: Mapping[str, Node], width: int) -> Iterator[Line]:
    for key, entry in entries.items():
        yield from _entry(level, key, entry, width)


def _element(level: int, element: Element, width: int) -> Iterator[Line]:
    name = title(element.value)
    name = f" {name}" if name else ""
    if element.after is None or element.before is None:
        sign, style = ("-", "removed*") if element.after is None else ("+", "added*")
        where = element.before if element.after is None else element.after
        text = f"{sign} [{where}]{name} {preview(element.value)}"
        yield Line(level, (Span(style, _cut(text, level, width)),))
        return
    at = f"{element.before}{_ARROW}{element.after}" if element.moved else str(element.after)
    if element.moved and element.change is None:
        text = _cut(f"> [{at}]{name} {preview(element.value)}", level, width)
        yield Line(level, (Span("moved*", text),))
        return
    sign, style = (">", "moved*") if element.moved else ("~", "head")
    head = Span(style, f"{sign} [{at}]{name}")
    change = None if element.change is None else simplified(element.change)
    if isinstance(change, TextEdited):
        yield Line(level, (head, Span("same", " "), *spans(change)))
    elif isinstance(change, Replaced):
        yield from _replaced(level, head, brief(change.before), brief(change.after), width)
    else:
        yield Line(level, (head,))
        if change is not None:
            yield from _inside(level + 2, change, width)


def _cut(text: str, level: int, width: int) -> str:
    room = max(width - 2 * level, 10)
    return text if len(text) <= room else f"{text[: room - 1]}…"


# --- wrapping -------------------------------------------------------------------------------------


def _plain(line: Line, width: int) -> str:
    marked = [
        Span("same", "".join((_MARKS[span.style][0], span.text, _MARKS[span.style][1])))
        if span.style in _MARKS
        else span
        for span in line.spans
    ]
    return "".join(span.text for span in _wrapped(Line(line.level, tuple(marked)), width))


def _wrapped(line: Line, width: int) -> Iterator[Span]:
    """The spans, with line breaks before words that would go beyond the width."""
    indent = "  " * line.level
    below = f"\n{indent}    "
    yield Span("same", indent)
    column, room = 0, max(width - len(indent), 20)
    space: Span | None = None
    for span in line.spans:
        for part in _PARTS.findall(span.text):
            if part == "\n":
                yield Span("same", below)
                column = 4
                space = None
            elif part.isspace():
                space = Span(span.style, part)
            else:
                if column + len(part) + len(space.text if space else "") > room and column > 4:
                    yield Span("same", below)
                    column, space = 4, None
                if space is not None:
                    yield space
                    column, space = column + len(space.text), None
                yield Span(span.style, part)
                column += len(part)
    if space is not None and space.style != "same":
        yield space


_PARTS: Final = re.compile(r"\n|[^\S\n]+|\S+")
