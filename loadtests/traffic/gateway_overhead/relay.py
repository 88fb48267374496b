"""The least that a gateway can be: it forwards a worker's bytes, over gRPC or as server-sent events."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvicorn

from memserve.pb.worker.v1 import worker_pb2 as pb

GENERATE = "/memserve.worker.v1.WorkerService/Generate"
# As long as an event of the gateway's.
EVENT = b'data: {"id":"chatcmpl-%s","object":"chat.completion.chunk","created":1790000000,"model":"demo",' % (
    b"0" * 32
) + (b'"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}\n\n')


def _forward(channel: grpc.aio.Channel) -> grpc.GenericRpcHandler:
    call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(GENERATE)

    async def generate(request: bytes, context: Any) -> AsyncIterator[bytes]:
        async for message in call(request):
            yield message

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
            return grpc.unary_stream_rpc_method_handler(generate)

    return Handler()


def _events(channel: grpc.aio.Channel) -> Any:
    call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(GENERATE)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = json.loads((await receive())["body"])
        request = pb.GenerateRequest(max_tokens=body["max_tokens"], seed=body["seed"]).SerializeToString()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for _ in call(request):
            await send({"type": "http.response.body", "body": EVENT, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    return app


async def main(kind: str, worker: str) -> None:
    async with grpc.aio.insecure_channel(worker) as channel:
        if kind == "grpc":
            server = grpc.aio.server()
            server.add_generic_rpc_handlers((_forward(channel),))
            print(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
            await server.start()
            await server.wait_for_termination()
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        listener.listen(2048)
        print(f"127.0.0.1:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(_events(channel), lifespan="off", log_config=None, access_log=False)
        await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
