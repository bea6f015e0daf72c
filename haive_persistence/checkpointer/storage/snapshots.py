"""Small checkpoints that were read twice, as a whole, to be handed out as copies. Pure: no database.

A small checkpoint takes longer to assemble from its manifests than to copy. Its rows are read each time all
the same: a snapshot is used only where body and pending writes are byte for byte what they were. Pieces
never change within an epoch. Text and bytes are shared with the cached pieces; a large checkpoint would
have too many containers of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import ormsgpack

from haive_persistence.checkpointer.storage.copies import (
    Column,
    Uncopyable,
    check_copyable,
    is_immutable,
    kind_of,
)
from haive_persistence.checkpointer.storage.messages import _EXACT

MAX_STORED = 256 * 1024  # bytes of the pieces of a checkpoint that is small
MAX_PIECES = 512
_MAX_CONTAINERS = 200
_FEW = 8  # parts that are copied one by one
_BYTES = 2000  # that a snapshot takes beside its contents, about
_CONTAINER_BYTES = 200
_ELEMENT_BYTES = 100

Pending = Sequence[tuple[str, str, Any]]
Values = tuple[dict[str, Any], dict[str, Any], list[tuple[str, str, Any]]]


class Content:
    """A checkpoint with its metadata and pending writes, to be copied."""

    __slots__ = ("_checkpoint", "_metadata", "_pending", "classes", "size", "writes")

    def __init__(
        self, checkpoint: dict[str, Any], metadata: dict[str, Any], pending: Pending, writes: Sequence[Any]
    ) -> None:
        """Take over a decoded checkpoint. Raises Uncopyable if it cannot be copied, or is large."""
        classes: set[type] = set()
        seen: set[int] = set()
        check_copyable([checkpoint, metadata, *[value for _, _, value in pending]], classes, seen)
        if len(seen) > _MAX_CONTAINERS:
            raise Uncopyable
        self.writes = list(writes)  # the records that `pending` was decoded from
        self.classes = frozenset(classes)
        elements = sum(map(_elements, checkpoint["channel_values"].values()))
        self.size = _BYTES + _CONTAINER_BYTES * len(seen) + _ELEMENT_BYTES * elements
        self._checkpoint, self._metadata = _Tree(checkpoint), _Tree(metadata)
        self._pending = [(task, channel, value, _copier(value)) for task, channel, value in pending]

    def copy(self) -> Values:
        """Copies of the checkpoint, its metadata and its pending writes."""
        pending = [
            (task, channel, value if copied is None else copied())
            for task, channel, value, copied in self._pending
        ]
        return self._checkpoint.copy(), self._metadata.copy(), pending


def _elements(value: Any) -> int:
    return len(value) if type(value) in (list, dict) else 0


class _Tree:
    """A dict, list or object, and how each of its parts is copied that must be."""

    __slots__ = ("_common", "_copiers", "_make", "_state")

    def __init__(self, value: Any) -> None:
        kind = kind_of(type(value))
        assert kind is not None  # see `check_copyable`
        self._state = kind.state(value)
        self._common = kind.common(value)
        self._make = None if self._state is value else kind.make
        parts = self._state.items() if type(self._state) is dict else enumerate(self._state)
        copiers = [(key, _copier(part)) for key, part in parts]
        self._copiers = [(key, copied) for key, copied in copiers if copied is not None]

    def copy(self) -> Any:
        state = self._state.copy()
        for key, copied in self._copiers:
            state[key] = copied()
        return state if self._make is None else self._make([state], self._common)[0]


def _copier(value: Any) -> Callable[[], Any] | None:
    """A function that copies a value; None if it may be handed out as it is."""
    if is_immutable(value):
        return None
    if type(value) in (list, dict):
        parts = value.values() if type(value) is dict else value
        of_parts = sum(not is_immutable(part) for part in parts)
        if not of_parts:
            copied: Callable[[], Any] = value.copy
            return copied
        with suppress(TypeError, ValueError):  # what msgpack does not say exactly
            return partial(ormsgpack.unpackb, ormsgpack.packb(value, option=_EXACT))
        if of_parts > _FEW:
            column = Column()
            column.add(value)
            return lambda: column.copies(1)[0]
    return _Tree(value).copy


class Snapshot:
    """A checkpoint as this process read it last."""

    __slots__ = ("body", "content", "data", "is_kept", "size", "writes")

    def __init__(self, data: bytes, body: Any) -> None:
        self.data = data
        self.body = body
        self.writes: dict[int, tuple[bytes, Any]] = {}  # records of pending writes, as stored and unpacked
        self.content: Content | None = None  # once it was read again
        self.is_kept = True
        self.size = _BYTES + 4 * len(data)

    def give_up(self) -> None:
        """Decode this checkpoint each time: it is large, or cannot be copied."""
        self.is_kept = False
        self.writes = {}
