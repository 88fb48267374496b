"""The typed Python client. `Client` for ordinary code, `AsyncClient` for asyncio; both need only grpcio and
protobuf.

with Client("127.0.0.1:50051") as client:
    print(client.generate("What is the code of Amber Lantern?", namespaces=["notes"]).text)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Generator, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import grpc

from memserve.channels import DEFAULT_PORT, NO_PROXY, bearer, target_of
from memserve.client.activation import ActivationCalls, AsyncActivationCalls
from memserve.client.arguments import seconds, strings
from memserve.client.modules import AsyncModuleCalls, ModuleCalls
from memserve.client.wire.inference import (
    Answer,
    Conversation,
    Event,
    Status,
    WorkerStatus,
    collect,
    event_of,
    generate_request,
    memory_of,
    remember_request,
    scored_of,
    status_of,
)
from memserve.domain import Memory, Message, Role, Route, Sampling, ScoredMemory, Slo, TextDelta, Usage
from memserve.errors import PicklableError, UsageError
from memserve.pb.v1 import (
    activation_pb2_grpc,
    inference_pb2_grpc,
    memory_pb2,
    memory_pb2_grpc,
    module_pb2_grpc,
    status_pb2,
    status_pb2_grpc,
)

DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"
DEFAULT_TIMEOUT_S = 60.0
__all__ = [
    "Answer",
    "AsyncClient",
    "CallFailed",
    "Client",
    "Event",
    "Message",
    "Role",
    "Route",
    "Sampling",
    "Slo",
    "Status",
    "TextDelta",
    "Usage",
    "UsageError",
    "WorkerStatus",
    "wait_until_ready",
]

OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    # gRPC's own pauses grow to two minutes: a gateway that was away for a quarter of one was taken for dead
    # for as long again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    *NO_PROXY,
)


class CallFailed(PicklableError):
    """A call ended with a gRPC status. `field` names the field at fault, `retry_after_s` the time to wait,
    where the server said so.
    """

    def __init__(
        self, code: grpc.StatusCode, detail: str, field: str | None, retry_after_s: float | None
    ) -> None:
        super().__init__(f"{code.name}: {detail}")
        self.code = code
        self.detail = detail
        self.field = field
        self.retry_after_s = retry_after_s


class Client:
    """A blocking client, for any number of threads. `timeout_s` is a call's deadline.

    Every method raises CallFailed, or UsageError for what cannot be sent: an address, a key or a value of
    another type. A string where a list of strings is meant is a list of one.
    """

    def __init__(
        self, address: str = DEFAULT_ADDRESS, api_key: str = "", timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self._metadata = bearer(api_key)
        self._timeout_s = seconds(timeout_s)
        self._channel = grpc.insecure_channel(target_of(address), options=OPTIONS)
        self._closed = False
        activation, modules = activation_pb2_grpc.ActivationServiceStub, module_pb2_grpc.ModuleServiceStub
        self.activation = ActivationCalls(partial(self._call, activation), partial(self._stream, activation))
        self.modules = ModuleCalls(partial(self._call, modules), partial(self._stream, modules))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Safe to call twice. Calls under way are cancelled."""
        self._closed = True
        self._channel.close()

    def stream(self, messages: Conversation, **options: Any) -> Iterator[Event]:
        """Stream an answer: a Route, TextDeltas, last a Usage. Closing the iterator cancels the call. Options
        as in `generate`.
        """
        with contextlib.closing(
            self._stream(
                inference_pb2_grpc.InferenceServiceStub, "Generate", generate_request(messages, **options)
            )
        ) as responses:
            for response in responses:
                yield event_of(response)

    def generate(self, messages: Conversation, **options: Any) -> Answer:
        """Ask, and wait for the whole answer.

        messages: a question, or the conversation. Options: those of `generate_request`.
        """
        return collect(list(self.stream(messages, **options)))

    def remember(
        self,
        namespace: str,
        text: str,
        *,
        source: str = "",
        keywords: str | Sequence[str] = (),
        memory_id: str = "",
    ) -> Memory:
        request = remember_request(namespace, text, source, keywords, memory_id)
        return memory_of(self._call(memory_pb2_grpc.MemoryServiceStub, "Remember", request).memory)

    def get_memory(self, namespace: str, memory_id: str) -> Memory:
        request = memory_pb2.GetMemoryRequest(namespace=namespace, memory_id=memory_id)
        return memory_of(self._call(memory_pb2_grpc.MemoryServiceStub, "GetMemory", request).memory)

    def forget(self, namespace: str, memory_id: str) -> None:
        self._call(
            memory_pb2_grpc.MemoryServiceStub,
            "Forget",
            memory_pb2.ForgetRequest(namespace=namespace, memory_id=memory_id),
        )

    def search(self, namespaces: str | Sequence[str], query: str, limit: int = 8) -> list[ScoredMemory]:
        request = memory_pb2.SearchRequest(
            namespaces=strings("namespaces", namespaces), query=query, limit=limit
        )
        return [
            scored_of(hit) for hit in self._call(memory_pb2_grpc.MemoryServiceStub, "Search", request).results
        ]

    def namespaces(self) -> dict[str, int]:
        """Namespace to number of memories."""
        found = self._call(
            memory_pb2_grpc.MemoryServiceStub, "ListNamespaces", memory_pb2.ListNamespacesRequest()
        )
        return {entry.namespace: entry.memories for entry in found.namespaces}

    def status(self, *, workers_only: bool = False) -> Status:
        """workers_only: tell nothing of memories and modules, so that it costs the same whatever is kept."""
        request = status_pb2.GetStatusRequest(workers_only=workers_only)
        return status_of(self._call(status_pb2_grpc.StatusServiceStub, "GetStatus", request))

    def backup(self, name: str) -> Iterator[str]:
        """Back up the server's data directory; a line for a person at every step. It is complete when the
        iterator ends.
        """
        with contextlib.closing(
            self._stream(status_pb2_grpc.StatusServiceStub, "Backup", status_pb2.BackupRequest(name=name))
        ) as responses:
            for response in responses:
                yield response.line

    def _call(self, stub: Any, rpc: str, request: Any) -> Any:
        with _facts():
            return getattr(stub(self._open_channel()), rpc)(
                request, timeout=self._timeout_s, metadata=self._metadata
            )

    def _stream(self, stub: Any, rpc: str, request: Any) -> Generator[Any, None, None]:
        call = getattr(stub(self._open_channel()), rpc)(
            request, timeout=self._timeout_s, metadata=self._metadata
        )
        try:
            with _facts():
                yield from call
        finally:
            call.cancel()

    def _open_channel(self) -> grpc.Channel:
        if self._closed:
            raise _closed()
        return self._channel


