"""The variants of the writing statements: with few pieces or many, sealed or not, waiting or not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from haive_persistence.db.protocol import Query

_ARRAYS = "unnest(%(numbers)s::bigint[], %(payloads)s::bytea[])"
_SIZES = (1, 2, 4, 8)


def with_pieces(query: Query, pieces: Sequence[tuple[int, bytes]]) -> tuple[Query, dict[str, Any]]:
    """The statement that takes these pieces, and its parameters.

    A few pieces are parameters of their own, in statements of few sizes, filled up with number 0:
    two arrays would take as long as all the rest (25 µs each to send, 50 µs to open).
    """
    if not pieces:
        return query, {"numbers": [], "payloads": []}
    for size in _SIZES:
        if len(pieces) <= size:
            params: dict[str, Any] = {}
            for at in range(size):
                params[f"no_{at}"], params[f"payload_{at}"] = pieces[at] if at < len(pieces) else (0, b"")
            return _sized(query, size), params
    return query, {"numbers": [no for no, _ in pieces], "payloads": [payload for _, payload in pieces]}


@lru_cache(maxsize=256)
def _sized(query: Query, size: int) -> Query:
    rows = ", ".join(f"(%(no_{at})s::bigint, %(payload_{at})s::bytea)" for at in range(size))
    return Query(query.replace(_ARRAYS, f"(VALUES {rows})"))


@lru_cache(maxsize=256)
def while_sealed(query: Query, condition: Query) -> Query:
    """The same statement, which does nothing once the data key that it seals with is not the one stored."""
    return Query(query.replace("/* and_sealed */", condition))


@lru_cache(maxsize=256)
def waiting(query: Query) -> Query:
    """The same statement, but it waits for who holds the thread's row (see `held` in the queries)."""
    return Query(query.replace(" NOWAIT", ""))
