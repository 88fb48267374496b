"""What a late gateway says to its workers."""

from __future__ import annotations

from typing import Any

from memserve.gateway.workers.pacing import Pacing
from memserve.loop_pressure import LoopPressure
from tests.gateway.running import RunningGateway, eventually


async def test_workers_hear_of_the_pressure_and_of_its_end(start_gateway: Any) -> None:
    gateway: RunningGateway = await start_gateway(workers=[{}, {}])
    pressure = LoopPressure()
    pacing = Pacing(gateway.parts.pool, pressure)

    async def heard(window_s: float) -> bool:
        return [worker.window_s for worker in gateway.workers] == [window_s] * 2

    await pacing.tell()
    assert await heard(0.0)
    for window_s in (0.01, 0.0):
        pressure.window_s = window_s
        await pacing.tell()
        await eventually(lambda now_s=window_s: heard(now_s))


async def test_a_worker_that_has_gone_holds_nothing_up(start_gateway: Any) -> None:
    gateway: RunningGateway = await start_gateway(workers=[{}, {}])
    await gateway.workers[0].die()
    pressure = LoopPressure()
    pressure.window_s = 0.01
    await Pacing(gateway.parts.pool, pressure).tell()
    assert gateway.workers[1].window_s == 0.01
