"""Checkpoints of two branches of real graphs, merged and run on by LangGraph."""

from __future__ import annotations

import operator
from copy import deepcopy
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage
from langgraph.channels.binop import BinaryOperatorAggregate
from langgraph.channels.delta import DeltaChannel
from langgraph.channels.ephemeral_value import EphemeralValue
from langgraph.channels.last_value import LastValue
from langgraph.channels.topic import Topic
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.pregel import NodeBuilder, Pregel
from langgraph.types import Command, Send, interrupt

from haive_persistence.checkpointer.versions.merge import drivers_of, merge_states
from haive_persistence.checkpointer.versions.merge.checkpoints import MergedCheckpoint, merge_checkpoints
from haive_persistence.checkpointer.versions.merge.values import same
from haive_persistence.errors import InvalidInputError

THREAD = {"configurable": {"thread_id": "t"}}


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    log: Annotated[list[str], operator.add]
    spent: Annotated[int, operator.add]
    plan: dict[str, Any]
    go: str


def writer(name: str) -> Any:
    def node(state: State) -> Any:
        return {"log": [name], "spent": 1}

    return node


class Numbers(InMemorySaver):
    """Versions as ints. They differ between branches, since this saver keeps one value per version."""

    last = 0

    def get_next_version(self, current: Any, channel: None) -> Any:
        self.last = max(self.last, current or 0) + 1
        return self.last


@pytest.fixture(params=[InMemorySaver, Numbers])
def saver(request: pytest.FixtureRequest) -> InMemorySaver:
    return request.param()


class Fork:
    """Branches of one thread of a graph."""

    def __init__(self, graph: Any, saver: InMemorySaver, *, known: bool = True) -> None:
        self.graph, self.saver, self.known = graph, saver, known

    def tip(self, ns: str = "") -> dict[str, Any]:
        found = self.saver.get_tuple({"configurable": {"thread_id": "t", "checkpoint_ns": ns}})
        assert found is not None
        return found.config

    def at(self, config: Any) -> Any:
        found = self.saver.get_tuple(config)
        assert found is not None
        return found

    def due(self, config: Any) -> set[str]:
        return set(self.graph.get_state(config).next)

    def complete(self, config: Any) -> dict[str, Any]:
        """The checkpoint with the values of its DeltaChannels."""
        checkpoint = dict(self.at(config).checkpoint)
        values = self.graph.get_state(config).values
        deltas = [name for name, spec in self.graph.channels.items() if isinstance(spec, DeltaChannel)]
        checkpoint["channel_values"] = {
            **checkpoint["channel_values"],
            **{name: values[name] for name in deltas if name in checkpoint["channel_versions"]},
        }
        return checkpoint

    def merge(self, base: Any, ours: Any, theirs: Any, **kwargs: Any) -> tuple[Any, MergedCheckpoint]:
        sides = [None if config is None else self.complete(config) for config in (base, ours, theirs)]
        before = deepcopy(sides)
        if not self.known:
            kwargs["drivers"] = dict.fromkeys(["log", "spent", "done", "items", "memory", "topic"], "add")
        merged = merge_checkpoints(
            *sides,
            next_version=self.saver.get_next_version,
            graph=self.graph if self.known else None,
            **kwargs,
        )
        assert same(sides, before)
        steps = [self.at(config).metadata["step"] for config in (ours, theirs)]
        metadata: Any = {"source": "update", "step": max(steps) + 1, "parents": {}}
        checkpoint: Any = merged.checkpoint
        return self.saver.put(ours, checkpoint, metadata, merged.new_versions), merged


def looped(saver: InMemorySaver, **kwargs: Any) -> Any:
    """start → a → b or c, as `go` says; b → c; c ends."""
    builder = StateGraph(State)
    for name in "abc":
        builder.add_node(name, writer(name))
    builder.add_edge(START, "a")
    builder.add_conditional_edges("a", lambda state: state.get("go", END), ["b", "c", END])
    builder.add_edge("b", "c")
    return builder.compile(saver, **kwargs)


