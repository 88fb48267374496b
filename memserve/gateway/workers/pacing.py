"""Tells the workers how long tokens for this gateway may wait for others, while its loop is late."""

from __future__ import annotations

import asyncio
import contextlib
import time

from memserve.domain.worker_calls import WorkerCalls, WorkerFailure
from memserve.gateway.workers.pool import WorkerPool
from memserve.loop_pressure import LoopPressure

LOOK_S = 0.1
AGAIN_S = 1.0
"""Workers forget it after `memserve.worker.pace.HOLDS_S`."""
TIMEOUT_S = 1.0


class Pacing:
    """`tell` is the step of one of the gateway's loops."""

    def __init__(self, pool: WorkerPool, pressure: LoopPressure) -> None:
        self._pool = pool
        self._pressure = pressure
        self._told_s = 0.0
        self._said_s = 0.0

    async def tell(self) -> None:
        """Say the window to every connected worker where it has changed, or was said a while ago."""
        window_s, now_s = self._pressure.window_s, time.monotonic()
        if window_s == self._told_s and (not window_s or now_s - self._said_s < AGAIN_S):
            return
        self._told_s, self._said_s = window_s, now_s
        workers = [worker.calls for worker in self._pool.workers.values() if worker.connected]
        await asyncio.gather(*(_set_pace(calls, window_s) for calls in workers))


async def _set_pace(calls: WorkerCalls, window_s: float) -> None:
    # A worker of an older version does not know the call. One that has died is found out by its stream.
    with contextlib.suppress(WorkerFailure):
        await calls.set_pace(window_s, TIMEOUT_S)
