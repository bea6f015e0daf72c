"""Builders that the tests of all rooms share: checkpoints, configs, an embedding, counters, waiting."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base.id import uuid6

from haive_persistence.checkpointer import Checkpointer
from haive_persistence.db import RoundTrip

_steps = itertools.count(1)


def make_checkpoint(
    values: dict[str, Any], versions: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """A checkpoint as LangGraph makes it; every channel at the same version unless given."""
    step = next(_steps)
    return {
        "v": 4,
        "id": str(uuid6(clock_seq=step)),
        "ts": "2026-11-20T10:00:00.123456+00:00",
        "channel_values": values,
        "channel_versions": versions or dict.fromkeys(values, step),
        "versions_seen": {"__input__": {}},
        "updated_channels": list(values),
        **changes,
    }


def thread(thread_id: Any = "t", ns: str = "", checkpoint_id: str | None = None) -> RunnableConfig:
    configurable: dict[str, Any] = {"thread_id": thread_id, "checkpoint_ns": ns}
    if checkpoint_id:
        configurable["checkpoint_id"] = checkpoint_id
    return {"configurable": configurable}


def store(saver: Checkpointer, values: dict[str, Any], config: Any = None, **metadata: Any) -> dict[str, Any]:
    """Put one checkpoint; its config."""
    checkpoint = make_checkpoint(values)
    return saver.put(  # type: ignore[return-value]
        config or thread(),
        checkpoint,  # type: ignore[arg-type]
        {"source": "loop", "step": 1, "parents": {}, **metadata},  # type: ignore[typeddict-unknown-key]
        checkpoint["channel_versions"],
    )


def values_of(saver: Checkpointer, config: Any = None) -> dict[str, Any]:
    """Return the channel values of a checkpoint that is there."""
    found = saver.get_tuple(config or thread())
    assert found is not None
    return found.checkpoint["channel_values"]


class RoundTrips(list[RoundTrip]):
    """The round trips of a database, oldest first."""

    def of(self, work: Callable[[], Any]) -> int:
        """Return how many round trips `work` makes."""
        before = len(self)
        work()
        return len(self) - before


def letters(texts: Sequence[str]) -> list[list[float]]:
    """An embedding: how often each letter occurs, and a one that keeps it from being zero."""
    return [[float(text.count(chr(97 + no))) for no in range(26)] + [1.0] for text in texts]


LETTERS = {"dims": 27, "embed": letters, "fields": ["text"]}


def until(condition: Callable[[], bool], seconds: float = 20, why: Callable[[], object] = str) -> None:
    """Wait for what must become true; fail with `why()` if it does not."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, why()
        time.sleep(0.005)
