"""Savers for the tests of this room, and small ways to make checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langgraph.checkpoint.base.id import uuid6

from haive_persistence.checkpointer import Checkpointer
from haive_persistence.db import Database

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


def thread(thread_id: Any = "t", ns: str = "", checkpoint_id: str | None = None) -> dict[str, Any]:
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


@pytest.fixture
def saver(database: Database) -> Checkpointer:
    return Checkpointer(database)


@pytest.fixture
def new_saver(database: Database) -> Callable[..., Checkpointer]:
    """Another saver of the same tenant that remembers nothing: what another process would have."""
    return lambda **options: Checkpointer(database, **options)


class RoundTrips:
    """Counts the round trips of a database."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *_: Any) -> None:
        self.count += 1

    def of(self, work: Callable[[], Any]) -> int:
        before = self.count
        work()
        return self.count - before


@pytest.fixture
def round_trips(database: Database) -> Iterator[RoundTrips]:
    counter = RoundTrips()
    database.hooks.append(counter)
    yield counter
    database.hooks.remove(counter)
