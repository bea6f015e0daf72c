"""Lists of allowed classes make reading stricter, and LangGraph's own ways of giving them work."""

from __future__ import annotations

import json
import operator
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any

import ormsgpack
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph

from haive_persistence.codec import SafeSerializer
from tests.codec import sample_types as t
from tests.codec.sample_types import Canary, Colour, Leaf, Outer, Person

HERE = "tests.codec.sample_types"


def read(serde: Any, value: Any) -> Any:
    return serde.loads_typed(SafeSerializer().dumps_typed(value))


def test_none_allows_only_safe_types() -> None:
    serde = SafeSerializer(allowed_msgpack_modules=None)
    assert read(serde, Leaf(1)) == {"value": 1}
    assert read(serde, Person(name="a"))["name"] == "a"
    assert read(serde, [Colour.RED, {1, 2}, 2**70, "\ud800"]) == ["red", {1, 2}, 2**70, "\ud800"]
    assert read(serde, HumanMessage("x")) == HumanMessage("x")
    assert read(serde, {Colour.RED: 1}) == {"red": 1}


@pytest.mark.parametrize("listed", [Leaf, (HERE, "Leaf")])
def test_listed_classes_are_built(listed: Any) -> None:
    serde = SafeSerializer(allowed_msgpack_modules=[listed])
    assert read(serde, [Leaf(1), Colour.RED]) == [Leaf(1), "red"]


def test_a_listed_class_need_not_be_data() -> None:
    serde = SafeSerializer(allowed_msgpack_modules=[t.Duck])
    assert isinstance(read(serde, t.Duck()), t.Duck)
    assert read(SafeSerializer(), t.Duck()) == {"a": 1}
    t.CALLS.clear()


def test_a_listed_function_is_not_called() -> None:
    serde = SafeSerializer(allowed_msgpack_modules=[(HERE, "canary"), ("os", "system")])
    for key in (HERE, "canary"), ("os", "system"):
        for code in range(6):
            parts = ormsgpack.packb([*key, "payload", "method"])
            assert serde.loads_typed(("msgpack", ormsgpack.packb(ormsgpack.Ext(code, parts)))) == "payload"
    assert t.CALLS == []


def test_a_list_names_no_class_by_its_nesting() -> None:
    """Data can say where a class is nested, but not choose another than the listed name."""
    serde = SafeSerializer(allowed_msgpack_modules=[(HERE, "Inner")])
    assert read(serde, Outer.Inner(value=2)) == Outer.Inner(value=2)
    data = SafeSerializer().dumps_typed(Outer.Inner(value=2))[1].replace(b"Outer.Inner", b"Outer.Wrong")
    assert serde.loads_typed(("msgpack", data)) == {"value": 2}


def test_with_msgpack_allowlist() -> None:
    open_serde, strict = SafeSerializer(), SafeSerializer(allowed_msgpack_modules=None)
    assert open_serde.with_msgpack_allowlist([Leaf]) is open_serde
    wider = strict.with_msgpack_allowlist([Leaf])
    assert type(wider) is SafeSerializer
    assert wider is not strict
    assert read(wider, Leaf(1)) == Leaf(1)
    assert read(strict, Leaf(1)) == {"value": 1}
    assert wider.with_msgpack_allowlist([Leaf]) is wider
    assert read(wider.with_msgpack_allowlist([(HERE, "Colour")]), [Leaf(1), Colour.RED]) == [
        Leaf(1),
        Colour.RED,
    ]


def test_savers_with_allowlist_reaches_it() -> None:
    saver = InMemorySaver(serde=SafeSerializer(allowed_msgpack_modules=None))
    allowed = saver.with_allowlist([(HERE, "Leaf")])
    assert read(allowed.serde, Leaf(1)) == Leaf(1)
    assert read(saver.serde, Leaf(1)) == {"value": 1}


class State(MessagesState):
    person: Person
    leaves: Annotated[list[Leaf], operator.add]
    colour: Colour


def graph(saver: Any) -> Any:
    def act(state: State) -> dict[str, Any]:
        return {
            "messages": [AIMessage("hello")],
            "leaves": [Leaf({"n": len(state["leaves"])})],
            "colour": Colour.GREEN,
        }

    builder = StateGraph(State)
    builder.add_node("act", act)
    builder.add_edge(START, "act")
    builder.add_edge("act", END)
    return builder.compile(checkpointer=saver)


def test_a_graph_with_types_of_its_own_needs_no_setting(caplog: pytest.LogCaptureFixture) -> None:
    app = graph(InMemorySaver(serde=SafeSerializer()))
    config = {"configurable": {"thread_id": "1"}}
    person = Person(name="a", friends=[Person(name="b")])
    app.invoke(
        {"messages": [HumanMessage("hi")], "person": person, "leaves": [], "colour": Colour.RED}, config
    )
    app.invoke({"messages": [HumanMessage("again")]}, config)
    state = app.get_state(config).values
    assert state["person"] == person
    assert state["leaves"] == [Leaf({"n": 0}), Leaf({"n": 1})]
    assert state["colour"] is Colour.GREEN
    assert [message.content for message in state["messages"]] == ["hi", "hello", "again", "hello"]
    assert caplog.records == []


def test_the_strict_environment_variable() -> None:
    """Then the graph's own types are allowed by `compile`, and nothing else is."""
    code = """
        from haive_persistence.codec import SafeSerializer
        from langgraph.checkpoint.memory import InMemorySaver
        from tests.codec.test_allowlists import graph, read
        from tests.codec.sample_types import *
        saver = InMemorySaver(serde=SafeSerializer())
        assert read(saver.serde, Leaf(1)) == {"value": 1}
        app = graph(saver)
        config = {"configurable": {"thread_id": "1"}}
        person = Person(name="a")
        app.invoke({"messages": [], "person": person, "leaves": [Leaf(0)], "colour": Colour.RED}, config)
        values = app.get_state(config).values
        assert values["person"] == Person(name="a") and values["leaves"][0] == Leaf(0), values
        assert values["colour"] is Colour.GREEN
        assert read(app.checkpointer.serde, Frozen(1)) == {"x": 1, "y": 0}
    """
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "LANGGRAPH_STRICT_MSGPACK": "true", "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_listed_json_constructors() -> None:
    path = (*HERE.split("."), "CanaryModel")
    call = {"lc": 2, "type": "constructor", "id": path, "kwargs": {"x": 3}}
    value = json.dumps(call).encode()
    for strict in (True, None):
        serde = SafeSerializer(allowed_json_modules=[path], allowed_msgpack_modules=strict)
        assert serde.loads_typed(("json", value)) == t.CanaryModel(x=3)
        assert isinstance(serde.loads_typed(("json", value.replace(b"CanaryModel", b"Canary"))), dict)
        assert read(serde, t.CanaryModel()) == (t.CanaryModel() if strict else {"x": 0})
    assert SafeSerializer(allowed_json_modules=True).loads_typed(("json", value)) == t.CanaryModel(x=3)
    with_os = SafeSerializer(allowed_json_modules=[("os", "system")])
    value = b'{"lc": 2, "type": "constructor", "id": ["os", "system"], "args": ["true"]}'
    assert isinstance(with_os.loads_typed(("json", value)), dict)


def test_canaries_are_silent() -> None:
    assert t.CALLS == []
    assert Canary.__name__ == "Canary"
