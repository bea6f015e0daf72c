"""The process that `test_durability.py` kills: sixteen writers, each on threads of its own.

Prints `thread step checkpoint_id` after each acknowledgement, one write(2) a line.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base.id import uuid6

from haive_persistence.checkpointer import Checkpointer
from haive_persistence.config import PersistenceConfig
from haive_persistence.errors import DatabaseError

WRITERS = 16


def message(thread: str, step: int) -> Any:
    cls = HumanMessage if step % 2 else AIMessage
    return cls(f"{thread} {step} " + "content " * (step % 40), id=f"{thread}-{step}")


def messages(thread: str, step: int) -> list[Any]:
    return [message(thread, i) for i in range(step + 1)]


def config(thread: str, checkpoint_id: str | None = None) -> Any:
    configurable = {"thread_id": thread, "checkpoint_ns": ""}
    return {"configurable": configurable | ({"checkpoint_id": checkpoint_id} if checkpoint_id else {})}


def advance(saver: Checkpointer, thread: str) -> tuple[int, str]:
    """One more step of a thread, from where it stands: pending writes, then the checkpoint."""
    found = saver.get_tuple(config(thread))
    step, parent, versions = 0, None, {"messages": 1}
    if found is not None:
        step, parent = found.metadata["step"] + 1, found.checkpoint["id"]
        saver.put_writes(found.config, [("messages", [message(thread, step)])], f"task-{step}")
        versions = {"messages": step + 1}
    checkpoint: Any = {
        "v": 4,
        "id": str(uuid6()),
        "ts": "2026-11-20T10:00:00+00:00",
        "channel_values": {"messages": messages(thread, step)},
        "channel_versions": versions,
        "versions_seen": {},
        "updated_channels": ["messages"],
    }
    saver.put(config(thread, parent), checkpoint, {"source": "loop", "step": step, "parents": {}}, versions)
    return step, checkpoint["id"]


def write(saver: Checkpointer, thread: str) -> None:
    while True:
        try:
            step, id_ = advance(saver, thread)
        except DatabaseError:
            continue  # not acknowledged: look again and go on
        os.write(1, f"{thread} {step} {id_}\n".encode())


def main(data_dir: str) -> None:
    saver = Checkpointer(PersistenceConfig(data_dir=data_dir, pool_size=WRITERS))
    workers = [
        threading.Thread(target=write, args=(saver, f"thread-{i}"), daemon=True) for i in range(WRITERS)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main(sys.argv[1])
