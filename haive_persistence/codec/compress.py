"""Bytes to fewer bytes: zstd, with a shipped dictionary for small inputs.

The first byte of what `compress` returns says how the rest was made:

    0x10          as it is
    0x11          a zstd frame without dictionary
    0x12 … 0x1f   a zstd frame with dictionary number 1 … 14

The high four bits are the format number, 1. Frames are magicless and carry their content size,
neither a checksum nor a dictionary id: on a 200-byte message each of these would show. A dictionary
is never changed or removed once shipped; a better one gets the next number.
"""

from __future__ import annotations

import threading
from functools import cache
from importlib import resources
from typing import Final

import zstandard

from haive_persistence.errors import ConfigError, DecodeError

FORMAT: Final = 0x10
_RAW: Final = b"\x10"
_ZSTD: Final = b"\x11"
_FIRST_DICTIONARY: Final = 0x11  # plus the dictionary's number

CURRENT_DICTIONARY: Final = 0
"""The dictionary that small inputs are compressed with; older ones stay readable."""

SMALL: Final = 32 * 1024
"""Inputs shorter than this (in bytes) are compressed with the dictionary."""

MAX_SIZE: Final = 1 << 30
"""The largest output, in bytes, that `decompress` makes unless told otherwise."""

_LEVEL: Final = 3
_local = threading.local()  # zstandard's objects must not be shared between threads


def compress(data: bytes, compression: str | None = "zstd") -> bytes:
    """Compress `data`, or keep it as it is where that is not shorter.

    `compression` is "zstd", or None to store without compressing.
    """
    if compression is None:
        return _RAW + data
    if compression != "zstd":
        raise ConfigError(f"unknown compression {compression!r}: choose 'zstd' or None")
    number = CURRENT_DICTIONARY if len(data) < SMALL else 0
    frame = _compressor(number).compress(data)
    if len(frame) >= len(data):
        return _RAW + data
    return bytes((_FIRST_DICTIONARY + number,)) + frame


def decompress(data: bytes, *, max_size: int = MAX_SIZE) -> bytes:
    """Undo `compress`; DecodeError if damaged, of a newer format, or larger than `max_size` bytes."""
    if not data:
        raise DecodeError("stored bytes are damaged: there are none")
    how, body = data[0], data[1:]
    if how & 0xF0 != FORMAT:
        raise DecodeError(f"format byte 0x{how:02x} is unknown: written by a newer version of this package")
    if how == FORMAT:
        return _bounded(body, len(body), max_size)
    return _inflate(body, how - _FIRST_DICTIONARY, max_size)


def _inflate(frame: bytes, number: int, max_size: int) -> bytes:
    try:
        header = zstandard.get_frame_parameters(frame, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
        _bounded(b"", header.content_size, max_size)
        return _decompressor(number).decompress(frame, read_across_frames=False)
    except (zstandard.ZstdError, MemoryError) as exc:
        raise DecodeError(f"stored bytes are damaged: {exc}") from exc


def _bounded(data: bytes, size: int, max_size: int) -> bytes:
    if size > max_size:
        raise DecodeError(f"stored bytes would unpack to {size:,} bytes; at most {max_size:,} are accepted")
    return data


@cache
def _dictionary(number: int) -> zstandard.ZstdCompressionDict:
    name = f"{number:04d}.zdict"
    source = resources.files(__package__) / "dictionaries" / name
    try:
        data = source.read_bytes()
    except FileNotFoundError:
        raise DecodeError(
            f"compression dictionary {number} is unknown: written by a newer version of this package"
        ) from None
    dictionary = zstandard.ZstdCompressionDict(data)
    dictionary.precompute_compress(level=_LEVEL)
    return dictionary


def _compressor(number: int) -> zstandard.ZstdCompressor:
    made = _local.__dict__.setdefault("compressors", {})
    if number not in made:
        made[number] = zstandard.ZstdCompressor(
            dict_data=_dictionary(number) if number else None,
            compression_params=zstandard.ZstdCompressionParameters.from_level(
                _LEVEL,
                format=zstandard.FORMAT_ZSTD1_MAGICLESS,
                write_content_size=True,
                write_checksum=False,
                write_dict_id=False,
            ),
        )
    return made[number]


def _decompressor(number: int) -> zstandard.ZstdDecompressor:
    made = _local.__dict__.setdefault("decompressors", {})
    if number not in made:
        made[number] = zstandard.ZstdDecompressor(
            dict_data=_dictionary(number) if number else None,
            format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        )
    return made[number]
