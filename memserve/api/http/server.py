"""The HTTP port, which is open before what stands behind it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from memserve.api.http.errors import told
from memserve.api.http.page import FILES, page_routes
from memserve.config import Settings, at
from memserve.errors import GatewayLeaving, GatewayStarting, StartupError
from memserve.tls.live import LiveContext, LiveTls

HEADERS_S = 10.0
"""A connection that has not sent a request's headers by then is closed."""
KEEP_ALIVE_S = 30
BACKLOG = 2048


class _Protocol(HttpToolsProtocol):
    """Closes connections that send no request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._unasked = self.loop.call_later(HEADERS_S, self._close_unasked)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unasked.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unasked.cancel()
        self._unasked = self.loop.call_later(KEEP_ALIVE_S + HEADERS_S, self._close_unasked)

    def _close_unasked(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The gateway has handlers of its own."""
        yield


@dataclass(slots=True)
class HttpFront:
    """An open port. app: what answers; None while the gateway starts. page: answers meanwhile, for the files
    of the page; None where there is no page. leaving: connections are closed after their answers, so that
    callers connect to another gateway."""

    port: int
    page: ASGIApp | None = None
    app: ASGIApp | None = None
    tls: LiveTls | None = None
    leaving: bool = False
    _server: _Server = field(init=False)
    _serving: asyncio.Task[None] = field(init=False)

    def serve(self, listener: socket.socket, grace_s: float) -> None:
        """Begin to answer."""
        tls = self.tls
        config = uvicorn.Config(
            self,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(int(grace_s), 1),
            backlog=BACKLOG,
            ssl_context_factory=None if tls is None else lambda config, default: LiveContext(tls).listening,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))

    async def stop(self) -> None:
        """Take no more connections, and wait for the answers under way."""
        self._server.should_exit = True
        await asyncio.gather(self._serving, return_exceptions=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if self.leaving:
            send = _closing(send)
            if scope["path"] in SAYS_LEAVING:
                await SAYS_LEAVING[scope["path"]](scope, receive, send)
                return
        if self.app is not None:
            await self.app(scope, receive, send)
            return
        if self.page is not None and scope["path"] in FILES:
            await self.page(scope, receive, send)
            return
        status, body, headers = told(GatewayStarting())
        if scope["path"] == "/health":
            status, body, headers = HTTPStatus.OK, {"status": "starting"}, {}
        await JSONResponse(body, status, headers)(scope, receive, send)


def _closing(send: Send) -> Send:
    async def send_closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        await send(message)

    return send_closing


async def _draining(scope: Scope, receive: Receive, send: Send) -> None:
    """The process is alive still."""
    await JSONResponse({"status": "draining"})(scope, receive, send)


async def _not_ready(scope: Scope, receive: Receive, send: Send) -> None:
    status, body, headers = told(GatewayLeaving())
    await JSONResponse(body, status, headers)(scope, receive, send)


SAYS_LEAVING: dict[str, ASGIApp] = {"/health": _draining, "/ready": _not_ready}


@contextlib.asynccontextmanager
async def open_http(settings: Settings, tls: LiveTls | None = None) -> AsyncIterator[HttpFront | None]:
    """Listen on the settings' host and http_port while inside. None where the port is switched off.

    tls: what clients see. None: no TLS.
    Raises StartupError.
    """
    if not settings.http:
        yield None
        return
    listener = _listener(settings)
    page = Starlette(routes=page_routes()) if settings.page else None
    front = HttpFront(listener.getsockname()[1], page, tls=tls)
    front.serve(listener, settings.shutdown_grace_s)
    try:
        yield front
    finally:
        await front.stop()
        listener.close()


@contextlib.asynccontextmanager
async def answering(front: HttpFront | None, app: ASGIApp) -> AsyncIterator[None]:
    """Put the app behind the open port while inside. On leaving, answers under way may finish."""
    if front is not None:
        front.app = app
    try:
        yield
    finally:
        if front is not None:
            await front.stop()


def _listener(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With its protocol named, asyncio sends what is written at once (TCP_NODELAY), also on what it accepts.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A socket of this process or its parent holds the port already (`memserve/processes/ports.py`).
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((settings.host, settings.http_port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        where = at(settings.host, settings.http_port)
        raise StartupError(f"cannot listen on {where}: {error.strerror} (settings host, http_port)") from None
    return listener
