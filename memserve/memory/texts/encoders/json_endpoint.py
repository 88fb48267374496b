"""JSON over HTTP to an embedding endpoint: bounded in time, in bytes and in tries.

It blocks, on the thread that embeds. A proxy that the environment names is not used, as nowhere in memserve.
"""

from __future__ import annotations

import http.client
import io
import json
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from memserve.errors import PicklableError

TRIES = 3
FIRST_PAUSE_S = 0.1
_IDLE_MAX = 4
_PIECE_BYTES = 1 << 16
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_OF_THE_TEXT = frozenset({400, 413, 422})


class EndpointFailed(PicklableError):
    """The endpoint has not answered the call."""

    def __init__(self, why: str, again: bool, pause_s: float = 0.0, of_the_text: bool = False) -> None:
        super().__init__(why)
        self.again = again
        """Whether another try may help."""
        self.pause_s = pause_s
        """How long the endpoint asks to be left alone."""
        self.of_the_text = of_the_text
        """Whether what was sent may be the reason."""


@dataclass(slots=True)
class RetryBudget:
    """Keeps many calls from trying again at an endpoint that is down.

    Source: gRPC's retry throttling (gRFC A6): a failure takes a token, and a success gives a tenth.
    """

    most: float = 10.0
    tokens: float = 10.0

    def failed(self) -> bool:
        """Returns whether the call may be tried again."""
        self.tokens = max(0.0, self.tokens - 1.0)
        return self.tokens > self.most / 2

    def succeeded(self) -> None:
        self.tokens = min(self.most, self.tokens + 0.1)


class JsonEndpoint:
    """An HTTP server that takes and gives JSON. Any number of threads may call it.

    It verifies the server's certificate against the machine's authorities (SSL_CERT_FILE names others), and
    follows no redirect.
    """

    def __init__(
        self,
        url: str,
        key: str,
        timeout_s: float,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """url: as the setting embedder_url has checked it. key: "" for none.

        timeout_s: of a call, with all of its tries.
        """
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "", parts.port, parts.path.rstrip("/")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._headers = {
            "accept": "application/json",
            "content-type": "application/json",
            "user-agent": "memserve",
        } | ({"authorization": f"Bearer {key}"} if key else {})
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._lock = threading.Lock()
        self._budget = RetryBudget()
        self._idle: list[http.client.HTTPConnection] = []
        self._closed = False

    def post(self, path: str, body: dict[str, Any], most_bytes: int) -> Any:
        """The answer's JSON. most_bytes: of it. Raises EndpointFailed."""
        content = json.dumps(body).encode()
        end_s = time.monotonic() + self._timeout_s
        for number in range(1, TRIES + 1):
            try:
                answer = self._once(path, content, end_s, most_bytes)
            except EndpointFailed as failure:
                pause_s = max(failure.pause_s, FIRST_PAUSE_S * 2 ** (number - 1))
                late = time.monotonic() + pause_s >= end_s
                if not failure.again or not self._may_retry() or number == TRIES or late:
                    raise
                self._sleep(pause_s)
            else:
                with self._lock:
                    self._budget.succeeded()
                return answer
        raise AssertionError("the last try returns or raises")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _may_retry(self) -> bool:
        with self._lock:
            return self._budget.failed()

    def _once(self, path: str, content: bytes, end_s: float, most_bytes: int) -> Any:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            reused = connection is not None
            connection = connection or self._connection()
            try:
                answer = self._exchange(connection, path, content, end_s, most_bytes)
            except EndpointFailed:
                connection.close()
                raise
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                # The server has closed a connection that was idle: it has not seen the call.
                if reused and isinstance(error, ConnectionError) and time.monotonic() < end_s:
                    continue
                raise EndpointFailed(_line(error), again=_is_passing(error)) from None
            with self._lock:
                keep = len(self._idle) < _IDLE_MAX and not self._closed and connection.sock is not None
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()
            return answer

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port)
        return http.client.HTTPSConnection(self._host, self._port, context=self._tls)

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        content: bytes,
        end_s: float,
        most_bytes: int,
    ) -> Any:
        connection.timeout = _left(end_s)
        if connection.sock is None:
            connection.connect()
        connection.sock.settimeout(_left(end_s))
        connection.response_class = lambda sock, *args, **kw: http.client.HTTPResponse(  # type: ignore[assignment]
            _Timed(sock, end_s),  # type: ignore[arg-type]
            *args,
            **kw,
        )
        connection.request("POST", self._path + path, content, self._headers)
        response = connection.getresponse()
        read = b""
        while piece := response.read1(_PIECE_BYTES):
            read += piece
            if len(read) > most_bytes:
                raise EndpointFailed(f"its answer has more than {most_bytes} bytes", again=False)
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        response.close()  # the connection stays open
        if response.status != 200:
            raise _refusal(response)
        try:
            return json.loads(read)
        except (ValueError, RecursionError):
            raise EndpointFailed("its answer is no JSON", again=False) from None


class _Timed:
    """A socket whose answer is read until a time, however slowly it comes.

    A socket's own timeout bounds each piece.
    """

    def __init__(self, sock: socket.socket, end_s: float) -> None:
        self._sock, self._end_s = sock, end_s

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._sock, self._end_s))


class _TimedReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, end_s: float) -> None:
        self._sock, self._end_s = sock, end_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._end_s))
        return self._sock.recv_into(buffer)


def _left(end_s: float) -> float:
    """Raises TimeoutError."""
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("no whole answer in time")
    return left_s


def _refusal(response: http.client.HTTPResponse) -> EndpointFailed:
    """The endpoint's own words are left out: they may quote the texts or the key."""
    status, said = response.status, f"HTTP {response.status}"
    if status in (401, 403):
        return EndpointFailed(f"{said}: it refuses the key; set embedder_key", again=False)
    if status in (404, 405):
        why = f"{said}: it has no such path or model; see embedder_url and embedder_model"
        return EndpointFailed(why, again=False)
    if status in _OF_THE_TEXT:
        return EndpointFailed(f"{said}: it refuses what was sent", again=False, of_the_text=True)
    if 300 <= status < 400:
        return EndpointFailed(f"{said}: a redirect, which is not followed; see embedder_url", again=False)
    return EndpointFailed(
        f"{said}; try again", again=status in _AGAIN, pause_s=_pause(response.getheader("retry-after"))
    )


def _pause(text: str | None) -> float:
    """A Retry-After in seconds. A date counts as none."""
    try:
        pause_s = float(text or 0)
    except ValueError:
        return 0.0
    return pause_s if math.isfinite(pause_s) and pause_s > 0 else 0.0


def _is_passing(error: Exception) -> bool:
    return not isinstance(error, ssl.SSLCertVerificationError)


def _line(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message}); SSL_CERT_FILE names authorities"
    if isinstance(error, TimeoutError):
        return "no whole answer in time; try again, or raise embedder_timeout_s"
    first = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {first}; try again"
