"""What watches a stream's responses ends with the stream."""

from __future__ import annotations

import asyncio

from memserve.api.grpc.call import Sending


async def test_one_timer_watches_all_responses_and_ends_with_the_stream() -> None:
    given_up: list[None] = []
    sending = Sending(60.0, lambda: given_up.append(None))
    with sending:
        first = sending._timer
    with sending:
        assert sending._timer is first
    sending.close()
    assert first is not None
    assert first.cancelled()
    assert given_up == []


async def test_a_response_that_is_not_read_in_time_ends_the_stream_and_one_that_is_does_not() -> None:
    given_up = asyncio.Event()
    sending = Sending(0.05, given_up.set)
    for _ in range(3):
        with sending:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)
    assert not given_up.is_set()
    with sending:
        await asyncio.wait_for(given_up.wait(), 10)
