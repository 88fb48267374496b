"""Ends TLS in front of a server that speaks none, such as `milvus-lite server`, and passes the bytes on.

`python -m loadtests.harness.tls_relay PORT CERTIFICATE KEY AUTHORITIES TARGET_HOST TARGET_PORT` runs one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from memserve.tls.pem import PemFiles


class TlsRelay:
    """Reads its certificate for every connection."""

    def __init__(self, files: PemFiles, host: str, port: int) -> None:
        """host, port: of the server behind it."""
        self._files, self._host, self._port = files, host, port
        self.connections = 0
        """With a certificate that was accepted."""
        self.received_bytes = 0
        """From clients, inside TLS."""
        self._open: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def listening(self, address: str = "127.0.0.1", port: int = 0) -> AsyncIterator[int]:
        """Listen while inside. Yields the port."""
        listening = self._context()
        listening.sni_callback = lambda connection, name, context: setattr(
            connection, "context", self._context()
        )
        server = await asyncio.start_server(self._serve, address, port, ssl=listening)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            self.cut()
            while self._open:
                await asyncio.sleep(0.01)

    def cut(self) -> None:
        """End what is open."""
        for writer in self._open:
            writer.transport.abort()

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._files.certificate, self._files.key)
        context.load_verify_locations(self._files.authorities)
        context.verify_mode = ssl.CERT_REQUIRED
        # gRPC's clients insist on it.
        context.set_alpn_protocols(["h2"])
        return context

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(to_client)
        try:
            from_server, to_server = await asyncio.open_connection(self._host, self._port)
            self._open.add(to_server)
            await asyncio.gather(
                self._pass_on(from_client, to_server, counted=True), self._pass_on(from_server, to_client)
            )
            self._open.discard(to_server)
        finally:
            to_client.transport.abort()
            self._open.discard(to_client)

    async def _pass_on(
        self, source: asyncio.StreamReader, to: asyncio.StreamWriter, *, counted: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while content := await source.read(1 << 18):
                self.received_bytes += len(content) if counted else 0
                to.write(content)
                await to.drain()
        to.transport.abort()


async def main(port: str, certificate: str, key: str, authorities: str, host: str, target: str) -> None:
    relay = TlsRelay(PemFiles(Path(certificate), Path(key), Path(authorities)), host, int(target))
    async with relay.listening("0.0.0.0", int(port)):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
