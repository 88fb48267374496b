"""The loop is measured as it is."""

from __future__ import annotations

import asyncio
import time

from memserve.loop_pressure import LoopPressure


async def test_a_loop_that_is_held_up_opens_the_window() -> None:
    pressure = LoopPressure()
    looking = asyncio.ensure_future(pressure.look())
    while not looking.done():
        await asyncio.sleep(0)
        time.sleep(0.1)  # noqa: ASYNC251  the fault that is looked for
    assert pressure.window_s > 0
