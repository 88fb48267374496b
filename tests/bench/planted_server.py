"""A server whose truth is known, over gRPC and over HTTP: what becomes of a request stands in its number."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from memserve.domain.worker_calls import REASON
from memserve.pb.v1 import inference_pb2 as pb
from memserve.pb.v1 import inference_pb2_grpc as rpc

TOKENS = 4
SLOW_S, PAUSE_S = 1.2, 0.4
"""Before the first token of a slow answer, and before each further token of a dragging one."""
PROMPT_TOKENS, CACHED_TOKENS = 100, 25
KINDS = {3: "refused", 7: "failed", 11: "cut_off", 13: "slow", 17: "dragging", 19: "silent"}
"""By a request's number modulo 20. All others are answered at once."""


@dataclass
class Truth:
    """What has been planted."""

    planted: Counter[str] = field(default_factory=Counter)

    def kind(self, question: str) -> str:
        """question: `<salt> <number>.<turn> …`."""
        number = int(question.split()[1].partition(".")[0])
        kind = KINDS.get(number % 20, "met")
        self.planted[kind] += 1
        return kind


class PlantedGateway(rpc.InferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, truth: Truth) -> None:
        self.truth = truth

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.GenerateResponse]:
        kind = self.truth.kind(request.messages[-1].content)
        if kind == "refused":
            context.set_trailing_metadata(((REASON, "queue_full"),))
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        if kind == "failed":
            await context.abort(grpc.StatusCode.INTERNAL, "incident")
        yield pb.GenerateResponse(route=pb.Route(worker_id="w0", prompt_tokens=PROMPT_TOKENS))
        async for token in tokens(kind):
            yield pb.GenerateResponse(text=pb.TextDelta(text="a", token_ids=[token]))
        if kind == "cut_off":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
        usage = pb.Usage(prompt_tokens=PROMPT_TOKENS, output_tokens=TOKENS)
        usage.cached_tokens.device = CACHED_TOKENS
        yield pb.GenerateResponse(usage=usage)


async def tokens(kind: str) -> AsyncIterator[int]:
    if kind == "silent":
        await asyncio.sleep(60)
    if kind == "slow":
        await asyncio.sleep(SLOW_S)
    for token in range(2 if kind == "cut_off" else TOKENS):
        if token and kind == "dragging":
            await asyncio.sleep(PAUSE_S)
        yield token


@contextlib.asynccontextmanager
async def grpc_server(truth: Truth) -> AsyncGenerator[str, None]:
    """Gives the address."""
    server = grpc.aio.server()
    rpc.add_InferenceServiceServicer_to_server(PlantedGateway(truth), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def http_server(truth: Truth) -> AsyncGenerator[str, None]:
    """OpenAI's API without a framework: every byte that a client gets is written here. Gives the URL."""
    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while await answer(truth, reader, writer):
                pass
        writer.close()
        talks.discard(task)

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(talks):
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


async def answer(truth: Truth, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """One request. Returns whether the connection is kept."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    if head.startswith("get /v1/models"):
        write(writer, 200, json.dumps({"data": [{"id": "planted"}]}).encode())
        return True
    length = int(head.split("content-length: ")[1].split("\r\n")[0])
    body = json.loads(await reader.readexactly(length))
    assert body["model"] == "planted" and body["stream"]
    kind = truth.kind(body["messages"][-1]["content"])
    if kind in ("refused", "failed"):
        error = {"error": {"message": "no", "type": "server_error", "param": None, "code": None}}
        headers = "x-memserve-reason: queue_full\r\n" if kind == "refused" else ""
        write(writer, 429 if kind == "refused" else 500, json.dumps(error).encode(), headers)
        return True
    writer.write(
        b"HTTP/1.1 200 OK\r\nx-memserve-worker: w0\r\ncontent-type: text/event-stream\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    event(writer, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    async for _ in tokens(kind):
        event(writer, {"choices": [{"delta": {"content": "a"}}]})
        await writer.drain()
    if kind == "cut_off":
        return False
    details = {"cached_tokens": CACHED_TOKENS}
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": TOKENS, "prompt_tokens_details": details}
    event(writer, {"choices": [], "usage": usage})
    chunk(writer, b"data: [DONE]\n\n")
    writer.write(b"0\r\n\r\n")
    return True


def write(writer: asyncio.StreamWriter, status: int, body: bytes, headers: str = "") -> None:
    head = f"HTTP/1.1 {status} x\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    writer.write(head.encode() + body)


def event(writer: asyncio.StreamWriter, content: object) -> None:
    """In two pieces, as a network may cut it anywhere."""
    text = b"data: " + json.dumps(content).encode() + b"\n\n"
    chunk(writer, text[:9])
    chunk(writer, text[9:])


def chunk(writer: asyncio.StreamWriter, content: bytes) -> None:
    writer.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
