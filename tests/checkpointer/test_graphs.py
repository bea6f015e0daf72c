"""Real graphs on the saver, beside LangGraph's InMemorySaver: same inputs, same states, same history."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, ToolMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph, add_messages
from langgraph.types import Command, Send, interrupt
from pydantic import BaseModel

from haive_persistence.checkpointer import CheckpointConfig, Checkpointer
from haive_persistence.db import Database

CONFIG: Any = {"configurable": {"thread_id": "t"}}


def without_ids(value: Any) -> Any:
    """States of two runs are equal but for ids, times and object identities."""
    if hasattr(value, "content"):
        return (type(value).__name__, value.content, getattr(value, "tool_calls", None))
    if isinstance(value, dict):
        return {k: without_ids(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_ids(v) for v in value]
    return value


def history(app: Any) -> list[Any]:
    return [
        (
            without_ids(s.values),
            s.next,
            s.metadata["step"],
            s.metadata["source"],
            [i.value for i in s.interrupts],
        )
        for s in app.get_state_history(CONFIG)
    ]


@pytest.fixture
def both(database: Database) -> Callable[[StateGraph[Any], Callable[[Any], Any]], None]:
    def run(builder: StateGraph[Any], play: Callable[[Any], Any]) -> None:
        """Play the same on both; what each step returned, the final state and the history must agree."""
        seen = []
        for saver in (InMemorySaver(), Checkpointer(database)):
            app = builder.compile(checkpointer=saver)
            seen.append((without_ids(play(app)), without_ids(app.get_state(CONFIG).values), history(app)))
        assert seen[0] == seen[1]
        fresh = builder.compile(checkpointer=Checkpointer(database))
        assert history(fresh) == seen[0][2]

    return run


class ToolState(TypedDict):
    messages: Annotated[list[Any], add_messages]
    log: Annotated[list[str], operator.add]
    files: dict[str, str]


def agent(state: ToolState) -> dict[str, Any]:
    if isinstance(state["messages"][-1], ToolMessage):
        return {"messages": [AIMessage("done")], "log": ["answered"]}
    call = {
        "name": "write",
        "args": {"path": "a.py"},
        "id": f"c{len(state['messages'])}",
        "type": "tool_call",
    }
    return {"messages": [AIMessage("", tool_calls=[call])], "log": ["called"]}


def tool(state: ToolState) -> dict[str, Any]:
    call = state["messages"][-1].tool_calls[0]
    files = {**state.get("files", {}), call["args"]["path"]: "x" * 3000}
    return {"messages": [ToolMessage("ok", tool_call_id=call["id"])], "files": files}


def tool_calling() -> StateGraph[Any]:
    builder = StateGraph(ToolState)
    builder.add_node("agent", agent)
    builder.add_node("tool", tool)
    builder.add_edge(START, "agent")
    builder.add_conditional_edges(
        "agent", lambda s: "tool" if s["messages"][-1].tool_calls else END, ["tool", END]
    )
    builder.add_edge("tool", "agent")
    return builder


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_a_tool_calling_agent(both: Any, durability: Any) -> None:
    def play(app: Any) -> Any:
        return [
            app.invoke({"messages": [HumanMessage(f"turn {i}")]}, CONFIG, durability=durability)
            for i in range(3)
        ]

    both(tool_calling(), play)


def test_interrupt_and_resume(both: Any) -> None:
    def ask(state: ToolState) -> dict[str, Any]:
        answer = interrupt({"question": "may I?", "size": "x" * 2000})
        return {"log": [f"answer {answer}"]}

    builder = StateGraph(ToolState)
    builder.add_node("ask", ask)
    builder.add_edge(START, "ask")

    def play(app: Any) -> Any:
        first = app.invoke({"messages": [HumanMessage("go")]}, CONFIG)
        return [first["messages"], app.get_state(CONFIG).next, app.invoke(Command(resume="yes"), CONFIG)]

    both(builder, play)


def test_send_fans_out(both: Any) -> None:
    class Out(TypedDict):
        messages: Annotated[list[Any], add_messages]
        done: Annotated[list[str], operator.add]

    builder = StateGraph(Out)
    builder.add_node("plan", lambda s: {"messages": [AIMessage("plan " * 100)]})
    builder.add_node("work", lambda s: {"done": [f"{s['n']}: {len(s['messages'])}"]})
    builder.add_edge(START, "plan")
    builder.add_conditional_edges(
        "plan", lambda s: [Send("work", {"n": n, "messages": s["messages"]}) for n in range(6)], ["work"]
    )
    both(builder, lambda app: app.invoke({"messages": [HumanMessage("go " * 200)]}, CONFIG))


def test_subgraphs_with_and_without_memory(both: Any, database: Database) -> None:
    inner = StateGraph(MessagesState)
    inner.add_node("think", lambda s: {"messages": [AIMessage(f"thought {len(s['messages'])}")]})
    inner.add_edge(START, "think")

    def outer(checkpointer: Any) -> StateGraph[Any]:
        builder = StateGraph(MessagesState)
        builder.add_node("sub", inner.compile(checkpointer=checkpointer))
        builder.add_node("end", lambda s: {"messages": [AIMessage("end")]})
        builder.add_edge(START, "sub")
        builder.add_edge("sub", "end")
        return builder

    for checkpointer in (None, True):
        Checkpointer(database).delete_thread("t")
        both(
            outer(checkpointer),
            lambda app: [app.invoke({"messages": [HumanMessage(f"t{i}")]}, CONFIG) for i in range(3)],
        )


def test_time_travel_forks_by_update_state(both: Any) -> None:
    def play(app: Any) -> Any:
        for i in range(3):
            app.invoke({"messages": [HumanMessage(f"turn {i}")]}, CONFIG)
        past = next(s for s in app.get_state_history(CONFIG) if s.metadata["step"] == 2)
        fork = app.update_state(
            past.config, {"messages": [HumanMessage("another way", id="fork")]}, as_node="tool"
        )
        again = app.invoke(None, fork)
        return [without_ids(again), app.get_state(CONFIG).next]

    both(tool_calling(), play)


def test_messages_removed_and_replaced(both: Any) -> None:
    def trim(state: Any) -> dict[str, Any]:
        messages = state["messages"]
        out: list[Any] = [AIMessage(f"n={len(messages)}", id=f"a{len(messages)}")]
        if len(messages) > 4:
            out += [RemoveMessage(id=m.id) for m in messages[:2]]
            out.append(HumanMessage("replaced", id=messages[2].id))
        return {"messages": out}

    builder = StateGraph(MessagesState)
    builder.add_node("trim", trim)
    builder.add_edge(START, "trim")
    both(
        builder,
        lambda app: [app.invoke({"messages": [HumanMessage(f"m{i} " * 50)]}, CONFIG) for i in range(8)],
    )


def _append(state: list[Any], writes: list[Any]) -> list[Any]:
    return [*state, *(x for w in writes for x in (w if isinstance(w, list) else [w]))]


class DeltaState(TypedDict):
    items: Annotated[list[str], DeltaChannel(_append, snapshot_frequency=5)]


def test_delta_channels_survive_prune(database: Database) -> None:
    builder = StateGraph(DeltaState)
    builder.add_node("add", lambda s: {"items": [f"reply to {len(s['items'])}"]})
    builder.add_edge(START, "add")
    app = builder.compile(checkpointer=Checkpointer(database))
    for i in range(13):
        app.invoke({"items": [f"input {i}"]}, CONFIG)
    before = app.get_state(CONFIG).values
    assert len(before["items"]) == 26
    Checkpointer(database).prune(["t"])
    again = builder.compile(checkpointer=Checkpointer(database))
    assert again.get_state(CONFIG).values == before
    assert len(list(again.get_state_history(CONFIG))) < 30
    again.invoke({"items": ["after"]}, CONFIG)
    assert again.get_state(CONFIG).values["items"][:26] == before["items"]


class Profile(BaseModel):
    name: str
    scores: list[float] = []


class OwnTypes(BaseModel):
    profile: Profile
    notes: Annotated[list[str], operator.add] = []


def test_users_own_state_types_come_back(both: Any) -> None:
    builder = StateGraph(OwnTypes)
    builder.add_node(
        "grow", lambda s: {"profile": Profile(name=s.profile.name + "!", scores=[*s.profile.scores, 1.5])}
    )
    builder.add_edge(START, "grow")

    def play(app: Any) -> Any:
        app.invoke({"profile": Profile(name="n")}, CONFIG)
        app.invoke({"notes": ["x"]}, CONFIG)
        profile = app.get_state(CONFIG).values["profile"]
        return [type(profile).__name__, profile.model_dump()]

    both(builder, play)


async def test_async_graphs_on_the_same_object(database: Database) -> None:
    saver = Checkpointer(database)
    app = tool_calling().compile(checkpointer=saver)
    await app.ainvoke({"messages": [HumanMessage("async")]}, CONFIG)
    app.invoke({"messages": [HumanMessage("blocking, inside the loop")]}, CONFIG)
    await app.ainvoke({"messages": [HumanMessage("async")]}, CONFIG)
    assert len((await app.aget_state(CONFIG)).values["messages"]) == 12
    assert len([s async for s in app.aget_state_history(CONFIG)]) == len(list(app.get_state_history(CONFIG)))


class Rebuilt(TypedDict, total=False):
    items: Annotated[list[str], DeltaChannel(_append, snapshot_frequency=1000)]


class Both(TypedDict, total=False):
    plain: Annotated[list[str], operator.add]
    items: Annotated[list[str], DeltaChannel(_append, snapshot_frequency=4)]


def _both(builder: Any, saver: Checkpointer) -> Any:
    builder.add_node("answer", lambda state: {"plain": ["answer"], "items": ["answer"]})
    builder.add_edge(START, "answer")
    return builder.compile(checkpointer=saver)


def _run(graph: Any, number: int, **options: Any) -> None:
    config: Any = {"configurable": {"thread_id": "t"}, "metadata": {"run_id": f"run {number}"}}
    graph.invoke({"plain": [f"{number}"], "items": [f"{number}"]}, config, **options)


def test_deleting_a_run_that_another_one_resumed(database: Database) -> None:
    saver = Checkpointer(database)
    builder = StateGraph(Both)
    builder.add_node("ask", lambda state: {"plain": [interrupt("?")], "items": ["of the second run"]})
    builder.add_edge(START, "ask")
    graph = builder.compile(checkpointer=saver)
    _run(graph, 1)
    graph.invoke(Command(resume="yes"), {**CONFIG, "metadata": {"run_id": "run 2"}})
    saver.delete_for_runs(["run 1"])
    assert graph.get_state(CONFIG).values["plain"] == ["1", "yes"]
    assert "of the second run" in graph.get_state(CONFIG).values["items"]


def test_deleting_a_run_that_was_saved_at_its_end(database: Database) -> None:
    saver = Checkpointer(database)
    graph = _both(StateGraph(Both), saver)
    for number in (1, 2, 3):
        _run(graph, number, durability="exit")
    saver.delete_for_runs(["run 2"])
    found = graph.get_state(CONFIG).values["items"]
    assert [item for item in found if item != "2"].count("answer") >= 2
    assert {"1", "3"} <= set(found)


def test_deleting_a_run_that_has_the_only_snapshot(database: Database) -> None:
    saver = Checkpointer(database)
    graph = _both(StateGraph(Both), saver)
    for number in range(4):
        _run(graph, number)
    saver.prune(["t"])
    _run(graph, 4)
    saver.delete_for_runs(["run 3"])
    assert {"0", "1", "2", "4"} <= set(graph.get_state(CONFIG).values["items"])


@pytest.mark.parametrize("key", [None, bytes(range(32))], ids=["plain", "sealed"])
def test_deleting_a_run_takes_nothing_of_other_runs_from_a_delta_channel(
    database: Database, key: bytes | None
) -> None:
    """The runs before it are still found along the parents."""
    options = CheckpointConfig(encryption_key=key)
    saver = Checkpointer(database, config=options)
    builder = StateGraph(Rebuilt)
    builder.add_node("answer", lambda state: {"items": ["answer"]})
    builder.add_edge(START, "answer")
    graph = builder.compile(checkpointer=saver)
    for number in range(4):
        config: Any = {"configurable": {"thread_id": "t"}, "metadata": {"run_id": f"run {number}"}}
        graph.invoke({"items": [f"question {number}"]}, config)
    saver.delete_for_runs(["run 1", "run 2"])
    again = builder.compile(checkpointer=Checkpointer(database, config=options))
    found = again.get_state({"configurable": {"thread_id": "t"}}).values["items"]
    assert found == ["question 0", "answer", "question 3", "answer"]
    ids = {
        t.config["configurable"]["checkpoint_id"] for t in saver.list({"configurable": {"thread_id": "t"}})
    }
    parents = [t.parent_config for t in saver.list({"configurable": {"thread_id": "t"}})]
    assert [p is None for p in parents].count(True) == 1
    assert all(p["configurable"]["checkpoint_id"] in ids for p in parents if p)