class AsyncClient:
    """The same for asyncio. Cancelling a task cancels its call, down to the engine.

    It may be made anywhere, before there is an event loop too, and used in one loop after another: each has a
    channel of its own.
    """

    def __init__(
        self, address: str = DEFAULT_ADDRESS, api_key: str = "", timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self._target = target_of(address)
        self._metadata = bearer(api_key)
        self._timeout_s = seconds(timeout_s)
        self._channels: dict[asyncio.AbstractEventLoop, grpc.aio.Channel] = {}
        self._closed = False
        activation, modules = activation_pb2_grpc.ActivationServiceStub, module_pb2_grpc.ModuleServiceStub
        self.activation = AsyncActivationCalls(
            partial(self._call, activation), partial(self._stream, activation)
        )
        self.modules = AsyncModuleCalls(partial(self._call, modules), partial(self._stream, modules))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Safe to call twice. Calls under way in this event loop are cancelled."""
        self._closed = True
        channel = self._channels.pop(asyncio.get_running_loop(), None)
        self._channels.clear()
        if channel is not None:
            await channel.close()

    async def stream(self, messages: Conversation, **options: Any) -> AsyncIterator[Event]:
        """As `Client.stream`."""
        responses = self._stream(
            inference_pb2_grpc.InferenceServiceStub, "Generate", generate_request(messages, **options)
        )
        async with contextlib.aclosing(responses):
            async for response in responses:
                yield event_of(response)

    async def generate(self, messages: Conversation, **options: Any) -> Answer:
        """As `Client.generate`."""
        return collect([event async for event in self.stream(messages, **options)])

    async def remember(
        self,
        namespace: str,
        text: str,
        *,
        source: str = "",
        keywords: str | Sequence[str] = (),
        memory_id: str = "",
    ) -> Memory:
        request = remember_request(namespace, text, source, keywords, memory_id)
        return memory_of((await self._call(memory_pb2_grpc.MemoryServiceStub, "Remember", request)).memory)

    async def get_memory(self, namespace: str, memory_id: str) -> Memory:
        request = memory_pb2.GetMemoryRequest(namespace=namespace, memory_id=memory_id)
        return memory_of((await self._call(memory_pb2_grpc.MemoryServiceStub, "GetMemory", request)).memory)

    async def forget(self, namespace: str, memory_id: str) -> None:
        await self._call(
            memory_pb2_grpc.MemoryServiceStub,
            "Forget",
            memory_pb2.ForgetRequest(namespace=namespace, memory_id=memory_id),
        )

    async def search(self, namespaces: str | Sequence[str], query: str, limit: int = 8) -> list[ScoredMemory]:
        request = memory_pb2.SearchRequest(
            namespaces=strings("namespaces", namespaces), query=query, limit=limit
        )
        return [
            scored_of(hit)
            for hit in (await self._call(memory_pb2_grpc.MemoryServiceStub, "Search", request)).results
        ]

    async def namespaces(self) -> dict[str, int]:
        """Namespace to number of memories."""
        found = await self._call(
            memory_pb2_grpc.MemoryServiceStub, "ListNamespaces", memory_pb2.ListNamespacesRequest()
        )
        return {entry.namespace: entry.memories for entry in found.namespaces}

    async def status(self, *, workers_only: bool = False) -> Status:
        """As `Client.status`."""
        request = status_pb2.GetStatusRequest(workers_only=workers_only)
        return status_of(await self._call(status_pb2_grpc.StatusServiceStub, "GetStatus", request))

    async def _call(self, stub: Any, rpc: str, request: Any) -> Any:
        with _facts():
            return await getattr(stub(self._open_channel()), rpc)(
                request, timeout=self._timeout_s, metadata=self._metadata
            )

    async def _stream(self, stub: Any, rpc: str, request: Any) -> AsyncGenerator[Any, None]:
        call = getattr(stub(self._open_channel()), rpc)(
            request, timeout=self._timeout_s, metadata=self._metadata
        )
        try:
            with _facts():
                async for response in call:
                    yield response
        finally:
            call.cancel()

    def _open_channel(self) -> grpc.aio.Channel:
        """That of the running loop."""
        if self._closed:
            raise _closed()
        loop = asyncio.get_running_loop()
        if loop not in self._channels:
            # A loop that has ended takes no more calls, and cannot be waited in.
            self._channels = {
                each: channel for each, channel in self._channels.items() if not each.is_closed()
            }
            self._channels[loop] = grpc.aio.insecure_channel(self._target, options=OPTIONS)
        return self._channels[loop]


def _closed() -> UsageError:
    return UsageError("client", "it is closed; make a new one")


@contextlib.contextmanager
def _facts() -> Iterator[None]:
    try:
        yield
    except (grpc.RpcError, grpc.aio.AioRpcError) as error:
        raise call_failed(error) from None


def call_failed(error: Any) -> CallFailed:
    """The fact in a gRPC error."""
    trailing = {key: str(value) for key, value in (error.trailing_metadata() or ())}
    retry = trailing.get("retry-after-s")
    return CallFailed(
        error.code(), error.details() or "", trailing.get("memserve-field"), float(retry) if retry else None
    )


def wait_until_ready(
    address: str,
    timeout_s: float,
    workers: int = 1,
    api_key: str = "",
    *,
    only: Collection[str] = frozenset(),
) -> bool:
    """Wait until the gateway at `address` has so many workers to send requests to. False when it has not in
    time.

    only: ids; wait until it has these and no others, also none that it has not yet seen go.
    """
    deadline_s = time.monotonic() + timeout_s
    with Client(address, api_key, timeout_s=2.0) as client:
        while True:
            with contextlib.suppress(CallFailed):
                seen = client.status(workers_only=True).workers
                if sum(worker.ready for worker in seen) >= workers and (
                    not only or {worker.worker_id for worker in seen} == set(only)
                ):
                    return True
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(0.1)
