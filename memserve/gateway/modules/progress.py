"""How far long work on modules is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

ProgressCallback = Callable[[int, int], None]
"""How much is done, and how much there is to do."""


@dataclass(frozen=True, slots=True)
class Step:
    """How far long work is."""

    done: int
    total: int


async def with_steps(
    work: Callable[[ProgressCallback], Awaitable[T]],
) -> AsyncGenerator[Step | T, None]:
    """Run `work`, yielding its newest progress as it goes and its result last.

    Closing the iterator cancels the work.
    """
    newest: asyncio.Queue[Step] = asyncio.Queue(maxsize=1)

    def on_progress(done: int, total: int) -> None:
        if newest.full():
            newest.get_nowait()
        newest.put_nowait(Step(done, total))

    task = asyncio.ensure_future(work(on_progress))
    step = asyncio.ensure_future(newest.get())
    try:
        while not task.done():
            await asyncio.wait((task, step), return_when=asyncio.FIRST_COMPLETED)
            if step.done():
                yield step.result()
                step = asyncio.ensure_future(newest.get())
        yield await task
    finally:
        # Both end with the caller: nothing goes on for nobody.
        task.cancel()
        step.cancel()
        await asyncio.gather(task, step, return_exceptions=True)
