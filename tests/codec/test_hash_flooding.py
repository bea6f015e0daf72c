"""Keys that all hash alike are refused before a set or dict of them is made."""

from __future__ import annotations

import time
import uuid
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import ormsgpack
import pytest

from haive_persistence.codec import SafeSerializer, is_unbuilt
from haive_persistence.codec.hash_flooding import MAX_ALIKE
from haive_persistence.errors import DecodeError
from tests.codec import sample_types as t

SERDE = SafeSerializer()
MANY = 30_000
PRIME = 2**61 - 1


def ext(*parts: Any) -> bytes:
    return ormsgpack.packb(ormsgpack.Ext(1, ormsgpack.packb([*parts])))


def wrapped(name: str, items: list[bytes], around: Callable[[bytes], bytes] = bytes) -> bytes:
    """The stored form of `builtins.name(items)`; `around` makes the payload of the list."""
    payload = around(b"\xdc" + len(items).to_bytes(2, "big") + b"".join(items))
    module = "builtins" if name in ("set", "frozenset", "dict") else "collections"
    head = b"\x93" + ormsgpack.packb(module) + ormsgpack.packb(name)
    return ormsgpack.packb(ormsgpack.Ext(0, head + payload))


NUMBERS = {
    "int": [ext("builtins", "int", [hex(1 + n * PRIME), 16]) for n in range(20, 20 + MANY)],
    "uuid": [
        ormsgpack.packb(ormsgpack.Ext(0, ormsgpack.packb(["uuid", "UUID", uuid.UUID(int=1 + n * PRIME).hex])))
        for n in range(MANY)
    ],
    "decimal": [
        ormsgpack.packb(ormsgpack.Ext(0, ormsgpack.packb(["decimal", "Decimal", str(1 + n * PRIME)])))
        for n in range(MANY)
    ],
}


def _alike(count: int) -> list[tuple[int, int]]:
    """Pairs of numbers whose tuples hash alike: the second number makes up for the first."""
    mask, rotate = 2**64 - 1, lambda x, by: (x << by | x >> 64 - by) & (2**64 - 1)
    first_prime, second_prime = 11400714785074694791, 14029467366897019727
    inverse = pow(second_prime, -1, 2**64)
    found: list[tuple[int, int]] = []
    number = 1
    while len(found) < count:
        number += 1
        acc = rotate(2870177450012600261 + number * second_prime & mask, 31) * first_prime & mask
        other = (12345 - acc) * inverse & mask
        if other < 2**61 - 1:
            found.append((number, other))
    assert len({hash(pair) for pair in found}) == 1
    return found


ALIKE = _alike(MANY)


def refused(data: bytes) -> None:
    before = time.process_time()
    with pytest.raises(DecodeError, match="hash alike"):
        SERDE.loads_typed(("msgpack", data))
    assert time.process_time() - before < 2  # a second is what reading the numbers takes


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("name", ["set", "frozenset"])
def test_a_set_of_them_stays_a_list(kind: str, name: str) -> None:
    data = wrapped(name, NUMBERS[kind])
    value = SERDE.loads_typed(("msgpack", data))
    assert is_unbuilt(value)
    assert len(value) == MANY
    assert SERDE.dumps_typed(value) == ("msgpack", data)


def test_a_dict_of_them_stays_a_list_of_pairs() -> None:
    data = wrapped("dict", [b"\x92" + number + b"\x01" for number in NUMBERS["int"]])
    value = SERDE.loads_typed(("msgpack", data))
    assert is_unbuilt(value)
    assert value[7] == [1 + 27 * PRIME, 1]


@pytest.mark.parametrize("name", ["OrderedDict", "Counter", "defaultdict"])
def test_no_dict_is_made_of_pairs(name: str) -> None:
    pairs = [b"\x92" + number + b"\x01" for number in NUMBERS["int"]]
    data = wrapped(name, pairs, (lambda one: b"\x92\xc0" + one) if name == "defaultdict" else bytes)
    assert is_unbuilt(SERDE.loads_typed(("msgpack", data)))


def test_maps_with_such_keys_are_refused() -> None:
    flood = (
        b"\xdf" + MANY.to_bytes(4, "big") + b"".join(ormsgpack.packb(list(one)) + b"\x01" for one in ALIKE)
    )
    text_first = b"\xdf" + (MANY + 1).to_bytes(4, "big") + b"\xa1a\x01" + flood[5:]
    for data in (flood, text_first, b"\x92\x01" + flood, b"\x81\xa1a" + flood, b"\x81\x05" + flood):
        refused(data)
        refused(ormsgpack.packb(ormsgpack.Ext(0, b"\x93\xa1m\xa1n" + data)))
    refused(b"\xdf" + (1).to_bytes(4, "big") + b"\x01" + flood)
    # without a byte that could be taken for the start of another map
    clean = [one for one in map(ormsgpack.packb, map(list, ALIKE)) if not {0xDE, 0xDF} & set(one)][:3000]
    entries = b"".join(one + b"\x01" for one in clean)
    for before in range(5):
        refused(b"\x91" * before + b"\xde" + (3000).to_bytes(2, "big") + entries)
        refused(b"\x91" * before + b"\xdf" + (3000).to_bytes(4, "big") + entries)
    with pytest.raises(DecodeError):  # by its length already, where ormsgpack does not look at it
        SERDE.loads_typed(("msgpack", flood[:-5]))
    refused(b"\x92\x81\x01\x01" + flood)


def test_as_many_other_keys_come_back() -> None:
    keys: list[Any] = [*range(-MANY, MANY), *map(float, range(1, 50)), True, None, b"x", (1, (2, 3)), "text"]
    for value in (
        dict.fromkeys(keys, 1),
        {"a": dict.fromkeys(map(str, keys)), 5: dict.fromkeys(range(70_000))},
        set(range(MANY)),
        frozenset(uuid.UUID(int=n) for n in range(MAX_ALIKE + 10)),
        {Decimal(n): n for n in range(MAX_ALIKE + 10)},
        OrderedDict.fromkeys(range(MANY)),
        Counter(range(MANY)),
        defaultdict(list, dict.fromkeys(range(MANY))),
        {(n, str(n)): n for n in range(MANY)},
        dict.fromkeys(ALIKE[:MAX_ALIKE]),
        set(ALIKE[:MAX_ALIKE]),
    ):
        again = SERDE.loads_typed(SERDE.dumps_typed(value))
        assert type(again) is type(value)
        assert again == value
        assert list(again) == list(value) or isinstance(value, (set, frozenset))


def test_objects_under_keys_that_are_no_text_come_back_from_large_ones() -> None:
    for value in (
        t.Leaf({n: t.Leaf({str(n): t.Colour.RED}) for n in range(5000)}),
        t.Leaf([{1: t.Leaf("x" * 300_000)}]),
    ):
        assert SERDE.loads_typed(SERDE.dumps_typed([value])) == [value]
