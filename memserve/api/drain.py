"""How a gateway stops: it says so, still takes calls for a while, and finishes what it has begun."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from memserve.api.grpc.front import Front
from memserve.api.grpc.probes import Probes
from memserve.api.http.server import HttpFront
from memserve.config import Settings

log = logging.getLogger("memserve.gateway")


@contextlib.asynccontextmanager
async def draining(
    settings: Settings, probes: Probes, front: Front, http: HttpFront | None
) -> AsyncIterator[None]:
    """Ready while inside. On leaving, the gateway says that it stops before it takes no more calls."""
    await probes.ready(True)
    try:
        yield
    finally:
        await probes.ready(False)
        await front.health.enter_graceful_shutdown()
        if http is not None:
            http.leaving = True
        if settings.drain_delay_s:
            log.info("stopping; calls are taken for another %g s", settings.drain_delay_s)
            await asyncio.sleep(settings.drain_delay_s)
        ends = [front.leave(settings.shutdown_grace_s), *([http.stop()] if http is not None else [])]
        await asyncio.gather(*ends)
