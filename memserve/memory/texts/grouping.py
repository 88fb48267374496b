"""A stream in groups: what comes quickly goes together, and what comes slowly does not wait for more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from typing import TypeVar

IDLE_S = 0.05

T = TypeVar("T")


async def grouped(items: AsyncIterable[T] | Iterable[T], size: int) -> AsyncGenerator[list[T], None]:
    """Groups of at most `size` items, in order. A group ends early when nothing has come for IDLE_S: a caller
    may wait for its answer before it goes on. At most one item more than a group is taken from the stream.
    """
    if isinstance(items, Iterable):
        items = _each(items)
    stream, group = aiter(items), list[T]()
    coming: asyncio.Future[T] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(_next(stream))
            done, _ = await asyncio.wait({coming}, timeout=IDLE_S if group else None)
            if done:
                taken, coming = coming, None
                try:
                    group.append(taken.result())
                except _Ended:
                    break
            if not done or len(group) == size:
                yield group
                group = []
    finally:
        if coming is not None:
            coming.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await coming
    if group:
        yield group


class _Ended(Exception):
    """A future takes no StopAsyncIteration."""


async def _next(stream: AsyncIterator[T]) -> T:
    try:
        return await anext(stream)
    except StopAsyncIteration:
        raise _Ended from None


async def _each(items: Iterable[T]) -> AsyncGenerator[T, None]:
    for item in items:
        yield item