@pytest.fixture(params=[True, False], ids=["graph", "no graph"])
def known(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_finished_branches_merge_and_nothing_runs(saver: InMemorySaver, known: bool) -> None:
    graph = looped(saver)
    fork = Fork(graph, saver, known=known)
    graph.invoke({"messages": [HumanMessage("q", id="1")], "go": END, "plan": {"a": 1}}, THREAD)
    base = fork.tip()
    ours = graph.update_state(
        base, {"messages": [AIMessage("o", id="2")], "plan": {"a": 1, "b": 2}}, as_node="c"
    )
    theirs = graph.update_state(
        base, {"messages": [AIMessage("t", id="3")], "plan": {"a": 5}, "spent": 4}, as_node="c"
    )
    config, merged = fork.merge(base, ours, theirs)
    state = graph.get_state(THREAD)
    assert state.config == config
    assert state.next == ()
    assert [m.id for m in state.values["messages"]] == ["1", "2", "3"]
    assert state.values["plan"] == {"a": 5, "b": 2}
    assert state.values["spent"] == 5
    assert merged.changed == {"messages", "plan", "spent"}
    assert merged.new_versions.keys() == merged.changed
    after = graph.invoke({"messages": [HumanMessage("next", id="4")], "go": "b"}, THREAD)
    assert after["log"] == ["a", "a", "b", "c"]
    assert [m.id for m in after["messages"]] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("one", "other"), [("b", "c"), ("b", None), (None, "b"), ("c", "b"), ("b", "b"), (None, None)]
)
def test_what_is_due_on_either_side_is_due_and_runs_once(
    saver: InMemorySaver, known: bool, one: str | None, other: str | None
) -> None:
    graph = looped(saver)
    fork = Fork(graph, saver, known=known)
    graph.invoke({"go": END}, THREAD)
    base = fork.tip()

    def branch(node: str | None, note: str) -> Any:
        if node is None:
            return graph.update_state(base, {"log": [note]}, as_node="c")
        return graph.update_state(base, {"log": [note], "go": node}, as_node="a")

    ours, theirs = branch(one, "ours"), branch(other, "theirs")
    config, _ = fork.merge(base, ours, theirs)
    assert fork.due(config) == {one, other} - {None}
    after = graph.invoke(None, THREAD)["log"]
    ran = {"b": ["b", "c"], "c": ["c"], None: []}
    expected = {*ran[one], *ran[other]} if known else None
    assert expected is None or set(after[3:] if known else ()) == expected
    assert after.count("b") == int("b" in (one, other))
    assert graph.get_state(THREAD).next == ()


def test_a_step_that_theirs_took_from_the_base_is_not_repeated(saver: InMemorySaver, known: bool) -> None:
    graph = looped(saver, interrupt_before=["b", "c"])
    fork = Fork(graph, saver, known=known)
    graph.invoke({"go": "b"}, THREAD)
    base = fork.tip()
    assert fork.due(base) == {"b"}
    graph.invoke(None, base)
    theirs = fork.tip()
    assert fork.due(theirs) == {"c"}
    config, merged = fork.merge(base, base, theirs)
    assert fork.due(config) == {"c"}
    assert not merged.conflicts
    assert graph.get_state(config).values == graph.get_state(theirs).values
    assert graph.invoke(None, THREAD)["log"] == ["a", "b", "c"]
    # and the other way: the base is merged into theirs
    merged = fork.merge(base, theirs, base)[1]
    assert merged.new_versions == {}
    assert same(merged.checkpoint["channel_values"], fork.complete(theirs)["channel_values"])
    assert merged.checkpoint["versions_seen"] == fork.complete(theirs)["versions_seen"]


def test_a_node_that_both_ran_from_the_base_does_not_run_again(saver: InMemorySaver, known: bool) -> None:
    graph = looped(saver, interrupt_before=["b"])
    fork = Fork(graph, saver, known=known)
    graph.invoke({"go": "b"}, THREAD)
    base = fork.tip()
    tips = []
    for _ in range(2):
        graph.invoke(None, base)
        tips.append(fork.tip())
    config, _ = fork.merge(base, *tips)
    assert fork.due(config) == set()
    assert graph.invoke(None, THREAD) == graph.get_state(config).values


