"""The gateway process. It serves gRPC and HTTP, with health and metrics, and stops gracefully."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from functools import partial

from memserve.api.drain import draining
from memserve.api.entry import entry_of
from memserve.api.grpc.front import open_front
from memserve.api.grpc.probes import open_probes
from memserve.api.grpc.server import SERVICES, served
from memserve.api.http.app import HttpApi
from memserve.api.http.server import answering, open_http
from memserve.config import Settings
from memserve.gateway.access.callers import Access, KeyFile, first_token_keys, load_access
from memserve.gateway.assembly import GatewayParts, open_parts, services_of
from memserve.metrics.certificates import FollowedCertificates
from memserve.metrics.port import serve_metrics
from memserve.processes.interpreter import share_interpreter, what_is_open_kept
from memserve.processes.ports import held_ports
from memserve.processes.supervised import repeat
from memserve.tls.live import LOOK_S, LiveTls, internal_tls, public_tls
from memserve.tls.pem import GATEWAY_NAME
from memserve.trace_export import exported

log = logging.getLogger("memserve.gateway")

# How often the key file is looked at. A revoked key is refused at most this much later.
KEYS_LOOK_S = 1.0


async def serve_gateway(settings: Settings, *, ports_held: bool = False, own_socket: str = "") -> None:
    """Serve until SIGINT or SIGTERM. Calls are then still taken for `drain_delay_s`. After that, answers
    under way get `shutdown_grace_s` to finish.

    The ports are taken before the gateway's parts are opened. SIGHUP reads the key file again.

    ports_held: the parent process holds the ports already.
    own_socket: where the parent process calls without TLS. Empty: nowhere.
    Raises StartupError when a port is taken or something that the gateway needs is missing.
    """
    share_interpreter()
    public, internal = public_tls(settings), internal_tls(settings, GATEWAY_NAME)
    access = load_access(settings)
    key_file = KeyFile(access, settings)
    with (
        exported(settings, "memserve-gateway", f"{os.uname().nodename}:{os.getpid()}"),
        contextlib.nullcontext(settings) if ports_held else held_ports(settings) as settings,
    ):
        async with (
            open_probes(settings) as probes,
            open_front(settings, SERVICES, public, own_socket) as front,
            open_http(settings, public) as http,
            open_parts(settings, internal) as parts,
        ):
            await first_token_keys(access)
            entry, services = entry_of(parts, access), services_of(parts, access)
            app = HttpApi(parts, services, entry).app()
            async with served(front, parts, entry, services), answering(http, app):
                drain = draining(settings, probes, front, http)
                with what_is_open_kept():
                    await _run(settings, front.port, parts, key_file, access, (public, internal), drain)


async def _run(
    settings: Settings,
    port: int,
    parts: GatewayParts,
    key_file: KeyFile,
    access: Access,
    certificates: tuple[LiveTls | None, LiveTls | None],
    drain: contextlib.AbstractAsyncContextManager[None],
) -> None:
    """Until a signal comes, and then while the gateway drains.

    certificates: the public one and the internal one.
    """
    metrics = parts.metrics
    followed = FollowedCertificates(certificates, metrics.certificates, parts.texts.reconnect)
    with serve_metrics(settings, metrics.registry, settings.metrics_port, certificates[0]) as metrics_address:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, partial(key_file.look, even_unchanged=True))
        loops = [
            asyncio.create_task(repeat("keys", key_file.follow, KEYS_LOOK_S, metrics.loop_failed)),
            asyncio.create_task(repeat("certificates", followed.look, LOOK_S, metrics.loop_failed)),
        ]
        if access.tokens is not None:
            keys = access.tokens.keys
            loops.append(
                asyncio.create_task(repeat("token_keys", keys.follow, keys.pause_s, metrics.loop_failed))
            )
        log.info("serving on %s:%s, metrics on %s", settings.host, port, metrics_address or "no port")
        try:
            async with drain:
                await stop.wait()
        finally:
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
