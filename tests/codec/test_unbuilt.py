"""What a process cannot build it does not lose: a second one stores it again as what it was."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path
from typing import Any

import ormsgpack
import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langgraph.graph.message import add_messages

from haive_persistence.codec import SafeSerializer
from haive_persistence.codec.unbuilt import Slice
from tests.codec import sample_types as t
from tests.codec.same import same

FULL = SafeSerializer()
BLIND = SafeSerializer(allowed_msgpack_modules=None)  # knows LangGraph's safe types only


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "haive_persistence.codec")


def seen_by_another(value: Any) -> Any:
    """The value as a process reads it that knows none of its types."""
    return BLIND.loads_typed(FULL.dumps_typed(value))


def stored_by_another(value: Any) -> Any:
    """What is read after such a process has stored again what it read."""
    return FULL.loads_typed(BLIND.dumps_typed(value))


OBJECTS = [
    t.Person(name="a", address=t.Address(street="s"), tags={"x"}),
    *(t.Leaf([1, {"a": (1,)}]), t.Frozen(1), t.Slotted(1, [2]), t.Late(given=2), t.WithPostInit(1)),
    *(t.Colour.RED, t.Level.HIGH, t.Number.TWO, t.Point.CORNER, t.Outer.Status.DONE, t.Outer.Inner(value=2)),
    *(t.Pair(1, t.Pair(2, None)), t.Tags(["a"]), t.IntBox(item=1), t.Open(known=2, more=t.Leaf(1))),
    *(t.Names({1}), t.Queue([1]), t.Key(int=7), t.Text("x"), t.Count(3), t.Ratio(0.5), t.Rows([1])),
    *(
        t.Table({"a": t.Leaf(1)}),
        t.Table({t.Colour.RED: 1}),
        t.Vector((1, 2)),
        t.Failure("x", 1),
        t.private(1),
    ),
    *(t.Leaf(t.Leaf({"deep": [t.Leaf(t.Colour.GREEN)]})), t.MyMessage("hi", extra_field=1, id="m")),
    *(t.Leaf(None), t.Leaf(True), t.Leaf(t.Leaf(None))),
]
PLACES = {
    "itself": lambda one: one,
    "list": lambda one: [one, "plain"],
    "dict": lambda one: {"a": {"b": one}},
    "tuple": lambda one: (1, (one,)),
    "safe object": lambda one: HumanMessage(
        "x", additional_kwargs={"one": one}, response_metadata={"l": [one]}
    ),
    "content": lambda one: AIMessage([{"type": "custom", "one": one}], id="a"),
    "artifact": lambda one: ToolMessage("x", tool_call_id="c", artifact=one),
    "unbuilt object": lambda one: t.Leaf([one]),
    "unbuilt model": lambda one: t.Holder(value={"x": one}),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("one", OBJECTS, ids=lambda one: ascii(one)[:30])
def test_stored_again_unchanged_it_has_its_bytes(one: Any, place: str) -> None:
    value = PLACES[place](one)
    seen = seen_by_another(value)
    assert BLIND.dumps_typed(seen) == FULL.dumps_typed(value)
    assert same(stored_by_another(seen), value)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "own copy": lambda value: value.copy() if hasattr(value, "copy") else value,
}


@pytest.mark.filterwarnings("ignore:The `copy` method is deprecated")
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("one", OBJECTS, ids=lambda one: ascii(one)[:30])
def test_copies_are_stored_as_well(one: Any, how: str) -> None:
    copied = COPIES[how](seen_by_another(one))
    assert same(stored_by_another([copied]), [one])


def test_it_behaves_as_the_plain_data() -> None:
    seen = seen_by_another({"d": t.Leaf([1]), "s": t.Colour.RED, "i": t.Number.TWO, "l": t.Names({1})})
    assert seen == {"d": {"value": [1]}, "s": "red", "i": 2, "l": [1]}
    assert json.loads(json.dumps(seen)) == seen
    assert isinstance(seen["d"], dict)
    assert seen["s"].upper() + "!" == "RED!"
    assert {seen["s"]: 1}["red"] == 1
    assert seen["i"] + 1 == 3
    assert f"{seen['s']} {seen['d']}" == "red {'value': [1]}"


def test_what_is_no_text_number_or_container_is_equal_to_its_value() -> None:
    yes, no, none = seen_by_another([t.Answer.YES, t.Answer.NO, t.Answer.NONE])
    assert [yes == True, no == True, none == None, none == False] == [True, False, True, False]  # noqa: E711, E712
    assert yes == seen_by_another(t.Answer.YES) != no
    assert [bool(yes), bool(no), bool(none)] == [True, False, False]
    assert {yes: 1}[True] == 1
    assert f"{yes} {none!r}" == "True None"
    assert stored_by_another([yes, no, none]) == [*t.Answer]


def test_an_attribute_that_it_lacks_says_why() -> None:
    for one in (t.Frozen(1), t.Colour.RED):
        with pytest.raises(AttributeError, match=r"'missing'.*not restored.*haive_persistence\.codec"):
            _ = seen_by_another(one).missing


def test_what_is_changed_in_place_keeps_its_class() -> None:
    seen = seen_by_another([t.Leaf([1]), t.Person(name="a"), t.Rows([1])])
    seen[0]["value"].append((2,))
    seen[1]["name"] = "b"
    seen[2].append(2)
    assert same(stored_by_another(seen), [t.Leaf([1, (2,)]), t.Person(name="b"), t.Rows([1, 2])])


def test_what_is_inside_is_not_changed_by_a_change_around_it() -> None:
    seen = seen_by_another(t.Leaf([t.Colour.RED, t.Leaf(1)]))
    seen["value"].append("new")
    assert same(stored_by_another(seen), t.Leaf([t.Colour.RED, t.Leaf(1), "new"]))


def test_plain_data_that_is_made_of_it_is_plain() -> None:
    """`dict(value)` and `{**value}` are the user's own words for it."""
    seen = seen_by_another(t.Leaf(1))
    assert same(stored_by_another([dict(seen), {**seen, "more": 2}]), [{"value": 1}, {"value": 1, "more": 2}])


