"""Random graphs, branched at random and merged: which nodes are due, and that LangGraph runs on."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from haive_persistence.checkpointer.versions.merge.checkpoints import merge_checkpoints

THREAD = {"configurable": {"thread_id": "t"}}
NODES = "abcde"


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    go: list[str]


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    """Which edges go forward from each node, as plain edges, joins or routes chosen by the state."""
    forward = {
        node: draw(st.lists(st.sampled_from([*NODES[at + 1 :], END]), max_size=2, unique=True))
        for at, node in enumerate(NODES)
    }
    return {
        "start": draw(st.lists(st.sampled_from(NODES), min_size=1, max_size=2, unique=True)),
        "edges": forward,
        "routed": draw(st.sets(st.sampled_from(NODES), max_size=2)),
        "join": draw(st.sampled_from([None, ("a", "b", "d"), ("b", "c", "e")])),
        "deferred": draw(st.sampled_from([None, "d", "e"])),
    }


def build(plan: dict[str, Any], saver: InMemorySaver) -> Any:
    builder = StateGraph(State)
    for node in NODES:
        builder.add_node(node, lambda state, name=node: {"log": [name]}, defer=node == plan["deferred"])
    for node in plan["start"]:
        builder.add_edge(START, node)
    for node, targets in plan["edges"].items():
        if node in plan["routed"]:
            ends = [*targets, END]
            builder.add_conditional_edges(
                node, lambda state, known=targets: [n for n in state.get("go", ()) if n in known] or END, ends
            )
        else:
            for target in targets:
                builder.add_edge(node, target)
    if plan["join"]:
        *starts, end = plan["join"]
        builder.add_edge(starts, end)
    return builder.compile(saver, interrupt_before="*")


MOVES = st.lists(
    st.one_of(
        st.just(("step",)),
        st.tuples(st.just("update"), st.sampled_from(NODES), st.lists(st.sampled_from(NODES), max_size=2)),
        st.tuples(st.just("input"), st.lists(st.sampled_from(NODES), max_size=2)),
    ),
    max_size=3,
)


def play(graph: Any, config: Any, moves: Any, side: str) -> Any:
    for move in moves:
        match move:
            case ("step",):
                if graph.get_state(config).next:
                    graph.invoke(None, config)
                    config = graph.get_state(THREAD).config
            case ("update", node, go):
                config = graph.update_state(config, {"log": [side], "go": go}, as_node=node)
            case ("input", go):
                graph.invoke({"log": [side], "go": go}, config)
                config = graph.get_state(THREAD).config
    return config


def due(graph: Any, config: Any) -> set[str]:
    return set(graph.get_state(config).next)


@settings(deadline=None, max_examples=150)
@given(plans(), MOVES, MOVES, MOVES, st.booleans())
def test_what_is_due_after_a_merge(plan: Any, before: Any, one: Any, other: Any, known: bool) -> None:
    saver = InMemorySaver()
    graph = build(plan, saver)
    graph.invoke({"log": ["in"], "go": list(NODES)}, THREAD)
    base = play(graph, graph.get_state(THREAD).config, before, "base")
    ours, theirs = play(graph, base, one, "ours"), play(graph, base, other, "theirs")
    sides: Any = [saver.get_tuple(config) for config in (base, ours, theirs)]
    merged: Any = merge_checkpoints(
        *(side.checkpoint for side in sides),
        next_version=saver.get_next_version,
        graph=graph if known else None,
        drivers={"log": "add"},
    )
    config = saver.put(
        ours, merged.checkpoint, {"source": "update", "step": 99, "parents": {}}, merged.new_versions
    )
    at_base, at_ours, at_theirs, found = (due(graph, at) for at in (base, ours, theirs, config))
    completed = {plan["join"][-1]} if plan["join"] else set()
    assert found <= at_ours | at_theirs | completed
    assert at_ours & at_theirs <= found
    assert (at_ours | at_theirs) - at_base <= found
    if ours == base:
        assert found == at_theirs
    if theirs == base:
        assert found == at_ours
    length = len(graph.get_state(config).values["log"])
    if found:
        graph.invoke(None, THREAD)
        assert set(graph.get_state(THREAD).values["log"][length:]) == found
    for _ in range(20):
        if not graph.get_state(THREAD).next:
            break
        graph.invoke(None, THREAD)
    assert graph.get_state(THREAD).next == ()
