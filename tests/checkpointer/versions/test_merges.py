"""Merges of branches as they are stored: real graphs run on afterwards, and undo takes each back."""

from __future__ import annotations

import itertools
import operator
import random
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import START, StateGraph, add_messages
from langgraph.types import Command, interrupt

from haive_persistence.checkpointer import Checkpointer
from haive_persistence.config import EncryptionConfig
from haive_persistence.db import Database
from haive_persistence.errors import (
    InvalidInputError,
    MergeConflictError,
    NotFoundError,
    ProtectedError,
)

T: Any = {"configurable": {"thread_id": "t"}}


def _append(state: list[str], updates: list[list[str]]) -> list[str]:
    return [*state, *itertools.chain.from_iterable(updates)]


class State(TypedDict, total=False):
    messages: Annotated[list[Any], add_messages]
    log: Annotated[list[str], operator.add]
    total: Annotated[int, operator.add]
    settings: dict[str, Any]
    note: str


class Remembered(TypedDict, total=False):
    seen: Annotated[list[str], operator.add]
    note: str


def build(saver: Checkpointer) -> Any:
    def remember(state: Remembered) -> Remembered:
        return {"seen": [state.get("note", "")]}

    def reply(state: State) -> State:
        said = state["messages"][-1]
        if said.content == "ask":
            return {"messages": [AIMessage(interrupt("what?"), id=f"a-{said.id}")]}
        return {"messages": [AIMessage(f"re {said.content}", id=f"a-{said.id}")], "total": 1}

    memory = StateGraph(Remembered).add_node("remember", remember).add_edge(START, "remember")
    graph = StateGraph(State)
    graph.add_node("reply", reply)
    graph.add_node("memory", memory.compile(checkpointer=True))
    graph.add_edge(START, "reply").add_edge("reply", "memory")
    return graph.compile(checkpointer=saver)


def said(text: str, **more: Any) -> Any:
    return {"messages": [HumanMessage(text, id=f"h-{text}")], "note": text, **more}


def texts(graph: Any, config: Any = T) -> list[str]:
    return [m.content for m in graph.get_state(config).values["messages"]]


@pytest.fixture(params=["clear", "sealed"])
def saver(request: pytest.FixtureRequest, database: Database) -> Checkpointer:
    key = EncryptionConfig(encryption_key="correct horse battery")
    return Checkpointer(database.with_encryption(key) if request.param == "sealed" else database)


@pytest.fixture
def graph(saver: Checkpointer) -> Any:
    return build(saver)


@pytest.fixture
def forked(saver: Checkpointer, graph: Any) -> Any:
    """Two branches that both went on from the first turn; the other one's config."""
    graph.invoke(said("one", settings={"a": 1}), T)
    other = saver.blocking.create_branch(T, "other").config
    graph.invoke(said("ours", log=["ours"], settings={"a": 1, "b": 2}), T)
    graph.invoke(said("theirs", log=["theirs"], settings={"a": 1, "c": 3}), other)
    return other


def test_a_merge_unites_what_both_did_and_runs_on(saver: Checkpointer, graph: Any, forked: Any) -> None:
    merge = saver.blocking.merge("t", "other", graph=graph, policy={"note": "secondary_wins"})
    assert (merge.is_changed, merge.is_fast_forward, merge.conflicts) == (True, False, ())
    state = graph.get_state(T)
    assert state.config["configurable"]["checkpoint_id"] == merge.checkpoint_id
    assert texts(graph) == ["one", "re one", "ours", "re ours", "theirs", "re theirs"]
    assert state.values["log"] == ["ours", "theirs"]
    assert state.values["total"] == 3
    assert state.values["settings"] == {"a": 1, "b": 2, "c": 3}
    assert (state.values["note"], state.next) == ("theirs", ())
    assert texts(graph, forked) == ["one", "re one", "theirs", "re theirs"]
    graph.invoke(said("on"), merge.config)
    assert texts(graph)[-2:] == ["on", "re on"]
    assert texts(build(Checkpointer(saver.database)))[-2:] == ["on", "re on"]


def test_a_subgraph_remembers_what_it_was_told_on_both(saver: Checkpointer, graph: Any, forked: Any) -> None:
    saver.blocking.merge("t", "other", graph=graph)
    graph.invoke(said("on"), T)
    memory = saver.get_tuple({"configurable": {"thread_id": "t", "checkpoint_ns": "memory"}})
    assert memory is not None
    assert memory.checkpoint["channel_values"]["seen"] == ["one", "ours", "theirs", "on"]


def test_undo_takes_a_merge_back(saver: Checkpointer, graph: Any, forked: Any) -> None:
    before = texts(graph)
    merge = saver.blocking.merge("t", "other", by="ann")
    graph.invoke(said("on"), T)
    (operation,) = [o for o in saver.blocking.log("t") if o.kind == "merge"]
    assert (operation.name, operation.by) == ("main", "ann")
    saver.blocking.undo("t")
    assert texts(graph) == before
    saver.blocking.undo("t")
    assert texts(graph)[-2:] == ["on", "re on"]
    assert merge.config == T


