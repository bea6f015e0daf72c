"""SQL lives in files; this is the one reader of them.

`sql/queries/<room>.sql` holds named queries:

    -- name: get_items
    -- The items of one namespace.
    SELECT … FROM haive.item WHERE …

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

_NAME = re.compile(r"^-- name: *(\w+) *$", re.MULTILINE)
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
    parts = _NAME.split(text)
    seen: set[str] = set()
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        if name in seen:
            raise ValueError(f"{room}.sql names {name!r} twice")
        seen.add(name)
        yield name, _COMMENT.sub("", body).strip().rstrip(";").rstrip()
