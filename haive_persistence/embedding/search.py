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

from haive_persistence.db import Row
from haive_persistence.embedding.config import VectorIndex

#: Scopes of up to this many vectors are searched exactly. Measured with 384 dimensions on two busy
#: cores: 1,000 vectors 2 ms, 10,000 14 ms; by the index about 2 ms, but of a filter or a scope that
#: takes 1 % of the table it finds only a part, and only half of that is the nearest.
EXACT_VECTORS = 10_000
_ANY_NUMBER = 2**62
#: How long a scope is taken to be as large as it was found to be.
_REMEMBERED_S = 60.0
_REMEMBERED_SCOPES = 4096


class LargeScopes:
    """Scopes that were lately too large to search exactly: counting them again can wait."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, str], float] = {}

    def add(self, tenant: str, low: str) -> None:
        if len(self._until) >= _REMEMBERED_SCOPES:
            self._until = {}
        self._until[tenant, low] = time.monotonic() + _REMEMBERED_S

    def __contains__(self, scope: tuple[str, str]) -> bool:
        return self._until.get(scope, 0.0) > time.monotonic()


class VectorSearch:
    """One vector search: which statement to send next, until an answer is complete.

    `scope` identifies the tenant and the namespaces searched.
    """

    def __init__(
        self,
        index: VectorIndex,
        large: LargeScopes,
        scope: tuple[str, str],
        *,
        limit: int,
        offset: int,
        filtered: bool,
    ) -> None:
        self._large = large
        self._scope = scope
        self._limit = limit
        self._most = _ANY_NUMBER if index.kind == "flat" else EXACT_VECTORS
        remembered = index.kind != "flat" and scope in large
        #: The query of store.sql to send.
        self.query = "search_near" if remembered else "search_exact"
        # Twice the items: an index of text fields has a few vectors for each.
        wanted = (limit + offset) * max(1, len(index.fields))
        self._fetch = min(2 * wanted + 20, _ANY_NUMBER)
        # A filter may refuse any of the nearest, so all of a scope have to be ranked for it.
        self._measure = _ANY_NUMBER if filtered else self._fetch

    @property
    def params(self) -> dict[str, object]:
        """The parameters of `query`, beside those of every search."""
        if self.query == "search_exact":
            return {"fetch": self._fetch, "most": self._most, "measure": self._measure}
        return {"fetch": self._fetch}

    def accept(self, rows: Sequence[Row]) -> list[Row] | None:
        """The items of an answer, without its first two columns; None if `query` has to be sent again."""
        vectors, ranked = rows[0][:2]
        if self.query == "search_exact" and vectors > self._most:
            self._large.add(*self._scope)
            self.query = "search_near"
            return None
        items = [row[2:] for row in rows if row[2] is not None]
        is_short = len(items) < self._limit
        if self.query == "search_near" and (ranked < self._fetch or is_short):
            self.query = "search_all"
            return None
        if is_short and (ranked >= self._fetch or vectors > self._measure):
            # Items with many vectors, or many vectors without their item.
            self._fetch = min(8 * self._fetch, _ANY_NUMBER)
            self._measure = max(self._measure, self._fetch)
            return None
        return items
