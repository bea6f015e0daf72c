"""What finished tasks of a half-done step wrote, carried through a merge."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send, interrupt

from haive_persistence.checkpointer.versions.merge.checkpoints import merge_checkpoints
from haive_persistence.checkpointer.versions.merge.pending import Step, carry_writes

THREAD = {"configurable": {"thread_id": "t"}}


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    jobs: list[str]


class Half:
    """A graph whose step stops half-way: `quick` finishes, `ask` waits."""

    def __init__(self) -> None:
        self.saver, self.ran = InMemorySaver(), list[str]()
        builder = StateGraph(State)
        builder.add_node("quick", self.quick)
        builder.add_node("ask", self.ask)
        builder.add_node("job", self.job)
        builder.add_conditional_edges(START, self.route, ["quick", "ask", "job"])
        for node in ("quick", "ask", "job"):
            builder.add_edge(node, END)
        self.graph = builder.compile(self.saver)

    def route(self, state: State) -> Any:
        return [Send("job", {"jobs": [j]}) for j in state.get("jobs", [])] or ["quick", "ask"]

    def quick(self, state: State) -> Any:
        self.ran.append("quick")
        return {"log": ["quick"]}

    def ask(self, state: State) -> Any:
        first = interrupt("first?")
        return {"log": [f"{first} {interrupt('second?')}"]}

    def job(self, state: Any) -> Any:
        (name,) = state["jobs"]
        self.ran.append(name)
        return {"log": [interrupt(name)]} if name.startswith("?") else {"log": [name]}

    def tip(self) -> Any:
        return self.graph.get_state(THREAD).config

    def step(self, config: Any) -> Step:
        found = self.saver.get_tuple(config)
        assert found is not None
        return Step(
            checkpoint=found.checkpoint,
            tasks=self.graph.get_state(config).tasks,
            writes=found.pending_writes or (),
        )

    def merge(self, base: Any, ours: Any, theirs: Any) -> Any:
        sides: Any = [self.step(config).checkpoint for config in (base, ours, theirs)]
        found: Any = merge_checkpoints(*sides, next_version=self.saver.get_next_version, graph=self.graph)
        config = self.saver.put(
            ours, found.checkpoint, {"source": "update", "step": 9, "parents": {}}, found.new_versions
        )
        carried = carry_writes(self.step(ours), self.step(theirs), self.step(config))
        for task_id, writes in carried.items():
            self.saver.put_writes(config, writes, task_id)
        return config


@pytest.mark.parametrize("swapped", [False, True])
def test_a_finished_node_does_not_run_again_and_answers_are_kept(swapped: bool) -> None:
    half = Half()
    half.graph.invoke({"log": ["in"], "jobs": ["j"]}, THREAD)
    base = half.tip()
    aside = half.graph.update_state(base, {"log": ["aside"]}, as_node="job")
    half.graph.invoke({"jobs": []}, base)
    half.graph.invoke(Command(resume="yes"), THREAD)
    waiting = half.tip()
    assert half.ran == ["j", "quick"]
    half.merge(base, *((aside, waiting) if swapped else (waiting, aside)))
    assert half.graph.get_state(THREAD).next == ("ask",)
    asked = half.graph.invoke(None, THREAD)
    assert [question.value for question in asked["__interrupt__"]] == ["second?"]
    after = half.graph.invoke(Command(resume="sure"), THREAD)
    assert sorted(after["log"]) == ["aside", "in", "j", "quick", "yes sure"]
    assert half.ran == ["j", "quick"]


def test_finished_sends_of_both_sides_do_not_run_again() -> None:
    half = Half()
    half.graph.invoke({"log": ["in"], "jobs": ["j"]}, THREAD)
    base, tips = half.tip(), []
    for jobs in (["a", "?o"], ["b", "a", "a", "?t"]):
        half.graph.invoke({"jobs": jobs}, base)
        tips.append(half.tip())
    del half.ran[:]
    half.merge(base, *tips)
    state = half.graph.get_state(THREAD)
    assert state.next == ("job", "job")
    asked = half.graph.invoke(None, THREAD)
    questions = {question.value: question.id for question in asked["__interrupt__"]}
    after = half.graph.invoke(Command(resume={questions["?o"]: "O", questions["?t"]: "T"}), THREAD)
    assert sorted(after["log"]) == ["O", "T", "a", "a", "b", "in", "j"]
    assert set(half.ran) == {"?o", "?t"}


def test_updates_outside_of_tasks_are_carried_once_per_channel() -> None:
    null = "00000000-0000-0000-0000-000000000000"
    checkpoint: Any = {"channel_values": {}}
    ours = Step(checkpoint=checkpoint, tasks=(), writes=[(null, "a", 1), (null, "a", 2)])
    theirs = Step(
        checkpoint=checkpoint, tasks=(), writes=[(null, "a", 3), (null, "b", 4), (null, "__resume__", 5)]
    )
    merged = Step(checkpoint=checkpoint, tasks=())
    assert carry_writes(ours, theirs, merged) == {null: [("a", 1), ("a", 2), ("b", 4)]}
    assert carry_writes(merged, merged, merged) == {}
