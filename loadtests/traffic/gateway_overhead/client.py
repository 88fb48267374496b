"""Asks for streams and reads their bytes. A process of its own, so that its work is not the gateway's.

It takes one job a line as JSON on its standard input, and answers each with one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import grpc

from memserve.pb.v1 import inference_pb2
from memserve.pb.worker.v1 import worker_pb2

QUESTION = "What is in the harbour today, and who may enter it before noon? " * 8


@dataclass(frozen=True, slots=True)
class Job:
    """Streams at once, one after another in each place."""

    target: str
    """gateway_grpc, relay_grpc, gateway_http or relay_http."""
    address: str
    streams: int
    """At once."""
    requests: int
    """In all."""
    tokens: int
    """Of one answer."""
    step_ms: int
    """Between two tokens of an answer."""
    tls: str = ""
    """Folder of a client's certificates, as `memserve certs` makes it. Empty: without TLS."""

    def file(self, name: str) -> Path:
        return Path(self.tls) / name


@dataclass(slots=True)
class Seen:
    """What came. Gaps are between two messages of one stream."""

    messages: int = 0
    wall_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)


async def run(job: Job) -> Seen:
    seen, left = Seen(), job.requests
    grpc_target = job.target.endswith("grpc")
    # Connections of their own, because their options differ.
    options: list[list[tuple[str, Any]]] = [[("grpc.channel_id", number)] for number in range(4)]
    channels = [_channel(job, each) for each in options if grpc_target]

    async def place(number: int) -> None:
        nonlocal left
        stream = _Http(job) if not grpc_target else None
        while left > 0:
            left -= 1
            last_s = 0.0
            messages = stream.ask() if stream else _ask(channels[number % 4], job)
            async for _ in messages:
                now_s = time.perf_counter()
                seen.messages += 1
                if last_s:
                    seen.gaps_s.append(now_s - last_s)
                last_s = now_s
        if stream:
            stream.close()

    start_s = time.perf_counter()
    await asyncio.gather(*map(place, range(job.streams)))
    seen.wall_s = time.perf_counter() - start_s
    for channel in channels:
        await channel.close()
    return seen


def _channel(job: Job, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
    if not job.tls:
        return grpc.aio.insecure_channel(job.address, options)
    ca, key, chain = (job.file(name).read_bytes() for name in ("ca.crt", "tls.key", "tls.crt"))
    return grpc.aio.secure_channel(job.address, grpc.ssl_channel_credentials(ca, key, chain), options)


@cache
def _request(target: str, tokens: int, step_ms: int) -> tuple[str, bytes]:
    if target == "relay_grpc":
        message = worker_pb2.GenerateRequest(max_tokens=tokens, seed=step_ms)
        return "/memserve.worker.v1.WorkerService/Generate", message.SerializeToString()
    asked = inference_pb2.GenerateRequest(
        messages=[inference_pb2.Message(role=inference_pb2.ROLE_USER, content=QUESTION)],
        sampling=inference_pb2.Sampling(max_tokens=tokens, seed=step_ms),
    )
    return "/memserve.v1.InferenceService/Generate", asked.SerializeToString()


async def _ask(channel: grpc.aio.Channel, job: Job) -> AsyncIterator[bytes]:
    method, request = _request(job.target, job.tokens, job.step_ms)
    call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(method)
    async for message in call(request):
        yield message


class _Http:
    """One connection, kept."""

    def __init__(self, job: Job) -> None:
        self._host, _, port = job.address.partition(":")
        self._port = int(port)
        body = {
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": job.tokens,
            "seed": job.step_ms,
            "stream": True,
        }
        if job.target == "gateway_http":
            body["model"] = ""
        content = json.dumps(body).encode()
        self._request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(content)
        ) + content
        self._writer: asyncio.StreamWriter | None = None
        self._tls: ssl.SSLContext | None = None
        if job.tls:
            self._tls = ssl.create_default_context(cafile=job.file("ca.crt"))
            self._tls.load_cert_chain(job.file("tls.crt"), job.file("tls.key"))

    async def ask(self) -> AsyncIterator[bytes]:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(
                self._host, self._port, limit=1 << 20, ssl=self._tls
            )
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head:
            raise RuntimeError(head.decode())
        while size := int(await self._reader.readline(), 16):
            yield await self._reader.readexactly(size + 2)
        await self._reader.readexactly(2)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(asdict(asyncio.run(run(Job(**json.loads(line)))))), flush=True)


if __name__ == "__main__":
    main()
