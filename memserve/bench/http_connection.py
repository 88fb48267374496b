"""HTTP/1.1 on asyncio's streams: connections that are kept, and bodies as they come.

The standard library has no HTTP client for asyncio. This one does what a stream of events needs, at a
fraction of the processor time of a general client: the generator's own time must not be what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from memserve.client import TlsFiles
from memserve.errors import UsageError

MAX_LINE_BYTES = 4 << 20
MAX_BODY_BYTES = 16 << 20
CONNECT_S = 10.0


class Broken(Exception):
    """The connection or what came over it is not what HTTP says."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a server is."""

    host: str
    port: int
    path: str
    """What comes before each path. Empty, or begins with a slash."""
    tls: ssl.SSLContext | None

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def origin_of(url: str, tls: TlsFiles | None = None) -> Origin:
    """url: such as http://127.0.0.1:8000; a path `/v1` at its end may be there.

    tls: for https. None: this machine's own authorities, and no certificate.
    Raises UsageError.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError("--http", f"{url}: {error}") from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.username:
        raise UsageError("--http", f"{url} is no address such as http://127.0.0.1:8000")
    secure = parts.scheme == "https"
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Origin(host, port or (443 if secure else 80), path, _context(tls) if secure else None)


def _context(tls: TlsFiles | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca if tls is not None else None)
        if tls is not None and tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:
        raise UsageError("tls", f"the files do not fit each other: {error}") from None
    return context


@dataclass(slots=True)
class Response:
    """The head of a response, and its body. headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    reader: asyncio.StreamReader
    whole: bool = False
    """Whether the body has come to its end."""

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Broken when it ends before its end."""
        try:
            if "chunked" in self.headers.get("transfer-encoding", "").lower():
                while size := int((await self.reader.readuntil(b"\r\n")).partition(b";")[0], 16):
                    yield (await self.reader.readexactly(size + 2))[:-2]
                while (await self.reader.readuntil(b"\r\n")) != b"\r\n":
                    pass
            elif (length := self.headers.get("content-length")) is not None:
                left = int(length)
                while left:
                    piece = await self.reader.read(min(left, 1 << 16))
                    if not piece:
                        raise asyncio.IncompleteReadError(b"", left)
                    left -= len(piece)
                    yield piece
            else:
                while piece := await self.reader.read(1 << 16):
                    yield piece
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, OSError) as error:
            raise Broken(type(error).__name__) from None
        self.whole = True

    async def body(self) -> bytes:
        """Raises Broken."""
        parts, size = [], 0
        async for piece in self.pieces():
            size += len(piece)
            if size > MAX_BODY_BYTES:
                raise Broken("a body that is too long")
            parts.append(piece)
        return b"".join(parts)

    async def lines(self) -> AsyncIterator[bytes]:
        """Of a text that streams, without their ends. Raises Broken."""
        rest = b""
        async for piece in self.pieces():
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                raise Broken("a line that is too long")
            for line in lines:
                yield line.rstrip(b"\r")


class HttpConnections:
    """Connections to one origin. Each request has one for itself; those that are free are used again."""

    def __init__(self, origin: Origin, headers: Mapping[str, str]) -> None:
        """headers: of every request."""
        self._origin = origin
        fixed = {"host": origin.authority, "accept": "*/*", **headers}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in fixed.items())
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    @contextlib.asynccontextmanager
    async def request(self, method: str, path: str, body: bytes = b"") -> AsyncGenerator[Response, None]:
        """body: JSON. Raises Broken. Leaving before the body's end closes the connection."""
        head = f"{method} {self._origin.path}{path} HTTP/1.1\r\n{self._head}"
        if body:
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        reader, writer, response = await self._sent(head.encode() + b"\r\n" + body)
        kept = False
        try:
            yield response
            kept = response.whole and response.headers.get("connection", "").lower() != "close"
            if kept:
                self._free.append((reader, writer))
        finally:
            if not kept:
                writer.close()

    async def _sent(self, message: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Response]:
        reader, writer = self._kept() or await self._connect()
        try:
            writer.write(message)
            await writer.drain()
            return reader, writer, await _head(reader)
        except BaseException as error:
            writer.close()
            if isinstance(error, OSError):
                raise Broken(type(error).__name__) from None
            raise

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A free connection that the server has not closed. A request is never sent twice."""
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(CONNECT_S):
                return await asyncio.open_connection(
                    self._origin.host, self._origin.port, ssl=self._origin.tls, limit=MAX_LINE_BYTES
                )
        except (OSError, TimeoutError):
            raise Broken("no connection") from None

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()
        self._free.clear()


async def _head(reader: asyncio.StreamReader) -> Response:
    """Raises Broken."""
    try:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *lines = text.split("\r\n")
        status = int(status_line.split(" ", 2)[1])
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, IndexError) as error:
        raise Broken(type(error).__name__) from None
    headers = {}
    for line in filter(None, lines):
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return Response(status, headers, reader)
