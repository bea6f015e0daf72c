"""What a comparison says of known states: records, summaries, patches."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import pickle
import threading
from collections import Counter, OrderedDict, defaultdict
from datetime import datetime, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import jsonpatch
import numpy as np
import pandas as pd
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from pydantic import BaseModel, SecretStr

from haive_persistence.checkpointer.versions.diff import (
    Change,
    ChannelSummary,
    Diff,
    Edit,
    compare_states,
    state_json,
)
from haive_persistence.codec import SafeSerializer, is_unbuilt
from haive_persistence.errors import InvalidInputError
from tests.codec.same import same
from tests.codec.sample_types import Table, Text
from tests.codec.test_exact import EXACT, round_trip

HUMAN = "langchain_core.messages.human.HumanMessage"


def changes(before: Any, after: Any) -> list[Change]:
    """The changes of one channel; the patch of each is tried."""
    diff = compare_states({"x": before}, {"x": after})
    check_patch(diff, {"x": before}, {"x": after})
    return list(diff.changes)


def check_patch(diff: Diff, before: dict[str, Any], after: dict[str, Any]) -> None:
    patched = jsonpatch.apply_patch(state_json(before), diff.to_json_patch())
    assert json.dumps(patched, sort_keys=True) == json.dumps(state_json(after), sort_keys=True)


def kinds(before: Any, after: Any) -> list[tuple[str, tuple[str | int, ...]]]:
    return [(change.kind, change.path[1:]) for change in changes(before, after)]


def test_channels_are_added_removed_and_changed() -> None:
    diff = compare_states({"a": 1, "b": 2, "c": 3}, {"b": 2, "c": 4, "d": 5})
    assert diff
    assert diff.changes == (
        Change("removed", ("a",), before=1),
        Change("changed", ("c",), before=3, after=4),
        Change("added", ("d",), after=5),
    )
    assert diff.summary == {
        "a": ChannelSummary("removed", removed=1),
        "c": ChannelSummary("changed", changed=1),
        "d": ChannelSummary("added", added=1),
    }


def test_messages_are_recognised_by_their_ids() -> None:
    kept, last = HumanMessage("three", id="3"), SystemMessage("five", id="5")
    before = [HumanMessage("one", id="1"), kept, AIMessage("two words", id="2"), last]
    after = [last, kept, AIMessage("two texts", id="2"), HumanMessage("four", id="4")]
    found = compare_states({"messages": before}, {"messages": after})
    assert found.summary == {"messages": ChannelSummary("changed", added=1, removed=1, changed=1, moved=1)}
    assert [(c.kind, c.path, c.id) for c in found.changes] == [
        ("removed", ("messages", 0), "1"),
        ("moved", ("messages", 0), "5"),
        ("changed", ("messages", 2, "content"), "2"),
        ("added", ("messages", 3), "4"),
    ]
    assert found.changes[1].before == 3
    assert found.changes[1].after == 0
    assert found.changes[2].edits == (Edit(4, 9, 4, 9),)


def test_a_message_may_move_and_change() -> None:
    before = [HumanMessage(str(n), id=str(n)) for n in range(3)]
    after = [HumanMessage("two", id="2"), *before[:2]]
    assert kinds(before, after) == [("moved", (0,)), ("changed", (0, "content"))]


def test_tool_calls_and_metadata_are_compared_inside() -> None:
    call = {"name": "add", "args": {"a": 1, "b": 2}, "id": "c1"}
    other = {"name": "sub", "args": {}, "id": "c2"}
    usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    before = [AIMessage("", id="1", tool_calls=[call], usage_metadata=usage)]
    changed = {**call, "args": {"a": 1, "b": 3}}
    after = [AIMessage("", id="1", tool_calls=[other, changed], usage_metadata={**usage, "output_tokens": 9})]
    assert kinds(before, after) == [
        ("added", (0, "tool_calls", 0)),
        ("changed", (0, "tool_calls", 1, "args", "b")),
        ("changed", (0, "usage_metadata", "output_tokens")),
    ]


def test_a_message_of_another_class_keeps_its_id() -> None:
    found = kinds([AIMessage("a", id="1")], [AIMessageChunk("a", id="1")])
    assert ("changed", (0, "$type")) in found
    assert ("changed", (0, "type")) in found
    assert not [path for _, path in found if "content" in path]


@dataclasses.dataclass
class Row:
    id: int
    text: str


class Doc(BaseModel):
    id: str
    text: str = ""


@pytest.mark.parametrize(
    "make", [lambda n, text: {"id": n, "text": text}, Row, lambda n, text: Doc(id=str(n), text=text)]
)
def test_rows_models_and_dataclasses_with_ids_are_recognised_too(make: Any) -> None:
    before = [make(n, f"text {n}") for n in range(50)]
    after = [before[40], make(99, "new"), *before[:10], make(10, "text ten"), *before[11:40], *before[41:]]
    assert kinds(before, after) == [
        ("moved", (0,)),
        ("added", (1,)),
        ("changed", (12, "text")),
    ]


def test_ids_that_are_not_unique_are_paired_in_order() -> None:
    before = [{"id": 1, "v": "a"}, {"id": 1, "v": "b"}, {"id": 2, "v": "c"}]
    assert kinds(before, [before[0], before[2]]) == [("removed", (1,))]


def test_lists_without_ids_are_compared_in_order() -> None:
    assert kinds(list("abcdef"), list("abxdef")) == [("changed", (2,))]
    assert kinds(list("abcdef"), list("bcdefa")) == [("removed", (0,)), ("added", (5,))]
    assert kinds([{"a": 1}, {"a": 2}], [{"a": 1}, {"a": 3}]) == [("changed", (1, "a"))]
    assert kinds([1, 2], [1, 2, 3]) == [("added", (2,))]
    assert kinds([[1, 2], 3], [[1, 9, 2], 3]) == [("added", (0, 1))]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        (0, False),
        (0.0, -0.0),
        ("a", b"a"),
        ([1], (1,)),
        ({1}, frozenset({1})),
        ({1: "a"}, {"1": "a"}),
        ({1: "a"}, {True: "a"}),
        ({"a": 1}, OrderedDict(a=1)),
        (OrderedDict(a=1), Counter(a=1)),
        (defaultdict(int), {}),
        (Decimal("1"), Decimal("1.0")),
        (datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=timezone.utc)),
        (np.float32(1), np.float64(1)),
        (np.array([1, 2]), np.array([1, 3])),
        (np.array([1, 2]), np.array([[1, 2]])),
        (np.array([1], "i4"), np.array([1], "u4")),
        (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2]})),
        (SecretStr("a"), SecretStr("b")),
        (HumanMessage("a"), SystemMessage("a")),
        (None, False),
        ("", None),
        (ValueError("a"), ValueError("b")),
        (ValueError("a"), TypeError("a")),
        (int, float),
        (math.sin, math.cos),
        ([], {}),
        ({"$type": "tuple", "$items": []}, ()),
    ],
)
def test_different_values_and_types_differ(one: Any, other: Any) -> None:
    for before, after in [(one, other), ([0, one], [0, other]), ({"k": one}, {"k": other})]:
        assert compare_states({"x": before}, {"x": after}), (before, after)
        assert changes(before, after)
        assert not compare_states({"x": before}, {"x": before})


@pytest.mark.parametrize(
    "make",
    [
        lambda: math.nan,
        lambda: np.float64("nan"),
        lambda: np.array([1.0, math.nan]),
        lambda: pd.DataFrame({"a": [1, 2]}),
        lambda: SecretStr("a"),
        lambda: {1, 2, 3},
        lambda: defaultdict(list, a=[1]),
        lambda: ValueError("a"),
        lambda: np.array([object], dtype=object),
        lambda: [math.nan, {"a": math.nan}, (math.nan,)],
        lambda: Counter("abc"),
        lambda: threading.Lock(),
    ],
)
def test_equal_values_are_equal_whatever_their_operators_say(make: Any) -> None:
    assert not compare_states({"x": make()}, {"x": make()})
    assert not compare_states({"x": [0, make()]}, {"x": [0, make()]})


def test_every_type_that_is_stored_exactly_is_compared_exactly() -> None:
    """The values of the codec's own tests, with the equality of these."""
    for value in EXACT:
        assert bool(compare_states({"x": value}, {"x": round_trip(value)})) is not same(
            value, round_trip(value)
        )
    for one, other in itertools.combinations(EXACT, 2):
        if not (isinstance(one, Text) and isinstance(other, Text)):  # `same` leaves their attributes out
            assert bool(compare_states({"x": one}, {"x": other})) is not same(one, other), (one, other)


