"""The gRPC port's connections, and how a gateway that leaves ends them.

gRPC's own stop cancels calls that are on their way to the server: their clients get CANCELLED, and do not
try again. Here calls are held before it, so that callers that wait for their answers send no more of them.
Whatever is not answered ends with UNAVAILABLE before its first message, which clients send again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import time
from collections import Counter
from collections.abc import Iterator
from urllib.parse import unquote

import grpc

from memserve.errors import GatewayLeaving

# A call's last bytes leave some time after its handler has ended.
QUIET_S = 0.25
LOOK_S = 0.05
SOCKETS = "/proc/self/fd"


class Connections:
    """Counts the calls under way by connection."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._leaving = False
        self._refusing = asyncio.Event()
        # When the last call of a connection ended, on the monotonic clock. Kept while leaving only.
        self._ended_s: dict[str, float] = {}

    async def admit(self) -> None:
        """Let a call in. Raises GatewayLeaving, when its caller will not send it here again."""
        if self._leaving:
            await self._refusing.wait()
            raise GatewayLeaving

    @contextlib.contextmanager
    def call(self, peer: str, *, endless: bool = False) -> Iterator[None]:
        """Count a call while inside.

        peer: as gRPC names it. endless: the call goes on until its caller ends it. Nobody waits for it.
        """
        if endless:
            yield
            return
        self._calls[peer] += 1
        try:
            yield
        finally:
            self._calls[peer] -= 1
            if not self._calls[peer]:
                del self._calls[peer]
            if self._leaving:
                self._ended_s[peer] = time.monotonic()

    async def leave(self, server: grpc.aio.Server, port: int, within_s: float) -> None:
        """Stop the server: finish the calls under way, and have callers send all others elsewhere.

        1. Calls that come are held. Connections without other calls are closed.
        2. The server tells the others that it goes (GOAWAY): callers use them no more for new calls.
        3. Held calls end with UNAVAILABLE. Each connection is closed when its calls have ended.
        4. After `within_s`, all that are left are closed.

        port: that the server listens on.
        """
        self._leaving = True
        began_s = time.monotonic()
        # Until then a call may be ending that was not counted in `_ended_s`.
        settled_s = began_s + QUIET_S
        stopping: asyncio.Task[None] | None = None
        while (now_s := time.monotonic()) < began_s + within_s:
            await asyncio.sleep(LOOK_S)
            quiet = {peer for peer, ended_s in self._ended_s.items() if now_s - ended_s < QUIET_S}
            kept = quiet.union(self._calls)
            if now_s >= settled_s:
                close_connections(port, except_peers={address_of(peer) for peer in kept})
                if not kept:
                    break
                if stopping is None:
                    stopping = asyncio.create_task(server.stop(within_s + 1.0))
                    await asyncio.sleep(LOOK_S)
                    self._refusing.set()
        self._refusing.set()
        close_connections(port, except_peers=set())
        await server.stop(0)
        if stopping is not None:
            await stopping


def close_connections(port: int, *, except_peers: set[str]) -> int:
    """Close this process's TCP connections whose own port this is. Returns how many.

    except_peers: host:port of those that stay. Does nothing where there is no /proc.
    """
    closed = 0
    for connection in _sockets():
        with contextlib.suppress(OSError), connection:
            peer = connection.getpeername()
            if not isinstance(peer, tuple) or connection.getsockname()[1] != port:
                continue
            # gRPC's sockets are IPv6, also for callers of IPv4; its names for them are not.
            host = peer[0].removeprefix("::ffff:")
            host = f"[{host}]" if ":" in host else host
            if f"{host}:{peer[1]}" not in except_peers:
                connection.shutdown(socket.SHUT_RDWR)
                closed += 1
    return closed


def _sockets() -> Iterator[socket.socket]:
    """A copy of each of this process's sockets, to be closed. The number of an open file may become another
    file's between two looks; a copy stays what it is.
    """
    names = os.listdir(SOCKETS) if os.path.isdir(SOCKETS) else ()
    for name in names:
        with contextlib.suppress(OSError):
            copy = os.dup(int(name))
            if stat.S_ISSOCK(os.fstat(copy).st_mode):
                yield socket.socket(fileno=copy)
            else:
                os.close(copy)


def address_of(peer: str) -> str:
    """host:port of a connection's other end, as gRPC names it: `ipv4:10.0.0.1:1`, `ipv6:%5B::1%5D:1`."""
    return unquote(peer.partition(":")[2])
