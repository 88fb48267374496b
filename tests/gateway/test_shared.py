"""Work that several ask for at once is done once; one that fails or goes away leaves it to the next."""

from __future__ import annotations

import asyncio

import pytest

from memserve.errors import QuotaExceeded
from memserve.gateway.shared import Shared


async def test_eight_callers_get_what_one_has_done() -> None:
    shared, begun = Shared[int](60.0), []

    async def work() -> int:
        begun.append(1)
        await asyncio.sleep(0.01)
        return 7

    assert await asyncio.gather(*(shared.once("key", work) for _ in range(8))) == [7] * 8
    assert len(begun) == 1
    assert await shared.once("key", work) == 7
    assert len(begun) == 2, "what has ended is not remembered"


async def test_where_the_first_fails_or_is_cancelled_the_next_does_it() -> None:
    shared, begun = Shared[int](60.0), []

    async def work() -> int:
        begun.append(1)
        if len(begun) == 1:
            await asyncio.Event().wait()
        if len(begun) == 2:
            raise ValueError("of the second")
        return 7

    first = asyncio.create_task(shared.once("key", work))
    await asyncio.sleep(0)
    rest = [asyncio.create_task(shared.once("key", work)) for _ in range(3)]
    await asyncio.sleep(0)
    first.cancel()
    results = await asyncio.gather(*rest, return_exceptions=True)
    assert sorted(map(str, results)) == ["7", "7", "of the second"]


async def test_nobody_waits_longer_than_agreed() -> None:
    shared = Shared[None](0.01)
    first = asyncio.create_task(shared.once("key", asyncio.Event().wait))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    with pytest.raises(QuotaExceeded):
        await shared.once("key", asyncio.Event().wait)  # type: ignore[arg-type]
    first.cancel()
