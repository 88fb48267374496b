"""What every worker's data plane does, whoever asks: held over the fake here, over a real engine in the stack tests."""

from __future__ import annotations

import contextlib
import math
import uuid
from collections.abc import AsyncIterator, Sequence

import grpc
import pytest

from memserve.kv.keys import block_keys
from memserve.pb.worker.v1 import worker_pb2 as pb
from memserve.pb.worker.v1 import worker_pb2_grpc as rpc

TIMEOUT_S = 60.0


async def check_worker_contract(address: str, token_ids: Sequence[int], block_tokens: int) -> None:
    """Every clause, on a worker that answers nobody else meanwhile.

    token_ids: a prompt of at least two full blocks and one token, that leaves room for 64 tokens in the context.
    """
    assert len(token_ids) > 2 * block_tokens
    async with grpc.aio.insecure_channel(address) as channel:
        stub = rpc.WorkerServiceStub(channel)
        await check_an_answer_streams_and_ends_with_its_reason_and_cached_tokens(stub, token_ids)
        await check_a_prompt_sent_again_is_cached_for_the_same_salt_only(stub, token_ids, block_tokens)
        await check_logprobs_come_one_a_token_when_asked_for(stub, token_ids)
        await check_an_unknown_module_is_refused_and_the_worker_lives_on(stub, token_ids)
        await check_cancelling_ends_the_work(stub, token_ids)
        await check_watch_starts_with_a_reset_and_a_state(stub)
        await check_watch_tells_what_is_stored(stub, token_ids, block_tokens)
        await check_resuming_from_the_last_number_sends_no_reset(stub)
        await check_a_number_of_another_epoch_gives_a_reset(stub)


async def check_an_answer_streams_and_ends_with_its_reason_and_cached_tokens(stub: rpc.WorkerServiceStub, token_ids: Sequence[int]) -> None:
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
    assert cached_tokens(await answer(stub, token_ids, salt=salt)) == (len(token_ids) - 1) // block_tokens * block_tokens
    assert cached_tokens(await answer(stub, token_ids, salt=uuid.uuid4().hex)) == 0


async def check_logprobs_come_one_a_token_when_asked_for(stub: rpc.WorkerServiceStub, token_ids: Sequence[int]) -> None:
    for response in await answer(stub, token_ids, max_tokens=3, logprobs=True):
        assert len(response.logprobs) == len(response.token_ids)
        assert all(math.isfinite(logprob) and logprob <= 0 for logprob in response.logprobs)
    assert all(not response.logprobs for response in await answer(stub, token_ids, max_tokens=3))


async def check_an_unknown_module_is_refused_and_the_worker_lives_on(stub: rpc.WorkerServiceStub, token_ids: Sequence[int]) -> None:
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


async def check_watch_tells_what_is_stored(stub: rpc.WorkerServiceStub, token_ids: Sequence[int], block_tokens: int) -> None:
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
    token_ids: Sequence[int], *, max_tokens: int = 1, salt: str = "contract", module_digest: str = "", logprobs: bool = False
) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        request_id=uuid.uuid4().hex,
        token_ids=token_ids,
        cache_salt=salt,
        module_digest=module_digest,
        max_tokens=max_tokens,
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
    request = generate_request(token_ids, max_tokens=max_tokens, salt=salt, module_digest=module_digest, logprobs=logprobs)
    return [response async for response in stub.Generate(request, timeout=TIMEOUT_S)]


def cached_tokens(responses: Sequence[pb.GenerateResponse]) -> int:
    cached = responses[-1].cached_tokens
    return int(cached.device + cached.host + cached.redis)


@contextlib.asynccontextmanager
async def watching(stub: rpc.WorkerServiceStub, epoch: int = 0, after_sequence: int = 0) -> AsyncIterator[AsyncIterator[pb.WatchResponse]]:
    call = stub.Watch(pb.WatchRequest(epoch=epoch, after_sequence=after_sequence), timeout=TIMEOUT_S)
    try:
        yield aiter(call)
    finally:
        call.cancel()
