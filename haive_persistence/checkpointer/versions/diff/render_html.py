"""A diff as HTML for notebooks: one element with its own style; no script, nothing fetched.

All text of a state is escaped. Signs and words say what happened, colours only repeat it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING, Final

from haive_persistence.checkpointer.versions.diff.model import (
    Added,
    Element,
    Json,
    ListEdited,
    MapEdited,
    MembersEdited,
    Node,
    Removed,
    Replaced,
    TextEdited,
)
from haive_persistence.checkpointer.versions.diff.show import (
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

_MAX_TEXT: Final = 2_000  # characters of a value
_MAX_WORDS: Final = 20_000  # characters of a changed text
_MAX_ROWS: Final = 200  # changes of one list or map
_MAX_BLOCK: Final = 200_000  # characters of markup of one list or map

_LIGHT: Final = "--old:#fde2e0;--new:#d7f4dd;--line:#d0d7de;--soft:#57606a"
_DARK: Final = "--old:#5c2623;--new:#1d4428;--line:#484f58;--soft:#a5adb6"
_STYLE: Final = f"""<style>
.haive-diff{{{_LIGHT};font:13px/1.5 system-ui,sans-serif;color:inherit;max-width:100%}}
@media (prefers-color-scheme:dark){{.haive-diff{{{_DARK}}}}}
[data-jp-theme-light="true"] .haive-diff,.vscode-light .haive-diff{{{_LIGHT}}}
[data-jp-theme-light="false"] .haive-diff,.vscode-dark .haive-diff{{{_DARK}}}
.haive-diff ul{{list-style:none;margin:0;padding-left:1.2em}}
.haive-diff li{{margin:2px 0;overflow-wrap:anywhere;white-space:pre-wrap}}
.haive-diff summary{{cursor:pointer}}
.haive-diff small{{color:var(--soft);font-size:inherit}}
.haive-diff del,.haive-diff .old{{background:var(--old);border-radius:2px}}
.haive-diff ins,.haive-diff .new{{background:var(--new);border-radius:2px;text-decoration:none}}
.haive-diff details{{border-left:2px solid var(--line);padding-left:.6em;margin:4px 0}}
</style>"""


def to_html(diff: Diff) -> str:
    before, after = map(_text, diff.names)
    head = f'<div><span class="old">{before}</span> → <span class="new">{after}</span></div>'
    if not diff:
        return f'<div class="haive-diff">{_STYLE}{head}<div>no differences</div></div>'
    body = "".join(_channel(diff, channel) for channel in diff.channels)
    return f'<div class="haive-diff">{_STYLE}{head}{body}</div>'


def _channel(diff: Diff, channel: str) -> str:
    summary = diff.summary[channel]
    head = f"<b>{_text(channel)}</b> <small>{escape(counts(summary))}</small>"
    if not diff.has_details:
        return f"<div>{head}</div>"
    node = diff.channels[channel]
    return f"<details open><summary>{head}</summary><ul>{_inside(node)}</ul></details>"


def _text(text: str) -> str:
    if len(text) > _MAX_TEXT:
        text = f"{text[:_MAX_TEXT]}…"
    return escape(printable(text))


def _old(value: Json) -> str:
    return f'<span class="old">{_text(brief(value))}</span>'


def _new(value: Json) -> str:
    return f'<span class="new">{_text(brief(value))}</span>'


def _words(node: TextEdited) -> str:
    tags = {"removed": "<del>{}</del>", "added": "<ins>{}</ins>", "same": "{}"}
    shown: list[str] = []
    size = 0
    for span in spans(node):
        shown.append(tags[span.style].format(escape(_short(span.text))))
        size += len(span.text)
        if size > _MAX_WORDS:
            shown.append(" …")
            break
    return "".join(shown)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"


def _rows(rows: Iterator[str], count: int) -> str:
    shown: list[str] = []
    size = 0
    for row in rows:
        if len(shown) == _MAX_ROWS or size > _MAX_BLOCK:
            shown.append(f"<li><small>and {count - len(shown):,} more</small></li>")
            break
        shown.append(row)
        size += len(row)
    return "".join(shown)


def _inside(node: Node) -> str:
    node = simplified(node)
    match node:
        case MapEdited(entries):
            return _rows(_entries(entries), len(entries))
        case ListEdited(_, _, elements):
            return _rows(map(_element, elements), len(elements))
        case MembersEdited(removed, added):
            rows = [f"<li>− {_old(value)}</li>" for _, value in removed]
            rows += [f"<li>+ {_new(value)}</li>" for _, value in added]
            return _rows(iter(rows), len(rows))
        case _:
            return f"<li>{_leaf(node)}</li>"


def _leaf(node: Node) -> str:
    node = simplified(node)
    match node:
        case Added(after):
            return f"+ {_new(after)}"
        case Removed(before):
            return f"− {_old(before)}"
        case Replaced(before, after):
            return f"{_old(before)} → {_new(after)}"
        case TextEdited():
            return _words(node)
        case _:
            return f"<ul>{_inside(node)}</ul>"


def _entries(entries: Mapping[str, Node]) -> Iterator[str]:
    for key, node in entries.items():
        yield f"<li><b>{_text(key)}</b> {_leaf(node)}</li>"


def _element(element: Element) -> str:
    name = f"<b>{_text(title(element.value))}</b>"
    shown = _text(preview(element.value))
    if element.after is None:
        return f'<li>− <small>[{element.before}]</small> {name} <span class="old">{shown}</span></li>'
    if element.before is None:
        return f'<li>+ <small>[{element.after}]</small> {name} <span class="new">{shown}</span></li>'
    at = f"{element.before} → {element.after}" if element.moved else str(element.after)
    word = " moved" if element.moved else ""
    inner = _leaf(element.change) if element.change is not None else shown
    sign = "↕" if element.moved else "~"
    return f"<li>{sign} <small>[{at}]{word}</small> {name} {inner}</li>"
