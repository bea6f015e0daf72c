"""Values come back as they were written, and LangGraph's serialiser can read what it could write."""

from __future__ import annotations

import asyncio
import datetime as dt
import fractions
import logging
import math
import pathlib
import re
import threading
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage
from langchain_core.prompt_values import ChatPromptValue
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.store.base import Item, SearchItem
from langgraph.types import Command, Interrupt, Overwrite, Send, TimeoutPolicy
from pydantic import AnyUrl, HttpUrl, PostgresDsn, SecretStr
from pydantic.v1 import BaseModel as BaseModelV1
from pydantic_core import MultiHostUrl, Url

from haive_persistence.codec import SafeSerializer
from haive_persistence.errors import EncodeError
from tests.codec import sample_types as t
from tests.codec.same import same
from tests.codec.strategies import json_values, values

OURS, THEIRS = SafeSerializer(), JsonPlusSerializer()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "langgraph.checkpoint.serde.jsonplus")


def round_trip(value: Any) -> Any:
    return OURS.loads_typed(OURS.dumps_typed(value))


def name(value: Any) -> str:
    return type(value).__name__ if isinstance(value, int) else ascii(value)[:40]


class PersonV1(BaseModelV1):
    name: str
    tags: set[str] = set()


MOMENT = dt.datetime(2024, 10, 27, 1, 30, 0, 5)
LONDON = ZoneInfo("Europe/London")
BRT = dt.timezone(dt.timedelta(hours=-3), "BRT")

