"""The HTTP port of a gateway or a worker, which Prometheus scrapes."""

from __future__ import annotations

import contextlib
import hmac
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Metric, make_wsgi_app
from prometheus_client.registry import Collector

from memserve.config import Settings, at
from memserve.tls.live import LiveContext, LiveTls

# vLLM's list of running adapters has the digests of tenants' modules.
TENANTS_OWN = frozenset({"vllm:lora_requests_info"})
Answer = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # A socket of this process or its parent keeps the gateway's port (`memserve/processes/ports.py`).
    allow_reuse_port = True

    tls: LiveContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread, so that a slow handshake holds up nobody else."""
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(_Silent.timeout)
        try:
            connection = self.tls.newest().wrap_socket(request, server_side=True)
        except OSError:  # an ssl.SSLError too: a scraper without TLS, or without a certificate
            return
        with connection:
            super().finish_request(connection, client_address)


class _ServerOfIpv6(_Server):
    address_family = socket.AF_INET6


class _Silent(WSGIRequestHandler):
    # A scraper that connects and stays silent loses its connection, so that its thread is free again.
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not worth a line."""


@contextlib.contextmanager
def serve_metrics(
    settings: Settings, registry: CollectorRegistry, port: int, tls: LiveTls | None = None
) -> Iterator[str]:
    """Serve the registry on metrics_host while inside.

    tls: what scrapers see. None: no TLS.

    Yields host:port, or "" where metrics are switched off. Raises OSError.
    """
    if not settings.metrics:
        yield ""
        return
    server = make_server(
        settings.metrics_host,
        port,
        _for_holders(settings.metrics_key.get_secret_value(), make_wsgi_app(registry)),
        server_class=_ServerOfIpv6 if ":" in settings.metrics_host else _Server,
        handler_class=_Silent,
    )
    assert isinstance(server, _Server)
    server.tls = None if tls is None else LiveContext(tls)
    thread = threading.Thread(target=server.serve_forever, name="memserve-metrics", daemon=True)
    thread.start()
    try:
        yield at(settings.metrics_host, server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def without_tenants(registry: CollectorRegistry) -> CollectorRegistry:
    """The same metrics, without those that name something of a tenant's."""

    class Rest(Collector):
        def collect(self) -> Iterable[Metric]:
            return (metric for metric in registry.collect() if metric.name not in TENANTS_OWN)

    rest = CollectorRegistry()
    rest.register(Rest())
    return rest


def _for_holders(key: str, answer: Answer) -> Answer:
    """The answer for scrapers that send the key. For every scraper where the key is empty."""
    if not key:
        return answer
    wanted = f"Bearer {key}".encode()

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if hmac.compare_digest(str(environ.get("HTTP_AUTHORIZATION", "")).encode(), wanted):
            return answer(environ, start_response)
        start_response("401 Unauthorized", [("Content-Type", "text/plain"), ("WWW-Authenticate", "Bearer")])
        return [b"send metrics_key as authorization: Bearer <key>\n"]

    return guarded
