"""A batch of LangGraph's operations as statements, and their rows as results.

All of a batch is checked and encoded before anything is sent. Reads see the store as it was before
the batch's own writes; of several puts to one item the last counts. Without vector searches it is
one transaction in one round trip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from langgraph.store.base import (
    GetOp,
    Item,
    ListNamespacesOp,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
)

from haive_persistence.db import Query, Row, Statement
from haive_persistence.db.sql import Queries
from haive_persistence.errors import InvalidInputError
from haive_persistence.store import keys
from haive_persistence.store.arrays import text_array
from haive_persistence.store.filters import Condition, compile_filter
from haive_persistence.store.values import Encoded, decode, encode
from haive_persistence.store.vectors import VectorIndex, Vectors

T = TypeVar("T")
Paged = TypeVar("Paged", SearchOp, ListNamespacesOp)

#: 19,000 years; beyond that Postgres runs out of dates.
_LONGEST_TTL_MINUTES = 1e10
#: More rows, or labels, than there can be: a larger number means the same.
_ALL_ROWS = 2**40
_ALL_LABELS = 2**30
#: Characters of values, or of vectors, in one statement: what it unpacks may take 256 MB in Postgres.
_PUT_AT_ONCE = 16_000_000


class Step(NamedTuple):
    """A statement, and what to do with its rows."""

    statement: Statement
    read: Callable[[Sequence[Row]], None]


class Search(NamedTuple):
    """A checked SearchOp."""

    no: int
    op: SearchOp
    scope: keys.Scope
    conditions: list[Condition]
    expired: bool

    def statement(self, text: Query, tenant: str, **params: object) -> Statement:
        """A query that `filtered` made, with everything bound."""
        bound: dict[str, object] = {
            "tenant": tenant,
            "low": self.scope.low,
            "high": self.scope.high,
            "limit": self.op.limit,
            "offset": self.op.offset,
            "refresh": bool(self.op.refresh_ttl),
            "expired": self.expired,
        }
        for no, condition in enumerate(self.conditions):
            bound[f"path_{no}"] = condition.path
            bound[f"operand_{no}"] = condition.operand
        return Statement(text, bound | params)

    def filtered(self, queries: Queries, name: str, **slots: str) -> Query:
        """The named query of store.sql with this filter in its place."""
        wheres = (queries.part(c.query, number=str(number)) for number, c in enumerate(self.conditions))
        return queries.render(name, filters="".join(f" AND {where}" for where in wheres), **slots)


class Put(NamedTuple):
    """A checked PutOp that is no deletion; `texts` are to become vectors, by field."""

    encoded: Encoded
    ttl_minutes: float | None
    texts: dict[str, str]


Placed = tuple[tuple[str, str], Put]

_EXPIRED = Put(Encoded("{}", None), 0.0, {})


@dataclass
class Batch:
    """Operations, checked and sorted by kind."""

    queries: Queries
    tenant: str
    index: VectorIndex | None
    expired: bool = False  # whether reads see what is expired and not swept yet
    results: list[Result] = field(default_factory=list)
    gets: list[tuple[int, GetOp, tuple[str, str]]] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)
    near: list[Search] = field(default_factory=list)
    lists: list[tuple[int, ListNamespacesOp, keys.Scope, list[str]]] = field(default_factory=list)
    puts: dict[tuple[str, str], Put | None] = field(default_factory=dict)

    def add(self, ops: Iterable[Any]) -> None:
        """Check operations. Raises an InvalidInputError or EncodeError for the first that will not do."""
        for no, op in enumerate(ops):
            keys.check_op(op)
            self.results.append(None)
            if isinstance(op, GetOp):
                self.gets.append((no, op, keys.item_id(op.namespace, op.key)))
            elif isinstance(op, PutOp):
                self._add_put(op)
            elif isinstance(op, SearchOp):
                self._add_search(no, op)
            elif isinstance(op, ListNamespacesOp):
                op = _paged(op)
                if op.max_depth is not None:
                    op = op._replace(max_depth=_whole("max_depth", op.max_depth, 1, _ALL_LABELS))
                self.lists.append((no, op, *keys.listed(op.match_conditions or ())))
            else:
                raise InvalidInputError(f"{type(op).__name__} is no operation of LangGraph's stores")

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """Batches as one, their results one after the other."""
        first = batches[0]
        joined = cls(first.queries, first.tenant, first.index, first.expired)
        for batch in batches:
            base = len(joined.results)
            joined.results += batch.results
            joined.gets += [(base + no, op, item) for no, op, item in batch.gets]
            joined.searches += [search._replace(no=base + search.no) for search in batch.searches]
            joined.near += [search._replace(no=base + search.no) for search in batch.near]
            joined.lists += [(base + no, op, scope, patterns) for no, op, scope, patterns in batch.lists]
            joined.puts |= batch.puts
        return joined

    def _add_put(self, op: PutOp) -> None:
        item = keys.item_id(op.namespace, op.key)
        if op.value is None:
            self.puts[item] = None
            return
        encoded = encode(op.value)
        texts = self.index.texts(op, op.value) if self.index else {}
        self.puts[item] = Put(encoded, _ttl(op.ttl), texts)

    def _add_search(self, no: int, op: SearchOp) -> None:
        op = _paged(op)
        search = Search(no, op, keys.scope(op.namespace_prefix), compile_filter(op.filter), self.expired)
        if op.limit == 0:
            self.results[no] = []
        elif op.query and self.index:
            self.near.append(search)
        else:
            self.searches.append(search)

    # -- what to embed ------------------------------------------------------------------------

    def texts(self) -> tuple[list[str], list[str]]:
        """The distinct texts to store as vectors, and those to search for."""
        if self.index is None:
            return [], []
        stored = {text for put in self.puts.values() if put for text in put.texts.values()}
        return sorted(stored), sorted({str(search.op.query) for search in self.near})

    # -- reads --------------------------------------------------------------------------------

    def reads(self) -> list[Step]:
        """Everything but vector searches."""
        steps = [self._search(search) for search in self.searches]
        steps += [self._list(*listed) for listed in self.lists]
        if self.gets:
            steps.append(self._get())
        return steps

    def _get(self) -> Step:
        params = {
            "tenant": self.tenant,
            "namespaces": text_array(item[0] for _, _, item in self.gets),
            "keys": text_array(item[1] for _, _, item in self.gets),
            "refreshes": "{" + ",".join("t" if op.refresh_ttl else "f" for _, op, _ in self.gets) + "}",
            "expired": self.expired,
        }

        def read(rows: Sequence[Row]) -> None:
            for no, value, exact, created_at, updated_at in rows:
                place, op, _ = self.gets[no - 1]
                self.results[place] = Item(
                    value=decode(value, exact),
                    key=op.key,
                    namespace=tuple(op.namespace),
                    created_at=created_at,
                    updated_at=updated_at,
                )

        return Step(Statement(self.queries["get_items"], params), read)

    def _search(self, search: Search) -> Step:
        def read(rows: Sequence[Row]) -> None:
            self.results[search.no] = [found_item(row) for row in rows]

        # Everything is no range: the planner would take any range for a small part of the table.
        scope = f"AND {self.queries.part('where_in_scope')}" if search.op.namespace_prefix else ""
        query = search.filtered(self.queries, "search_items", scope=scope)
        return Step(search.statement(query, self.tenant), read)

    def _list(self, no: int, op: ListNamespacesOp, scope: keys.Scope, patterns: list[str]) -> Step:
        params: dict[str, object] = {
            "tenant": self.tenant,
            "low": scope.low,
            "high": scope.high,
            "depth": op.max_depth,
            "limit": op.limit,
            "offset": op.offset,
            "expired": self.expired,
        }
        name = "list_namespaces"
        if patterns:  # match whole namespaces, so all of them have to be walked
            name = "list_matching"
            params |= {"depth": None, "cut": op.max_depth, "patterns": text_array(patterns)}

        def read(rows: Sequence[Row]) -> None:
            self.results[no] = [keys.from_text(text) for (text,) in rows]

        return Step(Statement(self.queries[name], params), read)

    # -- writes -------------------------------------------------------------------------------

    def writes(self, vectors: Mapping[str, Sequence[float]], aimed: Queries | None) -> list[Step]:
        """Puts, deletions, and the vectors of what was put.

        Every batch takes its locks in the order of the keys, so that no two can deadlock. For that, one
        that both puts and deletes first puts all its items, those to be deleted as expired ones: a lock
        can only be taken of what is there.
        """
        ordered = sorted(self.puts.items())
        gone = [item for item, put in ordered if put is None]
        puts = [(item, put) for item, put in ordered if put is not None]
        statements: list[Statement] = []
        if puts:
            placed = [(item, put or _EXPIRED) for item, put in ordered]
            statements += map(self._put, _portions(placed, _put_size))
        elif len(gone) > 1:
            statements.append(self._about("lock_items", gone))
        if len(gone) == 1:
            namespace, key = gone[0]
            params = {"tenant": self.tenant, "namespace": namespace, "key": key}
            statements.append(Statement(self.queries["delete_item"], params))
        elif gone:
            statements.append(self._about("delete_items", gone))
        if puts and self.index and aimed:
            statements += self._put_vectors(self.index, aimed, puts, vectors)
        return [Step(statement, _nothing) for statement in statements]

    def _about(
        self, name: str, items: Sequence[tuple[str, str]], queries: Queries | None = None
    ) -> Statement:
        return Statement((queries or self.queries)[name], {"tenant": self.tenant, **_columns(items)})

    def _put(self, puts: Sequence[Placed]) -> Statement:
        return self._put_one(*puts[0]) if len(puts) == 1 else self._put_many(puts)

    def _put_one(self, item: tuple[str, str], put: Put) -> Statement:
        params = {
            "tenant": self.tenant,
            "namespace": item[0],
            "key": item[1],
            "ttl": put.ttl_minutes,
            "value": put.encoded.value,
            "exact": put.encoded.exact,
        }
        return Statement(self.queries["put_item"], params)

    def _put_many(self, puts: Sequence[Placed]) -> Statement:
        exacts = [put.encoded.exact for _, put in puts]
        ttls = [put.ttl_minutes for _, put in puts]
        params = {
            "tenant": self.tenant,
            **_columns([item for item, _ in puts]),
            "values": f"[{','.join([put.encoded.value for _, put in puts])}]",
            "exacts": text_array(None if exact is None else f"\\x{exact.hex()}" for exact in exacts),
            "ttls": text_array(None if ttl is None else repr(ttl) for ttl in ttls),
        }
        return Statement(self.queries["put_items"], params)

    def _put_vectors(
        self,
        index: VectorIndex,
        aimed: Queries,
        puts: Sequence[Placed],
        vectors: Mapping[str, Sequence[float]],
    ) -> list[Statement]:
        rows = [
            (item, name, index.to_text(vectors[text], text))
            for item, put in puts
            for name, text in put.texts.items()
        ]
        statements = [self._about("drop_vectors", [item for item, _ in puts], aimed)]
        for part in _portions(rows, lambda row: len(row[2])):
            params = {
                "tenant": self.tenant,
                **_columns([item for item, _, _ in part]),
                "fields": text_array(name for _, name, _ in part),
                "embeddings": text_array(text for _, _, text in part),
            }
            statements.append(Statement(aimed["put_vectors"], params))
        return statements


def _portions(rows: Sequence[T], size_of: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """Rows in their order, as many together as one statement takes."""
    start = total = 0
    for at, size in enumerate(map(size_of, rows)):
        total += size
        if total > _PUT_AT_ONCE and at > start:
            yield rows[start:at]
            start, total = at, size
    if rows:
        yield rows[start:]


def _put_size(placed: Placed) -> int:
    encoded = placed[1].encoded
    return len(encoded.value) + 2 * len(encoded.exact or b"")


def found_item(row: Row, score: float | None = None) -> SearchItem:
    """A row of a search: namespace, key, value, exact, created_at, updated_at."""
    namespace, key, value, exact, created_at, updated_at = row
    return SearchItem(keys.from_text(namespace), key, decode(value, exact), created_at, updated_at, score)


def no_vectors() -> Vectors:
    return {}, {}


def _columns(items: Sequence[tuple[str, str]]) -> dict[str, str]:
    return {
        "namespaces": text_array(item[0] for item in items),
        "keys": text_array(item[1] for item in items),
    }


def _nothing(_: Sequence[Row]) -> None:
    return None


def _ttl(minutes: Any) -> float | None:
    if minutes is None:
        return None
    try:
        number = float(minutes)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= _LONGEST_TTL_MINUTES:
        raise InvalidInputError(
            f"ttl={minutes!r}: give minutes from 0 up to {_LONGEST_TTL_MINUTES:g}, or None for ever"
        )
    return number


def _paged(op: Paged) -> Paged:
    limit, offset = _whole("limit", op.limit, 0, _ALL_ROWS), _whole("offset", op.offset, 0, _ALL_ROWS)
    return op._replace(limit=limit, offset=offset)


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or value < least:
        raise InvalidInputError(f"{name}={value!r}: give a whole number from {least} up")
    return min(value, most)
