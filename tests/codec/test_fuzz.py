"""Bytes from anywhere are read as a value or refused with one of our errors, and nothing else happens."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import ormsgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.serde._msgpack import SAFE_MSGPACK_TYPES
from langgraph.types import Command, Interrupt, Send

from haive_persistence.codec import Codec, Keyring, SafeSerializer, Sealer, context, decompress
from haive_persistence.errors import CodecError
from tests.codec import sample_types as t
from tests.codec.strategies import json_values, values

SERDE = SafeSerializer()
STRICT = SafeSerializer(allowed_msgpack_modules=None)
AAD = context("t", "piece", 1)
KEY = bytes(32)
SEALED = Codec(sealer=Sealer({1: KEY, 300: KEY[::-1]}))
RING = Keyring(KEY)

# A time zone that Python does not find makes it look into the package `tzdata`, which is data: the one
# import that LangGraph's safe types can cause.
_ALLOWED = ("importlib.resources", "tzdata", "zoneinfo")


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_called() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of patterns that re.compile finds odd
        yield
    logging.disable(logging.NOTSET)
    assert t.CALLS == []


def msgpack(serde: SafeSerializer) -> Callable[[bytes], Any]:
    return lambda data: serde.loads_typed(("msgpack", data))


def read_json(data: bytes) -> Any:
    return SERDE.loads_typed(("json", data))


def stored(codec: Codec) -> Callable[[bytes], Any]:
    return lambda data: codec.decode(data, AAD)


def refuses_or_reads(read: Callable[[bytes], Any], data: bytes) -> None:
    before = list(sys.modules)
    with contextlib.suppress(CodecError):
        read(data)
    if len(sys.modules) != len(before):
        assert not {name for name in set(sys.modules) - set(before) if not name.startswith(_ALLOWED)}


SEEDS = [
    [HumanMessage("hello", id="1"), AIMessage("", tool_calls=[{"name": "f", "args": {"x": 1}, "id": "c"}])],
    ToolMessage("r", tool_call_id="c", artifact={"a": 1}),
    {"a": t.Person(name="x", address=t.Address(street="s")), "b": [t.Leaf(1), t.Colour.RED, t.Pair(1, 2)]},
    [Send("n", {"a": 1}), Command(goto="x"), Interrupt(1, id="i"), {1, 2}, {(1, t.Level.LOW): 2**70}],
    ["\ud800", 1.5, b"bytes", None, {"deep": {"er": [[[1]]]}}],
]
MSGPACK = [SERDE.dumps_typed(seed)[1] for seed in SEEDS]
STORED = [codec.encode(seed, AAD) for seed in SEEDS for codec in (Codec(), Codec(compression=None), SEALED)]
WRAPPED = [RING.wrap(KEY, "t", 1)]


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A valid input with bytes changed, cut, doubled or spliced."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        change = draw(st.sampled_from(["bit", "byte", "cut", "insert", "double"]))
        if change == "bit" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "byte" and data:
            data[at] = draw(st.integers(0, 255))
        elif change == "cut":
            del data[at : at + draw(st.integers(1, 30))]
        elif change == "insert":
            data[at:at] = draw(st.binary(max_size=8))
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 60))]
    return bytes(data)


@given(st.one_of(st.binary(max_size=60), mutated(MSGPACK)))
@settings(max_examples=500)
def test_msgpack(data: bytes) -> None:
    for serde in (SERDE, STRICT):
        refuses_or_reads(msgpack(serde), data)


@given(st.one_of(st.binary(max_size=60), mutated(STORED)))
@settings(max_examples=500)
def test_stored_bytes(data: bytes) -> None:
    for codec in (Codec(), SEALED):
        refuses_or_reads(stored(codec), data)


@given(st.binary(max_size=80), st.integers(0, 255))
def test_frames_and_tags(data: bytes, first: int) -> None:
    refuses_or_reads(lambda data: decompress(data, max_size=10_000_000), bytes((first,)) + data)
    refuses_or_reads(Codec().load, bytes((first,)) + data)


@given(st.one_of(st.binary(max_size=120), mutated(WRAPPED)))
def test_wrapped_keys(data: bytes) -> None:
    refuses_or_reads(lambda data: RING.unwrap(data, "t", 1), data)


TYPES = "tests.codec.sample_types"
NAMES = [*sorted(SAFE_MSGPACK_TYPES), *((TYPES, name) for name in vars(t) if name != "CALLS")]
NAMES += [(TYPES, "Outer.Inner"), (TYPES, "Canary.make"), (TYPES, "CanaryModel.make"), ("os", "system")]
NAMES += [("builtins", "eval"), ("builtins", "str"), ("builtins", "dict"), ("builtins", "int"), ("", "")]
NAMES += [("subprocess", "Popen"), ("numpy", "float32"), ("numpy", "ndarray"), ("enum", "Enum")]
NAMES += [("pydantic.main", "BaseModel"), ("dataclasses", "Field"), ("collections", "OrderedDict")]
names = st.sampled_from(NAMES)
extras = st.sampled_from(
    [(), ("make",), ("fromisoformat",), ("model_validate_json",), ({"qualname": "Outer.Inner"},)]
)


def _without_objects(value: Any) -> Any:
    data = SERDE.dumps_typed([value])[1]
    return ormsgpack.unpackb(data, ext_hook=lambda *_: None, option=ormsgpack.OPT_NON_STR_KEYS)


payloads = st.one_of(
    json_values,
    st.fixed_dictionaries({}, optional={"value": json_values, "name": json_values, "x": json_values}),
    values.map(_without_objects),
)


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """Any name with any payload under any extension code, perhaps inside another."""
    code, (module, name), payload = draw(st.integers(-1, 9)), draw(names), draw(payloads)
    if draw(st.integers(0, 2)) == 0:
        payload = ormsgpack.Ext(draw(st.integers(0, 7)), draw(objects()))
    parts = (module, name, payload, *draw(extras))
    inner = ormsgpack.packb(parts, option=ormsgpack.OPT_NON_STR_KEYS)
    return inner if code < 0 else ormsgpack.packb(ormsgpack.Ext(code, inner))


@given(objects())
@settings(max_examples=600)
def test_objects_of_any_name(data: bytes) -> None:
    for serde in (SERDE, STRICT):
        refuses_or_reads(msgpack(serde), data)


@given(names, json_values, st.sampled_from([1, 2, "1"]), st.sampled_from([None, "make", [None, "construct"]]))
@example(("datetime", "datetime"), "x", 2, "fromisoformat")
def test_json_constructors_of_any_name(key: tuple[str, str], payload: Any, mark: Any, method: Any) -> None:
    module, name = key
    value = {"lc": mark, "type": "constructor", "id": [*module.split("."), name], "method": method}
    for how in (
        {"args": [payload]},
        {"args": [payload, payload]},
        {"kwargs": {"value": payload}},
        {"args": payload},
    ):
        data = json.dumps([{**value, **how}]).encode()
        refuses_or_reads(read_json, data)


@given(st.one_of(st.binary(max_size=60), json_values.map(lambda value: json.dumps(value).encode())))
def test_json(data: bytes) -> None:
    refuses_or_reads(read_json, data)


def test_many_random_changes() -> None:
    """Cheaper than Hypothesis by far, so more of them; seeded, so the same ones every time."""
    rng = random.Random(7)
    for data in (*MSGPACK, *STORED):
        for _ in range(300):
            changed = bytearray(data)
            for _ in range(rng.choice((1, 1, 2, 5))):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            refuses_or_reads(msgpack(SERDE), bytes(changed))
            refuses_or_reads(stored(Codec()), bytes(changed))
            refuses_or_reads(stored(SEALED), bytes(changed))
