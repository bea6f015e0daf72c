"""Results that may be awaited although they are there.

LangGraph has one Postgres store that blocks and one to await, with the same names: `setup`,
`sweep_ttl`, `start_ttl_sweeper`, `stop_ttl_sweeper`. This package has one for both; what these
methods return is good for either way of calling them.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future
from typing import Any

from typing_extensions import Self


class Settled:
    """Nothing, awaitable."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


class SettledInt(int):
    """A number (or a truth), awaitable."""

    def __await__(self) -> Generator[Any, None, int]:
        return int(self)
        yield


class SweeperHandle(Future[None]):
    """A running sweeper; cancel it to stop it.

    Awaiting it gives it back, so that `await store.start_ttl_sweeper()` does what it does with LangGraph's.
    """

    def __await__(self) -> Generator[Any, None, Self]:
        return self
        yield
