"""SQL lives in files; this is the one reader of them.

`sql/queries/<room>.sql` holds named queries:

    -- name: get_items
    -- The items of one namespace.
    -- slot: filters
    SELECT … FROM haive.item WHERE /* live */ /* filters */

and parts that several of them share, each above the first text that names it:

    -- part: live
    expires_at IS NULL OR expires_at > now()

`/* word */` is a part or a declared slot; anything else is an error when the file is read. `-- include: room`
before the first heading brings the parts of another file. A slot is filled by `Queries.render` or
`Queries.fill`, with a part (`Queries.part`) or with text that has no user's input in it. A text that names a
part has the part's slots too.

`-- plan: generic` in a query says that one plan serves all parameters: it is planned once per connection, and
not for each of its first five uses, which together are most of what a process that serves one request asks
of the server. Only for look-ups by keys: no table is read as a whole.

Tables are written `haive.<table>`; the schema of the configuration is put in its place. The
setting `'haive.tenant'`, always in quotes, is not a table and stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from haive_persistence.db.protocol import GENERIC_PLAN, Query

_HEADING = re.compile(r"^-- (name|part): *(\w+) *$", re.MULTILINE)
_INCLUDE = re.compile(r"^-- include: *(\w+) *$", re.MULTILINE)
_SLOT = re.compile(r"^-- slot: *(\w+) *$", re.MULTILINE)
_MARK = re.compile(r"/\* ?(\w+) ?\*/")
_GENERIC = re.compile(r"^-- plan: generic *$", re.MULTILINE)
_COMMENT = re.compile(r"^\s*--.*\n?", re.MULTILINE)
# Text that it begins with is found ten times as fast as what may not stand before it.
_PREFIX = re.compile(r"haive(?<![\w'.\"]haive)\.(?=[\w%{/])")


class Template(NamedTuple):
    """SQL text with slots in it, each written `/* slot */`."""

    text: str
    slots: frozenset[str] = frozenset()

    def fill(self, slots: Mapping[str, str]) -> Template:
        """The text with those of its slots filled that are named."""
        text = _MARK.sub(lambda mark: slots.get(mark[1], mark[0]), self.text)
        return Template(text, self.slots - slots.keys())


class Queries(Mapping[str, Query]):
    """The queries of one file. As a mapping it holds those without unfilled slots."""

    def __init__(self, room: str, queries: Mapping[str, Template], parts: Mapping[str, Template]) -> None:
        self.room = room
        #: Every query, those with slots included.
        self.templates = dict(queries)
        self._parts = dict(parts)
        self._complete = {name: Query(t.text) for name, t in queries.items() if not t.slots}
        self._rendered: dict[tuple[object, ...], Query] = {}

    def __getitem__(self, name: str) -> Query:
        try:
            return self._complete[name]
        except KeyError:
            slots = " without slots: use render()" if name in self.templates else ""
            raise KeyError(f"{self.room}.sql has no query {name!r}{slots}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._complete)

    def __len__(self) -> int:
        return len(self._complete)

    def render(self, name: str, **slots: str) -> Query:
        """The query with all its slots filled. Raises ValueError for an unknown slot or one left out."""
        key = (name, *slots.items())
        query = self._rendered.get(key)
        if query is None:
            if name not in self.templates:
                raise KeyError(f"{self.room}.sql has no query {name!r}")
            if len(self._rendered) >= 1000:  # filters are the user's: their combinations must not pile up
                self._rendered.clear()
            query = self._rendered[key] = Query(_complete(self.room, name, self.templates[name], slots))
        return query

    def part(self, name: str, **slots: str) -> str:
        """A part, to fill a slot with. Raises ValueError for an unknown slot of its own or one left out."""
        if name not in self._parts:
            raise KeyError(f"{self.room}.sql has no part {name!r}")
        return _complete(self.room, name, self._parts[name], slots)

    def fill(self, **slots: str) -> Queries:
        """The same queries with some slots filled, in all that have them.

        Raises ValueError for a slot that no query has.
        """
        known = frozenset().union(*(template.slots for template in self.templates.values()))
        if unknown := slots.keys() - known:
            raise ValueError(f"{self.room}.sql: no query has the slots {_names(unknown)}")
        filled = {name: template.fill(slots) for name, template in self.templates.items()}
        return Queries(self.room, filled, self._parts)


def _complete(room: str, name: str, template: Template, slots: Mapping[str, str]) -> str:
    if frozenset(slots) != template.slots:
        raise ValueError(
            f"{room}.sql: {name} has the slots {_names(template.slots)}, and not {_names(slots)}"
        )
    return template.fill(slots).text


def _names(slots: Iterable[str]) -> str:
    return ", ".join(sorted(slots)) or "(none)"


@lru_cache(maxsize=1)
def sql_root() -> Path:
    """The directory of the SQL files: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_sql"
    return shipped if shipped.is_dir() else package.parent / "sql"


def in_schema(text: str, schema: str) -> str:
    """`text` with every `haive.<name>` moved to `schema`."""
    return _PREFIX.sub(f'"{schema}".', text)


@lru_cache(maxsize=64)
def load_queries(room: str, schema: str = "haive") -> Queries:
    """The queries of `sql/queries/<room>.sql`, for tables in `schema`.

    Raises ValueError for a name given twice, a slot that is declared and not used, and a `/* word */` that is
    neither a part nor a slot.
    """
    parts: dict[str, Template] = {}
    return Queries(room, _read(room, schema, parts), parts)


def _read(room: str, schema: str, parts: dict[str, Template]) -> dict[str, Template]:
    text = in_schema((sql_root() / "queries" / f"{room}.sql").read_text(encoding="utf-8"), schema)
    head, *pieces = _HEADING.split(text)
    for included in _INCLUDE.findall(head):
        _read(included, schema, parts)
    queries: dict[str, Template] = {}
    for kind, name, body in zip(pieces[0::3], pieces[1::3], pieces[2::3], strict=True):
        if name in queries or name in parts:
            raise ValueError(f"{room}.sql names {name!r} twice")
        template = _template(f"{room}.sql: {name}", body, parts)
        (parts if kind == "part" else queries)[name] = template
    return queries


def _template(where: str, body: str, parts: Mapping[str, Template]) -> Template:
    declared = set(_SLOT.findall(body)) if "-- slot:" in body else set()
    text = _COMMENT.sub("", body).strip().rstrip(";").rstrip()
    if "/*" in _MARK.sub("", text):
        raise ValueError(f"{where}: only parts and slots stand between /* and */; comments begin with --")
    marks = set(_MARK.findall(text))
    if unknown := marks - declared - parts.keys():
        raise ValueError(f"{where}: {_names(unknown)} is neither a part above it nor a declared slot")
    if unused := declared - marks:
        raise ValueError(f"{where}: the slot {_names(unused)} is declared and not in the text")
    if both := declared & parts.keys():
        raise ValueError(f"{where}: {_names(both)} is a part and cannot be a slot")
    inherited = frozenset().union(*(parts[mark].slots for mark in marks & parts.keys()))
    text = _MARK.sub(lambda mark: parts[mark[1]].text if mark[1] in parts else mark[0], text)
    return Template(text + GENERIC_PLAN if _GENERIC.search(body) else text, inherited | declared)
