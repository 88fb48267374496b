"""A gateway that answers as a test says. It is made of `memserve.pb` and gRPC alone: the client's tests run
where only the client is installed.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from memserve.client import AsyncClient, Client
from memserve.pb.v1 import activation_pb2, inference_pb2, lineage_pb2, memory_pb2, module_pb2, status_pb2

Call = Callable[..., Any]
FILES = (activation_pb2, inference_pb2, lineage_pb2, memory_pb2, module_pb2, status_pb2)
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Refusal:
    """Ends a call, with what a real gateway says in the trailing metadata."""

    code: grpc.StatusCode
    detail: str
    metadata: tuple[tuple[str, str], ...] = ()


Reply = Message | bytes | Refusal
"""Bytes are a message of a gateway that is newer than `memserve.pb`."""


class StubGateway(grpc.GenericRpcHandler):
    """Answers on a port of its own. An RPC of which nothing is said answers with an empty message."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.replies: dict[str, list[Reply]] = {}
        """By RPC: the messages of its stream, or the one that it answers with."""
        self.pages: dict[str, list[Message]] = {}
        """By RPC: the messages of its first call, its second and so on."""
        self.requests: dict[str, list[Any]] = defaultdict(list)
        """By RPC: every request, of an upload its messages in a list."""
        self.metadata: list[dict[str, str | bytes]] = []
        """Of every call."""
        self._server = grpc.server(ThreadPoolExecutor(8), handlers=[self])
        if credentials is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method = METHODS[handler_call_details.method]
        self.metadata.append(dict(handler_call_details.invocation_metadata or ()))
        options = {
            "request_deserializer": GetMessageClass(method.input_type).FromString,
            "response_serializer": lambda reply: (
                reply if isinstance(reply, bytes) else reply.SerializeToString()
            ),
        }

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Message | bytes]:
            if not isinstance(request, Message):
                # As a gateway does, which looks at the header and reads no more of what it refuses.
                refused = isinstance(next(iter(self.replies[method.name])), Refusal)
                request = list(islice(request, 1 if refused else None))
            self.requests[method.name].append(request)
            if pages := self.pages.get(method.name):
                yield pages.pop(0)
                return
            for reply in self.replies.get(method.name, [GetMessageClass(method.output_type)()]):
                if isinstance(reply, Refusal):
                    context.set_trailing_metadata(reply.metadata)
                    context.abort(reply.code, reply.detail)
                else:
                    yield reply

        def single(request: Any, context: grpc.ServicerContext) -> Message | bytes:
            return next(stream(request, context))

        if method.client_streaming and method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, **options)
        if method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(single, **options)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, **options)
        return grpc.unary_unary_rpc_method_handler(single, **options)


def blocking_call(address: str) -> Call:
    """Calls a method of `Client` by name, and takes all that it yields."""

    def call(name: str, *arguments: Any, **options: Any) -> Any:
        with Client(address, timeout_s=TIMEOUT_S) as client:
            result = attrgetter(name)(client)(*arguments, **options)
            return list(result) if isinstance(result, Iterator) else result

    return call


def async_call(address: str) -> Call:
    """Calls a method of `AsyncClient` by name in an event loop of its own, and takes all that it yields."""

    async def asked(name: str, *arguments: Any, **options: Any) -> Any:
        async with AsyncClient(address, timeout_s=TIMEOUT_S) as client:
            result = attrgetter(name)(client)(*arguments, **options)
            if isinstance(result, AsyncGenerator):
                return [item async for item in result]
            return await result

    return lambda name, *arguments, **options: asyncio.run(asked(name, *arguments, **options))
