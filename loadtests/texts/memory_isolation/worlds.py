"""A tenant at one gateway: its stubs, and what its later calls need from its earlier ones."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from memserve.pb.v1 import inference_pb2, inference_pb2_grpc, memory_pb2, memory_pb2_grpc

CALL_TIMEOUT_S = 120.0
QUIET_S = 0.6
"""A watch that says nothing for so long has said what there is."""
MEMORY = memory_pb2.DESCRIPTOR.services_by_name["MemoryService"]
INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
_ID = re.compile(r"[0-9a-f]{32}")


def methods() -> dict[str, MethodDescriptor]:
    """Every RPC that this benchmark calls, by name: all of both services, as their protos have them."""
    return {method.name: method for service in (MEMORY, INFERENCE) for method in service.methods}


@dataclass(frozen=True, slots=True)
class Reply:
    """How a call ended."""

    code: grpc.StatusCode
    detail: str
    """Of an error."""
    messages: tuple[Message, ...]


@dataclass
class World:
    """One tenant at one gateway. Two worlds of a tenant make the same calls, at different times."""

    channel: grpc.aio.Channel
    key: str
    request_ids: list[str] = field(default_factory=list)
    """Of its answers, in order."""
    foreign_ids: list[str] = field(default_factory=list)
    """Of the other tenant's answers at this gateway; unknown ones where it is alone."""
    other: World | None = None
    """The other tenant's at this gateway."""
    times_s: list[float] = field(default_factory=list)
    """Of versions that it was told of."""
    lines: list[str] = field(default_factory=list)
    """Of its last export."""
    foreign_lines: list[str] = field(default_factory=list)
    page_tokens: dict[int, str] = field(default_factory=dict)
    """By the number of the list call."""
    dry_runs: dict[str, str] = field(default_factory=dict)
    """Tokens by the filter."""
    sequences: list[int] = field(default_factory=list)
    """Of the changes that it was told of."""

    async def call(self, method: MethodDescriptor, request: Message | Sequence[Message]) -> Reply:
        """request: the messages of a stream, where the RPC takes one."""
        is_memory = method.containing_service is MEMORY
        stubs = memory_pb2_grpc.MemoryServiceStub if is_memory else inference_pb2_grpc.InferenceServiceStub
        options: dict[str, Any] = {
            "metadata": (("authorization", f"Bearer {self.key}"),),
            "timeout": CALL_TIMEOUT_S,
        }
        sent = iter(request) if method.client_streaming else request  # type: ignore[arg-type]
        call = getattr(stubs(self.channel), method.name)(sent, **options)
        messages: list[Message] = []
        try:
            if not method.server_streaming:
                messages.append(await call)
            elif method.name == "WatchMemories":
                await _until_quiet(call, messages)
            else:
                async for message in call:
                    messages.append(message)
        except grpc.aio.AioRpcError as error:
            return Reply(error.code(), error.details() or "", tuple(messages))
        return Reply(grpc.StatusCode.OK, "", tuple(messages))

    def learn_foreign_ids(self) -> None:
        if self.other is not None:
            self.foreign_ids = list(self.other.request_ids)

    def named(self, text: str) -> str:
        """A text with the world's request ids replaced by their numbers: they are random."""

        def number(match: re.Match[str]) -> str:
            for name, ids in (("own", self.request_ids), ("foreign", self.foreign_ids)):
                if match[0] in ids:
                    return f"<{name} request {ids.index(match[0])}>"
            return match[0]

        return _ID.sub(number, text)


async def _until_quiet(call: Any, messages: list[Message]) -> None:
    stream = aiter(call)
    while True:
        try:
            messages.append(await asyncio.wait_for(anext(stream), QUIET_S))
        except (TimeoutError, StopAsyncIteration, asyncio.CancelledError):
            call.cancel()
            return
