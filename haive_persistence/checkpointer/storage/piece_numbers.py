"""Numbers of pieces: the number blocks processes take them from, and ranges of them. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import repeat
from operator import gt, sub

# The parts of a number block: all else, ids of messages, slices of lists, ids of many messages.
OTHER, IDS, LISTS, JOINED_IDS = range(4)


def start_of(part: int) -> int:
    """The first number of a part of a number block. Stored items count from it, so it may never change."""
    return part << 18


def part_of(number: int) -> int:
    return number >> 18 & 3


BLOCK_BITS = 20
BLOCK_SIZE = 1 << BLOCK_BITS
PART_STARTS = tuple(map(start_of, (OTHER, IDS, LISTS, JOINED_IDS)))
PART_ENDS = (*PART_STARTS[1:], BLOCK_SIZE)
MAX_PARTS = PART_ENDS[0]  # of the values of one statement, lists' slices not counted
_ROOM = 1 << 16  # numbers left in a part when the block is given up for another: room for one large value
_NEARLY_FULL = tuple(end - _ROOM for end in PART_ENDS)


class _Draw:
    """Random numbers of our own: an application may seed those of `random`.

    They need not be secret. The system is asked for its without the interpreter lock, and a thread that gives
    it up beside one that computes waits up to 5 ms to have it back.
    """

    def __init__(self) -> None:
        self._random = random.Random()
        self.bits = self._random.getrandbits

    def after_fork(self) -> None:
        """A child must not draw its parent's blocks."""
        self._random.seed()


draw = _Draw()


def new_block() -> int:
    """The first number of a fresh random block; never 0, always below 2**63."""
    return (draw.bits(43) | 1) << BLOCK_BITS


class BlockFull(Exception):
    """A part of the block has no number left: try again in a new one."""


def ranges(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers, as (start, length)."""
    it = iter(numbers)
    for start in it:
        end = start + 1
        for no in it:
            if no == end:
                end += 1
                continue
            yield start, end - start
            start, end = no, no + 1
        yield start, end - start
        return


def used_up(block: int, next_numbers: Sequence[int]) -> bool:
    return any(map(gt, map(sub, next_numbers, repeat(block)), _NEARLY_FULL))
