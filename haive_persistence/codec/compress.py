"""Bytes to fewer bytes: zstd, with a shipped dictionary for small inputs.

The first byte of what `compress` returns says how the rest was made:

    0x10          as it is
    0x11          a zstd frame without dictionary
    0x12 … 0x1f   a zstd frame with dictionary number 1 … 14

The high four bits are the format number, 1. Frames are magicless and carry their content size, but
no checksum and no dictionary id: on a message of 200 bytes each of these would show. A dictionary is
never changed or removed once shipped; a better one gets the next number (`tools/train_dictionary.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import resources
from operator import methodcaller
from typing import Final, NamedTuple, TypeVar

import zstandard

from haive_persistence.errors import ConfigError, DecodeError, EncodeError

CURRENT_DICTIONARY: Final = 1
"""The dictionary that small inputs are compressed with; older ones stay readable."""

SMALL: Final = 8 * 1024
"""Inputs shorter than this (in bytes) are compressed with the dictionary."""

MAX_SIZE: Final = 1 << 30
"""The largest input of `compress` and, unless set otherwise, output of `decompress`, in bytes."""

_FORMAT: Final = 0x10
_RAW: Final = b"\x10"
_NO_DICTIONARY: Final = 0x11  # a dictionary's number is added
# Records this short hardly get shorter, and zstd gives up the interpreter lock for each.
_TINY: Final = 128
# Up to this many bytes, zstd's greedy strategy writes letters with the dictionary's code table, the others
# with one of their own for each input. It takes half the time: 2 µs to decompress a message instead of 4.5.
# English of 500 bytes gets 3 % shorter by it, made-up words 5 % longer.
_SHORT: Final = 1024
_BLOCK: Final = 128 * 1024  # the most that one zstd block, of at least four bytes, unpacks to

_MANY: Final = 8  # a call for all costs as much as one for each of so many
_MAGIC: Final = (0xFD2FB528).to_bytes(4, "little")  # what a frame begins with; not stored
_MAGICLESS: Final = zstandard.FORMAT_ZSTD1_MAGICLESS

T = TypeVar("T")

_names: Final = {"zstd", None}


_frame_parameters: Final = zstandard.get_frame_parameters
_ALL_AT_ONCE: Final = "multi_decompress_to_buffer" in zstandard.backend_features  # not in PyPy's


class _Method(NamedTuple):
    """A way to compress: the dictionary's number (0: none), zstd's level, and what differs from it."""

    dictionary: int
    level: int
    is_greedy: bool = False


_SHORT_INPUT: Final = _Method(CURRENT_DICTIONARY, 6, is_greedy=True)
# On 5 kB of prose level 6 saves 7 % over level 3 for 50 µs. For what is not small the time is not small
# either, and the dictionary no help: on prose of 10 kB level 3 without it takes fewer bytes and less time.
_SMALL_INPUT: Final = _Method(CURRENT_DICTIONARY, 6)
_LARGE_INPUT: Final = _Method(0, 3)

# zstandard's objects must not be used by two threads at a time. Who needs one takes the one that was used
# last: its tables are in the processor's cache, which those of a thread of its own would not be.
_compressors: defaultdict[_Method, list[zstandard.ZstdCompressor]] = defaultdict(list)
_decompressors: defaultdict[int, list[zstandard.ZstdDecompressor]] = defaultdict(list)


def check_name(compression: str | None) -> None:
    """Raise ConfigError unless this is a compression that `compress` knows."""
    if compression not in _names:
        raise ConfigError(f"unknown compression {compression!r}: choose 'zstd', or None for no compression")


def compress(data: bytes, compression: str | None = "zstd") -> bytes:
    """Compress `data`, or keep it as it is where that is not longer.

    `compression` is "zstd", or None to store without compressing. EncodeError above `MAX_SIZE`.
    """
    check_name(compression)
    size = len(data)
    if size > MAX_SIZE:
        raise EncodeError(f"a value of {size:,} bytes is too large: at most {MAX_SIZE:,} can be stored")
    if compression is None or size < _TINY:
        return _RAW + data
    method = _SHORT_INPUT if size <= _SHORT else _SMALL_INPUT if size < SMALL else _LARGE_INPUT
    compressors = _compressors[method]
    try:
        compressor = compressors.pop()
    except IndexError:
        compressor = _new_compressor(method)
    frame = compressor.compress(data)
    compressors.append(compressor)
    if len(frame) >= size:
        return _RAW + data
    return bytes((_NO_DICTIONARY + method.dictionary,)) + frame


def decompress(data: bytes, *, max_size: int = MAX_SIZE) -> bytes:
    """Undo `compress`; DecodeError if damaged, of a newer format, or larger than `max_size` bytes."""
    if data[:1] == _RAW and len(data) - 1 <= max_size:
        return data[1:]
    number, frame, _ = _frame(data, max_size)
    return _with_decompressor(number, lambda one: one.decompress(frame, allow_extra_data=False))


def decompress_all(stored: Sequence[bytes], *, max_size: int = MAX_SIZE) -> list[bytes]:
    """`decompress` of many to at most `max_size` bytes in all; gives up the interpreter's lock once.

    Beside threads that compute, each time is one at which they may take it for 5 ms.
    """
    if not _ALL_AT_ONCE or len(stored) < _MANY:
        return _one_by_one(stored, max_size)
    places: defaultdict[bytes, list[int]] = defaultdict(list)  # by the first byte
    for place, data in enumerate(stored):
        places[data[:1]].append(place)
    out = [b""] * len(stored)
    left = max_size
    for first, of_kind in places.items():
        parts = [stored[place] for place in of_kind]
        found, left = _unpacked(first, parts, left)
        for place, one in zip(of_kind, found, strict=True):
            out[place] = one
    return out


def _unpacked(first: bytes, parts: Sequence[bytes], left: int) -> tuple[Iterable[bytes], int]:
    """Stored bytes that begin with the same byte, unpacked to at most `left` bytes, and what is left then."""
    frames = [] if first == _RAW else [_MAGIC + part[1:] for part in parts]
    try:
        sizes = [one.content_size for one in map(_frame_parameters, frames)] or [
            len(part) - 1 for part in parts
        ]
    except zstandard.ZstdError:
        sizes = []
    size = sum(sizes)
    if not sizes or max(sizes) > _BLOCK or size > left or first[0] & 0xF0 != _FORMAT:
        size = _checked_size(parts, left)
    if not frames:
        return [part[1:] for part in parts], left - size
    unpack = methodcaller("multi_decompress_to_buffer", frames)
    return map(_to_bytes, _with_decompressor(first[0] - _NO_DICTIONARY, unpack)), left - size


_to_bytes: Final = methodcaller("tobytes")


def _checked_size(parts: Iterable[bytes], left: int) -> int:
    """The size that stored bytes unpack to. Each is checked by itself, so that the error is that of one."""
    before = left
    for part in parts:
        left -= _frame(part, left)[2]
    return before - left


def _one_by_one(stored: Sequence[bytes], max_size: int) -> list[bytes]:
    out: list[bytes] = []
    for data in stored:
        out.append(decompress(data, max_size=max_size))
        max_size -= len(out[-1])
    return out


def _frame(data: bytes, max_size: int) -> tuple[int, bytes, int]:
    """The number of the dictionary, the whole frame and the unpacked size of stored bytes that are not raw.

    What would unpack to too much is refused before that much memory is asked for.
    """
    if not data:
        raise DecodeError("stored bytes are damaged: there are none")
    how, packed, frame = data[0], len(data) - 1, _MAGIC + data[1:]
    if how & 0xF0 != _FORMAT:
        raise DecodeError(f"format byte 0x{how:02x} is unknown: written by a newer version of this package")
    try:
        size = packed if how == _FORMAT else _frame_parameters(frame).content_size
    except zstandard.ZstdError as exc:
        raise DecodeError(f"stored bytes are damaged: {exc}") from exc
    if size > max_size:
        raise DecodeError(
            f"stored bytes would unpack to {size:,} bytes; at most {max_size:,} are accepted: "
            "if they are not damaged, raise max_read_bytes"
        )
    if size > (packed // 4 + 1) * _BLOCK:
        raise DecodeError("stored bytes are damaged: they claim to unpack to more than they can")
    return how - _NO_DICTIONARY, frame, size


def _with_decompressor(number: int, use: Callable[[zstandard.ZstdDecompressor], T]) -> T:
    """The result of `use` on a decompressor of this dictionary, which no other thread uses meanwhile."""
    free = _decompressors[number]
    try:
        decompressor = free.pop()
    except IndexError:
        decompressor = zstandard.ZstdDecompressor(dict_data=_dictionary(number))
    try:
        found = use(decompressor)
    except zstandard.ZstdError as exc:
        raise DecodeError(f"stored bytes are damaged: {exc}") from exc
    free.append(decompressor)
    return found


def _new_compressor(method: _Method) -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(
        dict_data=_compression_dictionary(method), compression_params=_parameters(method)
    )


@cache
def _dictionary(number: int) -> zstandard.ZstdCompressionDict | None:
    if number == 0:
        return None
    if number > CURRENT_DICTIONARY:
        raise DecodeError(
            f"compression dictionary {number} is unknown: written by a newer version of this package"
        )
    source = resources.files("haive_persistence.codec") / "dictionaries" / f"{number:04d}.zdict"
    return zstandard.ZstdCompressionDict(source.read_bytes(), zstandard.DICT_TYPE_FULLDICT)


@cache
def _compression_dictionary(method: _Method) -> zstandard.ZstdCompressionDict | None:
    """The dictionary digested for one method: done once, not for every value."""
    dictionary = _dictionary(method.dictionary)
    if dictionary is None:
        return None
    digested = zstandard.ZstdCompressionDict(dictionary.as_bytes(), zstandard.DICT_TYPE_FULLDICT)
    digested.precompute_compress(compression_params=_parameters(method))
    return digested


@cache
def _parameters(method: _Method) -> zstandard.ZstdCompressionParameters:
    greedy: dict[str, int] = {
        "strategy": zstandard.STRATEGY_GREEDY,
        "hash_log": 15,
        "chain_log": 15,
        "search_log": 5,
    }
    return zstandard.ZstdCompressionParameters.from_level(
        method.level,
        source_size=SMALL if method.dictionary else 0,
        format=_MAGICLESS,
        write_content_size=True,
        write_checksum=False,
        write_dict_id=False,
        **(greedy if method.is_greedy else {}),
    )
