"""Calls that tasks make in the same tick of an event loop, answered together.

Ten tasks that each read an item cost ten round trips, or one when they are asked as one. Whoever
asks first schedules the answer for the end of the tick; nobody waits for anything else, and nothing
is held back while an earlier answer is on its way.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Hashable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
T = TypeVar("T")

#: Calls answered at once. More only makes the first of them wait for the last.
MOST_AT_ONCE = 500


class Ticks(Generic[Asked, Answer]):
    """Joins calls into batches, per event loop.

    `answer` takes what was asked, in order, and returns the answers in the same order. When it fails
    for what one of several asked, each is asked again alone, so that its error is nobody else's.
    """

    def __init__(self, answer: Callable[[Sequence[Asked]], Awaitable[Sequence[Answer]]]) -> None:
        self._answer = answer
        self._waiting: dict[asyncio.AbstractEventLoop, list[tuple[Asked, asyncio.Future[Answer]]]] = {}
        self._running: set[asyncio.Future[Any]] = set()

    async def ask(self, question: Asked) -> Answer:
        """The answer to one question, given together with those of this tick."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        waiting = self._waiting.get(loop)
        if waiting is None:
            self._waiting[loop] = waiting = []
            loop.call_soon(self._start, loop)
        waiting.append((question, future))
        return await future

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._task(self._run(self._waiting.pop(loop)))

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)  # a loop keeps only weak references to its tasks
        task.add_done_callback(self._running.discard)
        return task

    async def _run(self, asked: list[tuple[Asked, asyncio.Future[Answer]]]) -> None:
        for start in range(0, len(asked), MOST_AT_ONCE):
            # Who was cancelled meanwhile has its answer.
            part = [one for one in asked[start : start + MOST_AT_ONCE] if not one[1].done()]
            if not await self._settle(part) and len(part) > 1:
                for one in part:
                    await self._settle([one])

    async def _one_answer(self, questions: Sequence[Asked]) -> Sequence[Answer]:
        return await self._answer(questions)

    async def _settle(self, part: list[tuple[Asked, asyncio.Future[Answer]]]) -> bool:
        """Whether these are answered; an error is the answer of a call that is alone."""
        if not part:
            return True
        work = self._task(self._one_answer([question for question, _ in part]))

        def nobody_waits() -> bool:
            return all(future.cancelled() for _, future in part)

        def when_cancelled(_: object) -> None:
            if nobody_waits():
                work.cancel()  # what is not sent yet must not be done when they have gone on

        for _, future in part:
            future.add_done_callback(when_cancelled)
        try:
            answers = await work
        except BaseException as error:
            from haive_persistence.db.failures import is_about_all  # with it comes the driver

            if nobody_waits():
                return True
            if len(part) > 1 and isinstance(error, Exception) and not is_about_all(error):
                return False
            for _, future in part:
                _fail(future, error)
            if not isinstance(error, Exception):
                raise
            return True
        for (_, future), answer in zip(part, answers, strict=True):
            if not future.done():
                future.set_result(answer)
        return True


class Turns:
    """Lets those that change the same things go one after the other, in the order in which they came.

    Of two writes of one item that are under way at once, the one that was asked for last must win, though
    the other may have to wait for something in between. Who changes other things waits for nobody.
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
    async def of(self, things: Iterable[Hashable]) -> AsyncGenerator[None]:
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


async def at_once(calls: Sequence[Callable[[], Awaitable[Answer]]], *, most: int) -> list[Answer]:
    """The answers of several calls that wait at the same time, at most so many of them."""
    places = asyncio.Semaphore(most)

    async def one(call: Callable[[], Awaitable[Answer]]) -> Answer:
        async with places:
            return await call()

    return await asyncio.gather(*map(one, calls))


def _fail(future: asyncio.Future[Answer], error: BaseException) -> None:
    if future.done():
        return
    if isinstance(error, asyncio.CancelledError):
        future.cancel()
    else:
        future.set_exception(error)
