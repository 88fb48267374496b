"""Calls through a real channel, and what they are refused with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import grpc
import pytest

from memserve.client import CallFailed
from memserve.client.errors import call_failed
from memserve.pb.v1 import inference_pb2, inference_pb2_grpc, module_pb2, module_pb2_grpc
from tests.gateway.running import TIMEOUT_S

USER = inference_pb2.ROLE_USER
Metadata = Sequence[tuple[str, str]]


async def refused(call: Any) -> CallFailed:
    """Run a call that must fail: one awaitable, or one stream that is read to its end."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await (_read_all(call) if hasattr(call, "__aiter__") else call)
    refusal = call_failed(failure.value)
    assert len(refusal.detail) < 2000
    assert "Traceback" not in refusal.detail
    assert "incident" not in refusal.detail
    return refusal


def say(text: str, **fields: Any) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(messages=[inference_pb2.Message(role=USER, content=text)], **fields)


def generate(channel: grpc.aio.Channel, request: inference_pb2.GenerateRequest, **options: Any) -> Any:
    return inference_pb2_grpc.InferenceServiceStub(channel).Generate(request, timeout=TIMEOUT_S, **options)


def publish(
    channel: grpc.aio.Channel,
    name: str,
    files: dict[str, bytes],
    *,
    expected_digest: str = "",
    metadata: Metadata | None = None,
) -> Any:
    return send_parts(
        channel, [header(name, files, expected_digest=expected_digest), *chunks(files)], metadata
    )


def send_parts(
    channel: grpc.aio.Channel,
    parts: Iterable[module_pb2.PublishModuleRequest],
    metadata: Metadata | None = None,
) -> Any:
    return module_pb2_grpc.ModuleServiceStub(channel).PublishModule(
        iter(list(parts)), timeout=TIMEOUT_S, metadata=metadata
    )


def header(name: str, contents: dict[str, bytes], **fields: Any) -> module_pb2.PublishModuleRequest:
    """Of an upload of these files. fields: of PublishModuleHeader."""
    listed = [
        module_pb2.UploadFile(
            file_name=file_name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
        )
        for file_name, content in contents.items()
    ]
    header = {"kind": module_pb2.MODULE_KIND_LORA, "files": listed, **fields}
    return module_pb2.PublishModuleRequest(header=module_pb2.PublishModuleHeader(name=name, **header))


def chunks(files: dict[str, bytes]) -> list[module_pb2.PublishModuleRequest]:
    step = 1 << 20
    return [
        module_pb2.PublishModuleRequest(
            chunk=module_pb2.FileChunk(file_name=name, content=content[start : start + step], offset=start)
        )
        for name, content in files.items()
        for start in range(0, max(len(content), 1), step)
    ]


async def _read_all(stream: Any) -> None:
    async for _ in stream:
        pass
