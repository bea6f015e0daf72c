"""Sealed records open with their key, in their row, unchanged; otherwise they say what is wrong."""

from __future__ import annotations

import base64
import hashlib
import hmac
import subprocess
import sys
import uuid

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from haive_persistence.codec import (
    Codec,
    Keyring,
    Sealer,
    blind_index,
    context,
    data_key_number,
    is_sealed,
    new_data_key,
    row,
    seal,
    wrapping_id,
)
from haive_persistence.errors import (
    ConfigError,
    DecodeError,
    PlaintextRefusedError,
    SealError,
    TamperedError,
    WrongKeyError,
)

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
ROW, ELSEWHERE = context("acme", "piece", "thread", 1), context("acme", "piece", "thread", 2)
SECRET = b"the secret"


# --- records ----------------------------------------------------------------------------------


@given(st.binary(max_size=200), st.integers(0, 2**16 - 1))
def test_round_trip(data: bytes, number: int) -> None:
    sealed = Sealer({number: KEY}).seal(data, ROW)
    assert Sealer({number: KEY}).open(sealed, ROW) == data
    assert data_key_number(sealed) == number
    assert is_sealed(sealed)


def test_size() -> None:
    for number in (0, 1, 65535):
        assert len(Sealer({number: KEY}).seal(b"x", ROW)) == seal.OVERHEAD + 1


def test_layout_is_the_documented_one() -> None:
    """The same bytes from the library's own HKDF and AES-GCM."""
    sealed = Sealer({5: KEY}).seal(SECRET, ROW)
    header, salt, check, commitment = sealed[:4], sealed[4:20], sealed[20:24], sealed[24:52]
    assert header == b"\x81\x01\x00\x05"
    hkdf = HKDF(hashes.SHA512(), 60, salt=b"haive.record.v1", info=b"haive.record.v1" + salt)
    derived = hkdf.derive(KEY)
    assert commitment == derived[32:]
    assert AESGCM(derived[:32]).decrypt(bytes(12), sealed[52:], header + ROW) == SECRET
    prk = hmac.digest(b"haive.record.v1", KEY, "sha512")
    assert check == HKDFExpand(hashes.SHA512(), 4, b"haive.record.v1 check").derive(prk)


def test_equal_records_look_different() -> None:
    sealer = Sealer({1: KEY})
    sealed = {sealer.seal(SECRET, ROW) for _ in range(100)}
    assert len({record[4:20] for record in sealed}) == 100
    assert len({record[52:] for record in sealed}) == 100
    assert not any(SECRET in record for record in sealed)


def test_another_row_tenant_or_table() -> None:
    sealed = Sealer({1: KEY}).seal(SECRET, ROW)
    for aad in (ELSEWHERE, context("acme", "write", "thread", 1), context("evil", "piece", "thread", 1), b""):
        with pytest.raises(TamperedError, match="moved here from another row"):
            Sealer({1: KEY}).open(sealed, aad)


def test_wrong_key() -> None:
    sealed = Sealer({1: KEY}).seal(SECRET, ROW)
    with pytest.raises(WrongKeyError, match="another key"):
        Sealer({1: OTHER}).open(sealed, ROW)
    with pytest.raises(WrongKeyError, match=r"sealed with data key 1; known are \[2\]"):
        Sealer({2: OTHER}).open(sealed, ROW)


def test_every_single_bit_is_protected() -> None:
    sealer, sealed = Sealer({1: KEY, 3: OTHER}), Sealer({1: KEY}).seal(SECRET, ROW)
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((SealError, DecodeError)) as caught:
            sealer.open(bytes(changed), ROW)
        if bit >= 16:  # behind format and algorithm
            assert caught.type is TamperedError, (bit, caught.value)


@pytest.mark.parametrize("size", range(80))
def test_cut_short(size: int) -> None:
    sealed = Sealer({1: KEY}).seal(SECRET, ROW)
    with pytest.raises((SealError, DecodeError)):
        Sealer({1: KEY}).open(sealed[:size] if size < len(sealed) else sealed + b"x", ROW)


