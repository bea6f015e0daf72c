"""Calls that tasks make in the same tick of an event loop, answered together.

Ten tasks that each read an item cost ten round trips, or one when they are asked as one. Whoever
asks first schedules the answer for the end of the tick; no call waits for anything else, and none
is held back while an earlier answer is on its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
T = TypeVar("T")

#: Calls answered at once. More only makes the first of them wait for the last.
MAX_TOGETHER = 500


class Coalescer(Generic[Asked, Answer]):
    """Joins calls into batches, per event loop.

    `answer` takes what was asked, in order, and returns the answers in the same order. When it fails
    for what one of several asked, each is asked again alone, so that its error reaches its own caller only.
    """

    def __init__(self, answer: Callable[[Sequence[Asked]], Awaitable[Sequence[Answer]]]) -> None:
        self._answer = answer
        self._waiting: dict[asyncio.AbstractEventLoop, list[tuple[Asked, asyncio.Future[Answer]]]] = {}
        self._running: set[asyncio.Future[Any]] = set()

    async def submit(self, question: Asked) -> Answer:
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
        for start in range(0, len(asked), MAX_TOGETHER):
            # Who was cancelled meanwhile has its answer.
            part = [one for one in asked[start : start + MAX_TOGETHER] if not one[1].done()]
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
            from haive_persistence.db.error_mapping import affects_whole_batch  # with it comes the driver

            if nobody_waits():
                return True
            if len(part) > 1 and isinstance(error, Exception) and not affects_whole_batch(error):
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


async def gather_limited(calls: Sequence[Callable[[], Awaitable[Answer]]], *, most: int) -> list[Answer]:
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
