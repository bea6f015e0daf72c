"""Compression pays or is left out, and hostile input costs neither time nor memory."""

from __future__ import annotations

import random
import re
import threading
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage

from haive_persistence.codec import Codec, compress
from haive_persistence.codec import compress as compress_function
from haive_persistence.codec.compress import CURRENT_DICTIONARY, MAX_SIZE, SMALL, decompress_all
from haive_persistence.codec.compress import decompress as decompress_one
from haive_persistence.errors import ConfigError, DecodeError, EncodeError

MESSAGE = Codec().dump(AIMessage("A short answer.", id="run-1", usage_metadata=None))


def decompress(data: bytes, **options: int) -> bytes:
    """Both ways: by itself, and together with others."""
    try:
        found = decompress_one(data, **options)
    except DecodeError as error:
        with pytest.raises(
            DecodeError, match="damaged" if "damaged" in str(error) else re.escape(str(error))
        ):
            decompress_all([compress(b"x" * 10)] * 9 + [data], **options)
        raise
    for others in (1, 9):
        together = [data, *[compress(b"x" * 10)] * others, data]
        if "max_size" in options:  # which is that of all together
            options = {"max_size": 2 * options["max_size"] + 10 * others}
        assert decompress_all(together, **options) == [found, *[b"x" * 10] * others, found]
    return found


NOISE = random.Random(1).randbytes(4000)


@given(st.one_of(st.binary(max_size=300), st.binary(min_size=1, max_size=20).map(lambda part: part * 5000)))
def test_round_trip(data: bytes) -> None:
    for name in ("zstd", None):
        packed = compress(data, name)
        assert decompress(packed) == data
        assert len(packed) <= len(data) + 1


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 4095, 4096, SMALL - 1, SMALL, SMALL + 1, 1_000_000])
def test_sizes_around_the_thresholds(size: int) -> None:
    for data in (bytes(size), (NOISE * (size // 4000 + 1))[:size]):
        assert decompress(compress(data)) == data


def test_header_is_one_byte() -> None:
    assert compress(b"x") == b"\x10x"
    assert compress(b"x", None) == b"\x10x"
    assert compress(NOISE) == b"\x10" + NOISE
    assert compress(MESSAGE)[0] == 0x11 + CURRENT_DICTIONARY
    assert compress(bytes(100_000))[0] == 0x11


def test_the_dictionary_pays_on_a_message() -> None:
    without = len(zstandard.compress(MESSAGE, 19))
    assert len(compress(MESSAGE)) < 0.35 * without
    assert len(compress(Codec().dump(HumanMessage("hi", id="1")))) < 50


def test_frames_have_no_magic_number_and_no_checksum() -> None:
    frame = compress(MESSAGE)[1:]
    parameters = zstandard.get_frame_parameters(frame, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    assert parameters.content_size == len(MESSAGE)
    assert parameters.dict_id == 0
    assert not parameters.has_checksum


def test_unknown_names_and_formats() -> None:
    with pytest.raises(ConfigError, match="unknown compression 'lz4'"):
        compress(b"x", "lz4")
    with pytest.raises(ConfigError):
        Codec(compression="gzip")
    for first in (0x00, 0x0F, 0x20, 0x81, 0xFF):
        with pytest.raises(DecodeError, match="newer version"):
            decompress(bytes((first,)) + b"x")
    with pytest.raises(DecodeError, match="dictionary 14 is unknown: written by a newer version"):
        decompress(b"\x1f" + compress(MESSAGE)[1:])


def magicless(data: bytes, level: int = 3, *, content_size: bool = True) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=content_size
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def test_a_bomb_is_refused_before_it_unpacks() -> None:
    bomb = b"\x11" + magicless(bytes(200_000_000))
    assert len(bomb) < 20_000
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="at most 1,000,000 are accepted"):
            decompress(bomb, max_size=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    with pytest.raises(DecodeError, match="at most 10"):
        decompress(b"\x10" + bytes(11), max_size=10)
    assert decompress(b"\x10" + bytes(10), max_size=10) == bytes(10)


def test_the_limit_is_that_of_all_together() -> None:
    frame = b"\x11" + magicless(bytes(1_000_000))
    for count in (2, 20):
        tracemalloc.start()
        try:
            with pytest.raises(DecodeError, match="max_read_bytes"):
                decompress_all([frame] * count, max_size=count * 1_000_000 - 1)
            assert tracemalloc.get_traced_memory()[1] < 2_500_000
        finally:
            tracemalloc.stop()
        assert len(decompress_all([frame] * count, max_size=count * 1_000_000)) == count


def test_a_claimed_size_is_not_believed() -> None:
    frame = bytes((0b11100000,)) + (1 << 29).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(DecodeError, match="claim"):
        decompress(b"\x11" + frame)
    with pytest.raises(DecodeError):  # no size at all: this package always writes it
        decompress(b"\x11" + magicless(bytes(1000), content_size=False)[:-1])
    honest = b"\x11" + magicless(bytes(100 << 20))
    assert len(decompress(honest)) == 100 << 20


def test_too_large_to_be_read_is_too_large_to_be_written() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return MAX_SIZE + 1

    with pytest.raises(EncodeError, match="too large"):
        compress(Huge())


@pytest.mark.parametrize("cut", [1, 2, 5, -1, -5])
def test_cut_or_continued_frames(cut: int) -> None:
    packed = compress(MESSAGE)
    with pytest.raises(DecodeError, match="damaged"):
        decompress(packed[:cut])
    with pytest.raises(DecodeError, match="damaged"):
        decompress_one(packed + b"more")
    with pytest.raises(DecodeError, match="damaged"):
        decompress(b"")


def test_threads_do_not_disturb_each_other() -> None:
    inputs = [Codec().dump([HumanMessage("word " * (n % 7), id=str(n))] * (n % 40 + 1)) for n in range(200)]
    failures: list[int] = []

    def work() -> None:
        failures.extend(1 for data in inputs * 3 if decompress(compress_function(data)) != data)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
