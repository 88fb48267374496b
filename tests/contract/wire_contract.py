"""What only the wire of a worker has: the credential, the health service, statuses, and numbered messages.

`worker_contract.py` has the rest.
"""

from __future__ import annotations

import contextlib
import math
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from memserve.channels import bearer
from memserve.domain import WorkerLease
from memserve.domain.worker_calls import StrangeWorker
from memserve.gateway.workers.calls import GrpcCalls
from memserve.pb.worker.v1 import worker_pb2 as pb
from memserve.pb.worker.v1 import worker_pb2_grpc as rpc
from tests.contract.worker_contract import NOWHERE, TIMEOUT_S


@dataclass(frozen=True, slots=True)
class WireWorker:
    """A worker's port. The worker answers nobody else during a clause."""

    lease: WorkerLease
    credential: str
    """What the worker knows a gateway by."""
    prompt: Sequence[int]
    """[prompt_tokens]: more than two full blocks."""
    lora: str
    """Digest of a LoRA in the module store."""
    keys_in_a_message: int
    """Keys of a block event that one message takes at most."""

    @contextlib.asynccontextmanager
    async def stub(self) -> AsyncIterator[rpc.WorkerServiceStub]:
        async with self.channel() as channel:
            yield authorized_stub(channel, self.credential)

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.lease.address)

    def request(self, *, module_digest: str = "") -> pb.GenerateRequest:
        return pb.GenerateRequest(
            request_id=uuid.uuid4().hex,
            token_ids=self.prompt,
            cache_salt=uuid.uuid4().hex,
            module_digest=module_digest,
            max_tokens=1,
            top_p=1.0,
        )


WireClause = Callable[[WireWorker], Awaitable[None]]


async def without_the_credential_only_health_is_answered(worker: WireWorker) -> None:
    async with worker.channel() as channel:
        for stub in (
            rpc.WorkerServiceStub(channel),
            authorized_stub(channel, ""),
            authorized_stub(channel, "0" * 64),
        ):
            for method in pb.DESCRIPTOR.services_by_name["WorkerService"].methods:
                call = getattr(stub, method.name)(method.input_type._concrete_class(), timeout=TIMEOUT_S)
                await ends_with(grpc.StatusCode.UNAUTHENTICATED, call, method.name)
        health = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S
        )
        assert health.status == health_pb2.HealthCheckResponse.SERVING


async def a_gateway_with_another_salt_key_is_a_stranger(worker: WireWorker) -> None:
    calls = GrpcCalls(worker.lease, "0" * 64)
    with pytest.raises(StrangeWorker):
        await calls.module_places([worker.lora], TIMEOUT_S)
    await calls.close()


async def a_refusal_has_a_status_and_a_reason(worker: WireWorker) -> None:
    not_here, nowhere = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT
    unknown_parent = pb.ComposeModuleRequest(method="linear", parents=[pb.ComposeParent(digest=NOWHERE)])
    refused: dict[str, list[tuple[Any, grpc.StatusCode]]] = {
        "Generate": [(worker.request(module_digest=NOWHERE), not_here)],
        "ScoreTokens": [(pb.ScoreTokensRequest(token_ids=worker.prompt), nowhere)],
        "LoadModule": [
            (pb.LoadModuleRequest(digest=NOWHERE, kind="lora"), not_here),
            (pb.LoadModuleRequest(digest=worker.lora, kind="logit_expert"), nowhere),
            (pb.LoadModuleRequest(digest=worker.lora, kind="riddle"), nowhere),
        ],
        "TryModule": [(pb.TryModuleRequest(digest=NOWHERE, kind="lora"), not_here)],
        "GetModulePlaces": [(pb.GetModulePlacesRequest(digests=["../modules"]), nowhere)],
        "ComposeModule": [(unknown_parent, not_here)],
        "DistilModule": [(pb.DistilModuleRequest(kind="logit_expert", texts=["-"]), nowhere)],
    }
    async with worker.stub() as stub:
        for method, requests in refused.items():
            for request, status in requests:
                detail = await ends_with(status, getattr(stub, method)(request, timeout=TIMEOUT_S), method)
                assert detail, method


async def places_come_in_the_order_of_the_request(worker: WireWorker) -> None:
    for digests in ([NOWHERE, worker.lora], [worker.lora, NOWHERE]):
        async with worker.stub() as stub:
            request = pb.GetModulePlacesRequest(digests=digests)
            places = await stub.GetModulePlaces(request, timeout=TIMEOUT_S)
            assert [module.digest for module in places.modules] == digests


