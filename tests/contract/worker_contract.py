"""What every worker's data plane does, whoever asks: held over the fake here, over a real engine in the stack
tests.
"""

from __future__ import annotations

import contextlib
import json
import math
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from memserve.channels import bearer
from memserve.kv.keys import block_keys
from memserve.pb.worker.v1 import worker_pb2 as pb
from memserve.pb.worker.v1 import worker_pb2_grpc as rpc

TIMEOUT_S = 60.0


class AuthorizedStub(rpc.WorkerServiceStub):  # type: ignore[misc]
    """Every call carries what a worker knows a gateway by."""

    def __init__(self, channel: grpc.aio.Channel, credential: str) -> None:
        super().__init__(channel)  # type: ignore[no-untyped-call]
        for method in pb.DESCRIPTOR.services_by_name["WorkerService"].methods:
            call = partial(getattr(self, method.name), metadata=bearer(credential))
            setattr(self, method.name, call)


async def check_worker_contract(
    address: str, credential: str, token_ids: Sequence[int], block_tokens: int, lora: str
) -> None:
    """Every clause, on a worker that answers nobody else meanwhile.

    credential: what it knows a gateway by.
    token_ids: a prompt of at least two full blocks and one token, that leaves room for 512 tokens in the
    context. lora: digest of a LoRA of rank 16 in the module store, which is the worker's own directory.
    """
    assert len(token_ids) > 2 * block_tokens
    async with grpc.aio.insecure_channel(address) as channel:
        await check_without_the_credential_only_health_is_answered(channel, token_ids)
        stub = AuthorizedStub(channel, credential)
        await check_an_answer_streams_and_ends_with_its_reason_and_cached_tokens(stub, token_ids)
        await check_a_prompt_sent_again_is_cached_for_the_same_salt_only(stub, token_ids, block_tokens)
        await check_logprobs_come_one_a_token_when_asked_for(stub, token_ids)
        await check_an_unknown_module_is_refused_and_the_worker_lives_on(stub, token_ids)
        await check_cancelling_ends_the_work(stub, token_ids)
        await check_a_module_is_loaded_once_asked_for_and_gone_once_unloaded(stub, lora)
        await check_a_request_loads_its_module_and_keeps_it_while_it_runs(stub, token_ids, lora)
        await check_places_are_told_without_loading_anything(stub, lora)
        await check_an_unknown_module_or_kind_is_not_loaded(stub, lora)
        await check_the_canary_prompts_feel_the_module(stub, lora)
        await check_composing_tells_its_progress_then_the_files_then_the_recipe(stub, lora)
        await check_watch_starts_with_a_reset_and_a_state(stub)
        await check_watch_tells_what_is_stored(stub, token_ids, block_tokens)
        await check_resuming_from_the_last_number_sends_no_reset(stub)
        await check_a_number_of_another_epoch_gives_a_reset(stub)


async def check_without_the_credential_only_health_is_answered(
    channel: grpc.aio.Channel, token_ids: Sequence[int]
) -> None:
    for stub in (
        rpc.WorkerServiceStub(channel),
        AuthorizedStub(channel, ""),
        AuthorizedStub(channel, "0" * 64),
    ):
        for method in pb.DESCRIPTOR.services_by_name["WorkerService"].methods:
            call = getattr(stub, method.name)(method.input_type._concrete_class(), timeout=TIMEOUT_S)
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await (call.read() if method.server_streaming else call)
            assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED, method.name
    healthy = await health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S
    )
    assert healthy.status == health_pb2.HealthCheckResponse.SERVING


async def check_an_answer_streams_and_ends_with_its_reason_and_cached_tokens(
    stub: rpc.WorkerServiceStub, token_ids: Sequence[int]
) -> None:
    responses = await answer(stub, token_ids, max_tokens=5)
    produced = [token for response in responses for token in response.token_ids]
    assert 1 <= len(produced) <= 5
    *others, last = responses
    assert all(not response.finish_reason and not response.HasField("cached_tokens") for response in others)
    assert last.HasField("cached_tokens")
    if len(produced) < 5:
        assert last.finish_reason == pb.FINISH_REASON_STOP
    else:
        assert last.finish_reason in (pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_STOP)


