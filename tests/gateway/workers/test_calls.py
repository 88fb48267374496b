"""What a worker's statuses and messages mean to a gateway, those of newer workers too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest
import pytest_asyncio

from memserve.domain import CachedTokens, FinishReason, ModuleKind, ModulePlace, Sampling, WorkerLease
from memserve.domain.worker_calls import (
    BlockChange,
    BlockEvent,
    StrangeWorker,
    WorkerDied,
    WorkerFailure,
    WorkerFaulty,
    WorkerLate,
    WorkerRefused,
    WorkerRequest,
    WorkerState,
    WrongRequest,
)
from memserve.gateway.workers.calls import GrpcCalls
from memserve.pb.worker.v1 import worker_pb2 as pb
from memserve.pb.worker.v1 import worker_pb2_grpc as rpc

NUMBER = 99
"""That no enumeration of this gateway has a name for."""
MEANINGS = {
    grpc.StatusCode.UNAVAILABLE: WorkerDied,
    grpc.StatusCode.INTERNAL: WorkerDied,
    grpc.StatusCode.CANCELLED: WorkerDied,
    grpc.StatusCode.UNKNOWN: WorkerFaulty,
    grpc.StatusCode.DEADLINE_EXCEEDED: WorkerLate,
    grpc.StatusCode.FAILED_PRECONDITION: WorkerRefused,
    grpc.StatusCode.INVALID_ARGUMENT: WrongRequest,
    grpc.StatusCode.UNAUTHENTICATED: StrangeWorker,
}


class NewerWorker(rpc.WorkerServiceServicer):  # type: ignore[misc]
    """Says what this gateway has no word for. status: what a load ends with; None: a place."""

    status: grpc.StatusCode | None = None

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        yield pb.GenerateResponse(text="a", token_ids=[1])
        yield pb.GenerateResponse(finish_reason=NUMBER)  # type: ignore[arg-type]

    async def LoadModule(self, request: pb.LoadModuleRequest, context: Any) -> pb.LoadModuleResponse:
        if self.status is not None:
            await context.abort(self.status, "as it is")
        return pb.LoadModuleResponse(place=NUMBER)  # type: ignore[arg-type]

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:
        yield pb.WatchResponse(epoch=1, sequence=1, reset=pb.BlocksReset(keys=[b"a"]))
        yield pb.WatchResponse(epoch=1, sequence=2)  # its event is a field that this gateway does not know
        places = [pb.ModuleResidency(digest="a", place=NUMBER)]  # type: ignore[arg-type]
        yield pb.WatchResponse(epoch=1, sequence=2, state=pb.WorkerState(running=1, modules=places))


@pytest_asyncio.fixture
async def worker() -> AsyncIterator[tuple[NewerWorker, GrpcCalls]]:
    servicer, server = NewerWorker(), grpc.aio.server()
    rpc.add_WorkerServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    lease = WorkerLease("w0", f"127.0.0.1:{port}", "", 0, "", "", "", "", 32, 1, 512, 8, 0.0)
    calls = GrpcCalls(lease, "credential")
    yield servicer, calls
    await calls.close()
    await server.stop(0)


@pytest.mark.parametrize("status", [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK])
async def test_every_status_of_a_worker_means_something(
    worker: tuple[NewerWorker, GrpcCalls], status: grpc.StatusCode
) -> None:
    servicer, calls = worker
    servicer.status = status
    with pytest.raises(WorkerFailure) as failure:
        await calls.load_module("a", ModuleKind.LORA, pin=False, timeout_s=5)
    assert type(failure.value) is MEANINGS.get(status, WorkerFailure)
    assert failure.value.worker_id == "w0"
    assert "as it is" in failure.value.detail


async def test_what_only_a_newer_worker_knows_costs_nothing(worker: tuple[NewerWorker, GrpcCalls]) -> None:
    _, calls = worker
    request = WorkerRequest("r", [1], "acme", "salt", Sampling(4))
    *_, last = [part async for part in calls.generate(request, 5)]
    assert (last.finish_reason, last.cached) == (FinishReason.STOP, CachedTokens())
    assert await calls.load_module("a", ModuleKind.LORA, pin=False, timeout_s=5) is ModulePlace.ABSENT
    async with aclosing(calls.watch(0, 0, 5)) as stream:
        events = [event async for event in stream]
    assert events == [
        BlockEvent(1, 1, BlockChange.RESET, [b"a"]),
        BlockEvent(1, 2, BlockChange.STORED, []),
        WorkerState(running=1),
    ]
