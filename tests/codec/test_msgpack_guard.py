"""Claims of more elements than there are bytes are refused before memory is asked for."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haive_persistence.codec import SafeSerializer, msgpack_guard
from haive_persistence.errors import DecodeError
from tests.codec.strategies import values

CLAIMS = [
    b"\xdd\xff\xff\xff\xff",
    b"\x81\xdd\xff\xff\xff\xff\x01",
    b"\x91\x91\xdd\x10\x00\x00\x00" + b"\x01" * 100,
    b"\xdf\xff\xff\xff\xff\xa1a",
    b"\xdd\x00\x00\x00\x20" * 60,
    b"\xdc\xff\xff\x01",
]


@pytest.mark.parametrize("data", CLAIMS)
def test_claims_are_refused(data: bytes) -> None:
    with pytest.raises(ormsgpack.MsgpackDecodeError, match="claimed"):
        msgpack_guard.check_counts(data)
    for inner in (data, ormsgpack.packb(ormsgpack.Ext(0, data))):
        with pytest.raises(DecodeError):
            SafeSerializer().loads_typed(("msgpack", inner))


def test_this_process_survives_with_little_memory() -> None:
    code = f"""
        import resource
        from haive_persistence.codec import SafeSerializer
        from haive_persistence.errors import DecodeError
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        for data in {CLAIMS!r}:
            try:
                SafeSerializer().loads_typed(("msgpack", data))
            except DecodeError:
                pass
            else:
                raise SystemExit("read")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_suspicion_is_cheap_and_misses_nothing() -> None:
    assert [msgpack_guard.is_suspicious(data) for data in CLAIMS] == [True, True, True, False, True, False]
    assert not msgpack_guard.is_suspicious(b"\xdd\x00\x00\x00\x01\x01")
    assert not msgpack_guard.is_suspicious(bytes(1_000_000))


@given(values)
def test_honest_bytes_pass(value: Any) -> None:
    data = SafeSerializer().dumps_typed([value])[1]
    msgpack_guard.check_counts(data)


@given(st.binary(max_size=60))
def test_any_bytes_are_measured_or_refused(data: bytes) -> None:
    try:
        msgpack_guard.check_counts(data)
    except ormsgpack.MsgpackDecodeError:
        if msgpack_guard.MUST_CHECK:
            return  # the installed release would ask for the memory
        with pytest.raises(ormsgpack.MsgpackDecodeError):
            ormsgpack.unpackb(data, ext_hook=lambda *_: None, option=ormsgpack.OPT_NON_STR_KEYS)