EXACT = [
    *("a\0b", "\ud800", "x\udfff\ud83dy", "", "é" * 300),
    *(math.nan, math.inf, -math.inf, -0.0, 0.0, 5e-324, 1.7976931348623157e308),
    *(2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**5000, -(10**30), True, False),
    *(b"", b"\0\xff", [b"x"]),
    *(t.Colour.RED, t.Level.HIGH, t.Number.TWO, t.Point.CORNER, t.Access.READ | t.Access.WRITE),
    t.Outer.Status.DONE,
    {1: "a", None: "b", 1.5: "c", b"d": "d", False: "e", (1, ("x", None)): "f", "g": "g", math.inf: 0},
    {t.Level.HIGH: 1, t.Colour.RED: 2, t.Number.ONE: 3},
    {MOMENT: 1, MOMENT.date(): 2, uuid.UUID(int=1): 3, dt.timedelta(1): 4},
    {(t.Colour.RED, 2**70): 1, frozenset({1, (2, 3)}): 2, t.Frozen(1): 3, t.Pair(1, 2): 4, 2**70: 5},
    {"\ud800": {"\udc00": ["\udbff"]}},
    *({1, 2}, {(1, 2), (3, (4, "\ud800"))}, frozenset({frozenset({1})}), set(), {t.Level.LOW, "other"}),
    *(deque([1, [2]]), deque([1, 2], maxlen=2), deque(maxlen=0)),
    *(MOMENT, MOMENT.replace(fold=1), MOMENT.replace(tzinfo=LONDON), MOMENT.replace(tzinfo=LONDON, fold=1)),
    *(MOMENT.replace(tzinfo=dt.timezone.utc), MOMENT.replace(tzinfo=BRT)),
    MOMENT.replace(tzinfo=dt.timezone(dt.timedelta(seconds=3601))),
    *(MOMENT.date(), MOMENT.time(), dt.time(1, 2, tzinfo=LONDON, fold=1), dt.timedelta(-1, 5, 7)),
    *(dt.timezone.utc, BRT, LONDON),
    *(pathlib.Path("/a/b"), pathlib.Path(), pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("c:/x")),
    *(re.compile("a+", re.IGNORECASE | re.DOTALL), re.compile(b"x")),
    *(t.Frozen(1, 2), t.Slotted(1, [2]), t.Late(given=4), t.Node(t.Node(t.Leaf({"a": t.Leaf(1)})))),
    *(t.Pair(1, t.Pair(None)), t.Names({1, 2}), t.Queue([1]), t.Key(int=7)),
    SecretStr("hidden"),
    *((), (1, (2, [3, ()])), [(1,), {"a": (None,)}], {"a": ("\ud800", 2**70)}, {(1, "x"): (1,)}),
    *(
        OrderedDict(b=1, a=(2,)),
        OrderedDict({1: 2, t.Colour.RED: "\ud800"}),
        Counter("aab"),
        Counter({(1,): 2}),
    ),
    *(defaultdict(list, a=[1]), defaultdict(None, {1: (2,)}), defaultdict(OrderedDict, {t.Level.LOW: 1})),
    *(t.Text("a"), {t.Text("k"): t.Text("\ud800")}, t.Count(2**70), t.Ratio(0.5)),
    *(t.Rows([1, (2,)]), t.Table({"a": 1}), t.Table({2: t.Rows()}), t.Vector((1, 2)), t.labelled("a", 1)),
    *(
        ValueError("x", 1),
        KeyError(("a",)),
        t.Failure("x", 7),
        OSError(2, "No such file"),
        [StopIteration(3)],
    ),
    *(t.WithPostInit(1), t.WithPrivate(x=1), t.private(2), t.Factories(), t.Holder(value=t.Leaf((1,)))),
    *(np.str_("a"), np.bytes_(b"a"), t.Blob(b"x")),
    PersonV1(name="a", tags={"x"}),
    t.Person(name="a", address=t.Address(street="s"), tags={"x"}, friends=[t.Person(name="b")], born=MOMENT),
    *(
        t.Aliased(Count=5, deep=["q"], a="z"),
        t.HoldsAliased(inner=t.Aliased(Count=3), many=[t.Aliased(b="b")]),
    ),
    *(
        t.DumpsAliases(Count=4),
        t.Strict(width=2, height=3),
        t.Open(known=2, more=[3]),
        t.Normalised(text="q"),
    ),
    *(t.OwnInit(3), t.Tags(["a"]), t.IntBox(item=3), t.PersonBox(item=t.Person(name="x"))),
    t.Links(
        home="x-app:thing?a=1#b",
        site="http://example.com/ä b",
        files=["file:///a/b"],
        dsn="postgres://u:p@h1:1,h2:2/db",
        by_name={"a": "wss://h/", "b": "http://1.2.3.4:80"},
    ),
    *(
        cls(home="x-app:thing", sites=["http://a", "https://b/c?d=1"], dsn="postgres://h1:1,h2:2/db")
        for cls in (t.SerializesOneField, t.SerializesUrls, t.SerializesItself, t.SerializesMore)
    ),
    *(AnyUrl("http://a"), t.Site("https://user:pass@host:8443/path?q=1"), [PostgresDsn("postgres://h/db")]),
    *(Url("http://a"), MultiHostUrl("redis://a:1,b:2/0"), {HttpUrl("http://a"): 1}),
    t.Owner(pet=t.Dog(), messages=[t.HumanMessage("h", id="1")], secret=SecretStr("q")),
    *(t.Outer(inner=t.Outer.Inner(value=2)), t.Outer.Inner(value=3), t.MyMessage("x", extra_field=3)),
    t.Validating(3),
    *(Send("n", {"a": 1}), Send("n", 1, timeout=TimeoutPolicy(run_timeout=5))),
    *(Command(update={"a": 1}, goto="x"), Interrupt({"q": 1}, id="i"), Overwrite([1])),
    Item(value={"a": 1}, key="k", namespace=("a", "b"), created_at=MOMENT, updated_at=MOMENT),
    ChatPromptValue(messages=[HumanMessage("h", id="1"), t.MyMessage("x", extra_field=3)]),  # a Sequence
    t.WithPath(path=pathlib.Path("/a/b"), encoded=b"YQ=="),  # type: ignore[arg-type]
    SearchItem(("a", "b"), "k", {"a": (1, {2})}, created_at=MOMENT, updated_at=MOMENT, score=0.5),
    *(_DeltaSnapshot([1, 2]), _DeltaSnapshot({2**70: "\ud800"})),
    *(np.float32(0.1), np.float64(0.1), np.int64(-4), np.uint64(2**64 - 1), np.bool_(True), np.float16(1.5)),
]


@pytest.mark.parametrize("value", EXACT, ids=name)
def test_comes_back_exactly(value: Any) -> None:
    wrapped = {"a": [value]}
    assert same(round_trip(value), value)
    assert same(round_trip(wrapped), wrapped)