def test_a_node_due_again_in_theirs_runs_though_ours_ran_it(saver: InMemorySaver, known: bool) -> None:
    graph = looped(saver, interrupt_before=["b"])
    fork = Fork(graph, saver, known=known)
    graph.invoke({"go": "b"}, THREAD)
    base = fork.tip()
    graph.invoke(None, base)
    ours = fork.tip()
    theirs = graph.update_state(base, {"log": ["again"], "go": "b"}, as_node="a")
    assert fork.due(theirs) == {"b"}
    config, _ = fork.merge(base, ours, theirs)
    assert fork.due(config) == {"b"}
    config, _ = fork.merge(base, theirs, ours)
    assert fork.due(config) == {"b"}


def test_interrupt_before_still_waits_after_a_merge(saver: InMemorySaver, known: bool) -> None:
    graph = looped(saver, interrupt_before=["c"])
    fork = Fork(graph, saver, known=known)
    graph.invoke({"go": END}, THREAD)
    base = fork.tip()
    ours = graph.update_state(base, {"log": ["o"]}, as_node="c")
    graph.invoke({"go": "b"}, base)
    theirs = fork.tip()
    assert fork.due(theirs) == {"c"}
    config, _ = fork.merge(base, ours, theirs)
    assert fork.due(config) == {"c"}
    assert graph.invoke(None, THREAD)["log"] == ["a", "o", "a", "b", "c"]


def joined(saver: InMemorySaver, **kwargs: Any) -> Any:
    builder = StateGraph(State)
    for name in "xyz":
        builder.add_node(name, writer(name), defer=kwargs.get("defer", False) and name == "z")
    builder.add_edge(START, "x")
    builder.add_edge(START, "y")
    builder.add_edge(["x", "y"], "z")
    return builder.compile(saver, interrupt_before=["x", "y"])


def test_a_join_whose_branches_ran_on_different_sides_runs(saver: InMemorySaver, known: bool) -> None:
    graph = joined(saver)
    fork = Fork(graph, saver, known=known)
    graph.invoke({"log": ["in"]}, THREAD)
    base = fork.tip()
    ours = graph.update_state(base, {"log": ["x"]}, as_node="x")
    theirs = graph.update_state(base, {"log": ["y"]}, as_node="y")
    assert fork.due(ours) == fork.due(theirs) == set()
    config, _ = fork.merge(base, ours, theirs)
    assert fork.due(config) == {"z"}
    assert graph.invoke(None, THREAD)["log"] == ["in", "x", "y", "z"]
    assert graph.get_state(THREAD).next == ()


def test_a_join_that_ours_finished_does_not_wait_half_open(saver: InMemorySaver, known: bool) -> None:
    graph = joined(saver)
    fork = Fork(graph, saver, known=known)
    graph.invoke({"log": ["in"]}, THREAD)
    base = fork.tip()
    graph.invoke(None, base)
    ours = fork.tip()
    theirs = graph.update_state(base, {"log": ["only x"]}, as_node="x")
    config, _ = fork.merge(base, ours, theirs)
    assert fork.due(config) == set()
    assert "only x" in graph.invoke(None, THREAD)["log"]


def test_deferred_nodes_run_once(saver: InMemorySaver, known: bool) -> None:
    graph = joined(saver, defer=True)
    fork = Fork(graph, saver, known=known)
    graph.invoke({"log": ["in"]}, THREAD)
    base = fork.tip()
    tips = []
    for note in ("ours", "theirs"):
        one = graph.update_state(base, {"log": [note]}, as_node="x")
        tips.append(graph.update_state(one, {"log": [note]}, as_node="y"))
    dues = [fork.due(tip) for tip in tips]
    config, _ = fork.merge(base, *tips)
    assert fork.due(config) == set.union(*dues)
    assert graph.invoke(None, THREAD)["log"].count("z") == len(set.union(*dues))


