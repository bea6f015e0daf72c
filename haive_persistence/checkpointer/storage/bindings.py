"""Claims of a sealed checkpoint about its ancestors, which cannot be cut away without the key.

A `DeltaChannel` is rebuilt from its ancestors' pending writes. Each row is sealed by itself, so a
missing one would go unnoticed: a checkpoint therefore names the writes of its ancestors that the process
which put it knew to be stored. That set may be smaller than what is stored (a write may still be on its
way, or be another process's), never larger: within one epoch of a thread no row goes away. What a
checkpoint could not name yet, the next one does.

    bound    [parent_stored, [no, …], [ancestor's id, no, …], …]

`parent_stored` says that the parent's row was known to be stored. The first list names writes of the
parent, the others those of ancestors further up that no checkpoint between them named. Numbers count
from the body's base. Whoever deletes rows (prune, delete_for_runs) binds again what is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from haive_persistence.checkpointer.storage.piece_index import ThreadLog
from haive_persistence.checkpointer.storage.row_format import Body

MAX_DISTANCE = 8  # ancestors that are looked at for writes no checkpoint has named yet


class Bindings(NamedTuple):
    """The rows a checkpoint relies on."""

    parent_stored: bool
    writes: Mapping[bytes, frozenset[int]]  # ancestor's id -> numbers of its pending writes

    def encode(self, parent: bytes, base: int) -> list[Any]:
        def offsets(numbers: Iterable[int]) -> list[int]:
            return [no - base for no in sorted(numbers)]

        further = [[id_, *offsets(numbers)] for id_, numbers in self.writes.items() if id_ != parent]
        return [self.parent_stored, offsets(self.writes.get(parent, ())), *further]


_NOTHING = Bindings(False, {})


def bindings_of(body: Body) -> Bindings:
    """Return what a checkpoint relies on; nothing unless it is sealed and has a parent."""
    if body.bound is None or body.parent is None:
        return _NOTHING
    parent_stored, of_parent, *further = body.bound
    base = body.base
    writes = {id_: frozenset(base + offset for offset in offsets) for id_, *offsets in further}
    if of_parent:
        writes[body.parent] = frozenset(base + offset for offset in of_parent)
    return Bindings(parent_stored, writes)


def bindings_for_child(
    log: ThreadLog,
    ns_key: int,
    parent: bytes,
    parent_ns_key: int | None = None,
    shown_writes: frozenset[int] | None = None,
) -> Bindings:
    """Return what a checkpoint that is put below `parent` can rely on. Call under the log's lock.

    Where the parent is on another line: of the writes on that line, the branch shows `shown_writes`
    (None: all). Further up, a checkpoint's own line says which writes its branch shows.
    """
    writes: dict[bytes, frozenset[int]] = {}
    named: set[int] = set()
    ancestor: bytes | None = parent
    at, home = ns_key, ns_key if parent_ns_key is None else parent_ns_key
    for _ in range(MAX_DISTANCE):
        if ancestor is None:
            break
        stored = log.stored_writes.get((at, ancestor), frozenset())
        if home != at:
            of_home = log.stored_writes.get((home, ancestor), frozenset())
            stored |= of_home if shown_writes is None else of_home & shown_writes
        shown_writes = frozenset()
        if unnamed := stored - named:
            writes[ancestor] = frozenset(unnamed)
        known = log.checkpoints.get((home, ancestor))
        if known is None:
            break
        named |= known.bound_writes
        ancestor = known.parent
        at, home = home, home if known.parent_ns_key is None else known.parent_ns_key
    first = ns_key if parent_ns_key is None else parent_ns_key
    return Bindings((first, parent) in log.checkpoints, writes)


def missing_row(body: Body, stored: Mapping[bytes, frozenset[int]]) -> bool:
    """True if a checkpoint relies on a pending write that is not stored.

    `stored`: the ancestors that were read, each with the numbers of its pending writes.
    """
    return any(
        not numbers <= stored[id_] for id_, numbers in bindings_of(body).writes.items() if id_ in stored
    )