def test_what_cannot_be_built_from_the_change_is_not_lost_either() -> None:
    seen = seen_by_another(t.Frozen(1, 2))
    seen["unknown"] = 3
    again = stored_by_another(seen)
    assert again == {"x": 1, "y": 2, "unknown": 3}
    del again["unknown"]
    assert same(FULL.loads_typed(FULL.dumps_typed(again)), t.Frozen(1, 2))


@pytest.mark.parametrize("id_", ["m1", None])
def test_messages_stay_messages_for_reducers(id_: str | None) -> None:
    mine = t.MyMessage("hi", extra_field=7, id=id_)
    seen = seen_by_another([mine])
    assert isinstance(seen[0], HumanMessage)
    merged: Any = add_messages(seen, [AIMessage("yes", id="a")])
    read = stored_by_another(merged)
    assert [type(message) for message in read] == [t.MyMessage, AIMessage]
    assert read[0].extra_field == 7
    assert read[0].id == (id_ or merged[0].id)
    assert read[0].id is not None


def test_a_reducer_that_replaces_by_id_replaces_it() -> None:
    seen: Any = seen_by_another([t.MyMessage("hi", id="m1")])
    merged: Any = add_messages(seen, [HumanMessage("new", id="m1")])
    assert stored_by_another(merged) == [HumanMessage("new", id="m1")]


def test_copies_of_messages_with_other_fields_keep_their_class() -> None:
    (seen,) = seen_by_another([t.MyMessage("hi", extra_field=7)])
    changed: BaseMessage = seen.model_copy(update={"content": "there"})
    assert same(stored_by_another(changed), t.MyMessage("there", extra_field=7))


