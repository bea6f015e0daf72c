"""Equal runs of two sequences, in nearly linear time. Knows nothing of states.

Elements that are unique on both sides anchor the rest (patience diff, B. Cohen), the longest increasing
subsequence of their positions says which stay in place. Between anchors, Myers' greedy search ("An O(ND)
difference algorithm", 1986) runs up to a bounded number of edits. What it does not reach counts as replaced.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Final

Block = tuple[int, int, int]
"""Positions in both sequences, and the number of elements that are equal from there on."""

Range = tuple[int, int, int, int]

_MAX_LEVELS: Final = 16  # of anchors between anchors; each costs one pass over what is left
_MAX_EDITS: Final = 64  # that Myers' search follows; its time and memory grow with their square


def longest_increasing(values: Sequence[int]) -> list[int]:
    """The positions of a longest strictly increasing subsequence, in O(n log n)."""
    tails: list[int] = []  # per length: the smallest value that such a subsequence ends with
    ends: list[int] = []  # … and its position
    previous: list[int] = []
    for at, value in enumerate(values):
        length = bisect_left(tails, value) if tails and tails[-1] >= value else len(tails)
        if length == len(tails):
            tails.append(value)
            ends.append(at)
        else:
            tails[length], ends[length] = value, at
        previous.append(ends[length - 1] if length else -1)
    found: list[int] = []
    at = ends[-1] if ends else -1
    while at >= 0:
        found.append(at)
        at = previous[at]
    return found[::-1]


def matching_blocks(before: Sequence[Hashable], after: Sequence[Hashable]) -> list[Block]:
    """Equal runs of two sequences, ascending in both; few and long where that is cheap to find."""
    blocks: list[Block] = []
    gaps: list[tuple[Range, int]] = [((0, len(before), 0, len(after)), 0)]
    while gaps:
        (i1, i2, j1, j2), level = gaps.pop()
        start = _common_start(before, after, (i1, i2, j1, j2))
        blocks.append((i1, j1, start))
        i1, j1 = i1 + start, j1 + start
        end = _common_end(before, after, (i1, i2, j1, j2))
        i2, j2 = i2 - end, j2 - end
        blocks.append((i2, j2, end))
        if i1 == i2 or j1 == j2:
            continue
        here = (i1, i2, j1, j2)
        anchors = _anchors(before, after, here) if level < _MAX_LEVELS else []
        if anchors:
            gaps += [(gap, level + 1) for gap in _between(anchors, here)]
            blocks += [(i, j, 1) for i, j in anchors]
        else:
            blocks += _myers(before, after, here)
    return _merged(blocks)


def _common_start(before: Sequence[Hashable], after: Sequence[Hashable], within: Range) -> int:
    i, i2, j, j2 = within
    while i < i2 and j < j2 and before[i] == after[j]:
        i, j = i + 1, j + 1
    return i - within[0]


def _common_end(before: Sequence[Hashable], after: Sequence[Hashable], within: Range) -> int:
    i1, i, j1, j = within
    while i > i1 and j > j1 and before[i - 1] == after[j - 1]:
        i, j = i - 1, j - 1
    return within[1] - i


def _anchors(before: Sequence[Hashable], after: Sequence[Hashable], within: Range) -> list[tuple[int, int]]:
    """Elements that stand once on each side, as many as keep their order."""
    i1, i2, j1, j2 = within
    counts = Counter(after[j1:j2])
    there = {after[j]: j for j in range(j1, j2) if counts[after[j]] == 1}
    here = Counter(before[i1:i2])
    pairs = [(i, there[before[i]]) for i in range(i1, i2) if before[i] in there and here[before[i]] == 1]
    return [pairs[n] for n in longest_increasing([j for _, j in pairs])]


def _between(anchors: list[tuple[int, int]], within: Range) -> list[Range]:
    i1, i2, j1, j2 = within
    gaps: list[Range] = []
    for i, j in [*anchors, (i2, j2)]:
        if i > i1 and j > j1:
            gaps.append((i1, i, j1, j))
        i1, j1 = i + 1, j + 1
    return gaps


def _myers(before: Sequence[Hashable], after: Sequence[Hashable], within: Range) -> list[Block]:
    """The equal elements on a shortest path of edits; none if it has more than `_MAX_EDITS`."""
    i1, i2, j1, j2 = within
    width, height = i2 - i1, j2 - j1
    reach: dict[int, int] = {1: 0}  # per diagonal: how far into `before` the path gets
    trace: list[dict[int, int]] = []
    for edits in range(min(width + height, _MAX_EDITS) + 1):
        trace.append(dict(reach))
        for diagonal in range(-edits, edits + 1, 2):
            down = diagonal == -edits or (
                diagonal != edits and reach.get(diagonal - 1, -1) < reach.get(diagonal + 1, -1)
            )
            x = reach[diagonal + 1] if down else reach[diagonal - 1] + 1
            y = x - diagonal
            while x < width and y < height and before[i1 + x] == after[j1 + y]:
                x, y = x + 1, y + 1
            reach[diagonal] = x
            if x >= width and y >= height:
                return [(i1 + i, j1 + j, n) for i, j, n in _path_back(trace, width, height)]
    return []


def _path_back(trace: list[dict[int, int]], x: int, y: int) -> list[Block]:
    """The runs of equal elements on the path that ends at (x, y)."""
    blocks: list[Block] = []
    for edits in range(len(trace) - 1, -1, -1):
        reach, diagonal = trace[edits], x - y
        down = diagonal == -edits or (
            diagonal != edits and reach.get(diagonal - 1, -1) < reach.get(diagonal + 1, -1)
        )
        came_from = diagonal + 1 if down else diagonal - 1
        x0 = reach[came_from] if edits else 0
        y0 = x0 - came_from if edits else 0
        x1, y1 = (x0, y0 + 1) if down else (x0 + 1, y0)
        if not edits:
            x1 = y1 = 0
        if x > x1:
            blocks.append((x1, y1, x - x1))
        x, y = x0, y0
    return blocks


def _merged(blocks: list[Block]) -> list[Block]:
    merged: list[Block] = []
    for i, j, size in sorted(blocks):
        if not size:
            continue
        if merged and merged[-1][0] + merged[-1][2] == i and merged[-1][1] + merged[-1][2] == j:
            merged[-1] = (*merged[-1][:2], merged[-1][2] + size)
        else:
            merged.append((i, j, size))
    return merged
