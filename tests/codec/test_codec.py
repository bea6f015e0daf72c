"""The whole way, and its header."""

from __future__ import annotations

import json
from typing import Any

import ormsgpack
import pytest
from hypothesis import given
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from haive_persistence.codec import Codec, SafeSerializer, Sealer, compress, context, is_sealed, new_data_key
from haive_persistence.errors import (
    DecodeError,
    EncodeError,
    PlaintextRefusedError,
    TamperedError,
    WrongKeyError,
)
from tests.codec.same import same
from tests.codec.strategies import values

AAD = context("t", "piece", 1)
KEY = new_data_key()
PLAIN, SEALED = Codec(), Codec(sealer=Sealer({1: KEY}))


@pytest.mark.parametrize(
    "codec", [PLAIN, SEALED, Codec(compression=None)], ids=["plain", "sealed", "uncompressed"]
)
@given(value=values)
def test_round_trip(codec: Codec, value: Any) -> None:
    stored = codec.encode(value, AAD)
    assert same(codec.decode(stored, AAD), value)
    assert is_sealed(stored) == (codec.sealer is not None)
    assert codec.unpack(codec.pack(codec.dump(value), AAD), AAD) == codec.dump(value)


def test_the_header_is_two_bytes() -> None:
    for value in (None, b"x", 1, "a", [], {"a": 1}, bytearray(b"x")):
        _, data = SafeSerializer().dumps_typed(value)
        assert len(PLAIN.encode(value, AAD)) == len(data) + 2


def test_tags() -> None:
    assert PLAIN.dump(None) == b"\x00"
    assert PLAIN.dump(b"ab") == b"\x01ab"
    assert PLAIN.dump(bytearray(b"ab")) == b"\x02ab"
    assert PLAIN.dump(1) == b"\x03\x01"
    assert PLAIN.load(b"\x04[1]") == [1]
    with pytest.raises(DecodeError, match="pickled"):
        PLAIN.load(b"\x05\x80\x04N.")


def test_unknown_and_damaged() -> None:
    with pytest.raises(DecodeError, match="type tag 0x2a is unknown: written by a newer version"):
        PLAIN.load(b"\x2ax")
    for data in (b"", b"\x7f", b"\x7f\x05abc"):
        with pytest.raises(DecodeError, match="damaged"):
            PLAIN.load(data)
    for stored in (b"\x2a", b"\x7fx", b"\x00"):
        with pytest.raises(DecodeError, match="newer version"):
            PLAIN.decode(stored, AAD)
    with pytest.raises(DecodeError, match="unknown serialisation type 'x'"):
        PLAIN.load(b"\x7f\x01x")


def test_sealed_and_unsealed_do_not_mix() -> None:
    with pytest.raises(PlaintextRefusedError):
        SEALED.decode(PLAIN.encode(1, AAD), AAD)
    with pytest.raises(WrongKeyError, match="set encryption_key"):
        PLAIN.decode(SEALED.encode(1, AAD), AAD)
    with pytest.raises(TamperedError):
        SEALED.decode(SEALED.encode(1, AAD), context("t", "piece", 2))
    with pytest.raises(WrongKeyError):
        SEALED.with_sealer(Sealer({1: new_data_key()})).decode(SEALED.encode(1, AAD), AAD)


def test_everything_is_sealed_primitives_included() -> None:
    for value in ("SECRET-text", {"ssn": "SECRET-text"}, b"SECRET-text", ["SECRET-text"] * 9):
        assert b"SECRET" not in SEALED.encode(value, AAD)


def test_a_sealed_value_is_authenticated_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = bytearray(SEALED.encode({"a": 1}, AAD))
    stored[-1] ^= 1
    monkeypatch.setattr("haive_persistence.codec.decompress", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(TamperedError):
        SEALED.decode(bytes(stored), AAD)


def test_max_size() -> None:
    stored = PLAIN.encode("a" * 10_000, AAD)
    with pytest.raises(DecodeError, match="at most 100"):
        PLAIN.unpack(stored, AAD, max_size=100)


class Json:
    """A serialiser of the user's, in LangGraph's newer form."""

    def __init__(self, tag: str = "my-json") -> None:
        self.tag = tag

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return self.tag, json.dumps(obj).encode()

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        assert data[0] == self.tag
        return json.loads(data[1])


class Untyped:
    """And in its older form."""

    def dumps(self, obj: Any) -> bytes:
        return repr(obj).encode()

    def loads(self, data: bytes) -> Any:
        return data.decode()


@pytest.mark.parametrize("tag", ["my-json", "", "ü", "msgpack", "null", "x" * 255])
def test_foreign_serialisers(tag: str) -> None:
    codec = Codec(Json(tag))
    assert codec.decode(codec.encode({"a": 1}, AAD), AAD) == {"a": 1}


def test_other_serialisers_of_langgraph() -> None:
    untyped = Codec(Untyped())
    assert untyped.decode(untyped.encode([1], AAD), AAD) == "[1]"
    pickling = Codec(JsonPlusSerializer(pickle_fallback=True))
    assert pickling.decode(pickling.encode(1j, AAD), AAD) == 1j

    class Cipher:
        def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
            return "aes", plaintext[::-1]

        def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
            return ciphertext[::-1]

    encrypted = Codec(EncryptedSerializer(Cipher(), SafeSerializer()))
    assert encrypted.dump({"a": 1})[:13] == b"\x7f\x0bmsgpack+aes"
    for value in ({"a": 1}, None, b"x"):
        assert encrypted.decode(encrypted.encode(value, AAD), AAD) == value


def test_failures_of_foreign_serialisers_are_ours_and_chained() -> None:
    with pytest.raises(EncodeError, match="could not store a set") as caught:
        Codec(Json()).dump({1})
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(DecodeError, match="could not read a value of type 'my-json'"):
        Codec(Json()).load(b"\x7f\x07my-json{")
    with pytest.raises(EncodeError, match="at most 255 bytes"):
        Codec(Json("x" * 256)).dump(1)


def test_copies_of_nested_objects_count_for_what_a_read_may_take() -> None:
    data = b"\xc6" + (1_000_000).to_bytes(4, "big") + bytes(1_000_000)
    for _ in range(60):
        data = ormsgpack.packb(ormsgpack.Ext(7, data))
    tagged = PLAIN.dump(1)[:1] + data
    PLAIN.load(tagged)
    with pytest.raises(DecodeError, match="max_read_bytes"):
        Codec(max_read_bytes=20_000_000).load(tagged)
    with pytest.raises(DecodeError, match="max_read_bytes"):
        Codec(max_read_bytes=20_000_000).load_all([tagged, tagged])


def test_compress_is_importable_on_its_own() -> None:
    assert compress(b"x") == b"\x10x"