def test_what_is_merged_already_changes_nothing(saver: Checkpointer, graph: Any, forked: Any) -> None:
    blocking = saver.blocking
    blocking.merge("t", "other")
    head = graph.get_state(T).config
    for source in ("other", "main", head):
        again = blocking.merge("t", source)
        assert (again.is_changed, again.conflicts) == (False, ())
    assert graph.get_state(T).config == head


def test_a_branch_with_nothing_of_its_own_is_moved(saver: Checkpointer, graph: Any, forked: Any) -> None:
    blocking = saver.blocking
    blocking.merge("t", "other")
    fast = blocking.merge("t", "main", into="other")
    assert fast.is_fast_forward
    assert texts(graph, forked) == texts(graph)
    graph.invoke(said("only other"), forked)
    assert "only other" not in texts(graph)
    again = blocking.merge("t", "other")
    assert again.is_fast_forward
    assert texts(graph)[-2:] == ["only other", "re only other"]
    graph.invoke(said("only main"), T)
    assert "only main" not in texts(graph, forked)


def test_branches_that_were_merged_crosswise_are_merged_again(
    saver: Checkpointer, graph: Any, forked: Any
) -> None:
    blocking = saver.blocking
    ours, theirs = (graph.get_state(c).config["configurable"]["checkpoint_id"] for c in (T, forked))
    blocking.merge("t", theirs, policy="primary_wins")
    blocking.merge("t", ours, into="other", policy="primary_wins")
    graph.invoke(said("ours 2"), T)
    graph.invoke(said("theirs 2"), forked)
    blocking.merge("t", "other", graph=graph, policy="primary_wins")
    found = texts(graph)
    assert len(found) == len(set(found)) == 10
    for text in found[1::2]:
        assert f"re {found[found.index(text) - 1]}" == text


def test_conflicts_are_kept_and_decided_later(saver: Checkpointer, graph: Any, forked: Any) -> None:
    merge = saver.blocking.merge("t", "other", graph=graph)
    (conflict,) = merge.conflicts
    assert (conflict.path, conflict.kind, conflict.ours, conflict.theirs) == (
        ("note",),
        "edit/edit",
        "ours",
        "theirs",
    )
    state = graph.get_state(T)
    assert state.values["note"] == "ours"
    assert state.metadata["conflicts"][0]["theirs"] == "theirs"
    graph.update_state(T, {"log": ["in between"]}, as_node="memory")
    done = saver.blocking.resolve(merge, {"note": "theirs"})
    assert done.conflicts == ()
    state = graph.get_state(T)
    assert (state.values["note"], state.values["log"][-1], state.next) == ("theirs", "in between", ())
    with pytest.raises(InvalidInputError, match="no conflict"):
        saver.blocking.resolve(merge, {7: "ours"})


def test_a_policy_that_fails_changes_nothing(saver: Checkpointer, graph: Any, forked: Any) -> None:
    before = graph.get_state(T).config
    with pytest.raises(MergeConflictError, match="note"):
        saver.blocking.merge("t", "other", policy={"note": "fail"})
    assert graph.get_state(T).config == before
    assert not [o for o in saver.blocking.log("t") if o.kind == "merge"]


def test_deletions_are_merged(saver: Checkpointer, graph: Any, forked: Any) -> None:
    graph.update_state(
        forked, {"messages": [RemoveMessage("h-one"), RemoveMessage("a-h-one")]}, as_node="memory"
    )
    saver.blocking.merge("t", "other")
    assert texts(graph) == ["ours", "re ours", "theirs", "re theirs"]


def test_a_node_that_waits_on_the_other_branch_waits_after_the_merge(
    saver: Checkpointer, graph: Any, forked: Any
) -> None:
    graph.invoke(said("ask"), forked)
    assert graph.get_state(forked).interrupts
    merge = saver.blocking.merge("t", "other", graph=graph, policy={"note": "secondary_wins"})
    assert graph.get_state(T).next == ("reply",)
    graph.invoke(None, merge.config)  # it runs again, and asks again
    assert graph.get_state(T).interrupts
    graph.invoke(Command(resume="answered"), T)
    assert texts(graph)[-2:] == ["ask", "answered"]


def test_cherry_pick_and_revert(saver: Checkpointer, graph: Any, forked: Any) -> None:
    settings = graph.get_state(forked).values["settings"]
    graph.update_state(forked, {"settings": {**settings, "wanted": 1}}, as_node="memory")
    wanted = graph.get_state(forked).config["configurable"]["checkpoint_id"]
    graph.update_state(forked, {"settings": {**settings, "not wanted": 1}}, as_node="memory")
    before = graph.get_state(T).values
    picked = saver.blocking.cherry_pick("t", wanted, graph=graph)
    after = graph.get_state(T)
    assert after.values == {**before, "settings": {"a": 1, "b": 2, "wanted": 1}}
    assert (picked.is_changed, picked.conflicts, after.next) == (True, (), ())
    graph.update_state(T, {"log": ["later"]}, as_node="memory")
    saver.blocking.revert("t", picked.checkpoint_id)
    assert graph.get_state(T).values == {**before, "log": [*before["log"], "later"]}
    first = list(graph.get_state_history(T))[-1].config
    with pytest.raises(InvalidInputError, match="has no parent"):
        saver.blocking.revert("t", first)


