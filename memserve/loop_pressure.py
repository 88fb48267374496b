"""How late and how busy this process's event loop is."""

from __future__ import annotations

import asyncio
import time

from memserve.policy.pressure import next_window_s

TICK_S = 0.05
TICKS = 2
"""In one look: the window changes ten times a second at most."""


class LoopPressure:
    """`look` is the step of a loop without a pause."""

    def __init__(self) -> None:
        self.window_s = 0.0
        """How long a token may wait for others, now: `memserve.policy.pressure`."""

    async def look(self) -> None:
        """Measure for a moment."""
        began_s, used_s, late_s = time.monotonic(), time.thread_time(), 0.0
        for _ in range(TICKS):
            due_s = time.monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            late_s += time.monotonic() - due_s
        busy = (time.thread_time() - used_s) / (time.monotonic() - began_s)
        self.window_s = next_window_s(self.window_s, late_s / TICKS, busy)
