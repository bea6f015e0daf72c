"""Creates, extends, reads, copies, prunes and deletes the same few threads, at random, for some seconds.

`test_interleavings.py` runs it in threads and, as a program, in processes of their own.
"""

from __future__ import annotations

import random
import sys
import time
from typing import Any

from langchain_core.messages import HumanMessage

from haive_persistence import EncryptionConfig, PersistenceConfig, errors
from haive_persistence.checkpointer import Checkpointer
from haive_persistence.db import Database
from tests.builders import make_checkpoint, thread

IDS = ("a", "b", "c")
RUNS = ("run-1", "run-2")
KEY = bytes(range(32))


def database(dsn: str, sealed: bool) -> Database:
    encryption = EncryptionConfig(encryption_key=KEY) if sealed else None
    return Database(PersistenceConfig(connection_string=dsn, pool_size=4, encryption=encryption))


def message(step: int) -> HumanMessage:
    return HumanMessage(f"message {step} " + "text " * 30, id=f"m{step}")


def check(found: Any) -> int:
    """Assert that a checkpoint is whole. Returns how many messages it has."""
    messages = found.checkpoint["channel_values"]["messages"]
    assert messages == [message(step) for step in range(found.checkpoint["channel_values"]["count"])]
    return len(messages)


def advance(saver: Checkpointer, id_: str, rng: random.Random) -> None:
    found = saver.get_tuple(thread(id_))
    count = check(found) if found else 0
    if found:
        saver.put_writes(found.config, [("messages", [message(count)])], f"task-{count}")
    values = {"messages": [message(step) for step in range(count + 1)], "count": count + 1}
    checkpoint = make_checkpoint(values, dict.fromkeys(values, count + 1))
    metadata = {"source": "loop", "step": count, "parents": {}, "run_id": rng.choice(RUNS)}
    config = found.config if found else thread(id_)
    saver.put(config, checkpoint, metadata, checkpoint["channel_versions"])


def act(saver: Checkpointer, rng: random.Random) -> None:
    id_, other = rng.sample(IDS, 2)
    match rng.choices(range(7), (8, 3, 2, 2, 1, 1, 1))[0]:
        case 0:
            advance(saver, id_, rng)
        case 1:
            saver.delete_thread(id_)
        case 2:
            saver.prune([id_])
        case 3:
            saver.copy_thread(id_, other)
        case 4:
            saver.delete_for_runs([rng.choice(RUNS)])
        case 5:
            saver.prune([id_, other], strategy="delete")
        case 6:
            for found in saver.list(thread(id_), limit=5):
                check(found)


def run(database: Database, seed: int, seconds: float) -> dict[str, int]:
    """Act until the time is up. Returns how often what happened; other errors than these two are raised."""
    rng = random.Random(seed)
    saver = Checkpointer(database)
    counts = {"done": 0, "not found": 0, "conflict": 0}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            act(saver, rng)
            counts["done"] += 1
        except errors.NotFoundError:
            counts["not found"] += 1
        except errors.ConflictError:
            counts["conflict"] += 1
    return counts


def main(dsn: str, tenant: str, sealed: str, seed: str, seconds: str) -> None:
    opened = database(dsn, sealed == "True")
    print(run(opened.for_tenant(tenant), int(seed), float(seconds)))
    opened.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
