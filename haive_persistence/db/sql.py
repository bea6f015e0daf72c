"""SQL lives in files; this is the one reader of them.

`sql/queries/<room>.sql` holds named queries:

    -- name: get_items
    -- The items of one namespace.
    SELECT … FROM haive.item WHERE /* live */

and parts that several of them share, each above the first that names it:

    -- part: live
    expires_at IS NULL OR expires_at > now()

Tables are written `haive.<table>`; the schema of the configuration is put in its place. The
setting `'haive.tenant'`, always in quotes, is not a table and stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from haive_persistence.db.protocol import Query

_HEADING = re.compile(r"^-- (name|part): *(\w+) *$", re.MULTILINE)
_PART = re.compile(r"/\* (\w+) \*/")
_COMMENT = re.compile(r"^\s*--.*\n?", re.MULTILINE)
_PREFIX = re.compile(r"(?<![\w'.\"])haive\.(?=[\w%{])")


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
def load_queries(room: str, schema: str = "haive") -> Mapping[str, Query]:
    """The queries of `sql/queries/<room>.sql` by name, for tables in `schema`."""
    text = (sql_root() / "queries" / f"{room}.sql").read_text(encoding="utf-8")
    return MappingProxyType({name: Query(in_schema(body, schema)) for name, body in _split(text, room)})


def _split(text: str, room: str) -> Iterator[tuple[str, str]]:
    pieces = _HEADING.split(text)
    seen: set[str] = set()
    parts: dict[str, str] = {}
    for kind, name, body in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        if name in seen:
            raise ValueError(f"{room}.sql names {name!r} twice")
        seen.add(name)
        query = _PART.sub(lambda named: parts.get(named[1], named[0]), _COMMENT.sub("", body))
        query = query.strip().rstrip(";").rstrip()
        if kind == "part":
            parts[name] = query
        else:
            yield name, query