def test_commitment_is_checked_before_decryption(monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = Sealer({1: KEY}).seal(SECRET, ROW)
    sealer = Sealer({1: OTHER})
    monkeypatch.setattr(seal, "_aesgcm", lambda: pytest.fail("decrypted"))
    with pytest.raises(WrongKeyError):
        sealer.open(sealed, ROW)


def test_unsealed_input_is_refused() -> None:
    for stored in (b"", b"\x10x", Codec().encode({"a": 1}, ROW), b"\x7f"):
        with pytest.raises(PlaintextRefusedError, match="should be sealed and is not"):
            Sealer({1: KEY}).open(stored, ROW)
    with pytest.raises(PlaintextRefusedError):
        data_key_number(b"\x10x")


def test_newer_formats_are_told_from_damage() -> None:
    sealed = Sealer({1: KEY}).seal(SECRET, ROW)
    for stored in (b"\x82" + sealed[1:], b"\xff" + sealed[1:], b"\x81\x02" + sealed[2:]):
        with pytest.raises(DecodeError, match="newer version"):
            Sealer({1: KEY}).open(stored, ROW)


def test_several_data_keys() -> None:
    old, both = Sealer({1: KEY}), Sealer({1: KEY, 2: OTHER})
    assert both.open(old.seal(SECRET, ROW), ROW) == SECRET
    assert data_key_number(both.seal(SECRET, ROW)) == 2
    assert data_key_number(Sealer({1: KEY, 2: OTHER}, current=1).seal(SECRET, ROW)) == 1


def test_bad_settings() -> None:
    for keys, current in [
        ({}, None),
        ({1: b"short"}, None),
        ({1: KEY}, 2),
        ({-1: KEY}, None),
        ({2**16: KEY}, None),
    ]:
        with pytest.raises(ConfigError):
            Sealer(keys, current=current)


def test_secrets_do_not_show() -> None:
    for shown in (repr(Sealer({1: KEY})), repr(Keyring(KEY)), repr(Codec(sealer=Sealer({1: KEY})))):
        for form in (KEY.hex(), base64.b64encode(KEY).decode(), repr(KEY)[2:-1]):
            assert form not in shown


# --- contexts ---------------------------------------------------------------------------------

parts = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=6),
    st.binary(max_size=6),
    st.integers(),
    st.uuids(),
)


@given(st.lists(parts, min_size=2, max_size=4), st.lists(parts, min_size=2, max_size=4))
def test_different_rows_have_different_contexts(one: list[seal.Part], other: list[seal.Part]) -> None:
    assert (row(*one) == row(*other)) == (list(map(repr, one)) == list(map(repr, other)))


def test_contexts_are_concatenations() -> None:
    key = uuid.UUID(int=1)
    assert context("t", "piece", key, 7) == context("t", "piece", key) + row(7)
    assert context("a", "bc") != context("ab", "c")
    assert row(1) != row("1") != row(b"1")
    assert row(key) != row(key.bytes)


# --- master keys ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret",
    [
        KEY,
        KEY.hex(),
        KEY.hex().upper(),
        f" {KEY.hex()}\n",
        base64.b64encode(KEY).decode(),
        base64.b64encode(KEY),
        base64.urlsafe_b64encode(KEY).decode(),
        base64.urlsafe_b64encode(KEY).decode().rstrip("="),
    ],
    ids=repr,
)
def test_forms_of_a_key(secret: str | bytes) -> None:
    assert Keyring(secret).current_id == Keyring(KEY).current_id


def test_a_passphrase_is_stretched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Keyring("correct horse battery staple")
    key = hashlib.scrypt(
        b"correct horse battery staple",
        salt=b"haive.passphrase.v1",
        n=2**15,
        r=8,
        p=3,
        maxmem=2**26,
        dklen=32,
    )
    assert ring.current_id == Keyring(key).current_id
    monkeypatch.setattr(hashlib, "scrypt", lambda *_, **__: pytest.fail("stretched again"))
    assert Keyring("correct horse battery staple").current_id == ring.current_id


