"""Locks by key for the tasks of an event loop."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable, Hashable, Iterable, Sequence
from contextlib import asynccontextmanager


class KeyedLock:
    """Lets those that change the same things go one after the other, in the order in which they came.

    Of two writes of one item that are under way at once, the one that was asked for last must win, though
    the other may have to wait for something in between. Writers of other keys do not wait.
    """

    def __init__(self) -> None:
        self._last: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, dict[Hashable, asyncio.Future[None]]
        ] = weakref.WeakKeyDictionary()

    def are_taken(self, things: Iterable[Hashable]) -> bool:
        """Whether someone is changing one of these now."""
        last = self._last.get(asyncio.get_running_loop(), {})
        return any(thing in last for thing in things)

    @asynccontextmanager
    async def hold(self, things: Iterable[Hashable]) -> AsyncGenerator[None]:
        """The turn of who changes these; it ends with the block."""
        loop = asyncio.get_running_loop()
        last = self._last.setdefault(loop, {})
        mine: asyncio.Future[None] = loop.create_future()
        wanted = list(things)
        before = {last[thing] for thing in wanted if thing in last}
        last.update(dict.fromkeys(wanted, mine))
        try:
            if before:
                await asyncio.wait(before)
            yield
        finally:
            # Also when it was cancelled while it waited: who comes next must not overtake those before it.
            _after(list(before), lambda: self._end(last, wanted, mine))

    @staticmethod
    def _end(
        last: dict[Hashable, asyncio.Future[None]], wanted: Iterable[Hashable], mine: asyncio.Future[None]
    ) -> None:
        mine.set_result(None)
        for thing in wanted:
            if last.get(thing) is mine:
                del last[thing]


def _after(futures: Sequence[asyncio.Future[None]], call: Callable[[], None]) -> None:
    """Call when all of these are done, now if they are."""
    left = [future for future in futures if not future.done()]
    if left:
        left[0].add_done_callback(lambda _: _after(left[1:], call))
    else:
        call()
