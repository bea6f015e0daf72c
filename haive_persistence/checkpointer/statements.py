"""The writing statements: every text that the templates in checkpointer.sql can become.

A statement differs in the number of its pieces (few are parameters of their own, in statements of few sizes),
in whether it is sealed, and in whether it is sent alone. `variants` lists all of the texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from haive_persistence.db.protocol import Query
from haive_persistence.db.sql import Queries

#: The condition on data keys: the one that seals is stored; the tenant has none; nothing, because this
#: process asked at the thread's present epoch.
SEALED, PLAINTEXT, ASKED = GUARDS = ("data_key_is_stored", "tenant_has_no_data_key", "")

_SIZES = (1, 2, 4, 8)
_MANY = -1

# The template by what is written and how the thread is known: not at all, in an unconfirmed number
# block, or in a confirmed one, with pieces or without.
_CREATE = {"put": "create_and_put", "write": "create_and_write"}
_ADD = {"put": "put", "write": "write"}
_ADD_SHARED = {"put": "put_shared", "write": "write_shared"}
_ADD_BARE = {"put": "put_bare", "write": "write_bare"}
# What becomes of a row that is stored already; a write in an unconfirmed number block is another one.
_IF_STORED = {
    "put": "replace_checkpoint",
    "put_shared": "replace_checkpoint",
    "put_bare": "replace_checkpoint",
    "write_shared": "replace_write",
    "write_bare": "replace_write",
}


class WriteStatement(NamedTuple):
    """A statement that may share its round trip with those of other threads."""

    query: Query
    #: The same for a round trip of its own: it waits for the thread's row, and replaces its own.
    fallback: Query


class WriteStatements:
    """The writing statements of one schema."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries
        self._rendered: dict[tuple[str, int, str], WriteStatement] = {}

    def choose(
        self, kind: str, pieces: Sequence[tuple[int, bytes]], *, creates: bool, shared: bool, guard: str
    ) -> tuple[WriteStatement, dict[str, Any]]:
        """The statement for a checkpoint ("put") or pending writes ("write"), and its pieces as parameters.

        `creates`: the thread's row too. `shared`: other statements of this process may have sent the pieces.
        `guard`: one of `GUARDS`.
        """
        if creates:
            name = _CREATE[kind]
        elif not shared:
            name = _ADD[kind]
        else:
            name = (_ADD_SHARED if pieces else _ADD_BARE)[kind]
        size, params = _bind_pieces(pieces)
        key = (name, size, guard)
        found = self._rendered.get(key)
        if found is None:
            found = self._rendered[key] = self._render(*key)
        return found, params

    def variants(self) -> Iterator[tuple[str, Query]]:
        """Every text, with the name of its template."""
        for names in (_CREATE, _ADD, _ADD_SHARED, _ADD_BARE):
            for name in names.values():
                for size in (_MANY,) if names is _ADD_BARE else (*_SIZES, _MANY):
                    for guard in GUARDS:
                        for query in dict.fromkeys(self._render(name, size, guard)):
                            yield name, query

    def _render(self, name: str, size: int, guard: str) -> WriteStatement:
        queries = self._queries
        if guard == PLAINTEXT and name in _CREATE.values():
            guard = "tenant_accepts_plaintext"
        slots = {"data_key_check": queries.part(guard) if guard else ""}
        if name not in _ADD_BARE.values():
            rows = ", ".join(f"(%(no_{at})s::bigint, %(payload_{at})s::bytea)" for at in range(size))
            slots["pieces"] = queries.part("piece_arrays") if size == _MANY else f"(VALUES {rows})"
        if name in _CREATE.values():
            query = queries.render(name, **slots)
            return WriteStatement(query, query)
        grouped, alone = {"nowait": "NOWAIT"}, {"nowait": ""}
        if name in _IF_STORED:
            grouped["if_stored"], alone["if_stored"] = "", queries.part(_IF_STORED[name])
        return WriteStatement(
            queries.render(name, **slots, **grouped), fallback=queries.render(name, **slots, **alone)
        )


def _bind_pieces(pieces: Sequence[tuple[int, bytes]]) -> tuple[int, dict[str, Any]]:
    """The size of statement that takes these pieces, and its parameters.

    Two arrays would take as long as all the rest: 25 µs each to send, 50 µs to open.
    """
    if pieces:
        for size in _SIZES:
            if len(pieces) <= size:
                params: dict[str, Any] = {}
                for at in range(size):
                    params[f"no_{at}"], params[f"payload_{at}"] = pieces[at] if at < len(pieces) else (0, b"")
                return size, params
    return _MANY, {
        "numbers": [number for number, _ in pieces],
        "payloads": [payload for _, payload in pieces],
    }