def test_a_protected_branch_takes_merges_only(saver: Checkpointer, graph: Any, forked: Any) -> None:
    for branch, config in (("main", T), ("other", forked)):
        saver.blocking.protect_branch("t", branch)
        source = "other" if branch == "main" else "main"
        assert saver.blocking.merge("t", source, into=branch).is_changed
        with pytest.raises(ProtectedError):
            graph.invoke(said("no"), config)
        assert {b.name: b.is_protected for b in saver.blocking.branches("t")}[branch]
        saver.blocking.protect_branch("t", branch, False)
        graph.invoke(said(f"yes {branch}"), config)


def test_prune_keeps_a_merged_thread_running(saver: Checkpointer, graph: Any, forked: Any) -> None:
    saver.blocking.merge("t", "other", graph=graph)
    saver.prune(["t"])
    assert len(texts(graph)) == 6
    graph.invoke(said("on"), T)
    assert texts(graph)[-1] == "re on"
    assert len(texts(graph, forked)) == 4


def test_a_thread_with_a_delta_channel_is_merged_with_its_graph(saver: Checkpointer) -> None:
    class Items(TypedDict, total=False):
        items: Annotated[list[str], DeltaChannel(_append, snapshot_frequency=1000)]

    graph = (
        StateGraph(Items)
        .add_node("n", lambda _: {"items": ["n"]})
        .add_edge(START, "n")
        .compile(checkpointer=saver)
    )
    graph.invoke({"items": ["one"]}, T)
    other = saver.blocking.create_branch(T, "other").config
    graph.invoke({"items": ["ours"]}, T)
    graph.invoke({"items": ["theirs"]}, other)
    with pytest.raises(InvalidInputError, match="pass graph="):
        saver.blocking.merge("t", "other")
    saver.blocking.merge("t", "other", graph=graph)
    merged = graph.get_state(T).values["items"]
    assert sorted(merged) == sorted(["one", "n", "ours", "n", "theirs", "n"])
    graph.invoke({"items": ["on"]}, T)
    assert graph.get_state(T).values["items"] == [*merged, "on", "n"]


def test_what_cannot_be_merged_is_said(saver: Checkpointer, graph: Any, forked: Any) -> None:
    graph.invoke(said("elsewhere"), {"configurable": {"thread_id": "u"}})
    for call in (
        lambda: saver.blocking.merge("t", "none"),
        lambda: saver.blocking.merge("t", "other", into="none"),
        lambda: saver.blocking.merge("none", "other"),
    ):
        with pytest.raises(NotFoundError):
            call()
    with pytest.raises(InvalidInputError, match="of the same thread"):
        saver.blocking.merge("t", {"configurable": {"thread_id": "u"}})


async def test_the_calls_are_asynchronous_too(saver: Checkpointer, graph: Any) -> None:
    await graph.ainvoke(said("one"), T)
    other = (await saver.create_branch(T, "other")).config
    await graph.ainvoke(said("ours"), T)
    await graph.ainvoke(said("theirs"), other)
    merge = await saver.merge("t", "other", graph=graph)
    assert (await saver.resolve(merge, {"note": "theirs"})).conflicts == ()
    head = (await graph.aget_state(T)).config
    reverted = await saver.revert("t", head)
    assert (await graph.aget_state(T)).values["note"] == "ours"
    await saver.cherry_pick("t", head["configurable"]["checkpoint_id"], thread := "main")
    assert (await graph.aget_state(T)).values["note"] == "theirs"
    assert (reverted.branch, thread) == (None, "main")


@pytest.mark.parametrize("seed", range(4))
def test_random_merges_lose_no_message_and_have_none_twice(
    saver: Checkpointer, graph: Any, seed: int
) -> None:
    chosen = random.Random(seed)
    names = ["main"]

    def config(name: str) -> Any:
        return T if name == "main" else {"configurable": {"thread_id": "t", "branch": name}}

    graph.invoke(said("first"), T)
    for no in range(25):
        before = {name: set(texts(graph, config(name))) for name in names}
        name, source = chosen.choice(names), chosen.choice(names)
        action = chosen.randrange(6)
        if action < 3:
            graph.invoke(said(str(no)), config(name))
        elif action == 3 and len(names) < 4:
            names.append(saver.blocking.create_branch(config(name), f"b{no}").name)
        else:
            merge = saver.blocking.merge("t", source, name, policy={"note": "primary_wins"}, graph=graph)
            assert (merge.conflicts, graph.get_state(merge.config).next) == ((), ())
            assert before[source] <= set(texts(graph, config(name)))
        for branch in names:
            found = texts(graph, config(branch))
            assert len(found) == len(set(found))
            assert before.get(branch, set()) <= set(found)
            for at, text in enumerate(found):
                assert text.startswith("re ") or found[at + 1] == f"re {text}"