@given(values)
def test_any_state_comes_back_exactly(value: Any) -> None:
    assert same(round_trip(value), value)


@given(values)
def test_wire_format_is_langgraphs(value: Any) -> None:
    """What LangGraph keeps exactly, we write so that it reads it, and read as it does."""
    try:
        theirs = THEIRS.dumps_typed(value)
        kept = same(THEIRS.loads_typed(theirs), value)
    except TypeError:
        return
    if kept:
        assert same(OURS.loads_typed(theirs), value)
        assert same(THEIRS.loads_typed(OURS.dumps_typed(value)), value)


@given(json_values)
def test_plain_data_is_the_same_bytes(value: Any) -> None:
    assert OURS.dumps_typed(value) == THEIRS.dumps_typed(value)


@pytest.mark.parametrize(
    "value",
    [
        {1: 2, None: [{True: {1.5: b""}}]},
        t.Leaf({1: t.Leaf({2: [t.Colour.RED]})}),
        [HumanMessage("x"), {7: HumanMessage("y", additional_kwargs={"k": {1: 2}})}],
        {b"k": t.Colour.RED, 2.5: 1},
    ],
    ids=name,
)
def test_keys_of_other_types_are_the_same_bytes(value: Any) -> None:
    assert OURS.dumps_typed(value) == THEIRS.dumps_typed(value)
    assert same(round_trip(value), value)


def test_keys_of_other_types_cost_no_more_the_deeper_they_are() -> None:
    value: Any = 1
    for _ in range(40):  # were each level tried twice, this would take for ever
        value = t.Leaf({"a": value, 1: 2})
    assert same(round_trip(value), value)
    for _ in range(40):
        value = t.Leaf({"a": value, t.Colour.RED: 2})
    assert same(round_trip(value), value)


PERMISSIVE_READS = [
    *("\ud800", 2**70, -(2**100), {t.Level.HIGH: 1, t.Colour.RED: 2}, {uuid.UUID(int=1): 3, MOMENT: 1}),
    *({"\ud800": 1}, {frozenset({1}): 2}, MOMENT.replace(tzinfo=LONDON, fold=1), deque([1], maxlen=4)),
    *(np.float32(0.1), np.bool_(True), np.int64(3), pathlib.PurePosixPath("a")),
]


@pytest.mark.parametrize("value", PERMISSIVE_READS, ids=name)
def test_langgraph_reads_exactly_what_it_could_not_write(value: Any) -> None:
    assert same(THEIRS.loads_typed(OURS.dumps_typed(value)), value)


def test_documented_changes_are_those_of_langgraph() -> None:
    for value, expected in [
        ([bytearray(b"x")], [b"x"]),
    ]:
        assert same(round_trip(value), expected)
        assert same(THEIRS.loads_typed(THEIRS.dumps_typed(value)), expected)


def test_top_level_bytes_and_none_need_no_msgpack() -> None:
    assert OURS.dumps_typed(None) == ("null", b"")
    assert OURS.dumps_typed(b"\0") == ("bytes", b"\0")
    assert OURS.dumps_typed(bytearray(b"\0")) == ("bytearray", b"\0")
    assert same(round_trip(bytearray(b"ab")), bytearray(b"ab"))


def test_a_model_that_no_longer_validates_is_taken_as_it_is() -> None:
    broken = t.Validated.model_construct(amount=-1)
    assert same(round_trip(broken), broken)


def test_langgraphs_own_bytes_of_a_tuple_enum_are_restored() -> None:
    assert OURS.loads_typed(THEIRS.dumps_typed([t.Point.CORNER])) == [t.Point.CORNER]


def test_rows_of_another_python_version() -> None:
    path = ormsgpack.packb(ormsgpack.Ext(1, ormsgpack.packb(["pathlib._local", "PosixPath", ["/", "a"]])))
    assert OURS.loads_typed(("msgpack", path)) == pathlib.Path("/a")


ARRAYS = [
    np.arange(6).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(10)[::2],
    np.array(["a", "bc"]),
    np.array([b"a"]),
    np.array(["2020-01-01"], dtype="M8[D]"),
    np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    np.array([((1, 2),)], dtype=[("a", "i4", (2,))]),
    np.zeros((0, 3)),
    np.array(5),
    np.array([True]),
    np.array([1 + 2j]),
    np.arange(3, dtype=">i4"),
    np.array([np.nan, -0.0], dtype="float16"),
]


