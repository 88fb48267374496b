"""Work that several callers ask for at the same time is done once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from memserve.errors import QuotaExceeded

T = TypeVar("T")
RETRY_AFTER_S = 2.0


class Shared(Generic[T]):
    """Shares the result of work that is under way. A result is not kept after the work has ended.

    It belongs to one event loop.
    """

    def __init__(self, wait_s: float) -> None:
        """wait_s: how long a caller waits, in all, for the work of other callers."""
        self._wait_s = wait_s
        self._under_way: dict[Hashable, asyncio.Future[T | None]] = {}

    async def once(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work. If another caller with an equal key is doing it, return that caller's result.

        When the other caller's work fails or is cancelled, one of the waiting callers does the work itself.

        work: its result must not be None, which counts as failed work.
        Raises as `work`, and QuotaExceeded after `wait_s`.
        """
        try:
            async with asyncio.timeout(self._wait_s) as waiting:
                while (other := self._under_way.get(key)) is not None:
                    done = await asyncio.shield(other)
                    if done is not None:
                        return done
                waiting.reschedule(None)
        except TimeoutError:
            raise QuotaExceeded("callers that do the same at a time", 1, RETRY_AFTER_S) from None
        mine: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()
        self._under_way[key] = mine
        done = None
        try:
            done = await work()
            return done
        finally:
            del self._under_way[key]
            mine.set_result(done)
