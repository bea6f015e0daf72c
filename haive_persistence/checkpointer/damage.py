"""Rows that cannot be read: each is an error of ours, and none hides the others of a listing."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, ParamSpec, TypeVar

from langgraph.checkpoint.base import CheckpointTuple

from haive_persistence.errors import CodecError, DecodeError

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger("haive_persistence.checkpointer")

#: What decoding bytes of another shape than expected raises.
MALFORMED = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


def raises_decode_error(read: Callable[P, T]) -> Callable[P, T]:
    """Make a function raise DecodeError where stored bytes have another shape than it expects."""

    @functools.wraps(read)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except CodecError:
            raise
        except MALFORMED as error:
            raise DecodeError(
                f"a stored row cannot be read ({type(error).__name__}: {error}): its data is damaged, or its "
                "serialiser is another one"
            ) from error

    return checked


class DamagedCheckpoint(CheckpointTuple):
    """A checkpoint that `list(None)` found and could not read, in its place among the others.

    `config` names it. `error` says why it could not be read, and so does `metadata["damaged"]`; `checkpoint`
    and `pending_writes` raise it, as `get_tuple` of the same config does.
    """

    error: CodecError

    _why: ClassVar[str] = "damaged"
    _level: ClassVar[int] = logging.ERROR

    @classmethod
    def of(cls, thread_id: str, checkpoint_id: str, error: CodecError) -> DamagedCheckpoint:
        config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_id": checkpoint_id}}
        metadata: Any = {cls._why: str(error)}
        empty: Any = None
        unread = cls(config, empty, metadata)
        unread.error = error
        _log.log(cls._level, "checkpoint %s of thread %r cannot be read: %s", checkpoint_id, thread_id, error)
        return unread

    def _raise(self) -> NoReturn:
        raise self.error

    # Fields of the tuple, which have no value here.
    checkpoint = property(_raise)  # pyright: ignore[reportIncompatibleVariableOverride, reportAssignmentType]
    pending_writes = property(_raise)  # pyright: ignore[reportIncompatibleVariableOverride, reportAssignmentType]


class UnsealedCheckpoint(DamagedCheckpoint):
    """A checkpoint that `list(None)` found in plaintext while a tenant with a key is not sealed whole yet.

    It was written before the tenant had its key, unless somebody forged it: `seal_existing()` tells, and
    makes it readable. Otherwise as `DamagedCheckpoint`; `metadata["unsealed"]` says the same as `error`.
    """

    _why = "unsealed"
    _level = logging.WARNING