@pytest.mark.parametrize("array", ARRAYS, ids=str)
def test_arrays(array: Any) -> None:
    read = round_trip({"a": array})["a"]
    assert read.dtype == array.dtype
    assert read.shape == array.shape
    assert read.tobytes() == array.tobytes()
    assert read.flags.writeable


@pytest.mark.parametrize("array", [ARRAYS[0], ARRAYS[1], ARRAYS[2], ARRAYS[3], ARRAYS[8]], ids=str)
def test_arrays_are_the_same_bytes(array: Any) -> None:
    assert OURS.dumps_typed(array) == THEIRS.dumps_typed(array)


UNSTORABLE: list[tuple[Any, str]] = [
    ({"a": [1, {"b": object()}]}, "value['a'][1]['b']"),
    ([t.Person(name="a"), t.Open(other={"f": object()})], "value[1].other['f']"),
    (t.Leaf({"x": 1j}), "value.value['x']"),
    (t.Pair(1, lambda: None), "value.right"),
    ({"f": open}, "value['f']"),
    ({object: 1}, "value key <class 'object'>"),
    (Send("n", {"x": range(3)}), "value[1]['x']"),
    ({1: {2: object()}}, "value[1][2]"),
    ([np.array([object()])], "value[0]: a numpy array of Python objects"),
    ([np.ma.array([1], mask=[1])], "value[0]: a masked array"),
    ((x for x in ()), "value: builtins.generator"),
]


@pytest.mark.parametrize(("value", "where"), UNSTORABLE, ids=name)
def test_what_cannot_be_stored_is_named(value: Any, where: str) -> None:
    with pytest.raises(EncodeError) as caught:
        OURS.dumps_typed(value)
    assert where in str(caught.value)


def test_cycles_and_depth_are_refused() -> None:
    cycle: list[Any] = []
    cycle.append({"again": cycle})
    with pytest.raises(EncodeError, match="contains itself"):
        OURS.dumps_typed(cycle)
    node = t.Node()
    node.child = node
    with pytest.raises(EncodeError, match="contains itself"):
        OURS.dumps_typed(node)


def test_what_is_not_too_deep_to_write_is_not_too_deep_to_read() -> None:
    written = 0
    for depth in range(50, 1500, 25):
        value: Any = 1
        for _ in range(depth):
            value = t.Leaf(value)
        try:
            data = OURS.dumps_typed(value)
        except EncodeError:
            continue
        assert OURS.dumps_typed(OURS.loads_typed(data)) == data
        written = depth
    assert written >= 200


@given(st.integers())
def test_integers_of_any_size(number: int) -> None:
    assert round_trip([number, {number: 1}]) == [number, {number: 1}]


class Answer:
    def __await__(self) -> Iterator[None]:
        return iter(())


def test_exceptions_with_what_cannot_be_stored_are_refused() -> None:
    error = ValueError("x")
    error.response = object()  # type: ignore[attr-defined]
    with pytest.raises(EncodeError, match="store repr"):
        OURS.dumps_typed({"error": error})


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (1j, "value.real"),
        (lambda: 1, "its name"),
        (types.MappingProxyType({}), "dict(value)"),
        (range(3), "list(value)"),
        (threading.Lock(), "in the node"),
        (threading.Event(), "in the node"),
        (asyncio.Lock(), "in the node"),
        (asyncio.Queue(), "in the node"),
        (Answer(), "await it"),
        (fractions.Fraction(1, 3), "str(value)"),
        (np.datetime64("2024-01-01"), "numpy.array(value)"),
        (object(), "dataclass"),
        (defaultdict(lambda: 1), "dict(value)"),
    ],
    ids=name,
)
def test_an_error_says_what_to_store_instead(value: Any, advice: str) -> None:
    with pytest.raises(EncodeError, match=re.escape(advice)):
        OURS.dumps_typed([value])


def test_no_pickle() -> None:
    with pytest.raises(TypeError, match="pickle_fallback"):
        SafeSerializer(pickle_fallback=True)  # type: ignore[call-arg]
    with pytest.raises(EncodeError):
        OURS.dumps_typed(lambda: None)
