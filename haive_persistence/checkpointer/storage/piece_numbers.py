"""Numbers of pieces: the number blocks processes take them from, and ranges of them. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence

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


def new_block() -> int:
    """The first number of a fresh random block; never 0, always below 2**63."""
    return (secrets.randbits(43) | 1) << BLOCK_BITS


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
    return any(no > block + end - _ROOM for no, end in zip(next_numbers, PART_ENDS, strict=True))
