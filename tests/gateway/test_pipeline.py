"""A request's way: which worker gets it, what becomes of failures, and what the answer says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import grpc
import pytest

from memserve.client import AsyncClient, CallFailed
from memserve.domain import (
    Message,
    RecallOutcome,
    RefusalReason,
    Role,
    Route,
    Sampling,
    Slo,
    TextDelta,
    Usage,
)
from memserve.pb.worker.v1 import worker_pb2
from tests.contract.scripted_worker import Script
from tests.gateway.asking import (
    GREEDY,
    HANGS,
    LONG,
    UNAVAILABLE,
    events_of,
    failure_of,
    published,
)
from tests.gateway.fixtures import StartGateway
from tests.gateway.running import until


async def test_an_answer_is_a_route_then_text_then_usage(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    route, *deltas, usage = await events_of(
        gateway.client.stream("hello", sampling=Sampling(max_tokens=4, logprobs=True))
    )
    assert isinstance(route, Route)
    assert all(isinstance(delta, TextDelta) and delta.logprobs == (-0.5,) for delta in deltas)
    assert [token for delta in deltas for token in delta.token_ids] == [501, 502, 503, 501]
    assert isinstance(usage, Usage)
    assert (route.worker_id, route.model, route.recall_outcome) == (
        "w0",
        "tiny-demo",
        RecallOutcome.NOT_ASKED,
    )
    assert usage.prompt_tokens == route.prompt_tokens == len(gateway.token_ids("hello"))
    assert (usage.output_tokens, usage.finish_reason) == (4, "length")
    assert usage.tpot_ms is not None
    assert usage.slo_met


async def test_the_worker_gets_the_prompt_and_the_sampling_of_the_request(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    sampling = Sampling(max_tokens=3, temperature=0.5, top_p=0.25, seed=7, stop=("a", "b"), logprobs=True)
    await gateway.client.generate("hello", sampling=sampling)
    seen = gateway.workers[0].requests[-1]
    assert list(seen.token_ids) == gateway.token_ids("hello")
    assert (seen.max_tokens, seen.temperature, seen.top_p, seen.seed, list(seen.stop)) == (
        3,
        0.5,
        0.25,
        7,
        ["a", "b"],
    )
    assert seen.logprobs
    await gateway.client.generate("hello", sampling=GREEDY)
    assert not gateway.workers[0].requests[-1].HasField("seed")


async def test_without_a_limit_an_answer_has_the_default_or_what_the_context_leaves(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(max_context_tokens=64, default_max_tokens=40)
    assert (await gateway.client.generate("hello")).usage.output_tokens == 40
    longer = (await gateway.client.generate("the gate " * 16)).usage
    assert longer.output_tokens == 64 - longer.prompt_tokens < 40


async def test_an_slo_is_met_or_missed_by_the_time_it_took(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()

    async def met(**wishes: float) -> bool:
        return (await gateway.client.generate("hello", sampling=GREEDY, slo=Slo(**wishes))).usage.slo_met

    assert await met(ttft_ms=60_000, tpot_ms=60_000)
    assert not await met(ttft_ms=1e-6)
    assert not await met(tpot_ms=1e-6)
    one_token = await gateway.client.generate("hello", sampling=Sampling(max_tokens=1), slo=Slo(tpot_ms=1e-6))
    assert one_token.usage.slo_met
    assert one_token.usage.tpot_ms is None


async def test_what_a_request_asks_of_its_speed_goes_to_the_worker(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    await gateway.client.generate(
        "hello", sampling=GREEDY, slo=Slo(60_000, refuse_late=True), priority="low", do_not_queue=True
    )
    [asked] = gateway.workers[0].requests
    assert 50_000 < asked.first_token_ms < 60_000
    assert asked.refuse_late
    assert asked.do_not_queue
    assert asked.priority == worker_pb2.PRIORITY_LOW
    await gateway.client.generate("hello", sampling=GREEDY)
    plain = gateway.workers[0].requests[1]
    assert (plain.first_token_ms, plain.refuse_late, plain.do_not_queue) == (0, False, False)
    assert plain.priority == worker_pb2.PRIORITY_NORMAL
    assert plain.expected_cached_tokens == 0
    with pytest.raises(CallFailed) as wrong:
        await gateway.client.generate("hello", slo=Slo(refuse_late=True))
    assert wrong.value.field == "slo.refuse_late"


async def test_a_request_that_a_worker_has_no_room_for_is_offered_to_one_other(
    start_gateway: StartGateway,
) -> None:
    full = {"script": Script(full_s=3.0)}
    gateway = await start_gateway(workers=[full, {}])
    events = [event async for event in gateway.client.stream("hello", sampling=GREEDY)]
    assert [event.worker_id for event in events if isinstance(event, Route)] == ["w0", "w1"]
    assert isinstance(events[-1], Usage)
    assert gateway.parts.residuals is not None


async def test_where_two_have_no_room_the_caller_is_told_why_and_when_to_come_again(
    start_gateway: StartGateway,
) -> None:
    full = {"script": Script(full_s=0.3)}
    gateway = await start_gateway(workers=[full, full, {}])
    with pytest.raises(CallFailed) as refusal:
        await gateway.client.generate("hello", sampling=GREEDY)
    assert refusal.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refusal.value.reason is RefusalReason.LATE
    assert refusal.value.retry_after_s == 0.3
    assert not gateway.workers[2].requests
    # The worker that has promised room is asked first, when the caller comes again as told.
    for worker in gateway.workers:
        worker.script = Script()
    await asyncio.sleep(0.3)
    assert (await gateway.client.generate("hello", sampling=GREEDY)).route.worker_id == "w1"
    assert (await gateway.client.generate("hello", sampling=GREEDY)).route.worker_id == "w0"


async def test_a_request_that_allows_it_is_answered_without_passages_rather_than_refused(
    start_gateway: StartGateway,
) -> None:
    question = "Where is the lantern?"
    gateway = await start_gateway()
    await gateway.client.remember("notes", "The amber lantern hangs at the north gate of the harbour.")
    most = len(gateway.token_ids(question)) + 5
    gateway.workers[0].script = Script(full_s=1.0, full_over_tokens=most)
    with pytest.raises(CallFailed) as refusal:
        await gateway.client.generate(question, sampling=GREEDY, namespaces="notes")
    assert refusal.value.reason is RefusalReason.LATE
    answer = await gateway.client.generate(
        question, sampling=GREEDY, namespaces="notes", slo=Slo(skip_recall=True)
    )
    assert answer.route.recall_outcome is RecallOutcome.SKIPPED
    assert not answer.route.passages
    gateway.workers[0].script = Script(full_s=1.0)
    with pytest.raises(CallFailed):
        await gateway.client.generate(
            question, sampling=GREEDY, namespaces="notes", slo=Slo(skip_recall=True)
        )


async def test_a_refusal_for_a_deadline_goes_to_no_other_that_would_miss_it(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(workers=[{"script": Script(full_s=1.0)}, {}])
    long = "the gate of the north tower " * 40
    with pytest.raises(CallFailed) as refusal:
        await gateway.client.generate(long, sampling=GREEDY, slo=Slo(1.0, refuse_late=True))
    assert refusal.value.reason is RefusalReason.LATE
    assert not gateway.workers[1].requests


# Routing


@pytest.mark.parametrize(
    "script",
    [HANGS, Script(hangs_after=1), Script(pause_s=0.001)],
    ids=["before a token", "after one", "under way"],
)
async def test_cancelling_the_call_reaches_the_worker(start_gateway: StartGateway, script: Script) -> None:
    gateway = await start_gateway(workers=[{"script": script}])
    stream = gateway.client.stream("hello", sampling=Sampling(max_tokens=8000))
    assert isinstance(await anext(stream), Route)
    worker = gateway.workers[0]
    await until(lambda: worker.requests)
    task = asyncio.create_task(events_of(stream))
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await until(lambda: worker.cancelled == {worker.requests[0].request_id})
    await until(lambda: gateway.parts.inflight.total == 0)
    assert gateway.parts.pool.workers["w0"].running == 0


async def test_a_caller_that_stops_reading_holds_no_place_after_it_cancels(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(workers=[{}])
    stream = gateway.client.stream("hello", sampling=Sampling(max_tokens=8000))
    assert isinstance(await anext(stream), Route)
    await until(lambda: gateway.workers[0].requests)
    await stream.aclose()
    await until(lambda: gateway.parts.inflight.total == 0)
    await until(lambda: gateway.parts.pool.workers["w0"].running == 0)


async def test_the_deadline_of_the_call_is_the_workers_too(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{"script": HANGS}])
    async with AsyncClient(gateway.address, timeout_s=0.5) as client:
        assert (await failure_of(client.generate("hello"))).code is grpc.StatusCode.DEADLINE_EXCEEDED
    worker = gateway.workers[0]
    left_s = worker.deadlines_s[worker.requests[0].request_id]
    assert left_s is not None
    assert 0 < left_s < 0.6
    await until(lambda: worker.cancelled)
    await until(lambda: gateway.parts.inflight.total == 0)


# Recall


async def test_recalled_passages_are_in_the_prompt_and_in_the_receipt(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(recall_timeout_ms=10_000)
    first = (await gateway.client.remember("notes", "The code of Alder\nis 7731.")).memory
    second = (await gateway.client.remember("notes", "The code of Birch is 1902.")).memory
    answer = await gateway.client.generate(
        "What is the code of Birch?", namespaces=["notes"], sampling=GREEDY
    )
    assert answer.route.recall_outcome is RecallOutcome.FOUND
    assert [hit.memory for hit in answer.route.passages] == [first, second], (
        "in order of creation, not of score"
    )
    prompt = [
        Message(
            Role.SYSTEM,
            "Answer the question with the help of the numbered passages.\n[1] The code of Alder is 7731.\n"
            "[2] The code of Birch is 1902.",
        ),
        Message(Role.USER, "What is the code of Birch?"),
    ]
    assert list(gateway.workers[0].requests[-1].token_ids) == gateway.parts.tokenizer.encode(prompt)
    one = await gateway.client.generate(
        "What is the code of Birch?", namespaces=["notes"], recall_limit=1, sampling=GREEDY
    )
    assert [hit.memory for hit in one.route.passages] == [second]


async def test_an_empty_namespace_is_an_answer_without_passages(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(recall_timeout_ms=10_000)
    stored = await gateway.client.remember("notes", "soon gone")
    await gateway.client.forget("notes", stored.memory_id)
    answer = await gateway.client.generate("hello", namespaces=["notes"], sampling=GREEDY)
    assert (answer.route.recall_outcome, answer.route.passages) == (RecallOutcome.EMPTY, ())


async def test_recall_that_is_late_is_an_answer_without_passages(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    await gateway.client.remember("notes", "The code of Alder is 7731.")
    answer = await gateway.client.generate(LONG, namespaces=["notes"], recall_timeout_ms=1, sampling=GREEDY)
    assert (answer.route.recall_outcome, answer.route.passages) == (RecallOutcome.LATE, ())
    assert list(gateway.workers[0].requests[-1].token_ids) == gateway.token_ids(LONG)


async def test_recall_from_a_store_that_is_gone_is_an_answer_without_passages(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    await gateway.client.remember("notes", "The code of Alder is 7731.")
    await gateway.parts.texts.close()
    answer = await gateway.client.generate("hello", namespaces=["notes"], sampling=GREEDY)
    assert (answer.route.recall_outcome, answer.route.passages) == (RecallOutcome.UNAVAILABLE, ())
    assert not (await gateway.client.status()).vector_store_ok
    assert (await failure_of(gateway.client.remember("notes", "lost?"))).code is UNAVAILABLE


async def test_the_worst_passages_go_when_the_prompt_is_too_long(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_context_tokens=128, recall_timeout_ms=10_000)
    best = (await gateway.client.remember("notes", "The code of Alder is 7731.")).memory
    await gateway.client.remember("notes", "Of oaks and elms and ashes it is told " * 4)
    question = "What is the code of Alder?"
    both = await gateway.client.generate(question, namespaces=["notes"], sampling=Sampling(max_tokens=1))
    assert len(both.route.passages) == 2
    one = await gateway.client.generate(question, namespaces=["notes"], sampling=Sampling(max_tokens=80))
    assert [hit.memory for hit in one.route.passages] == [best]
    assert one.route.recall_outcome is RecallOutcome.FOUND
    room = 128 - len(gateway.token_ids(question))
    none = await gateway.client.generate(question, namespaces=["notes"], sampling=Sampling(max_tokens=room))
    assert (none.route.passages, none.route.recall_outcome) == ((), RecallOutcome.EMPTY)
    failure = await failure_of(gateway.client.generate(question, sampling=Sampling(max_tokens=room + 1)))
    assert failure.field == "sampling.max_tokens"
    assert str(room) in failure.detail


# Redis


@pytest.mark.parametrize("gone", ["stopped", "paused"])
async def test_without_redis_answers_go_on(
    start_gateway: StartGateway, tmp_path: Any, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memserve.registry.client.TIMEOUT_S", 1.0)
    gateway = await start_gateway()
    digest = await published(gateway, tmp_path)
    await gateway.client.generate("hello", module="tone", sampling=GREEDY)
    if gone == "stopped":
        gateway.redis.stop()
    else:
        gateway.redis.pause()
    try:
        started_s = time.monotonic()
        assert (await gateway.client.generate(LONG, sampling=GREEDY)).usage.output_tokens == 4
        assert time.monotonic() - started_s < 1, "an answer without a module does not wait for Redis"
        assert (await gateway.client.generate("hello", module="tone", sampling=GREEDY)).route.modules[
            0
        ].digest == digest
        unknown = await failure_of(gateway.client.generate("hello", module="other", sampling=GREEDY))
        assert unknown.code is UNAVAILABLE
        await until(lambda: not gateway.parts.pool.registry_ok)
        status = await gateway.client.status()
        assert (status.redis_ok, [worker.ready for worker in status.workers]) == (False, [True])
    finally:
        if gone == "paused":
            gateway.redis.resume()
        else:
            gateway.redis.start()
    await until(lambda: gateway.parts.pool.registry_ok)


async def test_a_redis_that_comes_back_empty_costs_no_worker_that_talks(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    gateway.redis.stop()
    await until(lambda: not gateway.parts.pool.registry_ok)
    gateway.redis.start()
    await until(lambda: gateway.parts.pool.registry_ok)
    assert (await gateway.client.generate("hello", sampling=GREEDY)).route.worker_id == "w0"


# Limits


@pytest.mark.parametrize(
    "limits", [{"max_inflight": 2}, {"max_inflight_per_tenant": 2}], ids=["of the gateway", "of the tenant"]
)
async def test_above_the_limit_calls_are_refused_with_a_time_to_wait(
    start_gateway: StartGateway, limits: dict[str, int]
) -> None:
    gateway = await start_gateway(workers=[{"script": HANGS}], **limits)
    streams = [gateway.client.stream("hello") for _ in range(2)]
    for stream in streams:
        await anext(stream)
    failure = await failure_of(gateway.client.generate("hello"))
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure.retry_after_s == 0.5
    assert "2" in failure.detail
    await streams[0].aclose()
    await until(lambda: gateway.parts.inflight.total == 1)
    gateway.workers[0].script = Script()
    assert (await gateway.client.generate("hello", sampling=GREEDY)).usage.output_tokens == 4
    await streams[1].aclose()
