"""A sealed `DeltaChannel` is rebuilt from many rows: whoever has SQL but no key can take none of them away."""

from __future__ import annotations

import random
from typing import Annotated, Any, TypedDict

import psycopg
import pytest
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt

from haive_persistence import CheckpointConfig, errors
from haive_persistence.checkpointer import Checkpointer
from haive_persistence.checkpointer.ids import thread_key
from haive_persistence.db import Database
from tests.builders import make_checkpoint, store, thread

SEALED = CheckpointConfig(encryption_key=bytes(range(32)))
CONFIG = thread("t")


def _append(value: list[str], writes: list[list[str]]) -> list[str]:
    return [*(value or []), *(item for write in writes for item in write)]


class State(TypedDict, total=False):
    items: Annotated[list[str], DeltaChannel(_append, snapshot_frequency=1000)]
    ask: bool


def reply(state: State) -> dict[str, Any]:
    if state.get("ask"):
        return {"items": [f"answered {interrupt('really?')}"]}
    return {"items": [f"reply to {len(state['items'])}"]}


def graph(saver: Checkpointer) -> Any:
    builder = StateGraph(State)
    builder.add_node("reply", reply)
    builder.add_node("also", lambda state: {"items": ["also"]})
    builder.add_edge(START, "reply")
    builder.add_edge(START, "also")
    return builder.compile(checkpointer=saver)


@pytest.fixture
def conversation(database: Database) -> Any:
    """A sealed thread of three turns; its graph in a process that remembers nothing."""
    app = graph(Checkpointer(database, config=SEALED))
    for turn in range(3):
        app.invoke({"items": [f"turn {turn}"]}, CONFIG)
    return app


def items(database: Database) -> list[str]:
    return graph(Checkpointer(database, config=SEALED)).get_state(CONFIG).values["items"]


KEYS = {"checkpoint": "checkpoint_id", "pending_write": "write_no"}
ATTACKS = {
    "no parent": ("checkpoint", "UPDATE haive.checkpoint SET parent_id = NULL WHERE checkpoint_id = %s"),
    "no checkpoint": ("checkpoint", "DELETE FROM haive.checkpoint WHERE checkpoint_id = %s"),
    "no write": ("pending_write", "DELETE FROM haive.pending_write WHERE write_no = %s"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_row_can_be_taken_away(
    conversation: Any, database: Database, admin: psycopg.Connection[Any], attack: str
) -> None:
    before = items(database)
    assert len(before) == 9
    table, statement = ATTACKS[attack]
    key = thread_key(database.tenant, "t")
    admin.execute(f"CREATE TEMP TABLE backup AS SELECT * FROM haive.{table} WHERE thread_key = '{key}'")  # type: ignore[arg-type]
    found = admin.execute(f"SELECT {KEYS[table]} FROM backup ORDER BY checkpoint_id").fetchall()  # type: ignore[arg-type]
    attacked = {"no parent": found[1:], "no checkpoint": found[:-1], "no write": found}[attack]
    assert len(attacked) >= 8
    for row in attacked:
        assert admin.execute(statement, row).rowcount == 1  # type: ignore[arg-type]
        with pytest.raises(errors.TamperedError):
            items(database)
        with pytest.raises(errors.TamperedError):  # or what is left would be sealed as if it were all
            Checkpointer(database, config=SEALED).prune(["t"])
        admin.execute(f"DELETE FROM haive.{table} WHERE thread_key = '{key}'")  # type: ignore[arg-type]
        admin.execute(f"INSERT INTO haive.{table} SELECT * FROM backup")  # type: ignore[arg-type]
    assert items(database) == before


def test_a_write_that_was_on_its_way_is_named_by_a_later_checkpoint(
    database: Database, admin: psycopg.Connection[Any]
) -> None:
    """With durability="async" a task's writes may arrive after the checkpoint that was made from them."""
    saver = Checkpointer(database, config=SEALED)
    first = store(saver, {"n": 1})
    second = put_below(saver, first, {"n": 2, "items": None})
    saver.put_writes(first, [("items", ["late"])], "task")
    put_below(saver, second, {"n": 3, "items": None})
    history = Checkpointer(database, config=SEALED).get_delta_channel_history(
        config=CONFIG, channels=["items"]
    )
    assert [write[2] for write in history["items"]["writes"]] == [["late"]]
    admin.execute("DELETE FROM haive.pending_write WHERE tenant_id = %s", (database.tenant,))
    with pytest.raises(errors.TamperedError):
        Checkpointer(database, config=SEALED).get_delta_channel_history(config=CONFIG, channels=["items"])


def put_below(saver: Checkpointer, config: Any, versions: dict[str, Any]) -> Any:
    checkpoint = make_checkpoint({"n": versions["n"]}, versions)
    return saver.put(config, checkpoint, {"source": "loop", "step": 1, "parents": {}}, {"n": versions["n"]})


def test_a_parent_that_was_never_stored_is_no_error(database: Database) -> None:
    """A run's checkpoint may fail to be saved and the next one still be put."""
    saver = Checkpointer(database, config=SEALED)
    missing = {"configurable": {**thread()["configurable"], "checkpoint_id": make_checkpoint({})["id"]}}
    saver.put_writes(missing, [("items", ["orphan"])], "task")
    put_below(saver, missing, {"n": 1, "items": None})
    reader = Checkpointer(database, config=SEALED)
    assert reader.get_delta_channel_history(config=CONFIG, channels=["items"]) == {"items": {"writes": []}}
    reader.prune(["t"])
    assert reader.get_tuple(CONFIG) is not None


@pytest.mark.parametrize("seed", range(6))
def test_honest_use_is_never_taken_for_an_attack(database: Database, seed: int) -> None:
    """Several processes, durabilities, forks, interrupts, copies and prunes: sealed threads are as others."""
    rng = random.Random(seed)
    plain = [Checkpointer(database) for _ in range(2)]
    sealed = [Checkpointer(database.for_tenant(f"{database.tenant}-s"), config=SEALED) for _ in range(2)]
    for step in range(25):
        action, which, ids = rng.randrange(10), rng.randrange(2), rng.sample("ab", 2)
        choice, durability = rng.random(), rng.choice(["sync", "async", "exit"])
        outcomes = [play(side[which], step, action, ids, choice, durability) for side in (plain, sealed)]
        assert outcomes[0] == outcomes[1]
    for id_ in "ab":
        states = [
            [state.values for state in graph(side[0]).get_state_history(thread(id_))]
            for side in (plain, sealed)
        ]
        assert states[0] == states[1]


def play(saver: Checkpointer, step: int, action: int, ids: list[str], choice: float, durability: Any) -> Any:
    """One step of a conversation. Returns what a user sees of it."""
    app, config = graph(saver), thread(ids[0])
    history = list(app.get_state_history(config))
    runs = {**config, "metadata": {"run_id": f"run-{step % 4}"}}
    if action < 4 or not history:
        app.invoke({"items": [f"turn {step}"], "ask": action == 3}, runs, durability=durability)
    elif action == 4 and history[0].interrupts:
        app.invoke(Command(resume="yes"), runs, durability=durability)
    elif action in (5, 6):
        past = history[int(choice * len(history))]
        app.update_state(past.config, {"items": [f"fork {step}"]}, as_node="reply")
    elif action == 7:
        saver.copy_thread(*ids)
    elif action == 8:
        saver.prune([ids[0]])
    elif action == 9:
        saver.delete_for_runs([f"run-{step % 4}"])
    return app.get_state(config).values
