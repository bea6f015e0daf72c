"""Which elements of two lists belong together.

Elements with an id are recognised by it, wherever they stand: they can move and change at once. Others are
equal or not, and a run of them that replaces another is compared one by one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from haive_persistence.checkpointer.versions.diff.canonical import element_key, equal, runs_equal
from haive_persistence.checkpointer.versions.diff.sequences import longest_increasing, matching_blocks
from haive_persistence.checkpointer.versions.diff.shapes import ATOM, MAP, TEXT, fields_of
from haive_persistence.checkpointer.versions.diff.tokens import Pair, TokenList, pairs_in_order, token_pairs
from haive_persistence.checkpointer.versions.diff.views import view

_LEAVES: Final = {ATOM, TEXT}
_RUN: Final = 128  # elements that are compared at once, where lists begin and end alike


class Match(NamedTuple):
    """An element of both lists. `is_equal` is False if they may differ, `moved` if it is out of order."""

    before: int
    after: int
    is_equal: bool
    moved: bool = False


class Alignment(NamedTuple):
    """The numbers of equal elements at both ends, and pairs of elements between, ascending in `before`."""

    start: int
    end: int
    matches: list[Match]


def element_id(value: Any) -> str | int | None:
    """The id of a message, row or model, if it has one that is text, a number or a UUID."""
    found: Any = None
    if type(value) is dict:
        found = value.get("id")
    elif type(value) not in _WITHOUT_ID:
        own = fields_of(value)
        if "id" in own:
            found = own["id"]
        else:
            kind, parts = view(value)
            found = parts.get("id") if kind == MAP else None
    if isinstance(found, UUID):
        return str(found)
    return found if type(found) in (str, int) else None


_WITHOUT_ID: Final = frozenset({str, int, float, bool, bytes, type(None), list, tuple, set, frozenset})


def align(before: Sequence[Any], after: Sequence[Any], depth: int) -> Alignment:
    """Pair elements that belong together; none is in two pairs."""
    pairs: list[Pair] = []
    if isinstance(before, TokenList) and isinstance(after, TokenList):
        start, end = _ends_by_token(before, after, depth)
        pairs = token_pairs(before.tokens, after.tokens, start, end)
    else:
        start, end = _ends(before, after, depth)
    if start + end in (len(before), len(after)):
        return Alignment(start, end, [])
    middle = _Middle(before, after, start, end, depth)
    matches = middle.by_id(pairs) if middle.has_ids(pairs) else middle.in_order(pairs)
    return Alignment(start, end, matches)


# --- both ends ------------------------------------------------------------------------------------


def _ends_by_token(before: TokenList, after: TokenList, depth: int) -> Pair:
    """Equal elements at both ends. Tokens that differ say nothing: the first ones are decoded."""
    tokens, others = before.tokens, after.tokens

    def same(i: int, j: int) -> bool:
        return tokens[i] == others[j] or equal(before[i], after[j], depth + 1)

    return _common(len(before), len(after), same, 0, 0)


def _common(length: int, other: int, same: Callable[[int, int], bool], start: int, end: int) -> Pair:
    """Extend equal ends, element by element."""
    shorter = min(length, other)
    while start < shorter and same(start, start):
        start += 1
    while end < shorter - start and same(length - 1 - end, other - 1 - end):
        end += 1
    return start, end


def _ends(before: Sequence[Any], after: Sequence[Any], depth: int) -> Pair:
    """Equal elements at both ends, run by run, then one by one."""
    length, other = len(before), len(after)
    shorter = min(length, other)

    def same(i: int, j: int) -> bool:
        return equal(before[i], after[j], depth + 1)

    start = end = 0
    while start + _RUN <= shorter and runs_equal(before[start : start + _RUN], after[start : start + _RUN]):
        start += _RUN
    while end + _RUN <= shorter - start:
        i, j = length - end, other - end
        if not runs_equal(before[i - _RUN : i], after[j - _RUN : j]):
            break
        end += _RUN
    return _common(length, other, same, start, end)


# --- between them ---------------------------------------------------------------------------------


class _Middle:
    """The parts of two lists between their equal ends."""

    def __init__(self, before: Sequence[Any], after: Sequence[Any], start: int, end: int, depth: int) -> None:
        self._before, self._after, self._depth = before, after, depth + 1
        self._here = range(start, len(before) - end)
        self._there = range(start, len(after) - end)

    def has_ids(self, pairs: list[Pair]) -> bool:
        """True if most elements that are not known to be equal have an id."""
        here, there = self._unpaired(pairs)
        unknown = [*(self._before[i] for i in here), *(self._after[j] for j in there)]
        if unknown:
            return 2 * sum(element_id(value) is not None for value in unknown) >= len(unknown)
        moved = set(pairs) - set(pairs_in_order(pairs))
        return any(element_id(self._before[i]) is not None for i, _ in moved)

    def _unpaired(self, pairs: list[Pair]) -> tuple[list[int], list[int]]:
        here, there = {i for i, _ in pairs}, {j for _, j in pairs}
        return [i for i in self._here if i not in here], [j for j in self._there if j not in there]

    def by_id(self, pairs: list[Pair]) -> list[Match]:
        """Elements of one id; those without one, of one value."""
        here, there = self._unpaired(pairs)
        fixed = pairs_in_order(pairs)
        matches = [Match(i, j, True) for i, j in pairs]
        partners = dict(_numbered(there, self._keys(self._after, there)))
        for key, i in _numbered(here, self._keys(self._before, here)):
            if key in partners:
                j = partners[key]
                same = key[0][0] == "value" or equal(self._before[i], self._after[j], self._depth)
                matches.append(Match(i, j, same))
        return _with_moves(sorted(matches), fixed)

    def _keys(self, values: Sequence[Any], positions: list[int]) -> Iterator[tuple[str, Hashable]]:
        for at in positions:
            found = element_id(values[at])
            if found is None:
                yield "value", element_key(values[at], self._depth)
            else:
                yield type(found).__name__, found

    def in_order(self, pairs: list[Pair]) -> list[Match]:
        """Equal elements that keep their order, and those between that replace each other."""
        matches: list[Match] = []
        i, j = self._here.start, self._there.start
        for next_i, next_j in [*pairs_in_order(pairs), (self._here.stop, self._there.stop)]:
            matches += self._gap(range(i, next_i), range(j, next_j))
            if next_i < self._here.stop:
                matches.append(Match(next_i, next_j, True))
            i, j = next_i + 1, next_j + 1
        return matches

    def _gap(self, here: range, there: range) -> list[Match]:
        if not here or not there:
            return []
        keys = [element_key(self._before[i], self._depth) for i in here]
        blocks = matching_blocks(keys, [element_key(self._after[j], self._depth) for j in there])
        matches: list[Match] = []
        i, j = here.start, there.start
        for n, m, size in [*blocks, (len(here), len(there), 0)]:
            next_i, next_j = here.start + n, there.start + m
            matches += self._replacing(range(i, next_i), range(j, next_j))
            matches += [Match(next_i + k, next_j + k, True) for k in range(size)]
            i, j = next_i + size, next_j + size
        return matches

    def _replacing(self, here: range, there: range) -> Iterator[Match]:
        """Pairs of elements of one shape out of two runs, in order."""
        for i, j in zip(here, there):  # noqa: B905
            one, other = view(self._before[i])[0], view(self._after[j])[0]
            if one == other or {one, other} <= _LEAVES:
                yield Match(i, j, False)


def _numbered(
    positions: list[int], keys: Iterable[tuple[str, Hashable]]
) -> Iterator[tuple[tuple[tuple[str, Hashable], int], int]]:
    """Positions by key and the number of equal keys before: ids should be unique, and may not be."""
    seen: Counter[Hashable] = Counter()
    for at, key in zip(positions, keys):  # noqa: B905
        yield (key, seen[key]), at
        seen[key] += 1


def _with_moves(matches: list[Match], fixed: list[Pair]) -> list[Match]:
    """Mark the fewest elements whose move brings all into the second list's order.

    Pairs in `fixed` are not moved: what stands on different sides of one of them is.
    """
    here, there = [i for i, _ in fixed], [j for _, j in fixed]
    candidates = [
        n
        for n, match in enumerate(matches)
        if bisect_left(here, match.before) == bisect_left(there, match.after)
    ]
    stay = longest_increasing([matches[n].after for n in candidates])
    kept = {candidates[n] for n in stay}
    return [match if n in kept else match._replace(moved=True) for n, match in enumerate(matches)]