async def check_a_prompt_sent_again_is_cached_for_the_same_salt_only(
    stub: rpc.WorkerServiceStub, token_ids: Sequence[int], block_tokens: int
) -> None:
    salt = uuid.uuid4().hex
    assert cached_tokens(await answer(stub, token_ids, salt=salt)) == 0
    assert (
        cached_tokens(await answer(stub, token_ids, salt=salt))
        == (len(token_ids) - 1) // block_tokens * block_tokens
    )
    assert cached_tokens(await answer(stub, token_ids, salt=uuid.uuid4().hex)) == 0


async def check_logprobs_come_one_a_token_when_asked_for(
    stub: rpc.WorkerServiceStub, token_ids: Sequence[int]
) -> None:
    for response in await answer(stub, token_ids, max_tokens=3, logprobs=True):
        assert len(response.logprobs) == len(response.token_ids)
        assert all(math.isfinite(logprob) and logprob <= 0 for logprob in response.logprobs)
    assert all(not response.logprobs for response in await answer(stub, token_ids, max_tokens=3))


async def check_an_unknown_module_is_refused_and_the_worker_lives_on(
    stub: rpc.WorkerServiceStub, token_ids: Sequence[int]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await answer(stub, token_ids, module_digest="0" * 64)
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert await answer(stub, token_ids)


async def check_cancelling_ends_the_work(stub: rpc.WorkerServiceStub, token_ids: Sequence[int]) -> None:
    call = stub.Generate(generate_request(token_ids, max_tokens=64))
    await call.read()
    call.cancel()
    async with watching(stub) as events:
        async for event in events:
            if event.WhichOneof("event") == "state" and event.state.running + event.state.waiting == 0:
                assert event.state.pending_prefill_tokens == 0
                return
    raise AssertionError("the watch ended")


async def check_a_module_is_loaded_once_asked_for_and_gone_once_unloaded(
    stub: rpc.WorkerServiceStub, lora: str
) -> None:
    loaded = await stub.LoadModule(
        pb.LoadModuleRequest(digest=lora, kind="lora", pin=True), timeout=TIMEOUT_S
    )
    assert loaded.place in (pb.MODULE_PLACE_DEVICE, pb.MODULE_PLACE_HOST)
    state = await state_with(stub, lambda state: lora in {each.digest for each in state.modules})
    assert {each.place for each in state.modules} <= {pb.MODULE_PLACE_DEVICE, pb.MODULE_PLACE_HOST}
    assert lora not in state.used_modules
    unload = pb.UnloadModuleRequest(digest=lora, kind="lora", forget=True)
    for _ in range(2):
        # The files stay: they are the module store's, and no copy.
        assert (await stub.UnloadModule(unload, timeout=TIMEOUT_S)).place == pb.MODULE_PLACE_DISK
    await state_with(stub, lambda state: lora not in {each.digest for each in state.modules})


async def check_a_request_loads_its_module_and_keeps_it_while_it_runs(
    stub: rpc.WorkerServiceStub, token_ids: Sequence[int], lora: str
) -> None:
    call = stub.Generate(generate_request(token_ids, max_tokens=512, min_tokens=512, module_digest=lora))
    await call.read()
    state = await state_with(stub, lambda state: lora in state.used_modules)
    assert lora in {each.digest for each in state.modules}
    await refused(stub.UnloadModule(pb.UnloadModuleRequest(digest=lora, kind="lora"), timeout=TIMEOUT_S))
    assert await call.read()
    call.cancel()
    await state_with(
        stub, lambda state: lora not in state.used_modules and lora in {each.digest for each in state.modules}
    )


async def check_places_are_told_without_loading_anything(stub: rpc.WorkerServiceStub, lora: str) -> None:
    request = pb.GetModulePlacesRequest(digests=["0" * 64, lora])
    await stub.UnloadModule(pb.UnloadModuleRequest(digest=lora, kind="lora"), timeout=TIMEOUT_S)
    for _ in range(2):
        told = (await stub.GetModulePlaces(request, timeout=TIMEOUT_S)).modules
        assert [each.digest for each in told] == list(request.digests)
        assert [each.place for each in told] == [pb.MODULE_PLACE_ABSENT, pb.MODULE_PLACE_DISK]
    await stub.LoadModule(pb.LoadModuleRequest(digest=lora, kind="lora"), timeout=TIMEOUT_S)
    absent, loaded = (await stub.GetModulePlaces(request, timeout=TIMEOUT_S)).modules
    assert absent.place == pb.MODULE_PLACE_ABSENT
    assert loaded.place in (pb.MODULE_PLACE_DEVICE, pb.MODULE_PLACE_HOST)
    bad = pb.GetModulePlacesRequest(digests=["../modules"])
    await refused(stub.GetModulePlaces(bad, timeout=TIMEOUT_S), grpc.StatusCode.INVALID_ARGUMENT)


async def check_an_unknown_module_or_kind_is_not_loaded(stub: rpc.WorkerServiceStub, lora: str) -> None:
    await refused(stub.LoadModule(pb.LoadModuleRequest(digest="0" * 64, kind="lora"), timeout=TIMEOUT_S))
    # The files of one kind are no module of another, on any worker.
    expert = pb.LoadModuleRequest(digest=lora, kind="logit_expert")
    await refused(stub.LoadModule(expert, timeout=TIMEOUT_S), grpc.StatusCode.INVALID_ARGUMENT)
    await refused(stub.TryModule(pb.TryModuleRequest(digest="0" * 64, kind="lora"), timeout=TIMEOUT_S))
    unknown = pb.LoadModuleRequest(digest=lora, kind="cartridge")
    await refused(stub.LoadModule(unknown, timeout=TIMEOUT_S), grpc.StatusCode.INVALID_ARGUMENT)
    await state_with(stub, lambda state: not state.used_modules)


async def check_the_canary_prompts_feel_the_module(stub: rpc.WorkerServiceStub, lora: str) -> None:
    tried = await stub.TryModule(pb.TryModuleRequest(digest=lora, kind="lora"), timeout=TIMEOUT_S)
    assert tried.largest_change > 0.01


async def check_composing_tells_its_progress_then_the_files_then_the_recipe(
    stub: rpc.WorkerServiceStub, lora: str
) -> None:
    request = pb.ComposeModuleRequest(method="compress", parents=[pb.ComposeParent(digest=lora)], rank=4)
    responses = [response async for response in stub.ComposeModule(request, timeout=TIMEOUT_S)]
    events = [response.WhichOneof("event") for response in responses]
    assert events == sorted(events, key=["progress", "file", "recipe"].index)
    assert events.count("recipe") == 1
    progress = [response.progress for response in responses if response.HasField("progress")]
    assert progress[-1].done == progress[-1].total > 0
    assert {response.file.file_name for response in responses if response.HasField("file")} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert json.loads(responses[-1].recipe)["method"] == "compress"
    unknown = stub.ComposeModule(
        pb.ComposeModuleRequest(method="linear", parents=[pb.ComposeParent(digest="0" * 64)]),
        timeout=TIMEOUT_S,
    )
    await refused(unknown.read())


async def check_watch_starts_with_a_reset_and_a_state(stub: rpc.WorkerServiceStub) -> None:
    async with watching(stub) as events:
        first = await anext(events)
        assert first.WhichOneof("event") == "reset"
        assert first.epoch != 0
        # A large snapshot goes on in `stored` messages of the same number.
        kinds = set()
        async for event in events:
            assert event.epoch == first.epoch
            if event.WhichOneof("event") == "state":
                assert event.sequence >= first.sequence
                break
            kinds.add(event.WhichOneof("event"))
        assert kinds <= {"stored", "removed"}


async def check_watch_tells_what_is_stored(
    stub: rpc.WorkerServiceStub, token_ids: Sequence[int], block_tokens: int
) -> None:
    salt = uuid.uuid4().hex
    missing = set(block_keys(token_ids, block_tokens, lora=None, cache_salt=salt))
    assert missing
    async with watching(stub) as events:
        first = await anext(events)
        assert missing.isdisjoint(first.reset.keys)
        await answer(stub, token_ids, salt=salt)
        sequence = first.sequence
        async for event in events:
            assert event.sequence >= sequence
            sequence = event.sequence
            missing.difference_update(event.stored.keys)
            if not missing:
                break
    assert not missing
    async with watching(stub) as events:
        snapshot: set[bytes] = set()
        async for event in events:
            if event.WhichOneof("event") == "state":
                break
            snapshot.update(event.reset.keys or event.stored.keys)
        assert snapshot.issuperset(block_keys(token_ids, block_tokens, lora=None, cache_salt=salt))


async def check_resuming_from_the_last_number_sends_no_reset(stub: rpc.WorkerServiceStub) -> None:
    async with watching(stub) as events:
        async for event in events:
            if event.WhichOneof("event") == "state":
                break
    async with watching(stub, event.epoch, event.sequence) as events:
        async for later in events:
            assert later.WhichOneof("event") != "reset"
            assert later.epoch == event.epoch
            assert later.sequence >= event.sequence
            if later.WhichOneof("event") == "state":
                break


async def check_a_number_of_another_epoch_gives_a_reset(stub: rpc.WorkerServiceStub) -> None:
    async with watching(stub, epoch=1, after_sequence=1) as events:
        assert (await anext(events)).WhichOneof("event") == "reset"


def generate_request(
    token_ids: Sequence[int],
    *,
    max_tokens: int = 1,
    min_tokens: int = 0,
    salt: str = "contract",
    module_digest: str = "",
    logprobs: bool = False,
) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        request_id=uuid.uuid4().hex,
        token_ids=token_ids,
        cache_salt=salt,
        module_digest=module_digest,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        top_p=1.0,
        logprobs=logprobs,
    )