STATE = """
    import dataclasses, enum, typing
    from collections import OrderedDict
    from pydantic import BaseModel
    from langchain_core.messages import HumanMessage

    @dataclasses.dataclass
    class DC:
        a: int
        more: typing.Any = None

    class Model(BaseModel):
        text: str
        inner: DC | None = None

    class Colour(enum.Enum):
        RED = "red"

    class Pair(typing.NamedTuple):
        left: typing.Any
        right: typing.Any

    class Names(list):
        pass

    class Mine(HumanMessage):
        extra: int = 0
"""
GRAPH = """
    import operator, os, sys
    from typing import Annotated, Any, TypedDict
    from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
    from langgraph.graph import START, StateGraph
    from langgraph.graph.message import add_messages
    from haive_persistence import Checkpointer

    class State(TypedDict, total=False):
        items: Annotated[list[Any], operator.add]
        messages: Annotated[list[AnyMessage], add_messages]
        held: Any
        count: int

    def node(state):
        return {"items": ["plain"], "count": state.get("count", 0) + 1, "messages": [AIMessage("yes")]}

    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    config = {"configurable": {"thread_id": sys.argv[2]}}
    saver = Checkpointer(sys.argv[1])
    graph = builder.compile(checkpointer=saver)
"""
VALUES = """
    from known_types import DC, Colour, Mine, Model, Names, Pair
    many = [DC(1), Model(text="x", inner=DC(2, (1,))), Colour.RED, Pair(1, Colour.RED), Names([DC(3)])]
    held = {"list": [*many], "tuple": (DC(4), [Colour.RED]), "dict": {"deep": {"er": Model(text="y")}}}
    mine = Mine("hi", id="m", extra=3, additional_kwargs={"dc": DC(5)})
    tool = HumanMessage([{"type": "custom", "dc": DC(6)}], id="h")
"""
FIRST = """
    graph.invoke({"items": [DC(0), *many], "held": held, "messages": [mine, tool]}, config)
"""
SECOND = """
    assert "known_types" not in sys.modules
    out = graph.invoke({"items": ["from B"]}, config)
    assert out["items"][0] == {"a": 0, "more": None}, out["items"]
    assert isinstance(out["messages"][0], HumanMessage)
    graph.update_state(config, {"held": graph.get_state(config).values["held"]})
    assert len(list(graph.get_state_history(config))) > 3
    # the same process, after the type was imported: nothing cached is unbuilt
    import known_types
    values = graph.get_state(config).values
    assert type(values["items"][0]) is known_types.DC, values["items"]
    assert type(values["messages"][0]) is known_types.Mine
"""
THIRD = """
    values = graph.get_state(config).values
    assert values["items"] == [DC(0), *many, "plain", "from B", "plain"], values["items"]
    assert [type(item) for item in values["items"][:6]] == [DC, DC, Model, Colour, Pair, Names]
    assert values["held"] == held and type(values["held"]["tuple"]) is tuple, values["held"]
    assert type(values["held"]["list"][3]) is Pair
    assert values["messages"][0] == mine and type(values["messages"][0]) is Mine
    assert values["messages"][1] == tool, values["messages"][1]
    print("all there")
"""


def test_three_processes(empty_dsn: str, tmp_path: Path) -> None:
    """A writes, B invokes the same graph with the types never imported, C reads what A wrote."""
    (tmp_path / "known_types.py").write_text(textwrap.dedent(STATE))

    def run(*parts: str) -> str:
        code = "".join(map(textwrap.dedent, parts))
        done = subprocess.run(
            [sys.executable, "-c", code, empty_dsn, "thread"],
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    run(GRAPH, VALUES, FIRST)
    assert "import known_types before reading" in run(GRAPH, SECOND)
    assert "all there" in run(GRAPH, VALUES, THIRD)


def _nest(data: bytes, levels: int) -> bytes:
    """Objects of a class that no process knows, each in the list of another, around some bytes."""
    for level in range(levels):
        rest = ormsgpack.packb(b"\x01" * (level % 3))
        parts = b"\x93\xa6nobody\xa5Knows\x92" + data + rest
        data = ormsgpack.packb(ormsgpack.Ext(0, parts))
    return data


def test_unbuilt_objects_in_each_other_share_their_bytes() -> None:
    size, levels = 100_000, 60
    data = _nest(ormsgpack.packb(bytes(range(250)) * (size // 250)), levels)
    tracemalloc.start()
    try:
        value = BLIND.loads_typed(("msgpack", data))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 5 * size  # a copy for each level would take 60

    for _ in range(levels):
        assert BLIND.dumps_typed(value) == ("msgpack", data)
        assert copy.deepcopy(value) == pickle.loads(pickle.dumps(value)) == value
        parts = ormsgpack.unpackb(data, ext_hook=lambda _, inside: inside)
        value, data = value[0], _first_object(parts)


def _first_object(parts: bytes) -> bytes:
    """The first part of an object's list, as it is stored."""
    inside = ormsgpack.unpackb(parts, ext_hook=ormsgpack.Ext)[2][0]
    return ormsgpack.packb(inside)


def test_a_part_of_other_bytes_is_as_those_bytes() -> None:
    part = Slice(b"abcdef", 1, 3)
    assert part == b"bc" == part
    assert part == Slice(b"bc", 0, 2)
    assert hash(part) == hash(b"bc")
    for other in (b"ab", b"", Slice(b"abcdef", 0, 2), "bc", None):
        assert part != other
