"""The gateway's gRPC port, which is open before its services are ready.

Until they are ready, health says NOT_SERVING and every call of a service ends with UNAVAILABLE.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from memserve.api.facts import detail_of
from memserve.api.grpc.call import Context
from memserve.api.grpc.connections import Connections
from memserve.api.grpc.errors import status_of, trailing_metadata
from memserve.api.grpc.keyless import KeylessPace
from memserve.api.grpc.sizes import RequestSizes
from memserve.config import Settings, at
from memserve.errors import GatewayStarting, StartupError
from memserve.tls.grpc_credentials import add_port
from memserve.tls.live import LiveTls

CONNECTION_AGE_MS = 300_000
# gRPC adds up to a tenth to a connection's age. The rest is for load balancers to see that a gateway leaves.
RENEWED_SHARE = 0.6
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Services(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Handlers of services that may be added while the server runs.

    The generated `add_…Servicer_to_server` functions take this object for a server. They add handlers to it.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """names: of the services that will be added."""
        self.opened = False
        """While this is False, a call to any of the named services ends with UNAVAILABLE."""
        self._prefixes = tuple(f"/{name}/" for name in names)
        self._handlers: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._handlers.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Does nothing: these are the same handlers again, for servers that look them up by name."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        if not self.opened and details.method.startswith(self._prefixes):
            return grpc.stream_stream_rpc_method_handler(_starting)
        return next(
            (found for handler in self._handlers if (found := handler.service(details)) is not None), None
        )


@dataclass
class Front:
    """An open port."""

    server: grpc.aio.Server
    health: health.aio.HealthServicer
    services: Services
    """The services are added here."""
    port: int
    """The port's number."""
    connections: Connections = field(default_factory=Connections)

    async def leave(self, grace_s: float) -> None:
        """Take no more calls; answers under way get so long to finish."""
        await self.connections.leave(self.server, self.port, grace_s)


@contextlib.asynccontextmanager
async def open_front(
    settings: Settings, names: Sequence[str], tls: LiveTls | None = None, own_socket: str = ""
) -> AsyncIterator[Front]:
    """Listen on the settings' host and port while inside.

    names: of the services that will be added.
    tls: what clients see. None: no TLS.
    own_socket: path of a unix socket without TLS, which only this user can reach. Empty: none.
    Raises StartupError when the port cannot be had.
    """
    server = grpc.aio.server(
        interceptors=[RequestSizes(), KeylessPace()],
        options=[
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            # A socket of this process or its parent holds the port already (`memserve/processes/ports.py`).
            ("grpc.so_reuseport", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.keepalive_permit_without_calls", 1),
            # A peer that is gone without closing its connection is noticed, so that its calls end.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.max_pings_without_data", 0),
            *renewal_options(settings.drain_delay_s),
        ],
    )
    services = Services(names)
    server.add_generic_rpc_handlers((services,))
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in ("", *names):
        await servicer.set(name, NOT_SERVING)
    if settings.reflection:
        reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        port = add_port(server, at(settings.host, settings.port), tls)
        if own_socket:
            server.add_insecure_port(f"unix:{own_socket}")
    except RuntimeError:
        raise StartupError(
            f"cannot listen on {at(settings.host, settings.port)} (settings host, port)"
        ) from None
    await server.start()
    try:
        yield Front(server, servicer, services, port)
    finally:
        await server.stop(0)


def renewal_options(drain_delay_s: float) -> list[tuple[str, int]]:
    """Options of a gRPC server that end each connection in time, as gRPC ends one: the client makes another
    connection for its next call, and calls under way finish on the old one.

    So a gateway that has been added gets some of the callers. And a load balancer sends a new connection
    elsewhere while this gateway drains: no client is left on it at the end of the drain delay, but for calls
    that had begun.
    """
    age_ms = int(drain_delay_s * 1000 * RENEWED_SHARE) or CONNECTION_AGE_MS
    return [("grpc.max_connection_age_ms", min(age_ms, CONNECTION_AGE_MS))]


async def _starting(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
    fact = GatewayStarting()
    await context.abort(status_of(fact), detail_of(fact), trailing_metadata(fact))
    yield b""
