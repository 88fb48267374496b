"""OpenAI's embeddings over the real numpy embedder, on loopback, with faults to order."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from memserve.memory.texts.encoders.embedder import BatchLimits, Embedder

KEY = "sk-of-the-tests"


@dataclass
class EmbeddingServer:
    """What a test sees and changes."""

    embedder: Embedder
    url: str = ""
    key: str = KEY
    calls: list[list[str]] = field(default_factory=list)
    """The texts of every call that was answered or refused by `fault`."""
    headers: list[dict[str, str]] = field(default_factory=list)
    fault: Callable[[list[str]], int | bytes | None] | None = None
    """Looks at a call's texts. A status: it is refused; bytes: they are the answer; None: no fault."""
    change: Callable[[dict[str, Any]], Any] = lambda answer: answer
    """The last word about an answer."""
    retry_after: str = ""
    at_end: list[Callable[[], None]] = field(default_factory=list)
    """Called when the server ends."""
    connections: int = 0
    breaks_off: int = 0
    """How many answers lack their last bytes."""
    drip_s: float = 0.0
    """How long each byte of an answer takes, the status line included."""


class Noisy:
    """The same model with noise, or with another one's vectors."""

    def __init__(self, embedder: Embedder, noise: float) -> None:
        self.name, self.vectors, self.limits = embedder.name, embedder.vectors, BatchLimits(8, 9999, 999)
        self._embedder, self._noise = embedder, noise
        self._random = np.random.default_rng(5)

    def embed(self, texts: Any, *, query: bool = False) -> Any:
        rows = self._embedder.embed(texts)
        return rows + self._random.normal(size=rows.shape, scale=self._noise).astype(np.float32)

    def tokens(self, text: str) -> int:
        return self._embedder.tokens(text)


def _handler(server: EmbeddingServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            server.connections += 1

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            if self.path != "/v1/embeddings" or body["model"] != "minilm":
                return self._send(404, b"{}")
            if self.headers.get("authorization") != (f"Bearer {server.key}" if server.key else None):
                return self._send(401, json.dumps({"error": f"wrong key for {body['input']}"}).encode())
            server.calls.append(body["input"])
            if server.fault is not None and (found := server.fault(body["input"])) is not None:
                return self._send(found, b"{}") if isinstance(found, int) else self._send(200, found)
            rows = server.embedder.embed(body["input"])
            data = [
                {"object": "embedding", "index": number, "embedding": [float(x) * 3 for x in row]}
                for number, row in enumerate(rows)
            ]
            answer = server.change({"object": "list", "data": data[::-1], "model": "minilm"})
            return self._send(200, json.dumps(answer).encode())

        def _send(self, status: int, content: bytes) -> None:
            head = f"HTTP/1.1 {status} x\r\ncontent-length: {len(content)}\r\n"
            if server.retry_after:
                head += f"retry-after: {server.retry_after}\r\n"
            whole = head.encode() + b"\r\n" + content
            if server.breaks_off:
                server.breaks_off -= 1
                whole, self.close_connection = whole[:-5], True
            with contextlib.suppress(OSError):
                for start in range(0, len(whole), 1 if server.drip_s else len(whole)):
                    self.wfile.write(whole[start : start + 1] if server.drip_s else whole)
                    self.wfile.flush()
                    if server.drip_s:
                        time.sleep(server.drip_s)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    return Handler


@contextlib.contextmanager
def serving(
    embedder: Embedder, context: ssl.SSLContext | None = None, port: int = 0
) -> Iterator[EmbeddingServer]:
    """While inside. context: for https."""
    server = EmbeddingServer(embedder)
    ThreadingHTTPServer.daemon_threads = True
    with ThreadingHTTPServer(("127.0.0.1", port), _handler(server)) as http:
        http.handle_error = lambda *_: None  # type: ignore[method-assign]
        if context is not None:
            http.socket = context.wrap_socket(http.socket, server_side=True)
        scheme = "https" if context else "http"
        server.url = f"{scheme}://localhost:{http.server_port}/v1"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            for end in server.at_end:
                end()
            http.shutdown()
            thread.join()
