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
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from operator import methodcaller
from typing import Any, Final, TypeVar

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
# On 500-byte messages level 6 saves 5 % over level 3 for 8 µs more; 19 saves 4 % more for 40 µs more.
# On 5 kB of prose it saves 7 % for 50 µs. For what is not small the time is not small either, and the
# dictionary no help: on prose of 10 kB level 3 without it takes fewer bytes and less time.
_LEVEL_SMALL: Final = 6
_LEVEL: Final = 3
_BLOCK: Final = 128 * 1024  # the most that one zstd block, of at least four bytes, unpacks to

_MANY: Final = 8  # a call for all costs as much as one for each of so many
_MAGIC: Final = (0xFD2FB528).to_bytes(4, "little")  # what a frame begins with; not stored
_MAGICLESS: Final = zstandard.FORMAT_ZSTD1_MAGICLESS

T = TypeVar("T")

_names: Final = {"zstd", None}


_frame_parameters: Final = zstandard.get_frame_parameters
_ALL_AT_ONCE: Final = "multi_decompress_to_buffer" in zstandard.backend_features  # not in PyPy's

# zstandard's objects must not be used by two threads at a time. Who needs one takes the one that was used
# last: its tables are in the processor's cache, which those of a thread of its own would not be.
_compressors: defaultdict[tuple[int, int], list[zstandard.ZstdCompressor]] = defaultdict(list)
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
    number, level = (CURRENT_DICTIONARY, _LEVEL_SMALL) if size < SMALL else (0, _LEVEL)
    compressors = _compressors[number, level]
    try:
        compressor = compressors.pop()
    except IndexError:
        compressor = _new_compressor(number, level)
    frame = compressor.compress(data)
    compressors.append(compressor)
    if len(frame) >= size:
        return _RAW + data
    return bytes((_NO_DICTIONARY + number,)) + frame


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
    out: list[bytes] = []
    left = max_size
    frames: defaultdict[int, dict[int, bytes]] = defaultdict(dict)  # by dictionary, then place
    for place, data in enumerate(stored):
        if data[:1] == _RAW and len(data) - 1 <= left:
            out.append(data[1:])
            left -= len(data) - 1
        else:
            number, frame, size = _frame(data, left)
            left -= size
            frames[number][place] = frame
            out.append(b"")
    for number, by_place in frames.items():
        parts = list(by_place.values())
        found: Any = _with_decompressor(number, methodcaller("multi_decompress_to_buffer", parts))
        for at, place in enumerate(by_place):
            out[place] = found[at].tobytes()
    return out


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


def _new_compressor(number: int, level: int) -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(
        dict_data=_compression_dictionary(number, level), compression_params=_parameters(number, level)
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
def _compression_dictionary(number: int, level: int) -> zstandard.ZstdCompressionDict | None:
    """The dictionary digested for one level: done once, not for every value."""
    dictionary = _dictionary(number)
    if dictionary is None:
        return None
    digested = zstandard.ZstdCompressionDict(dictionary.as_bytes(), zstandard.DICT_TYPE_FULLDICT)
    digested.precompute_compress(compression_params=_parameters(number, level))
    return digested


@cache
def _parameters(number: int, level: int) -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters.from_level(
        level,
        source_size=SMALL if number else 0,
        format=_MAGICLESS,
        write_content_size=True,
        write_checksum=False,
        write_dict_id=False,
    )
