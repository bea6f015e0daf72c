"""The words that differ between two texts.

Python's `difflib` needs a time that grows with the square of a text and more; the faster libraries found
are compiled, or under the GPL. `sequences.py` is there for lists anyway.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from haive_persistence.checkpointer.versions.diff.sequences import matching_blocks

_SCRIPTS_WITHOUT_SPACES: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD: Final = re.compile(
    rf"[{_SCRIPTS_WITHOUT_SPACES}]|[^\W{_SCRIPTS_WITHOUT_SPACES}]+|\s+|[^\w\s]", re.UNICODE
)
_HAS_WORD: Final = re.compile(r"\w")


class Edit(NamedTuple):
    """A part of a text that was replaced: offsets in characters, in the text before and after."""

    start_before: int
    end_before: int
    start_after: int
    end_after: int


def word_edits(before: str, after: str) -> tuple[Edit, ...]:
    """The parts that differ, whole words each, in ascending order. A space alone keeps none apart."""
    start, end = _common_ends(before, after)
    old, new = before[start : len(before) - end], after[start : len(after) - end]
    old_words, new_words = _WORD.findall(old), _WORD.findall(new)
    blocks = matching_blocks(old_words, new_words)
    blocks = [block for block in blocks if _separates(old_words, block)]
    return tuple(_edits(_offsets(old_words, start), _offsets(new_words, start), blocks))


def _common_ends(before: str, after: str) -> tuple[int, int]:
    """The lengths that both begin and end with, cut where a word begins or ends."""
    shorter = min(len(before), len(after))
    start = _longest(shorter, lambda n: before.startswith(after[:n]))
    while start and not (_is_edge(before, start) and _is_edge(after, start)):
        start -= 1
    end = _longest(shorter - start, lambda n: before.endswith(after[len(after) - n :]))
    while end and not (_is_edge(before, len(before) - end) and _is_edge(after, len(after) - end)):
        end -= 1
    return start, end


def _longest(limit: int, holds: Callable[[int], bool]) -> int:
    """The largest number up to `limit` for which it holds, if it holds for all that are smaller."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _is_edge(text: str, at: int) -> bool:
    """True if no word spans this offset."""
    if at in (0, len(text)):
        return True
    return _WORD.fullmatch(text, at - 1, at + 1) is None


def _separates(words: list[str], block: tuple[int, int, int]) -> bool:
    """True if an equal run is worth showing between two edits."""
    at, _, size = block
    return any(_HAS_WORD.search(word) for word in words[at : at + size])


def _offsets(words: list[str], start: int) -> list[int]:
    offsets = [start]
    for word in words:
        offsets.append(offsets[-1] + len(word))
    return offsets


def _edits(old: list[int], new: list[int], blocks: list[tuple[int, int, int]]) -> list[Edit]:
    edits: list[Edit] = []
    i = j = 0
    for at_old, at_new, size in [*blocks, (len(old) - 1, len(new) - 1, 0)]:
        if at_old > i or at_new > j:
            edits.append(Edit(old[i], old[at_old], new[j], new[at_new]))
        i, j = at_old + size, at_new + size
    return edits