def test_the_json_form_of_every_type_is_json() -> None:
    before, after = ({str(n): value for n, value in enumerate(values)} for values in (EXACT, EXACT[::-1]))
    assert json.loads(json.dumps(state_json(before), allow_nan=False)) == state_json(before)
    check_patch(compare_states(before, after), before, after)


def test_the_order_of_keys_does_not_count() -> None:
    assert not compare_states({"a": {"x": 1, "y": 2}, "b": 0}, {"b": 0, "a": {"y": 2, "x": 1}})
    assert not compare_states({"a": [{"x": 1, "y": {2: 3}}]}, {"a": [{"y": {2: 3}, "x": 1}]})


def test_members_of_a_set() -> None:
    assert kinds({1, 2, 3}, {2, 3, 4, 5}) == [
        ("removed", ("$items", 0)),
        ("added", ("$items", 2)),
        ("added", ("$items", 3)),
    ]


def test_bytes_are_compared_by_digest() -> None:
    (change,) = changes(b"a" * 1000, b"a" * 999 + b"b")
    assert change.before["size"] == change.after["size"] == 1000
    assert change.before["$type"] == "bytes"
    assert len(change.before["digest"]) == 32
    assert change.before["digest"] != change.after["digest"]


def test_a_bytearray_is_bytes_inside_another_value_as_it_is_stored() -> None:
    assert kinds(b"a", bytearray(b"a")) == [("changed", ())]
    assert not changes(bytearray(b"a"), bytearray(b"a"))
    assert not changes([b"a", {"k": memoryview(b"b")}], [bytearray(b"a"), {"k": b"b"}])
    assert kinds([b"a", 1], [bytearray(b"b"), 1]) == [("changed", (0,))]


