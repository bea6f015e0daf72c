"""Refuses sets and dicts of many keys that hash alike: making one compares each key with all before it.

Numbers, and tuples of numbers, hash as whoever wrote them chose. Text and bytes do not: their hashes are
salted in every process.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import ormsgpack

from haive_persistence.codec.msgpack_guard import measure
from haive_persistence.errors import DecodeError

#: Keys of one set or dict that may hash as another one does; half a second's work at most.
MAX_ALIKE: Final = 2000
_MAP_16, _MAP_32 = 0xDE, 0xDF
_VARIES = 0
# The size of a value's first byte and what belongs to it, without the values in a container.
_STEPS = bytes(
    _VARIES
    if first in (*range(0xC4, 0xCA), 0xD9, 0xDA, 0xDB, _MAP_16, _MAP_32)
    else measure(bytes((first,)), 0)[0]
    for first in range(0xDC)
) + bytes((3, 5, _VARIES, _VARIES, *[1] * 32))


def check_hashes(keys: Collection[Any]) -> None:
    """Raise DecodeError if so many keys hash alike that a set of them takes long; TypeError if one cannot."""
    if len(keys) > MAX_ALIKE and len(keys) - len(set(map(hash, keys))) > MAX_ALIKE:
        raise DecodeError(
            f"a stored set or dict has more than {MAX_ALIKE:,} keys that hash alike: its data is damaged"
        )


def check_maps(data: bytes) -> None:
    """Raise DecodeError if a map in msgpack has many keys that hash alike. Objects in it are left out."""
    if not (_may_have(_MAP_16, 2, data) or _may_have(_MAP_32, 4, data)):
        return
    at, size = 0, len(data)
    while at < size:
        step = _STEPS[data[at]]
        if not step:
            step, values = measure(data, at)
            if values > 2 * MAX_ALIKE:
                _check_map(data, at)
        at += step


def _may_have(first: int, width: int, data: bytes) -> bool:
    """Whether some bytes, read as the start of a map, claim many keys."""
    at = data.find(first)
    while at >= 0:
        if int.from_bytes(data[at + 1 : at + 1 + width], "big") > MAX_ALIKE:
            return True
        at = data.find(first, at + 1)
    return False


def _check_map(data: bytes, at: int) -> None:
    """Check the keys of the map at `at`, or those that there are if the data is damaged."""
    size, values = measure(data, at)
    at += size
    keys: list[bytes] = []
    try:
        for _ in range(values // 2):
            start, at = at, _end(data, at)
            keys.append(data[start:at])
            at = _end(data, at)
    except IndexError:
        pass
    if len(keys) > MAX_ALIKE:
        array = b"\xdd" + len(keys).to_bytes(4, "big") + b"".join(keys)
        check_hashes([_hashable(key) for key in ormsgpack.unpackb(array)])


def _end(data: bytes, at: int) -> int:
    """The end of the value at `at`. Raises IndexError if that is beyond the data."""
    left = 1
    while left:
        size, values = measure(data, at)
        at += size
        left += values - 1
    if at > len(data):
        raise IndexError
    return at


def _hashable(key: Any) -> Any:
    return tuple(map(_hashable, key)) if isinstance(key, list) else key