class Fan(TypedDict, total=False):
    jobs: list[str]
    done: Annotated[list[str], operator.add]


def fanned(saver: InMemorySaver) -> Any:
    builder = StateGraph(Fan)
    builder.add_node("plan", lambda state: {})
    builder.add_node("work", lambda job: {"done": [job["job"]]})
    builder.add_edge(START, "plan")
    builder.add_conditional_edges(
        "plan", lambda state: [Send("work", {"job": j}) for j in state["jobs"]], ["work"]
    )
    return builder.compile(saver, interrupt_before=["work"])


def test_sends_pending_on_either_side_run_once(saver: InMemorySaver, known: bool) -> None:
    graph = fanned(saver)
    fork = Fork(graph, saver, known=known)
    graph.invoke({"jobs": ["a"]}, THREAD)
    base = fork.tip()
    ours = graph.update_state(base, {"jobs": ["a", "b"]}, as_node="plan")
    theirs = graph.update_state(base, {"jobs": ["a", "c", "c"]}, as_node="plan")
    config, _ = fork.merge(base, ours, theirs)
    assert graph.get_state(config).next == ("work",) * 4
    assert sorted(graph.invoke(None, THREAD)["done"]) == ["a", "b", "c", "c"]


def test_sends_that_ours_ran_are_not_pending_from_the_base(saver: InMemorySaver, known: bool) -> None:
    graph = fanned(saver)
    fork = Fork(graph, saver, known=known)
    graph.invoke({"jobs": ["a"]}, THREAD)
    base = fork.tip()
    graph.invoke(None, base)
    ours = fork.tip()
    config, _ = fork.merge(base, ours, base)
    assert fork.due(config) == set()


def test_a_node_that_waits_in_an_interrupt_asks_again(saver: InMemorySaver, known: bool) -> None:
    def ask(state: State) -> Any:
        return {"log": [interrupt("sure?")]} if state.get("go") else {}

    builder = StateGraph(State)
    builder.add_node("ask", ask)
    builder.add_node("end", writer("end"))
    builder.add_edge(START, "ask")
    builder.add_edge("ask", "end")
    graph = builder.compile(saver)
    fork = Fork(graph, saver, known=known)
    graph.invoke({"log": ["in"]}, THREAD)
    base = fork.tip()
    graph.invoke({"go": "ask", "log": ["waits"]}, base)
    ours = fork.tip()
    assert fork.due(ours) == {"ask"}
    theirs = graph.update_state(base, {"log": ["aside"]}, as_node="end")
    for sides in ((ours, theirs), (theirs, ours)):
        config, _ = fork.merge(base, *sides)
        assert fork.due(config) == {"ask"}
        asked = graph.invoke(None, THREAD)
        assert [question.value for question in asked["__interrupt__"]] == ["sure?"]
        after = graph.invoke(Command(resume="yes"), THREAD)
        assert sorted(after["log"]) == ["aside", "end", "end", "in", "waits", "yes"]
        assert fork.due(THREAD) == set()


def test_a_delta_channel_is_held_as_a_snapshot_and_runs_on(saver: InMemorySaver, known: bool) -> None:
    class Deltas(TypedDict, total=False):
        items: Annotated[
            list[str], DeltaChannel(lambda state, writes: [*state, *(w for x in writes for w in x)], list)
        ]
        other: str

    builder = StateGraph(Deltas)
    builder.add_node("a", lambda state: {"items": ["a"]})
    builder.add_edge(START, "a")
    graph = builder.compile(saver)
    fork = Fork(graph, saver)
    graph.invoke({"items": ["in"]}, THREAD)
    base = fork.tip()
    ours = graph.update_state(base, {"items": ["ours"]}, as_node="a")
    theirs = graph.update_state(base, {"items": ["theirs"], "other": "o"}, as_node="a")
    config, merged = fork.merge(base, ours, theirs)
    assert graph.get_state(config).values == {"items": ["in", "a", "ours", "theirs"], "other": "o"}
    assert merged.changed == {"items", "other"}
    assert graph.get_state(config).next == ()
    assert graph.invoke({"items": ["new"]}, THREAD)["items"] == ["in", "a", "ours", "theirs", "new", "a"]
    with pytest.raises(InvalidInputError, match="get_delta_channel_history"):
        raw: Any = [fork.at(c).checkpoint for c in (base, ours, theirs)]
        merge_checkpoints(*raw, next_version=saver.get_next_version, graph=graph)


