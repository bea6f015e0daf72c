"""A branch behaves as a thread of its own would that began with a copy of what there was.

Random runs on branches beside LangGraph's `InMemorySaver`: there each branch is a copy of the saver, cut off where the
branch starts. What LangGraph then says of a branch's state, tasks, interrupts and history must be the same.
"""

from __future__ import annotations

import copy
import itertools
import operator
import random
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.types import Command, interrupt

from haive_persistence.checkpointer import Checkpointer
from haive_persistence.config import EncryptionConfig
from haive_persistence.db import Database


def _append(state: list[str], updates: list[list[str]]) -> list[str]:
    return [*state, *itertools.chain.from_iterable(updates)]


class State(TypedDict, total=False):
    messages: Annotated[list[Any], add_messages]
    log: Annotated[list[str], operator.add]
    items: Annotated[list[str], DeltaChannel(_append, snapshot_frequency=5)]
    note: str
    ask: bool


class Notes(TypedDict, total=False):
    seen: Annotated[list[str], operator.add]
    log: Annotated[list[str], operator.add]
    note: str


def _remembers(state: Notes) -> Notes:
    return {"seen": [state.get("note", "")], "log": [f"seen {len(state.get('seen', []))}"]}


def _asks(state: Notes) -> Notes:
    return {"log": [f"inner {interrupt('inner?')}"]}


def build(saver: Any) -> Any:
    """A graph with each kind of channel, an interrupt, and subgraphs that remember and that ask."""
    remembering = StateGraph(Notes).add_node("remembers", _remembers).add_edge(START, "remembers")
    asking = StateGraph(Notes).add_node("asks", _asks).add_edge(START, "asks")

    def reply(state: State) -> State:
        said = state["messages"][-1]
        return {
            "messages": [AIMessage(f"re {said.content}", id=f"a-{said.id}")],
            "items": [f"i {said.content}"],
        }

    def outer(state: State) -> State:
        return {"log": [f"outer {interrupt('outer?')}"] if state.get("ask") else ["not asked"]}

    def after(state: State) -> str:
        return "asking" if state.get("ask") else END

    graph = StateGraph(State)
    graph.add_node("reply", reply)
    graph.add_node("outer", outer)
    graph.add_node("memory", remembering.compile(checkpointer=True))
    graph.add_node("asking", asking.compile())
    graph.add_edge(START, "reply").add_edge("reply", "outer").add_edge("reply", "memory")
    graph.add_conditional_edges("outer", after, ["asking", END])
    return graph.compile(checkpointer=saver)


THREAD: Any = {"configurable": {"thread_id": "t"}}


class Model(NamedTuple):
    """A branch as a thread of its own."""

    graph: Any
    saver: InMemorySaver

    @classmethod
    def of(cls, saver: InMemorySaver) -> Model:
        return cls(build(saver), saver)

    def cut_at(self, checkpoint_id: str | None) -> Model:
        """A copy that ends with a checkpoint, as if nothing had been done since."""
        saver = InMemorySaver()
        saver.storage = copy.deepcopy(self.saver.storage)
        saver.writes = copy.deepcopy(self.saver.writes)
        saver.blobs = copy.deepcopy(self.saver.blobs)
        roots = sorted(saver.storage["t"].get("", {}))
        later = [id_ for id_ in roots if checkpoint_id and id_ > checkpoint_id]
        if later:
            for ns, line in saver.storage["t"].items():
                for id_ in list(line):
                    if id_ >= later[0] and (ns != "" or id_ in later):
                        del line[id_]
            for key, writes in list(saver.writes.items()):
                if key[2] >= later[0]:
                    del saver.writes[key]
                elif key[2] == checkpoint_id or key[1] != "":
                    has_more = key[2] >= (checkpoint_id or "")
                    interrupted = {
                        task
                        for task, _ in writes
                        if any(w[1] == "__interrupt__" for k, w in writes.items() if k[0] == task)
                    }
                    for slot in list(writes) if has_more else ():
                        if slot[0] not in interrupted or writes[slot][1] not in (
                            "__interrupt__",
                            "__resume__",
                        ):
                            del writes[slot]
        return Model.of(saver)


