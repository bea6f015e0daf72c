"""Checks that make `ormsgpack.unpackb` safe where the installed release is not.

Before 1.13.1 (1.12.2 is the last for Python 3.10) ormsgpack asks for memory for as many elements as an
array claims to have: five bytes ask for 32 GiB, and where there is less the process dies. There every
input that claims more than it can hold is refused first.
"""

from __future__ import annotations

import re
from typing import Final

import ormsgpack

_SAFE_SINCE = (1, 13, 1)
_ARRAY_32 = re.compile(rb"\xdd", re.DOTALL)

# Bytes that follow the first byte of a value, for values of one size; containers and strings are below.
_SIZES = dict.fromkeys(range(0xC0, 0xC4), 0)
_SIZES.update(zip(range(0xCA, 0xD9), (4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 2, 3, 5, 9, 17), strict=True))
_LENGTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bytes that hold a length of bytes
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}  # the same, then a code
_COUNTS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # a count, and values per element


def is_suspicious(data: bytes) -> bool:
    """Cheaply: whether some byte, read as the start of an array, claims more elements than bytes follow."""
    size = len(data)
    for match in _ARRAY_32.finditer(data):
        at = match.end()
        if int.from_bytes(data[at : at + 4], "big") > size - at:
            return True
    return False


def check_counts(data: bytes) -> None:
    """Raise ormsgpack.MsgpackDecodeError if a container claims more values than there are bytes left."""
    at, expected = 0, 1
    while expected:
        if at + expected > len(data):
            raise ormsgpack.MsgpackDecodeError("more values are claimed than there are bytes")
        size, values = measure(data, at)
        at += size
        expected += values - 1


def check_depth(data: bytes, limit: int) -> None:
    """Raise ormsgpack.MsgpackDecodeError if lists and dicts are nested more than `limit` deep."""
    at, left = 0, [1]  # per level: the values that are still to come
    while left:
        if at >= len(data):
            raise ormsgpack.MsgpackDecodeError("more values are claimed than there are bytes")
        size, values = measure(data, at)
        at += size
        left[-1] -= 1
        if values:
            left.append(values)
        while left and not left[-1]:
            left.pop()
        if len(left) > limit:
            raise ormsgpack.MsgpackDecodeError("lists in objects in objects are nested too deeply")


def measure(data: bytes, at: int) -> tuple[int, int]:
    """The size of the value at `at`, without the values inside it, and how many those are."""
    first = data[at]
    if first < 0x80 or first >= 0xE0:
        return 1, 0
    if first < 0xA0:
        return 1, (first & 0x0F) * (2 if first < 0x90 else 1)
    if first < 0xC0:
        return 1 + (first & 0x1F), 0
    if first in _SIZES:
        return 1 + _SIZES[first], 0
    width, each = _COUNTS.get(first, (_LENGTHS.get(first) or _EXTENSIONS.get(first, 0), 0))
    number = int.from_bytes(data[at + 1 : at + 1 + width], "big")
    if each:
        return 1 + width, number * each
    return 1 + width + number + (first in _EXTENSIONS), 0


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", ormsgpack.__version__)[:3])


MUST_CHECK: Final = _version() < _SAFE_SINCE
"""True if the installed ormsgpack must not see an input that `is_suspicious` before `check_counts`."""