async def every_message_of_a_watch_has_an_epoch_and_a_number_that_never_falls(worker: WireWorker) -> None:
    async with worker.stub() as stub:
        first, *others, state = await messages_to_the_state(stub)
        assert first.WhichOneof("event") == "reset"
        assert first.epoch != 0
        assert {message.WhichOneof("event") for message in others} <= {"stored", "removed"}
        assert {message.epoch for message in (*others, state)} == {first.epoch}
        assert state.sequence >= first.sequence
        later = await messages_to_the_state(stub, state.epoch, state.sequence)
    assert all(message.WhichOneof("event") != "reset" for message in later)
    assert {message.epoch for message in later} == {state.epoch}
    assert all(message.sequence >= state.sequence for message in later)


async def a_large_block_event_comes_in_messages_of_one_number(worker: WireWorker) -> None:
    async with worker.stub() as stub:
        before = (await messages_to_the_state(stub))[-1]
        assert [part async for part in stub.Generate(worker.request(), timeout=TIMEOUT_S)]
        snapshot = (await messages_to_the_state(stub))[:-1]
        changes = (await messages_to_the_state(stub, before.epoch, before.sequence))[:-1]
    assert snapshot[0].WhichOneof("event") == "reset"
    for stream in (snapshot, changes):
        for _, messages in groupby(stream, key=lambda message: message.sequence):
            check_messages_of_an_event(list(messages), worker.keys_in_a_message)


async def tokens_are_joined_for_a_gateway_that_is_late(worker: WireWorker) -> None:
    request = worker.request()
    request.max_tokens = request.min_tokens = 64
    async with worker.stub() as stub:

        async def parts() -> list[pb.GenerateResponse]:
            request.request_id = uuid.uuid4().hex
            return [part async for part in stub.Generate(request, timeout=TIMEOUT_S)]

        alone = await parts()
        await stub.SetPace(pb.SetPaceRequest(window_ms=20), timeout=TIMEOUT_S)
        joined = await parts()
        await stub.SetPace(pb.SetPaceRequest(), timeout=TIMEOUT_S)
        assert sum(len(part.token_ids) for part in joined) == 64
        assert "".join(part.text for part in joined) == "".join(part.text for part in alone)
        assert len(joined) < 48
        not_a_number = stub.SetPace(pb.SetPaceRequest(window_ms=math.nan), timeout=TIMEOUT_S)
        await ends_with(grpc.StatusCode.INVALID_ARGUMENT, not_a_number, "SetPace")


WIRE_CLAUSES: Sequence[WireClause] = (
    without_the_credential_only_health_is_answered,
    a_gateway_with_another_salt_key_is_a_stranger,
    a_refusal_has_a_status_and_a_reason,
    places_come_in_the_order_of_the_request,
    every_message_of_a_watch_has_an_epoch_and_a_number_that_never_falls,
    a_large_block_event_comes_in_messages_of_one_number,
    tokens_are_joined_for_a_gateway_that_is_late,
)
each_wire_clause = pytest.mark.parametrize(
    "clause", WIRE_CLAUSES, ids=[clause.__name__ for clause in WIRE_CLAUSES]
)


def authorized_stub(channel: grpc.aio.Channel, credential: str) -> rpc.WorkerServiceStub:
    """Every call carries the credential."""
    stub = rpc.WorkerServiceStub(channel)
    for method in pb.DESCRIPTOR.services_by_name["WorkerService"].methods:
        setattr(stub, method.name, partial(getattr(stub, method.name), metadata=bearer(credential)))
    return stub


async def ends_with(status: grpc.StatusCode, call: Any, method: str) -> str:
    """The reason that comes with the status."""
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await (call.read() if isinstance(call, grpc.aio.UnaryStreamCall) else call)
    assert refusal.value.code() is status, method
    return refusal.value.details() or ""


async def messages_to_the_state(
    stub: rpc.WorkerServiceStub, epoch: int = 0, after_sequence: int = 0
) -> list[pb.WatchResponse]:
    """A watch up to its first state, which comes last."""
    messages = []
    call = stub.Watch(pb.WatchRequest(epoch=epoch, after_sequence=after_sequence), timeout=TIMEOUT_S)
    try:
        async for message in call:
            messages.append(message)
            if message.WhichOneof("event") == "state":
                return messages
    finally:
        call.cancel()
    raise AssertionError("the watch ended")


def check_messages_of_an_event(messages: Sequence[pb.WatchResponse], keys_in_a_message: int) -> None:
    first, *others = messages
    assert [message.more for message in messages] == [True] * len(others) + [False]
    adds = "stored" if first.WhichOneof("event") == "reset" else first.WhichOneof("event")
    assert {message.WhichOneof("event") for message in others} <= {adds}
    sizes = [len(getattr(message, message.WhichOneof("event")).keys) for message in messages]
    assert max(sizes) <= keys_in_a_message
    assert len(messages) == max(math.ceil(sum(sizes) / keys_in_a_message), 1)
