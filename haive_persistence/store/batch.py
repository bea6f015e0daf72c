"""A batch of LangGraph's operations, checked and sorted by kind.

All of a batch is checked before anything is sent. Reads see the store as it was before the batch's own
writes; of several puts to one item the last counts. `statements` turns it into SQL.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from langgraph.store.base import GetOp, ListNamespacesOp, PutOp, Result, SearchOp

from haive_persistence.config import EncryptionConfig
from haive_persistence.documents import namespaces
from haive_persistence.documents.filters import compile_filter
from haive_persistence.documents.items import ItemId, check_sealed_filter
from haive_persistence.documents.values import Encoded, check, checked, encode
from haive_persistence.embedding import VectorIndex
from haive_persistence.errors import InvalidInputError

Paged = TypeVar("Paged", SearchOp, ListNamespacesOp)

#: 19,000 years; beyond that Postgres runs out of dates.
_LONGEST_TTL_MINUTES = 1e10
#: More rows, or labels, than there can be: a larger number means the same.
_ALL_ROWS = 2**40
_ALL_LABELS = 2**30


class Put(NamedTuple):
    """A checked PutOp that is no deletion; `texts` are to become vectors, by field.

    `encoded` is the value as it is stored in the clear; None if it is to be sealed.
    """

    value: Any
    encoded: Encoded | None
    ttl_minutes: float | None
    texts: dict[str, str]


class Get(NamedTuple):
    """A checked GetOp; `place` is that of its result."""

    place: int
    op: GetOp
    item: ItemId


class Search(NamedTuple):
    """A checked SearchOp."""

    place: int
    op: SearchOp
    expired: bool


class Listing(NamedTuple):
    """A checked ListNamespacesOp."""

    place: int
    op: ListNamespacesOp


@dataclass
class Batch:
    """Operations that are sent together. `expired`: reads see what is expired and not swept yet."""

    index: VectorIndex | None
    encryption: EncryptionConfig | None
    expired: bool = False
    results: list[Result] = field(default_factory=list)
    gets: list[Get] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)
    near: list[Search] = field(default_factory=list)
    lists: list[Listing] = field(default_factory=list)
    puts: dict[ItemId, Put | None] = field(default_factory=dict)

    def add(self, ops: Iterable[Any]) -> None:
        """Check operations. Raises an InvalidInputError or EncodeError for the first that will not do."""
        for place, op in enumerate(ops):
            namespaces.check_op(op)
            self.results.append(None)
            if isinstance(op, GetOp):
                self.gets.append(Get(place, op, namespaces.item_id(op.namespace, op.key)))
            elif isinstance(op, PutOp):
                self._add_put(op)
            elif isinstance(op, SearchOp):
                self._add_search(place, op)
            elif isinstance(op, ListNamespacesOp):
                self._add_list(place, op)
            else:
                raise InvalidInputError(f"{type(op).__name__} is no operation of LangGraph's stores")

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """Batches as one, their results one after the other."""
        first = batches[0]
        joined = cls(first.index, first.encryption, first.expired)
        for batch in batches:
            base = len(joined.results)
            joined.results += batch.results
            joined.gets += [get._replace(place=base + get.place) for get in batch.gets]
            joined.searches += [search._replace(place=base + search.place) for search in batch.searches]
            joined.near += [search._replace(place=base + search.place) for search in batch.near]
            joined.lists += [listing._replace(place=base + listing.place) for listing in batch.lists]
            joined.puts |= batch.puts
        return joined

    @property
    def writes(self) -> bool:
        """True if anything is put."""
        return any(put is not None for put in self.puts.values())

    def texts(self) -> tuple[list[str], list[str]]:
        """The distinct texts to store as vectors, and those to search for."""
        if self.index is None:
            return [], []
        stored = {text for put in self.puts.values() if put for text in put.texts.values()}
        return sorted(stored), sorted({str(search.op.query) for search in self.near})

    def scopes(self) -> list[namespaces.Scope]:
        """The ranges of namespaces, as they are in the clear, that hold all the batch is about."""
        if self.lists:
            return [namespaces.scope(())]
        named = {tuple(get.op.namespace) for get in self.gets}
        named |= {namespaces.from_text(text) for text, _ in self.puts}
        named |= {tuple(search.op.namespace_prefix) for search in [*self.searches, *self.near]}
        return [namespaces.scope(namespace) for namespace in sorted(named)]

    def found_all(self) -> bool:
        """True if every read found something that tells that the tenant's items are readable."""
        places = [get.place for get in self.gets] + [search.place for search in self.searches + self.near]
        return not self.lists and all(self.results[place] for place in places)

    def answer_empty(self) -> None:
        """Fill in the results for a tenant that has no item."""
        for search in [*self.searches, *self.near]:
            self.results[search.place] = []
        for listing in self.lists:
            self.results[listing.place] = []

    def _add_put(self, op: PutOp) -> None:
        item = namespaces.item_id(op.namespace, op.key)
        if op.value is None:
            self.puts[item] = None
            return
        encoded = None
        if self.encryption is None:
            encoded = encode(op.value)
        else:
            check(checked(op.value), "value")
        texts = self.index.texts(op, op.value) if self.index else {}
        self.puts[item] = Put(op.value, encoded, _ttl(op.ttl), texts)

    def _add_search(self, place: int, op: SearchOp) -> None:
        op = _paged(op)
        namespaces.scope(op.namespace_prefix)
        compile_filter(op.filter)
        if self.encryption is not None and op.filter:
            check_sealed_filter(op.filter, self.encryption)
        search = Search(place, op, self.expired)
        if op.limit == 0:
            self.results[place] = []
        elif op.query and self.index:
            self.near.append(search)
        else:
            self.searches.append(search)

    def _add_list(self, place: int, op: ListNamespacesOp) -> None:
        op = _paged(op)
        if op.max_depth is not None:
            op = op._replace(max_depth=_whole("max_depth", op.max_depth, 1, _ALL_LABELS))
        namespaces.listed(op.match_conditions or ())
        self.lists.append(Listing(place, op))


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
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidInputError(f"{name}={value!r}: give a whole number from {least} up")
    return min(value, most)