def test_secrets_are_not_shown() -> None:
    diff = compare_states({"x": SecretStr("hunter2")}, {"x": SecretStr("swordfish")})
    shown = f"{diff.to_dict()}{diff.to_text()}{diff._repr_html_()}{diff.to_json_patch()}{diff!r}"
    assert "hunter2" not in shown
    assert "swordfish" not in shown


class Loud:
    """An object all of whose methods fail."""

    def __init__(self, value: Any) -> None:
        object.__setattr__(self, "value", value)

    def _fail(self, *_: Any) -> Any:
        raise AssertionError("code of a state's class ran")

    __eq__ = __ne__ = __hash__ = __repr__ = __str__ = __getattribute__ = __getattr__ = __len__ = _fail  # type: ignore[assignment]
    __iter__ = __getitem__ = __bool__ = __setattr__ = __contains__ = __reduce_ex__ = _fail  # type: ignore[assignment]


class LoudDict(dict[str, Any]):
    keys = items = values = get = __iter__ = __len__ = __getitem__ = __eq__ = __contains__ = Loud._fail  # type: ignore[assignment]


class LoudList(list[Any]):
    __iter__ = __len__ = __getitem__ = __eq__ = __contains__ = Loud._fail  # type: ignore[assignment]


class LoudStr(str):
    __eq__ = __str__ = __repr__ = __len__ = __getitem__ = __format__ = Loud._fail  # type: ignore[assignment]
    __hash__ = str.__hash__


@pytest.mark.parametrize("make", [Loud, lambda v: LoudDict(k=v), lambda v: LoudList([v])])
def test_no_code_of_a_class_runs(make: Any) -> None:
    assert kinds(make(1), make(2))[0][0] == "changed"
    assert not changes(make(1), make(1))
    assert len(changes([make(1), make(2)], [make(2), make(3), make(1)])) > 0
    assert len(changes({"k": make("a")}, {"k": make("b")})) == 1


def test_no_code_of_a_text_runs() -> None:
    assert kinds(LoudStr("a b"), LoudStr("a c")) == [("changed", ("value",))]


def test_values_left_unbuilt_look_like_what_they_are() -> None:
    """A class that this process refuses to build is compared by its data."""

    def read(value: Any) -> Any:
        tag, data = SafeSerializer().dumps_typed(value)
        return SafeSerializer().loads_typed((tag, data.replace(b"test_diff", b"test_xiff")))

    one, other = read(Row(1, "a b")), read(Row(1, "a c"))
    assert is_unbuilt(one)
    assert kinds(one, other) == [("changed", ("text",))]
    assert not changes(one, read(Row(1, "a b")))
    form = state_json({"x": one})["x"]
    assert form["$unbuilt"] is True
    assert form["$type"].endswith("test_xiff.Row")
    assert form["text"] == "a b"
    assert ("removed", ("$unbuilt",)) in kinds(one, Row(1, "a b"))
    rows = [read(Row(n, str(n))) for n in range(5)]
    assert kinds(rows, [read(Row(4, "4")), *rows[:4]]) == [("moved", (0,))]


