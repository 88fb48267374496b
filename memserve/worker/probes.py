"""The port of the workers of a machine for Kubernetes' native gRPC probes, without TLS and without keys."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from memserve.config import Settings, at
from memserve.errors import StartupError

LIVE, READY = "", "ready"
STATUS = {True: health_pb2.HealthCheckResponse.SERVING, False: health_pb2.HealthCheckResponse.NOT_SERVING}


class Probes:
    """What the port answers: `live` for the service "", `ready` for the service "ready"."""

    def __init__(self) -> None:
        self.servicer = health.HealthServicer()
        self.say(live=True, ready=False)

    def say(self, *, live: bool, ready: bool) -> None:
        self.servicer.set(LIVE, STATUS[live])
        self.servicer.set(READY, STATUS[ready])


@contextlib.contextmanager
def probe_port(settings: Settings) -> Iterator[Probes]:
    """Listen on worker_host and worker_health_port while inside; on no port where that is 0.

    Raises StartupError where the port is taken.
    """
    probes = Probes()
    if not settings.worker_health_port:
        yield probes
        return
    server = grpc.server(
        ThreadPoolExecutor(max_workers=2, thread_name_prefix="probes"), options=(("grpc.so_reuseport", 0),)
    )
    health_pb2_grpc.add_HealthServicer_to_server(probes.servicer, server)
    where = at(settings.worker_host, settings.worker_health_port)
    try:
        server.add_insecure_port(where)
    except RuntimeError:
        raise StartupError(f"cannot listen on {where} (settings worker_host, worker_health_port)") from None
    server.start()
    try:
        yield probes
    finally:
        server.stop(None)
