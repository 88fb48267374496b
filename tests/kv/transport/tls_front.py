"""TLS before a real redis-server whose binary was built without it: certificates, and what ends TLS and
passes the bytes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Certificate(NamedTuple):
    """Files: the certificate and key of a server on 127.0.0.1, and the certificate of the authority that
    signed it.
    """

    server: Path
    key: Path
    authority: Path


def new_certificate(folder: Path) -> Certificate:
    """Of an authority of its own."""
    files = Certificate(folder / "server.pem", folder / "server.key", folder / "authority.pem")
    now = datetime.datetime.now(datetime.UTC)
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority, server = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("authority", "server")
    )

    def signed(name: x509.Name, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType) -> bytes:
        builder = (
            x509.CertificateBuilder().issuer_name(authority).subject_name(name).public_key(key.public_key())
        )
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(
            now + datetime.timedelta(hours=1)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    may_sign = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    files.authority.write_bytes(
        signed(authority, authority_key, x509.BasicConstraints(ca=True, path_length=0), may_sign)
    )
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    files.server.write_bytes(signed(server, server_key, address))
    files.key.write_bytes(
        server_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return files


class TlsFront:
    """Ends TLS on a port of 127.0.0.1 and passes on to a server's unix socket, connection by connection."""

    def __init__(self, server_socket: Path, certificate: Certificate) -> None:
        self._server_socket = server_socket
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate.server, certificate.key)
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.connections = 0
        self.port = 0

    def start(self) -> None:
        self._thread.start()
        self._run(self._listen())

    def cut(self) -> None:
        """End what is open, in the middle of whatever it is."""
        self._run(self._cut())

    def stop(self) -> None:
        try:
            self._run(self._stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, work: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _stop(self) -> None:
        self._server.close()
        await self._cut()
        while self._open:
            await asyncio.sleep(0.01)

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(to_client)
        try:
            from_server, to_server = await asyncio.open_unix_connection(self._server_socket)
            await asyncio.gather(self._pass_on(from_client, to_server), self._pass_on(from_server, to_client))
        finally:
            self._open.discard(to_client)

    @staticmethod
    async def _pass_on(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while content := await source.read(1 << 18):
                to.write(content)
                await to.drain()
        to.transport.abort()