async def answer(
    stub: rpc.WorkerServiceStub,
    token_ids: Sequence[int],
    *,
    max_tokens: int = 1,
    salt: str = "contract",
    module_digest: str = "",
    logprobs: bool = False,
) -> list[pb.GenerateResponse]:
    request = generate_request(
        token_ids, max_tokens=max_tokens, salt=salt, module_digest=module_digest, logprobs=logprobs
    )
    return [response async for response in stub.Generate(request, timeout=TIMEOUT_S)]


async def refused(call: Awaitable[Any], code: grpc.StatusCode = grpc.StatusCode.FAILED_PRECONDITION) -> None:
    """A refusal of this kind, with a reason."""
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    assert refusal.value.code() is code
    assert refusal.value.details()


async def state_with(stub: rpc.WorkerServiceStub, holds: Callable[[pb.WorkerState], bool]) -> pb.WorkerState:
    """The first state for which it holds."""
    async with watching(stub) as events:
        async for event in events:
            if event.WhichOneof("event") == "state" and holds(event.state):
                return event.state
    raise AssertionError("the watch ended")


def cached_tokens(responses: Sequence[pb.GenerateResponse]) -> int:
    cached = responses[-1].cached_tokens
    return int(cached.device + cached.host + cached.redis)


@contextlib.asynccontextmanager
async def watching(
    stub: rpc.WorkerServiceStub, epoch: int = 0, after_sequence: int = 0
) -> AsyncIterator[AsyncIterator[pb.WatchResponse]]:
    call = stub.Watch(pb.WatchRequest(epoch=epoch, after_sequence=after_sequence), timeout=TIMEOUT_S)
    try:
        yield aiter(call)
    finally:
        call.cancel()