def told(snapshot: Any) -> Any:
    """What a snapshot says, without ids, which are drawn at random."""
    return (
        {
            k: [(m.type, m.content, m.id) for m in v] if k == "messages" else v
            for k, v in snapshot.values.items()
        },
        snapshot.next,
        [(task.name, [i.value for i in task.interrupts], bool(task.error)) for task in snapshot.tasks],
        snapshot.metadata and (snapshot.metadata["source"], snapshot.metadata["step"]),
    )


class Both:
    """The same done to branches of one thread, and to the model's threads."""

    def __init__(self, new_saver: Callable[[], Checkpointer], seed: int) -> None:
        self.random = random.Random(seed)
        self.new_saver = new_saver
        self.saver = new_saver()
        self.graph = build(self.saver)
        self.models: dict[str, Model] = {"main": Model.of(InMemorySaver())}
        self.numbers = itertools.count()
        self.names = itertools.count(1)
        self.last: tuple[Any, ...] | None = (
            None  # what undo takes back: a name, and what it meant before and since
        )

    def config(self, branch: str) -> Any:
        named = {} if branch == "main" else {"branch": branch}
        return {"configurable": {"thread_id": "t", **named}}

    def step(self) -> str:
        branch = self.random.choice(list(self.models))
        actions = [self.say, self.say, self.answer, self.update, self.branch, self.branch, self.forget]
        actions += [self.restore, self.undo]
        action = self.random.choice(actions)
        return f"{action.__name__} on {branch}: {action(branch)}"

    def _do(self, branch: str, work: Callable[[Any, Any], Any]) -> str:
        mine, theirs = self._try(work, self.graph, self.config(branch)), None
        model = self.models[branch]
        theirs = self._try(work, model.graph, THREAD)
        assert mine == theirs
        return mine

    def _try(self, work: Callable[[Any, Any], Any], graph: Any, config: Any) -> str:
        try:
            work(graph, config)
        except Exception as error:  # both must fail alike
            return type(error).__name__
        return "ok"

    def say(self, branch: str) -> str:
        no, ask = next(self.numbers), self.random.random() < 0.5
        said = {
            "messages": [HumanMessage(f"q{no}", id=f"h{no}")],
            "ask": ask,
            "note": f"n{no}",
            "items": [f"in{no}"],
        }
        return self._do(branch, lambda graph, config: graph.invoke(said, config))

    def answer(self, branch: str) -> str:
        answer = f"answer {next(self.numbers)}"
        if not self.models[branch].graph.get_state(THREAD).interrupts:
            return "nothing to answer"
        return self._do(branch, lambda graph, config: graph.invoke(Command(resume=answer), config))

    def update(self, branch: str) -> str:
        values = {"log": [f"update {next(self.numbers)}"], "items": ["updated"]}
        if not self.models[branch].graph.get_state(THREAD).created_at:
            return "nothing to update"
        return self._do(branch, lambda graph, config: graph.update_state(config, values, as_node="reply"))

    def branch(self, branch: str) -> str:
        model = self.models[branch]
        theirs = list(model.graph.get_state_history(THREAD))
        mine = list(self.graph.get_state_history(self.config(branch)))
        if not mine or len(self.models) > 6:
            return "no"
        at = 0 if self.random.random() < 0.4 else self.random.randrange(len(mine))
        name = f"b{next(self.names)}"
        start = self.config(branch) if at == 0 else mine[at].config
        made = self.saver.blocking.create_branch(start, name)
        assert made.name == name
        self.models[name] = model.cut_at(theirs[at].config["configurable"]["checkpoint_id"])
        self.last = (name, None)
        return f"{name} at {at} of {len(mine)}"

    def restore(self, branch: str) -> str:
        model = self.models[branch]
        theirs = list(model.graph.get_state_history(THREAD))
        mine = list(self.graph.get_state_history(self.config(branch)))
        if len(mine) < 2:
            return "no"
        at = self.random.randrange(1, len(mine))
        restored = self.saver.blocking.restore(mine[at].config)
        assert restored.branch == (None if branch == "main" else branch)
        self.models[branch] = model.cut_at(theirs[at].config["configurable"]["checkpoint_id"])
        self.last = (branch, model)
        return f"{at} of {len(mine)}"

    def undo(self, _: str) -> str:
        """Undo the last operation, which may be an undo."""
        if self.last is None:
            return "nothing"
        name, before = self.last
        operation = self.saver.blocking.undo("t")
        assert (operation.kind, operation.name) == ("undo", name)
        self.last = (name, self.models.pop(name, None))
        if before is not None:
            self.models[name] = before
        return name

    def forget(self, branch: str) -> str:
        """Another process goes on."""
        self.saver = self.new_saver()
        self.graph = build(self.saver)
        return ""

    def check_states(self, thread_id: str = "t") -> None:
        for branch, model in self.models.items():
            config = self.config(branch)
            config["configurable"]["thread_id"] = thread_id
            mine = told(self.graph.get_state(config, subgraphs=True))
            assert mine == told(model.graph.get_state(THREAD, subgraphs=True)), branch

    def check(self) -> None:
        self.check_states()
        for branch, model in self.models.items():
            history = [told(s) for s in self.graph.get_state_history(self.config(branch))]
            assert history == [told(s) for s in model.graph.get_state_history(THREAD)], branch


