"""The statements of a batch, and their rows as its results.

Without vector searches a batch is one transaction in one round trip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from langgraph.store.base import Item, SearchItem

from haive_persistence.db import Row, Statement
from haive_persistence.db.sql import Queries
from haive_persistence.documents.arrays import bytea_array, text_array
from haive_persistence.documents.filters import Condition
from haive_persistence.documents.items import ItemCodec, ItemId
from haive_persistence.documents.values import Encoded
from haive_persistence.embedding import LargeScopes, VectorIndex, VectorSearch
from haive_persistence.store.batch import Batch, Listing, Put, Search

T = TypeVar("T")

#: Characters of values, or of vectors, in one statement: what it unpacks may take 256 MB in Postgres.
_PUT_AT_ONCE = 16_000_000

_EXPIRED = Encoded("{}")


class Step(NamedTuple):
    """A statement, and what to do with its rows."""

    statement: Statement
    read: Callable[[Sequence[Row]], None]


class StoredPut(NamedTuple):
    """A put as it is stored; one without a value makes a row that is to be deleted."""

    item: ItemId
    encoded: Encoded
    ttl_minutes: float | None
    texts: Mapping[str, str]


class OpenSearch(NamedTuple):
    """A vector search whose answer is not complete yet."""

    search: Search
    vectors: VectorSearch
    text: str


class Statements:
    """A batch as SQL.

    `codec` knows how items are stored, `key` under which data key (None: in plaintext). `vector_queries` are
    the queries for the table of vectors, if the store has one. `refreshes`: reads may set times of expiry.
    """

    def __init__(
        self,
        batch: Batch,
        queries: Queries,
        tenant: str,
        codec: ItemCodec,
        key: tuple[int, bytes] | None,
        *,
        vector_queries: Queries | None = None,
        refreshes: bool = True,
    ) -> None:
        self._batch = batch
        self._queries = queries
        self._tenant = tenant
        self._codec = codec
        self._key = {"key_no": key[0], "data_key": key[1]} if key else {"key_no": None, "data_key": None}
        self._vector_queries = vector_queries
        self._refreshes = refreshes

    # --- reads

    def reads(self) -> list[Step]:
        """Everything but vector searches."""
        steps = [self._search(search) for search in self._batch.searches]
        steps += [self._list(listing) for listing in self._batch.lists]
        if self._batch.gets:
            steps.append(self._get())
        return steps

    def _get(self) -> Step:
        gets = self._batch.gets
        items = [self._codec.item_id(get.item) for get in gets]
        params = {
            "tenant": self._tenant,
            **_columns(items),
            "refreshes": "{" + ",".join("t" if get.op.refresh_ttl else "f" for get in gets) + "}",
            "expired": self._batch.expired,
        }

        def read(rows: Sequence[Row]) -> None:
            for no, created_at, updated_at, *columns in rows:
                place, op, _ = gets[no - 1]
                self._batch.results[place] = Item(
                    value=self._codec.decode(items[no - 1], columns),
                    key=op.key,
                    namespace=tuple(op.namespace),
                    created_at=created_at,
                    updated_at=updated_at,
                )

        query = self._queries.render("get_items", refreshing=self._refreshing("refreshed_gets"))
        return Step(Statement(query, params), read)

    def _refreshing(self, part: str) -> str:
        return self._queries.part(part) if self._refreshes else ""

    def _search(self, search: Search) -> Step:
        scope = f"AND {self._queries.part('where_in_scope')}" if search.op.namespace_prefix else ""
        statement = self._filtered(self._queries, "search_items", search, scope=scope)
        return Step(statement, partial(self._read_search, search))

    def _read_search(self, search: Search, rows: Sequence[Row]) -> None:
        self._batch.results[search.place] = [self._item(row) for row in rows]

    def _filtered(
        self,
        queries: Queries,
        name: str,
        search: Search,
        params: Mapping[str, object] | None = None,
        **slots: str,
    ) -> Statement:
        """The named query with the search's scope, filter and page."""
        conditions = self._codec.conditions(search.op.filter)
        scope = self._codec.scope(search.op.namespace_prefix)
        bound: dict[str, object] = {
            "tenant": self._tenant,
            "low": scope.low,
            "high": scope.high,
            "limit": search.op.limit,
            "offset": search.op.offset,
            "refresh": bool(search.op.refresh_ttl),
            "expired": search.expired,
            **_operands(conditions),
            **(params or {}),
        }
        wheres = (f" AND {queries.part(c.query, number=str(no))}" for no, c in enumerate(conditions))
        refreshing = self._refreshing("refreshed")
        return Statement(queries.render(name, filters="".join(wheres), refreshing=refreshing, **slots), bound)

    def _item(self, row: Row, score: float | None = None) -> SearchItem:
        namespace, key, created_at, updated_at, *columns = row
        names = self._codec.names((namespace, key))
        value = self._codec.decode((namespace, key), columns)
        return SearchItem(*names, value, created_at, updated_at, score)

    def _list(self, listing: Listing) -> Step:
        place, op = listing
        scope, patterns = self._codec.listed(op.match_conditions or ())
        params: dict[str, object] = {
            "tenant": self._tenant,
            "low": scope.low,
            "high": scope.high,
            "depth": op.max_depth,
            "limit": op.limit,
            "offset": op.offset,
            "expired": self._batch.expired,
        }
        name = "list_namespaces"
        if patterns:  # match whole namespaces, so all of them have to be walked
            name = "list_matching"
            params |= {"depth": None, "cut": op.max_depth, "patterns": text_array(patterns)}

        def read(rows: Sequence[Row]) -> None:
            self._batch.results[place] = [self._codec.namespace(*row) for row in rows]

        witness = self._queries.part("witness_item") if self._codec.needs_witness else ""
        return Step(Statement(self._queries.render(name, witness=witness), params), read)

    # --- vector searches

    def open_searches(
        self, index: VectorIndex, large: LargeScopes, vectors: Mapping[str, Sequence[float]]
    ) -> list[OpenSearch]:
        """The vector searches of the batch."""
        opened: list[OpenSearch] = []
        for search in self._batch.near:
            op, text = search.op, str(search.op.query)
            scope = self._tenant, self._codec.scope(op.namespace_prefix).low
            ranked = VectorSearch(
                index, large, scope, limit=op.limit, offset=op.offset, filtered=bool(op.filter)
            )
            opened.append(OpenSearch(search, ranked, index.to_text(vectors[text], text)))
        return opened

    def vector_search(self, opened: OpenSearch) -> Statement:
        """The next statement of a vector search."""
        assert self._vector_queries is not None
        params = {"query": opened.text, **opened.vectors.params}
        return self._filtered(self._vector_queries, opened.vectors.query, opened.search, params)

    def read_vector_search(self, index: VectorIndex, opened: OpenSearch, rows: Sequence[Row]) -> bool:
        """Take an answer. False if it was not complete and the search has to be sent again."""
        items = opened.vectors.accept(rows)
        if items is None:
            return False
        self._batch.results[opened.search.place] = [
            self._item(row[:-1], index.score(row[-1])) for row in items
        ]
        return True

    # --- writes

    def writes(self, vectors: Mapping[str, Sequence[float]]) -> list[Step]:
        """Puts, deletions, and the vectors of what was put.

        Every batch takes its locks in the order of the keys, so that no two can deadlock. For that, one
        that both puts and deletes first puts all its items, those to be deleted as expired ones: a lock
        can only be taken of what is there.
        """
        ordered = sorted(
            ((self._codec.item_id(item), put) for item, put in self._batch.puts.items()), key=_item_of
        )
        gone = [item for item, put in ordered if put is None]
        puts = [self._stored(item, put) for item, put in ordered if put is not None]
        statements: list[Statement] = []
        if puts and gone:
            marked = [StoredPut(item, _EXPIRED, 0.0, {}) for item in gone]
            statements += map(self._put, _portions(sorted([*puts, *marked], key=_item_of), _put_size))
        elif puts:
            statements += map(self._put, _portions(puts, _put_size))
        elif len(gone) > 1:
            params = {"tenant": self._tenant, **_columns(gone), **self._key}
            statements.append(Statement(self._queries["lock_items"], params))
        if len(gone) == 1:
            namespace, key = gone[0]
            params = {"tenant": self._tenant, "namespace": namespace, "key": key, **self._key}
            statements.append(Statement(self._queries["delete_item"], params))
        elif gone:
            statements.append(self._about("delete_items", gone))
        if puts and self._batch.index and self._vector_queries:
            statements += self._put_vectors(self._batch.index, self._vector_queries, puts, vectors)
        return [Step(statement, _nothing) for statement in statements]

    def _stored(self, item: ItemId, put: Put) -> StoredPut:
        encoded = put.encoded or self._codec.encode(item, put.value)
        return StoredPut(item, encoded, put.ttl_minutes, put.texts)

    def _about(self, name: str, items: Sequence[ItemId], queries: Queries | None = None) -> Statement:
        return Statement((queries or self._queries)[name], {"tenant": self._tenant, **_columns(items)})

    def _put(self, puts: Sequence[StoredPut]) -> Statement:
        return self._put_one(puts[0]) if len(puts) == 1 else self._put_many(puts)

    def _put_one(self, put: StoredPut) -> Statement:
        namespace, key = put.item
        params = {
            "tenant": self._tenant,
            "namespace": namespace,
            "key": key,
            "ttl": put.ttl_minutes,
            **put.encoded._asdict(),
            **self._key,
        }
        return Statement(self._queries["put_item"], params)

    def _put_many(self, puts: Sequence[StoredPut]) -> Statement:
        encoded = [put.encoded for put in puts]
        ttls = [put.ttl_minutes for put in puts]
        params = {
            "tenant": self._tenant,
            **_columns([put.item for put in puts]),
            "values": f"[{','.join([columns.value for columns in encoded])}]",
            "exact_jsons": bytea_array(columns.exact_json for columns in encoded),
            "key_orders": bytea_array(columns.key_order for columns in encoded),
            "payloads": bytea_array(columns.payload for columns in encoded),
            "ttls": text_array(None if ttl is None else repr(ttl) for ttl in ttls),
            **self._key,
        }
        return Statement(self._queries["put_items"], params)

    def _put_vectors(
        self,
        index: VectorIndex,
        queries: Queries,
        puts: Sequence[StoredPut],
        vectors: Mapping[str, Sequence[float]],
    ) -> list[Statement]:
        rows = [
            (put.item, name, index.to_text(vectors[text], text))
            for put in puts
            for name, text in put.texts.items()
        ]
        statements = [self._about("drop_vectors", [put.item for put in puts], queries)]
        for part in _portions(rows, lambda row: len(row[2])):
            params = {
                "tenant": self._tenant,
                **_columns([item for item, _, _ in part]),
                "fields": text_array(name for _, name, _ in part),
                "embeddings": text_array(text for _, _, text in part),
            }
            statements.append(Statement(queries["put_vectors"], params))
        return statements


def _item_of(row: Sequence[Any]) -> ItemId:
    item: ItemId = row[0]
    return item


def _operands(conditions: Sequence[Condition]) -> dict[str, object]:
    bound: dict[str, object] = {}
    for number, condition in enumerate(conditions):
        bound[f"path_{number}"] = condition.path
        bound[f"operand_{number}"] = condition.operand
    return bound


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


def _put_size(put: StoredPut) -> int:
    value, exact_json, key_order, payload = put.encoded
    return len(value) + 2 * (len(exact_json or b"") + len(key_order or b"") + len(payload or b""))


def _columns(items: Sequence[ItemId]) -> dict[str, str]:
    return {
        "namespaces": text_array(item[0] for item in items),
        "keys": text_array(item[1] for item in items),
    }


def _nothing(_: Sequence[Row]) -> None:
    return None