def test_a_key_of_a_value_left_unbuilt_does_not_hide_its_type() -> None:
    tag, data = SafeSerializer().dumps_typed(Table({"$type": "a"}))
    read = SafeSerializer().loads_typed((tag, data.replace(b"sample_types", b"sample_tapes")))
    assert is_unbuilt(read)
    form = state_json({"x": read})["x"]
    assert form["$type"] == "tests.codec.sample_tapes.Table"
    assert form["value"] == {"$type": "dict", "$entries": {"$type": "a"}}


def test_what_only_its_library_takes_apart_is_compared_by_its_stored_form() -> None:
    frames = [pd.Series([1, 2]), pd.Series([1, 3]), pd.Series([1, 2])]
    forms = [state_json({"x": frame})["x"] for frame in frames]
    assert forms[0] == forms[2] != forms[1]
    assert set(forms[0]) == {"$type", "size", "digest"}


def test_messages_left_unbuilt_are_recognised_by_their_ids() -> None:
    class Own(HumanMessage):
        pass

    Own.__qualname__, Own.__module__ = "Own", "gone"
    tag, data = SafeSerializer().dumps_typed(Own("hello", id="1"))
    read = [SafeSerializer().loads_typed((tag, data)) for _ in range(2)]
    assert is_unbuilt(read[0])
    assert not changes([read[0]], [read[1]])
    edited = SafeSerializer().loads_typed((tag, data.replace(b"hello", b"hullo")))
    assert kinds([read[0]], [edited]) == [("changed", (0, "content"))]
    assert state_json({"x": edited})["x"]["$type"] == "gone.Own"


def test_what_contains_itself_is_refused() -> None:
    one: list[Any] = []
    one.append(one)
    two: list[Any] = []
    two.append(two)
    assert not compare_states({"x": one}, {"x": one})
    for other in (two, [[]], []):
        with pytest.raises(InvalidInputError, match="contains itself"):
            changes(one, other)
        with pytest.raises(InvalidInputError, match="contains itself"):
            changes({"a": one}, {"a": other})


@pytest.mark.parametrize("levels", [90, 150, 5000])
def test_deep_values_are_compared(levels: int) -> None:
    def nested(value: Any) -> Any:
        for _ in range(levels):
            value = [value]
        return value

    assert not changes(nested(1), nested(1))
    if levels < 1000:  # deeper values cannot be stored
        assert len(changes(nested(1), nested(2))) == 1
        assert len(changes({"a": nested("a")}, {"a": nested("b")})) == 1


def test_states_are_mappings_with_text_keys() -> None:
    with pytest.raises(InvalidInputError, match="mapping"):
        compare_states([1], {})  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="text"):
        compare_states({1: 2}, {})  # type: ignore[dict-item]
    assert compare_states(MappingProxyType({"a": 1}), {"a": 2})


def test_without_details_only_counts_are_found() -> None:
    before = [HumanMessage("one", id="1"), AIMessage("two", id="2")]
    after = [AIMessage("2", id="2"), HumanMessage("one", id="1"), ToolMessage("t", id="3", tool_call_id="c")]
    diff = compare_states({"messages": before, "n": 1}, {"messages": after, "n": 1}, include_details=False)
    assert diff.summary == {"messages": ChannelSummary("changed", added=1, changed=1, moved=1)}
    assert diff.changes == ()
    assert diff.to_dict() == {
        "names": ["before", "after"],
        "has_details": False,
        "summary": {"messages": {"kind": "changed", "added": 1, "removed": 0, "changed": 1, "moved": 1}},
        "changes": [],
    }
    with pytest.raises(InvalidInputError, match="include_details"):
        diff.to_json_patch()


def test_a_diff_does_not_change_with_the_states() -> None:
    before, after = {"x": [{"a": [1]}]}, {"x": [{"a": [1, 2]}, {"b": 1}]}
    diff = compare_states(before, after)
    kept = json.dumps(diff.to_dict())
    after["x"][0]["a"].append(3)
    diff.to_json_patch()[0]["value"] = "changed by the caller"
    diff.to_dict()["changes"][0]["after"] = "changed by the caller"
    assert json.dumps(diff.to_dict()) == kept
    with pytest.raises(dataclasses.FrozenInstanceError):
        diff.names = ("a", "b")  # type: ignore[misc]


def test_a_diff_is_copied_and_pickled() -> None:
    diff = compare_states({"x": [{"id": 1, "a": "b c"}], "s": {1}}, {"x": [{"id": 1, "a": "b d"}], "s": {2}})
    for copied in (copy.deepcopy(diff), pickle.loads(pickle.dumps(diff))):
        assert copied == diff
        assert copied.to_dict() == diff.to_dict()
        assert repr(copied) == "<Diff x: 1 changed; s: 1 added, 1 removed>"