@pytest.mark.parametrize("sealed", [False, True], ids=["clear", "sealed"])
@pytest.mark.parametrize("seed", range(6))
def test_a_branch_is_like_a_thread_of_its_own(database: Database, seed: int, sealed: bool) -> None:
    view = (
        database.with_encryption(EncryptionConfig(encryption_key="correct horse battery"))
        if sealed
        else database
    )
    both = Both(lambda: Checkpointer(view), seed)
    both.say("main")
    done = []
    for _ in range(25):
        done.append(both.step())
        try:
            both.check()
        except AssertionError:
            print("\n".join(done))
            raise


@pytest.mark.parametrize("sealed", [False, True], ids=["clear", "sealed"])
@pytest.mark.parametrize("seed", range(4))
def test_what_branches_show_outlives_prune_copy_and_seal(database: Database, seed: int, sealed: bool) -> None:
    key = EncryptionConfig(encryption_key="correct horse battery", accept_earlier_plaintext=True)
    both = Both(lambda: Checkpointer(database), seed)
    both.say("main")
    for _ in range(10):
        both.step()
    both.check()
    if sealed:
        Checkpointer(database.with_encryption(key)).seal_existing()
        both.new_saver = lambda: Checkpointer(database.with_encryption(key))
        both.forget("")
        both.check()
    both.saver.copy_thread("t", "copy")
    both.check_states("copy")
    both.saver.prune(["t"])
    both.check_states()
    both.forget("")
    both.check_states()
    for _ in range(6):
        both.models.pop("none", None)
        branch = both.random.choice(list(both.models))
        both.random.choice([both.say, both.answer, both.update])(branch)
        both.check_states()
    both.saver.prune(["t", "copy"])
    both.check_states()
    both.saver.delete_thread("t")
    with database.connect() as conn:
        for table in ("thread", "ref", "operation", "checkpoint", "pending_write", "piece"):
            left = f"SELECT count(*) FROM {database.schema}.{table} WHERE thread_key NOT IN (SELECT thread_key FROM {database.schema}.thread)"
            assert conn.execute(left.encode()).fetchone() == (0,), table


def test_delta_channels_are_compared_by_what_they_are_rebuilt_from(database: Database) -> None:
    saver = Checkpointer(database)
    graph = build(saver)
    branch = None
    for no in range(3):
        said = {"messages": [HumanMessage("q", id=f"h{no}")], "items": [f"in{no}"]}
        graph.invoke(said, THREAD)
        branch = branch or saver.blocking.create_branch(THREAD, "one turn")
    diff = saver.blocking.compare(branch, "main", thread_id="t")
    assert {"messages", "items"} <= diff.summary.keys() <= {"messages", "items", "log", "note"}
    assert not saver.blocking.compare("main", THREAD, thread_id="t")
