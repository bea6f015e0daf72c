"""diff3 of lists without ids."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from haive_persistence.checkpointer.versions.diff.sequences import matching_blocks
from haive_persistence.checkpointer.versions.merge.values import token


class Hunk(NamedTuple):
    """A stretch of a list, as each side has it; one and the same value four times if it merged."""

    base: Sequence[Any]
    ours: Sequence[Any]
    theirs: Sequence[Any]
    both: Sequence[Any]


def diff3(base: Sequence[Any], ours: Sequence[Any], theirs: Sequence[Any]) -> list[Hunk]:
    """The merge of three lists, stretch by stretch.

    After Khanna, Kunal and Pierce, "A Formal Investigation of Diff3" (2007): items of the base that both
    sides still have are fixed points; between two of them, a side that changed nothing takes the other's.
    """
    numbers: dict[Hashable, int] = {}  # of equal items: hashed once, compared often
    tokens = [
        [numbers.setdefault(token(item), len(numbers)) for item in items] for items in (base, ours, theirs)
    ]
    in_ours, in_theirs = _matches(tokens[0], tokens[1]), _matches(tokens[0], tokens[2])
    hunks: list[Hunk] = []
    b = o = t = 0
    for at in [*(at for at in range(len(base)) if at in in_ours and at in in_theirs), None]:
        ends = (len(base), len(ours), len(theirs)) if at is None else (at, in_ours[at], in_theirs[at])
        spans = [slice(b, ends[0]), slice(o, ends[1]), slice(t, ends[2])]
        keys = [part[span] for part, span in zip(tokens, spans, strict=True)]
        if any(keys):
            hunks.append(_hunk(keys, base[spans[0]], ours[spans[1]], theirs[spans[2]]))
        if at is not None:
            item = ours[ends[1]]
            hunks.append(Hunk(*[[item]] * 4))
            b, o, t = (end + 1 for end in ends)
    return hunks


def _hunk(keys: list[list[int]], base: Sequence[Any], ours: Sequence[Any], theirs: Sequence[Any]) -> Hunk:
    b, o, t = keys
    if b == o:
        return Hunk(*[theirs] * 4)
    if t in (b, o):
        return Hunk(*[ours] * 4)
    return Hunk(base, ours, theirs, [*ours, *theirs])


def _matches(base: Sequence[int], side: Sequence[int]) -> dict[int, int]:
    """The index of each item of the base that a side still has, and its index there."""
    return {here + at: there + at for here, there, size in matching_blocks(base, side) for at in range(size)}
