"""Pruning."""

from __future__ import annotations

import random
from typing import Any

import psycopg
from langchain_core.messages import AIMessage, HumanMessage

from haive_persistence.checkpointer import CheckpointConfig, Checkpointer
from haive_persistence.checkpointer.ids import thread_key
from haive_persistence.checkpointer.storage import manifest as mf
from haive_persistence.db import Database
from tests.builders import store, thread


def test_prune_keeps_what_a_paused_run_needs(saver: Checkpointer, new_saver: Any) -> None:
    config = thread()
    for i in range(10):
        config = store(
            saver, {"messages": [HumanMessage(f"m{j} " + "x" * 200, id=str(j)) for j in range(i + 1)]}, config
        )
    saver.put_writes(config, [("messages", [AIMessage("pending " + "x" * 200)])], "task")
    new_saver().prune(["t"])
    found = new_saver().get_tuple(thread())
    assert len(found.checkpoint["channel_values"]["messages"]) == 10
    assert found.pending_writes[0][2][0].content.startswith("pending")
    assert found.parent_config is None
    assert len(list(saver.list(thread()))) == 1


def test_prune_takes_the_space_of_what_it_deletes(saver: Checkpointer, database: Database, dsn: str) -> None:
    config = thread()
    for i in range(20):
        config = store(saver, {"draft": f"draft {i} " + chr(65 + i) * 5000}, config)
    saver.prune(["t"])
    with psycopg.connect(dsn) as conn:
        count = conn.execute(
            "SELECT count(*) FROM haive.piece WHERE tenant_id = %s", (database.tenant,)
        ).fetchone()[0]
    assert count == 2  # the template and the last draft
    (found,) = Checkpointer(database).list(thread())
    assert found.checkpoint["channel_values"] == {"draft": "draft 19 " + "T" * 5000}


def test_prune_keeps_the_latest_of_each_subgraph(saver: Checkpointer, new_saver: Any) -> None:
    """A call's checkpoints go with the root checkpoint it started from; a subgraph's own outlive its calls."""
    old = store(saver, {"a": 1})
    latest = store(saver, {"a": 2}, old)
    old_id, latest_id = (config["configurable"]["checkpoint_id"] for config in (old, latest))
    started: dict[str, dict[str, str]] = {
        "child": {"": old_id},
        "call:task-1": {"": old_id},
        "call:task-2": {"": latest_id},
        "call:task-3": {},
        "call:task-4": {"": "1f1e537d-cb50-613a-8000-5f4a9e8196aa"},  # not stored yet
    }
    for ns, parents in started.items():
        config = thread(ns=ns)
        for step in range(3):
            config = store(saver, {"step": step, "ns": ns}, config, parents=parents)
    new_saver().prune(["t"])
    listed = list(new_saver().list({"configurable": {"thread_id": "t"}}))
    found = {t.config["configurable"]["checkpoint_ns"]: t for t in listed}
    assert len(found) == len(listed)
    assert found.keys() == {"", *started} - {"call:task-1"}
    assert found.pop("").checkpoint["channel_values"] == {"a": 2}
    for ns, kept in found.items():
        assert kept.checkpoint["channel_values"] == {"step": 2, "ns": ns}
        assert kept.parent_config is None


def test_delete_for_runs_takes_their_checkpoints_and_no_others(saver: Checkpointer, new_saver: Any) -> None:
    config = thread()
    for i in range(6):
        config = store(saver, {"draft": f"draft {i} " + "x" * 500}, config, run_id=f"run-{i % 3}")
    new_saver().delete_for_runs(["run-1", "run-2"])
    found = list(new_saver().list(thread()))
    assert [t.metadata["run_id"] for t in found] == ["run-0", "run-0"]
    assert [t.checkpoint["channel_values"]["draft"][:7] for t in found] == ["draft 3", "draft 0"]
    assert [t.parent_config for t in found] == [found[1].config, None]


def test_a_thread_with_many_long_sequences_is_pruned(database: Database, saver: Checkpointer) -> None:
    """Each list of many ranges is a sequence piece; unpacked all at once they would not fit into one read."""
    messages = [HumanMessage(f"m{j} " + "x" * 20, id=str(j)) for j in range(300)]
    config = store(saver, {"messages": messages}, thread())
    for run in range(30):
        some = sorted(random.Random(run).sample(range(300), 150))
        config = store(saver, {"messages": [messages[j] for j in some]}, config, run_id=f"r{run}")
    small = Checkpointer(database, config=CheckpointConfig(max_read_bytes=200_000))
    log = saver._parts.context.cache.get(thread_key(database.tenant, "t").bytes)
    assert log is not None
    sequences = sum(map(len, log.sequences.values()))
    assert sequences * mf.NUMBER_BYTES > 200_000
    small.delete_for_runs(["r7", "r9"])
    assert len(list(saver.list(thread()))) == 29
    small.prune(["t"])
    found = small.get_tuple(thread())
    assert found is not None
    assert [m.id for m in found.checkpoint["channel_values"]["messages"]] == list(map(str, some))