def test_the_record_as_json() -> None:
    diff = compare_states({"a": "one two"}, {"a": "one three"}, names=("main", "what-if"))
    assert diff.to_dict() == {
        "names": ["main", "what-if"],
        "has_details": True,
        "summary": {"a": {"kind": "changed", "added": 0, "removed": 0, "changed": 1, "moved": 0}},
        "changes": [
            {
                "kind": "changed",
                "path": ["a"],
                "before": "one two",
                "after": "one three",
                "edits": [[4, 7, 4, 9]],
            }
        ],
    }


def test_the_json_form_of_a_state() -> None:
    state = {"messages": [HumanMessage("hi", id="1")], "t": (1, {2}), "f": math.inf, "d": {1: "a", "b": 2}}
    assert state_json(state) == {
        "messages": [
            {
                "$type": HUMAN,
                "content": "hi",
                "additional_kwargs": {},
                "response_metadata": {},
                "type": "human",
                "name": None,
                "id": "1",
            }
        ],
        "t": {"$type": "tuple", "$items": [1, {"$type": "set", "$items": [2]}]},
        "f": {"$type": "float", "value": "inf"},
        "d": {"$type": "dict", "$entries": {"1": "a", '"b"': 2}},
    }


# --- JSON Patch -----------------------------------------------------------------------------------

RFC = [  # RFC 6902, appendix A: documents before and after, and the operations if there is one best way
    ({"foo": "bar"}, {"baz": "qux", "foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}]),
    (
        {"foo": ["bar", "baz"]},
        {"foo": ["bar", "qux", "baz"]},
        [{"op": "add", "path": "/foo/1", "value": "qux"}],
    ),
    ({"baz": "qux", "foo": "bar"}, {"foo": "bar"}, [{"op": "remove", "path": "/baz"}]),
    ({"foo": ["bar", "qux", "baz"]}, {"foo": ["bar", "baz"]}, [{"op": "remove", "path": "/foo/1"}]),
    (
        {"baz": "qux", "foo": "bar"},
        {"baz": "boo", "foo": "bar"},
        [{"op": "replace", "path": "/baz", "value": "boo"}],
    ),
    (
        {"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}},
        {"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}},
        None,
    ),
    (
        {"foo": ["all", "grass", "cows", "eat"]},
        {"foo": ["all", "cows", "eat", "grass"]},
        [{"op": "remove", "path": "/foo/1"}, {"op": "add", "path": "/foo/3", "value": "grass"}],
    ),
    (
        {"foo": "bar"},
        {"foo": "bar", "child": {"grandchild": {}}},
        [{"op": "add", "path": "/child", "value": {"grandchild": {}}}],
    ),
    ({"/": 9, "~1": 10}, {"/": 9, "~1": 11}, [{"op": "replace", "path": "/~01", "value": 11}]),
    (
        {"foo": ["bar"]},
        {"foo": ["bar", ["abc", "def"]]},
        [{"op": "add", "path": "/foo/1", "value": ["abc", "def"]}],
    ),
]


@pytest.mark.parametrize(("before", "after", "operations"), RFC)
def test_patches_of_the_standard(before: Any, after: Any, operations: Any) -> None:
    found = compare_states(before, after).to_json_patch()
    assert jsonpatch.apply_patch(before, found) == after
    assert operations is None or found == operations


def test_a_moved_message_is_a_move_operation() -> None:
    messages = [HumanMessage(str(n), id=str(n)) for n in range(4)]
    diff = compare_states({"m": messages}, {"m": [messages[3], *messages[:3]]})
    assert diff.to_json_patch() == [{"op": "move", "from": "/m/3", "path": "/m/0"}]


def test_a_list_that_keeps_no_element_is_replaced() -> None:
    before, after = ({"m": [{"id": n} for n in range(start, start + 3)]} for start in (0, 10))
    diff = compare_states(before, after)
    assert diff.to_json_patch() == [{"op": "replace", "path": "/m", "value": after["m"]}]
    assert len(diff.changes) == 6


def test_many_moves_are_written_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from haive_persistence.checkpointer.versions.diff import json_patch

    monkeypatch.setattr(json_patch, "_MOST_MOVE_STEPS", 10)
    before = {"m": [{"id": n, "v": 0} for n in range(20)]}
    after = {"m": [{"id": n, "v": n % 3} for n in reversed(range(5, 25))]}
    diff = compare_states(before, after)
    check_patch(diff, before, after)
    assert {operation["op"] for operation in diff.to_json_patch()} >= {"remove", "add"}
    assert "move" not in {operation["op"] for operation in diff.to_json_patch()}