def test_an_unchanged_delta_channel_triggers_nothing(saver: InMemorySaver) -> None:
    class Deltas(TypedDict, total=False):
        items: Annotated[
            list[str], DeltaChannel(lambda state, writes: [*state, *(w for x in writes for w in x)], list)
        ]
        other: str

    builder = StateGraph(Deltas)
    builder.add_node("a", lambda state: {"items": ["a"]})
    builder.add_edge(START, "a")
    graph = builder.compile(saver)
    fork = Fork(graph, saver)
    graph.invoke({"items": ["in"]}, THREAD)
    base = fork.tip()
    ours = graph.update_state(base, {"items": ["ours"]}, as_node="a")
    theirs = graph.update_state(base, {"other": "o"}, as_node="a")
    config, merged = fork.merge(base, ours, theirs)
    assert graph.get_state(config).values == {"items": ["in", "a", "ours"], "other": "o"}
    assert merged.changed == {"other"}
    assert merged.new_versions.keys() == {"items", "other"}
    assert graph.get_state(config).next == ()


class Child(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    memory: Annotated[list[str], operator.add]


@pytest.mark.parametrize("persistent", [True, None])
def test_subgraphs_run_on(saver: InMemorySaver, known: bool, persistent: bool | None) -> None:
    child = StateGraph(Child)
    child.add_node("c", lambda state: {"log": ["c"], "memory": [f"run {len(state.get('memory', []))}"]})
    child.add_edge(START, "c")
    builder = StateGraph(State)
    builder.add_node("sub", child.compile(checkpointer=persistent))
    builder.add_node("end", writer("end"))
    builder.add_edge(START, "sub")
    builder.add_edge("sub", "end")
    graph = builder.compile(saver)
    fork = Fork(graph, saver, known=known)
    graph.invoke({"log": ["in"]}, THREAD)
    base, base_sub = fork.tip(), fork.tip("sub") if persistent else None
    sides = []
    for note in ("ours", "theirs"):
        one = graph.update_state(base, {"log": [note], "spent": 2}, as_node="end")
        graph.invoke({"log": [f"again {note}"]}, one)
        sides.append((fork.tip(), fork.tip("sub") if persistent else None))
    if persistent:
        inner = Fork(graph.nodes["sub"].subgraphs[0], saver)
        subs = [merge_side(saver, side) for side in (base_sub, sides[0][1], sides[1][1])]
        merged = merge_checkpoints(*subs, next_version=saver.get_next_version, graph=inner.graph)
        metadata: Any = {"source": "update", "step": 99, "parents": {}}
        checkpoint: Any = merged.checkpoint
        saver.put(sides[0][1], checkpoint, metadata, merged.new_versions)
        assert merged.checkpoint["channel_values"]["memory"][0] == "run 0"
    config, found = fork.merge(base, sides[0][0], sides[1][0])
    assert not found.conflicts
    assert fork.due(config) == set()
    after = graph.invoke({"log": ["last"]}, THREAD)
    assert after["log"][-3:] != []
    assert after["log"][-1] == "end"
    assert "again ours" in after["log"]
    assert "again theirs" in after["log"]


def merge_side(saver: InMemorySaver, config: Any) -> Any:
    found = saver.get_tuple(config)
    assert found is not None
    return found.checkpoint


def test_deleted_messages_stay_deleted(saver: InMemorySaver, known: bool) -> None:
    graph = looped(saver)
    fork = Fork(graph, saver, known=known)
    graph.invoke({"messages": [HumanMessage(str(n), id=str(n)) for n in range(3)], "go": END}, THREAD)
    base = fork.tip()
    ours = graph.update_state(base, {"messages": [RemoveMessage(id="0")]}, as_node="c")
    theirs = graph.update_state(
        base, {"messages": [RemoveMessage(id="1"), AIMessage("a", id="3")]}, as_node="c"
    )
    config, _ = fork.merge(base, ours, theirs)
    assert [m.id for m in graph.get_state(config).values["messages"]] == ["2", "3"]


def test_a_conflicted_merge_runs_on_and_unrelated_threads_merge(saver: InMemorySaver, known: bool) -> None:
    graph = looped(saver)
    fork = Fork(graph, saver, known=known)
    graph.invoke({"plan": {"a": 1}, "go": END}, THREAD)
    base = fork.tip()
    ours = graph.update_state(base, {"plan": {"a": 2}}, as_node="c")
    theirs = graph.update_state(base, {"plan": {"a": 3}}, as_node="c")
    config, merged = fork.merge(base, ours, theirs)
    assert [c.path for c in merged.conflicts] == [("plan", "a")]
    assert graph.invoke({"go": "c"}, THREAD)["plan"] == {"a": 2}
    config, merged = fork.merge(None, ours, theirs)
    assert [c.kind for c in merged.conflicts] == ["add/add"]
    assert fork.due(config) == set()


def test_a_channel_both_had_read_does_not_trigger_its_reader_again(saver: InMemorySaver, known: bool) -> None:
    ran: list[Any] = []
    reader = (
        NodeBuilder().subscribe_only("topic").do(lambda value: ran.append(value) or "seen").write_to("out")
    )
    graph = Pregel(
        nodes={"reader": reader},
        channels={"topic": Topic(str, accumulate=True), "out": LastValue(str), "go": EphemeralValue(str)},
        input_channels=["topic"],
        output_channels=["out"],
        checkpointer=saver,
    )
    fork = Fork(graph, saver, known=known)
    graph.invoke({"topic": "base"}, THREAD)
    base = fork.tip()
    tips = []
    for note in ("ours", "theirs"):
        graph.invoke({"topic": note}, base)
        tips.append(fork.tip())
    assert len(ran) == 3
    config, _ = fork.merge(base, *tips)
    assert fork.due(config) == set()
    assert fork.complete(config)["channel_values"]["topic"] == ["base", "ours", "theirs"]
    graph.invoke({"topic": "more"}, THREAD)
    assert ran[3:] == [["base", "ours", "theirs", "more"]]


def test_drivers_of_a_real_graph() -> None:
    class Every(TypedDict, total=False):
        messages: Annotated[list[AnyMessage], add_messages]
        formatted: Annotated[list[AnyMessage], add_messages(format="langchain-openai")]
        log: Annotated[list[str], operator.add]
        custom: Annotated[list[str], lambda a, b: [*a, *b]]
        both: Annotated[dict[str, int], operator.or_]
        plain: str

    builder = StateGraph(Every)
    builder.add_node("a", lambda state: {})
    builder.add_edge(START, "a")
    graph = builder.compile()
    graph.channels["best"] = BinaryOperatorAggregate(int, max)
    drivers = drivers_of(graph)
    named = {name: driver for name, driver in drivers.items() if isinstance(driver, str)}
    assert named == {
        "messages": "messages", "formatted": "messages", "log": "add", "custom": "reduced", "both": "reduced",
        "plain": "shape", "__start__": "pending", "branch:to:a": "pending", "__pregel_tasks": "pending",
    }  # fmt: skip
    merged = merge_states({"best": 1}, {"best": 5, "x": 1}, {"best": 3}, drivers=drivers)
    assert merged.values["best"] == 5


def test_checkpoints_with_old_channel_names_are_refused(saver: InMemorySaver) -> None:
    old: Any = {
        "v": 2,
        "id": "1",
        "channel_values": {},
        "channel_versions": {"start:a": 1},
        "versions_seen": {},
    }
    with pytest.raises(InvalidInputError, match=r"format 2.*__copy__"):
        merge_checkpoints(None, old, old, next_version=saver.get_next_version)