@pytest.mark.parametrize("digits", [49, 63, 65, 66])
def test_a_key_that_was_cut_is_no_passphrase(digits: int) -> None:
    with pytest.raises(ConfigError, match=f"has {digits} hexadecimal digits"):
        Keyring("0a" * (digits // 2) + "b" * (digits % 2))


@pytest.mark.parametrize("size", [16, 31, 33])
def test_random_bytes_of_another_size_are_no_passphrase(size: int) -> None:
    with pytest.raises(ConfigError, match=f"has {size} bytes"):
        Keyring(b"\xff\x00" * (size // 2) + b"\xfe" * (size % 2))


def test_a_passphrase_typed_on_another_system_is_the_same() -> None:
    assert Keyring("passwort mit u\u0308").current_id == Keyring("passwort mit ü").current_id


@pytest.mark.parametrize("secret", ["", "short", b"", "x" * 11])
def test_weak_secrets_are_refused(secret: str | bytes) -> None:
    with pytest.raises(ConfigError, match="passphrase of at least 12"):
        Keyring(secret)


def test_wrap_and_unwrap() -> None:
    ring, data_key = Keyring(KEY), new_data_key()
    wrapped = ring.wrap(data_key, "acme", 1)
    assert ring.unwrap(wrapped, "acme", 1) == data_key
    assert data_key not in wrapped
    assert wrapping_id(wrapped) == ring.current_id
    assert len(wrapped) == 106
    with pytest.raises(TamperedError):
        ring.unwrap(wrapped, "evil", 1)
    with pytest.raises(TamperedError):
        ring.unwrap(wrapped, "acme", 2)
    with pytest.raises(ConfigError):
        ring.wrap(b"short", "acme", 1)


def test_rotation_of_the_master_key() -> None:
    data_key = new_data_key()
    old = Keyring(KEY)
    wrapped = old.wrap(data_key, "acme", 1)
    rotated = Keyring(OTHER, KEY)
    assert rotated.unwrap(wrapped, "acme", 1) == data_key
    assert wrapping_id(wrapped) != rotated.current_id
    assert wrapping_id(wrapped) in rotated.ids
    again = rotated.rewrap(wrapped, "acme", 1)
    assert wrapping_id(again) == rotated.current_id
    assert Keyring(OTHER).unwrap(again, "acme", 1) == data_key
    with pytest.raises(WrongKeyError, match="wrapped by master key"):
        Keyring(OTHER).unwrap(wrapped, "acme", 1)
    with pytest.raises(WrongKeyError):
        old.unwrap(again, "acme", 1)


def test_every_bit_of_a_wrapped_key_is_protected() -> None:
    ring = Keyring(KEY)
    wrapped = ring.wrap(OTHER, "acme", 1)
    for bit in range(8 * len(wrapped)):
        changed = bytearray(wrapped)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((SealError, DecodeError)) as caught:
            ring.unwrap(bytes(changed), "acme", 1)
        if bit >= 16:
            assert caught.type is TamperedError
    for wrong in (b"", wrapped[:-1], wrapped + b"x"):
        with pytest.raises((TamperedError, DecodeError)):
            ring.unwrap(wrong, "acme", 1)


def test_a_sealed_record_is_no_wrapped_key() -> None:
    """Labels keep the two uses of a key apart, should someone use one key for both."""
    sealed = Sealer({1: KEY}).seal(OTHER, context("acme", "data_key", 1))
    forged = sealed[:2] + bytes.fromhex(Keyring(KEY).current_id) + sealed[4:]
    with pytest.raises(SealError):
        Keyring(KEY).unwrap(forged, "acme", 1)


def test_cryptography_is_loaded_only_to_seal() -> None:
    code = (
        "import sys, haive_persistence.codec as c; c.Codec().encode({'a': 1}, b'');"
        "assert not any(name.split('.')[0] == 'cryptography' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- blind index ------------------------------------------------------------------------------


def test_blind_index() -> None:
    assert blind_index(KEY, "user", "ada") == blind_index(KEY, "user", "ada")
    assert len(blind_index(KEY, "user", "ada")) == 16
    different = [
        ("user", "ada"),
        ("user", "Ada"),
        ("name", "ada"),
        ("user", "ad"),
        ("use", "rada"),
        ("user", "1"),
    ]
    values = [
        ("user", 1),
        ("user", 2),
        ("user", True),
        ("user", None),
        ("user", ""),
        ("user", 1.5),
        ("user", "True"),
    ]
    hashed = {blind_index(KEY, field, value) for field, value in [*different, *values]}
    assert len(hashed) == len(different) + len(values)
    assert blind_index(KEY, "n", 1) == blind_index(KEY, "n", 1.0)
    assert blind_index(KEY, "n", 0.0) == blind_index(KEY, "n", -0.0) == blind_index(KEY, "n", 0)
    assert blind_index(KEY, "user", "ada") != blind_index(OTHER, "user", "ada")
    assert blind_index(KEY, "user", "\ud800")
