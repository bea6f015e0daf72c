"""Replaces in a forked child what is its parent's: connections, locks, numbers."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class ForkAware(Protocol):
    def after_fork(self) -> None:
        """Replace locks and connections; inherited locks may never be released. Close nothing."""
        ...


_registered: weakref.WeakSet[ForkAware] = weakref.WeakSet()
_inherited: list[object] = []
_pid = os.getpid()


def register(thing: ForkAware) -> None:
    """Have `thing.after_fork` called in children, for as long as it lives."""
    _registered.add(thing)


def keep_alive(thing: object) -> None:
    """Keep a parent's object until the child ends: dropping it would close it."""
    _inherited.append(thing)


def check_pid() -> None:
    """Call before using what may be a parent's. Some servers fork without telling Python."""
    if os.getpid() != _pid:
        _in_child()


def _in_child() -> None:
    global _pid
    _pid = os.getpid()
    for thing in list(_registered):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
