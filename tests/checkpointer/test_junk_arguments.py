"""Whatever is passed to the public methods, errors are ours and say what was wrong."""

from __future__ import annotations

import contextlib
import random
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from haive_persistence import errors
from haive_persistence.checkpointer import Checkpointer
from tests.builders import make_checkpoint, store, thread


class Hostile:
    """Cannot be shown, compared or tested for truth."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = object.__hash__


itself: list[Any] = []
itself.append(itself)

OBJECTS: list[Any] = [
    None,
    True,
    0,
    -1,
    2**64,
    10**5000,
    float("nan"),
    b"bytes",
    "",
    "t",
    "a\x00b",
    "lone \ud800",
    "x" * 5000,
    "🦆" * 9,
    uuid.UUID(int=1),
    object(),
    Hostile(),
    itself,
]
KEYS = ["configurable", "thread_id", "checkpoint_id", "checkpoint_ns", "metadata", "lone \ud800", 7]
FIELDS = sorted(make_checkpoint({}))


class Junk:
    """Draws arguments by a seed. (Hypothesis cannot show some of them.)"""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def any(self, depth: int = 2) -> Any:
        shape = self.rng.randrange(8) if depth else 7
        size = range(self.rng.randrange(4))
        if shape == 0:
            return [self.any(depth - 1) for _ in size]
        if shape == 1:
            return (self.any(depth - 1), self.any(depth - 1))
        if shape == 2:
            return {self.rng.choice(KEYS): self.any(depth - 1) for _ in size}
        return self.rng.choice(OBJECTS)

    def mostly(self, good: Any) -> Any:
        return good if self.rng.random() < 0.6 else self.any()

    def config(self) -> Any:
        good = {"thread_id": self.mostly("t")}
        for key, value in {"checkpoint_id": "c", "checkpoint_ns": "ns"}.items():
            if self.rng.random() < 0.5:
                good[key] = self.mostly(value)
        return self.mostly({"configurable": self.mostly(good), "metadata": self.mostly({"user": 1})})

    def checkpoint(self) -> Any:
        good = make_checkpoint({"a": 1})
        return self.mostly({**good, self.rng.choice(FIELDS): self.mostly(good["channel_values"])})

    def writes(self) -> Any:
        return self.mostly([self.mostly((self.mostly("a"), self.any()))])


CALLS: dict[str, Callable[[Checkpointer, Junk], Any]] = {
    "get_tuple": lambda s, j: s.get_tuple(j.config()),
    "list": lambda s, j: list(
        s.list(j.config(), filter=j.mostly(None), before=j.mostly(j.config()), limit=j.mostly(5))
    ),
    "put": lambda s, j: s.put(j.config(), j.checkpoint(), j.mostly({"step": 1}), j.mostly({"a": 1})),
    "put_writes": lambda s, j: s.put_writes(j.config(), j.writes(), j.mostly("task"), j.mostly("")),
    "delete_thread": lambda s, j: s.delete_thread(j.any()),
    "delete_for_runs": lambda s, j: s.delete_for_runs(j.mostly([j.any()])),
    "copy_thread": lambda s, j: s.copy_thread(j.mostly("t"), j.any()),
    "prune": lambda s, j: s.prune(j.mostly([j.any()]), strategy=j.mostly("keep_latest")),
    "get_delta_channel_history": lambda s, j: s.get_delta_channel_history(
        config=j.config(), channels=j.mostly(["a"])
    ),
    "get_next_version": lambda s, j: s.get_next_version(j.any(), None),
}


@pytest.mark.parametrize("name", CALLS)
def test_errors_are_ours(saver: Checkpointer, name: str) -> None:
    store(saver, {"a": 1})
    for seed in range(400):
        try:
            with contextlib.suppress(errors.PersistenceError):
                CALLS[name](saver, Junk(seed))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}") from error


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda s: s.get_tuple(None), errors.InvalidInputError),
        (lambda s: s.get_tuple({}), errors.InvalidInputError),
        (lambda s: s.get_tuple({"configurable": {"thread_id": 10**5000}}), errors.InvalidIdentifierError),
        (lambda s: s.get_tuple(thread("lone \ud800")), errors.InvalidIdentifierError),
        (lambda s: list(s.list(None, limit="5")), errors.InvalidInputError),
        (lambda s: list(s.list(None, limit=-1)), errors.InvalidInputError),
        (lambda s: list(s.list(None, limit=True)), errors.InvalidInputError),
        (lambda s: s.delete_for_runs(["lone \ud800"]), errors.InvalidIdentifierError),
        (lambda s: s.put(thread(), {"id": "c"}, {}, {}), errors.InvalidInputError),
        (lambda s: s.put_writes(thread(checkpoint_id="c"), ["ab"], "t"), errors.InvalidInputError),
    ],
)
def test_what_was_wrong_is_said(
    saver: Checkpointer, call: Callable[[Any], Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        call(saver)
    assert list(saver.list(None)) == []
