"""Vector searches: exact in small scopes, by the index in large ones, complete in both.

An index alone is quick and forgets: asked for the ten nearest among one row in a hundred it returns
one or two of them. So a scope is counted (up to a bound, which is cheap) and searched exactly when
it is small. In a large one the index is read on and on until it has given more than was asked for,
which is then sorted exactly; when it gives up before that, the scope is searched exactly after all.
Either way a page is short only when there is no more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from langgraph.store.base import Result, SearchItem

from haive_persistence.db import Row, Statement
from haive_persistence.db.sql import Queries
from haive_persistence.store.batch import Search, found_item
from haive_persistence.store.vectors import EXACT_VECTORS, VectorIndex

_ANY_NUMBER = 2**62
#: How long a scope is taken to be as large as it was found to be.
_REMEMBERED_SECONDS = 60.0
_REMEMBERED_SCOPES = 4096


class LargeScopes:
    """Scopes that were lately too large to search exactly: counting them again can wait."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, str], float] = {}

    def add(self, tenant: str, low: str) -> None:
        if len(self._until) >= _REMEMBERED_SCOPES:
            self._until = {}
        self._until[tenant, low] = time.monotonic() + _REMEMBERED_SECONDS

    def __contains__(self, scope: tuple[str, str]) -> bool:
        return self._until.get(scope, 0.0) > time.monotonic()


class Nearest:
    """One vector search; may need to be asked again."""

    def __init__(
        self,
        search: Search,
        index: VectorIndex,
        vector: Sequence[float],
        queries: Queries,
        tenant: str,
        large: LargeScopes,
    ) -> None:
        self._search = search
        self._index = index
        self._queries = queries
        self._tenant = tenant
        self._large = large
        self._query = index.to_text(vector, str(search.op.query))
        self._most = _ANY_NUMBER if index.kind == "flat" else EXACT_VECTORS
        remembered = index.kind != "flat" and (tenant, search.scope.low) in large
        self._way = "search_near" if remembered else "search_exact"
        # Twice the items: an index of text fields has a few vectors for each.
        wanted = (search.op.limit + search.op.offset) * max(1, len(index.fields))
        self._fetch = min(2 * wanted + 20, _ANY_NUMBER)
        # A filter may refuse any of the nearest, so all of a scope have to be ranked for it.
        self._measure = _ANY_NUMBER if search.conditions else self._fetch

    def statement(self) -> Statement:
        params: dict[str, object] = {"query": self._query, "fetch": self._fetch}
        if self._way == "search_exact":
            params |= {"most": self._most, "measure": self._measure}
        return self._search.statement(self._search.filtered(self._queries, self._way), self._tenant, **params)

    def accept(self, rows: Sequence[Row], results: list[Result]) -> bool:
        """Take an answer. False if it was not a complete one and `statement()` has to be asked again."""
        vectors, ranked = rows[0][:2]
        if self._way == "search_exact" and vectors > self._most:
            self._large.add(self._tenant, self._search.scope.low)
            self._way = "search_near"
            return False
        found = [row for row in rows if row[2] is not None]
        if self._way == "search_near" and (ranked < self._fetch or len(found) < self._search.op.limit):
            self._way = "search_all"
            return False
        if len(found) < self._search.op.limit and (ranked >= self._fetch or vectors > self._measure):
            self._fetch = min(
                8 * self._fetch, _ANY_NUMBER
            )  # items with many vectors, or many vectors without their item
            self._measure = max(self._measure, self._fetch)
            return False
        results[self._search.no] = [self._item(row) for row in found]
        return True

    def _item(self, row: Row) -> SearchItem:
        return found_item(row[2:8], self._index.score(row[8]))
