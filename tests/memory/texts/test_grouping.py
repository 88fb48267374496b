"""A stream in groups."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from memserve.memory.texts.grouping import IDLE_S, grouped


async def test_a_full_group_goes_at_once_and_the_rest_at_the_end() -> None:
    assert [group async for group in grouped(range(7), 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [group async for group in grouped([], 3)] == []


async def test_a_caller_that_waits_for_its_answer_gets_it() -> None:
    answered = asyncio.Event()

    async def one_by_one() -> AsyncIterator[int]:
        for number in range(3):
            answered.clear()
            yield number
            await asyncio.wait_for(answered.wait(), 100 * IDLE_S)

    groups = []
    async for group in grouped(one_by_one(), 128):
        groups.append(group)
        answered.set()
    assert groups == [[0], [1], [2]]


async def test_no_more_than_one_item_beyond_a_group_is_taken() -> None:
    taken = 0

    async def endless() -> AsyncIterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    groups = grouped(endless(), 4)
    assert await anext(groups) == [1, 2, 3, 4]
    await asyncio.sleep(2 * IDLE_S)
    assert taken <= 5
    await groups.aclose()


async def test_a_failure_of_the_stream_is_the_callers() -> None:
    async def failing() -> AsyncIterator[int]:
        yield 1
        raise ValueError("gone")

    with pytest.raises(ValueError, match="gone"):
        assert [group async for group in grouped(failing(), 4)]
