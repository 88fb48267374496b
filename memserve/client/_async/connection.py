"""The gateway's services on a channel, and how each of their RPCs is called."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

import grpc.aio

from memserve.client._async import _io
from memserve.client.endpoint import Endpoint
from memserve.client.errors import CallFailed, call_failures, client_closed
from memserve.pb.v1.activation_pb2_grpc import ActivationServiceStub
from memserve.pb.v1.inference_pb2_grpc import InferenceServiceStub
from memserve.pb.v1.lineage_pb2_grpc import LineageServiceStub
from memserve.pb.v1.memory_pb2_grpc import MemoryServiceStub
from memserve.pb.v1.module_pb2_grpc import ModuleServiceStub
from memserve.pb.v1.status_pb2_grpc import StatusServiceStub

Request = TypeVar("Request")
Response = TypeVar("Response")


class Stubs:
    """The stubs of all services on a channel. They are made once, because a stub prepares all its RPCs."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.activation = ActivationServiceStub(channel)
        self.inference = InferenceServiceStub(channel)
        self.lineage = LineageServiceStub(channel)
        self.memories = MemoryServiceStub(channel)
        self.modules = ModuleServiceStub(channel)
        self.status = StatusServiceStub(channel)


class Connection:
    """Calls to one gateway. Every call raises CallFailed, and UsageError once the connection is closed."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._closed = False
        self._stubs = _io.Local(lambda: Stubs(_io.open_channel(endpoint)))

    @property
    def stubs(self) -> Stubs:
        if self._closed:
            raise client_closed()
        return self._stubs.get()

    async def close(self) -> None:
        self._closed = True
        if (stubs := self._stubs.take()) is not None:
            await stubs.channel.close()

    async def call(
        self, rpc: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request
    ) -> Response:
        with call_failures():
            return await rpc(request, timeout=self._endpoint.timeout_s, metadata=self._endpoint.metadata)

    async def send(
        self, rpc: grpc.aio.StreamUnaryMultiCallable[Request, Response], parts: AsyncIterator[Request]
    ) -> Response:
        with call_failures():
            return await _io.uploaded(
                rpc(parts, timeout=self._endpoint.timeout_s, metadata=self._endpoint.metadata)
            )

    async def converse(
        self, rpc: grpc.aio.StreamStreamMultiCallable[Request, Response], parts: AsyncIterator[Request]
    ) -> AsyncGenerator[Response, None]:
        """A stream of answers to a stream of requests. Closing the generator cancels the call.

        What `parts` raises ends the call, and is raised here.
        """
        failures: list[Exception] = []
        call = rpc(
            _io.until_failure(parts, failures),
            timeout=self._endpoint.timeout_s,
            metadata=self._endpoint.metadata,
        )
        try:
            with call_failures():
                async for response in call:
                    yield response
        except CallFailed:
            if not failures:
                raise
        finally:
            call.cancel()
        if failures:
            raise failures[0]

    async def stream(
        self, rpc: grpc.aio.UnaryStreamMultiCallable[Request, Response], request: Request
    ) -> AsyncGenerator[Response, None]:
        """Closing the generator cancels the call."""
        call = rpc(request, timeout=self._endpoint.timeout_s, metadata=self._endpoint.metadata)
        try:
            with call_failures():
                async for response in call:
                    yield response
        finally:
            call.cancel()
