"""Health for Kubernetes' probes, on a port of their own: gRPC without TLS or keys, and nothing but health.

The service "" is live as long as the process's loop turns. The service "ready" is the gateway that takes
requests: not one that starts, nor one that leaves. Neither asks for workers or for Redis: no restart brings
those back, and calls that need them are refused with a reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from memserve.api.grpc.keyless import KeylessPace
from memserve.config import Settings, at
from memserve.errors import StartupError

LIVE, READY = "", "ready"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Probes:
    """What the port says."""

    def __init__(self, servicer: health.aio.HealthServicer) -> None:
        self._servicer = servicer

    async def ready(self, is_ready: bool) -> None:
        await self._servicer.set(READY, SERVING if is_ready else NOT_SERVING)


@contextlib.asynccontextmanager
async def open_probes(settings: Settings) -> AsyncIterator[Probes]:
    """Listen on the settings' host and health_port while inside; on no port where that is 0. Not ready yet.

    Raises StartupError.
    """
    servicer = health.aio.HealthServicer()
    probes = Probes(servicer)
    await servicer.set(LIVE, SERVING)
    await probes.ready(False)
    if not settings.health_port:
        yield probes
        return
    server = grpc.aio.server(interceptors=[KeylessPace()], options=[("grpc.so_reuseport", 1)])
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    where = at(settings.host, settings.health_port)
    try:
        server.add_insecure_port(where)
    except RuntimeError:
        raise StartupError(f"cannot listen on {where} (settings host, health_port)") from None
    await server.start()
    try:
        yield probes
    finally:
        await server.stop(0)
