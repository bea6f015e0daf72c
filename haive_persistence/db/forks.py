"""What begins anew in a forked child: connections, locks and numbers that are its parent's."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class HasForked(Protocol):
    def after_fork(self) -> None:
        """Begin anew; locks that were held stay held for ever, and nothing may be closed."""
        ...


_all: weakref.WeakSet[HasForked] = weakref.WeakSet()
_inherited: list[object] = []
_pid = os.getpid()


def begins_anew(thing: HasForked) -> None:
    """Have `thing.after_fork` called in children, for as long as it lives."""
    _all.add(thing)


def leave_alone(thing: object) -> None:
    """Keep a parent's thing until the child ends: to drop it would be to close it."""
    _inherited.append(thing)


def look() -> None:
    """Call before what must not be done with a parent's things. Some servers fork without telling Python."""
    if os.getpid() != _pid:
        _in_child()


def _in_child() -> None:
    global _pid
    _pid = os.getpid()
    for thing in list(_all):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
