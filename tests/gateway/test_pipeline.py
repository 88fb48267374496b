"""A request's way: which worker gets it, what becomes of failures, and what the answer says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from memserve.client import AsyncClient, CallFailed
from memserve.config import Settings
from memserve.domain import (
    Message,
    ModuleKind,
    ModulePlace,
    RecallOutcome,
    Role,
    Route,
    Sampling,
    Slo,
    TextDelta,
    Usage,
)
from memserve.kv.keys import block_keys, redis_key
from tests.contract.fake_worker import NAMESPACE, FakeWorker
from tests.contract.scripted_worker import BLOCK_TOKENS, Script
from tests.gateway.fixtures import StartGateway
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.running import RunningGateway, publish_live, until

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
LONG = "the gate of the north tower opens at nine and closes at five " * 12
GREEDY = Sampling(max_tokens=4)
HANGS = Script(hangs_after=0)


async def failure_of(call: Any) -> CallFailed:
    with pytest.raises(CallFailed) as failed:
        await call
    return failed.value


async def events_of(stream: AsyncIterator[Any], into: list[Any] | None = None) -> list[Any]:
    """Every event; those before a failure are in `into`."""
    events = [] if into is None else into
    async for event in stream:
        events.append(event)
    return events


def prompt_keys(gateway: RunningGateway, text: str) -> list[bytes]:
    """Of the full blocks that a worker would hold after this prompt."""
    return block_keys(gateway.token_ids(text)[:-1], BLOCK_TOKENS, lora=None, cache_salt=gateway.cache_salt)


async def published(gateway: RunningGateway, tmp_path: Any, name: str = "tone") -> str:
    folder = write_files(tmp_path / name, lora_files(gateway.parts.model.tensor_shapes()))
    return (await publish_live(gateway.client, name, folder)).digest


# The answer


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


# Routing


async def test_a_worker_that_holds_the_prefix_gets_the_request(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{}, {}, {}])
    keys = prompt_keys(gateway, LONG)
    gateway.workers[2].hold(keys)
    await until(lambda: gateway.parts.pool.index.held_blocks("w2") == len(keys))
    answer = await gateway.client.generate(LONG, sampling=GREEDY)
    assert answer.route.worker_id == "w2"
    assert answer.route.expected_cached_tokens == len(keys) * BLOCK_TOKENS == answer.usage.cached.total
    assert "its own memory" in answer.route.reason


async def test_a_conversation_stays_with_the_worker_that_answered_its_beginning(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(workers=[{}, {}])
    first = await gateway.client.generate(LONG, worker_id="w1", sampling=GREEDY)
    await until(lambda: gateway.parts.pool.index.held_blocks("w1") > 0)
    talk = [
        Message(Role.USER, LONG),
        Message(Role.ASSISTANT, first.text),
        Message(Role.USER, "and on Sunday?"),
    ]
    second = await gateway.client.generate(talk, sampling=GREEDY)
    assert second.route.worker_id == "w1"
    assert second.usage.cached.total >= len(prompt_keys(gateway, LONG)) * BLOCK_TOKENS - BLOCK_TOKENS


async def test_a_worker_that_dropped_the_prefix_loses_its_preference(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{}, {}])
    keys = prompt_keys(gateway, LONG)
    worker = gateway.workers[1]
    worker.hold(keys)
    await until(lambda: gateway.parts.pool.index.held_blocks("w1") == len(keys))
    worker.log.remove(keys[1:], "GPU")
    await until(lambda: gateway.parts.pool.index.held_blocks("w1") == 1)
    assert (
        await gateway.client.generate(LONG, sampling=GREEDY, worker_id="w1")
    ).route.expected_cached_tokens == BLOCK_TOKENS
    worker.log.clear()
    await until(lambda: gateway.parts.pool.index.held_blocks("w1") == 0)
    assert (await gateway.client.generate(LONG, sampling=GREEDY)).route.worker_id == "w0"


async def test_a_worker_that_is_busy_is_avoided(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{}, {}])
    gateway.workers[0].now(running=6, pending_prefill_tokens=50_000)
    await until(lambda: gateway.parts.pool.workers["w0"].state.pending_prefill_tokens == 50_000)
    assert (await gateway.client.generate("hello", sampling=GREEDY)).route.worker_id == "w1"


async def test_what_this_gateway_has_sent_counts_before_the_worker_says_so(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(workers=[{"script": HANGS}, {"script": HANGS}])
    tasks = []
    for number in range(4):
        tasks.append(asyncio.create_task(gateway.client.generate(f"{number} {LONG}", sampling=GREEDY)))
        await until(lambda: sum(len(worker.requests) for worker in gateway.workers) == len(tasks))
    assert [len(worker.requests) for worker in gateway.workers] == [2, 2]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await until(
        lambda: all(not worker.sent and not worker.running for worker in gateway.parts.pool.workers.values())
    )


async def test_a_prefix_in_redis_is_expected_on_every_worker(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{}, {}], lookup_timeout_ms=1000)
    keys = prompt_keys(gateway, LONG)
    for key in keys[:3]:
        gateway.redis.client.set(redis_key(NAMESPACE, key + bytes(4)), b"kv")
    route = (await gateway.client.generate(LONG, sampling=GREEDY)).route
    assert route.expected_cached_tokens == 3 * BLOCK_TOKENS
    assert "in Redis" in route.reason


async def test_a_named_worker_gets_the_request_however_busy(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{}, {}])
    gateway.workers[1].now(running=50, pending_prefill_tokens=100_000)
    await until(lambda: gateway.parts.pool.workers["w1"].state.running == 50)
    assert (await gateway.client.generate("hello", sampling=GREEDY, worker_id="w1")).route.worker_id == "w1"


async def test_a_worker_that_has_the_module_loaded_is_preferred(
    start_gateway: StartGateway, tmp_path: Any
) -> None:
    gateway = await start_gateway(workers=[{}, {}])
    digest = await published(gateway, tmp_path)
    await gateway.client.modules.unload("tone", worker_id="w0")
    await until(lambda: gateway.parts.pool.workers["w0"].place_of(digest) is not ModulePlace.DEVICE)
    answer = await gateway.client.generate("hello", module="tone", sampling=GREEDY)
    (used,) = answer.route.modules
    assert (answer.route.worker_id, used.name, used.version, used.digest, used.kind) == (
        "w1",
        "tone",
        1,
        digest,
        ModuleKind.LORA,
    )
    assert used.reason == "live at revision 1"
    assert gateway.workers[1].requests[-1].module_digest == digest
    plain = await gateway.client.generate("hello", sampling=GREEDY)
    assert plain.route.modules == ()


async def test_a_modules_kv_is_not_expected_for_the_base_model(
    start_gateway: StartGateway, tmp_path: Any
) -> None:
    gateway = await start_gateway()
    await published(gateway, tmp_path)
    await gateway.client.generate(LONG, module="tone", sampling=GREEDY)
    await until(lambda: gateway.parts.pool.index.held_blocks("w0") > 0)
    assert (
        await gateway.client.generate(LONG, module="tone", sampling=GREEDY)
    ).route.expected_cached_tokens > 0
    base = await gateway.client.generate(LONG, sampling=GREEDY)
    assert (base.route.expected_cached_tokens, base.usage.cached.total) == (0, 0)


async def test_a_worker_of_another_tokenizer_is_never_used(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{}])
    other = FakeWorker(
        gateway.redis.url,
        gateway.parts.model,
        gateway.settings.modules_root,
        worker_id="a-other",
        tokenizer_digest="0" * 64,
    )
    late = FakeWorker(
        gateway.redis.url, gateway.parts.model, gateway.settings.modules_root, worker_id="z-late"
    )
    async with other, late:
        await gateway.sees(2)
        assert {worker.worker_id for worker in (await gateway.client.status()).workers} == {"w0", "z-late"}
        assert not other.watches


# Failures of workers


@pytest.mark.parametrize(
    "code",
    [
        UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.FAILED_PRECONDITION,
    ],
)
async def test_a_worker_that_fails_before_its_first_token_is_replaced(
    start_gateway: StartGateway, code: grpc.StatusCode
) -> None:
    gateway = await start_gateway(workers=[{"script": Script(fails_with=code)}, {}])
    events = await events_of(gateway.client.stream("hello", sampling=GREEDY))
    assert [event.worker_id for event in events if isinstance(event, Route)] == ["w0", "w1"]
    assert isinstance(events[-1], Usage)
    assert events[-1].output_tokens == 4


async def test_a_stream_that_ends_without_a_token_is_replaced_too(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{"script": Script(ends_early_after=0)}, {}])
    assert (await gateway.client.generate("hello", sampling=GREEDY)).route.worker_id == "w1"


@pytest.mark.parametrize(
    "script",
    [Script(fails_with=UNAVAILABLE, fails_after=2), Script(ends_early_after=2)],
    ids=["fails", "just ends"],
)
async def test_a_worker_that_is_lost_after_its_first_token_ends_the_answer_unavailable(
    start_gateway: StartGateway, script: Script
) -> None:
    gateway = await start_gateway(workers=[{"script": script}, {"script": Script(pause_s=9)}])
    events: list[Any] = []
    failure = await failure_of(events_of(gateway.client.stream("hello", sampling=GREEDY), events))
    assert failure.code is UNAVAILABLE
    assert "w0" in failure.detail
    assert sum(isinstance(event, TextDelta) for event in events) == 2
    assert not gateway.workers[1].requests
    assert await gateway.is_alive()


async def test_a_worker_that_is_killed_while_it_streams_ends_the_answer_unavailable(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(workers=[{"script": Script(hangs_after=1)}])
    stream = gateway.client.stream("hello", sampling=GREEDY)
    assert [type(await anext(stream)) for _ in range(2)] == [Route, TextDelta]
    await gateway.workers[0].die()
    assert (await failure_of(events_of(stream))).code is UNAVAILABLE
    await gateway.sees(0)


async def test_when_every_worker_fails_the_last_reason_is_told_with_a_time_to_wait(
    start_gateway: StartGateway,
) -> None:
    for count in (1, 2, 4):
        gateway = await start_gateway(
            workers=[{"script": Script(fails_with=grpc.StatusCode.FAILED_PRECONDITION)}] * count
        )
        failure = await failure_of(gateway.client.generate("hello", sampling=GREEDY))
        assert failure.code is UNAVAILABLE
        assert failure.retry_after_s is not None
        assert "as scripted" in failure.detail
        assert sum(len(worker.requests) for worker in gateway.workers) == min(count, 3)


async def test_a_request_under_which_workers_are_lost_is_tried_once_more_at_most(
    start_gateway: StartGateway,
) -> None:
    for script in (
        Script(fails_with=UNAVAILABLE),
        Script(ends_early_after=0),
        Script(fails_with=grpc.StatusCode.INTERNAL),
    ):
        gateway = await start_gateway(workers=[{"script": script}] * 4)
        failure = await failure_of(gateway.client.generate("hello", sampling=GREEDY))
        assert failure.code is grpc.StatusCode.INTERNAL
        assert "2 workers were lost under this request" in failure.detail
        assert sum(len(worker.requests) for worker in gateway.workers) == 2


async def test_a_request_for_one_worker_is_not_sent_to_another(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{"script": Script(fails_with=UNAVAILABLE)}, {}])
    assert (await failure_of(gateway.client.generate("hello", worker_id="w0"))).code is UNAVAILABLE
    assert not gateway.workers[1].requests


async def test_what_a_worker_refuses_as_invalid_is_the_callers_fault(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        workers=[{"script": Script(fails_with=grpc.StatusCode.INVALID_ARGUMENT)}, {}]
    )
    failure = await failure_of(gateway.client.generate("hello", sampling=GREEDY))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "as scripted" in failure.detail
    assert not gateway.workers[1].requests


async def test_without_workers_a_request_is_refused_at_once_with_a_time_to_wait(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(workers=[])
    failure = await failure_of(gateway.client.generate("hello"))
    assert (failure.code, failure.retry_after_s) == (UNAVAILABLE, 2.0)


async def test_a_killed_worker_is_left_out_within_a_second_and_comes_back(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(workers=[{}, {}])
    gateway.workers[0].hold(prompt_keys(gateway, LONG))
    await until(lambda: gateway.parts.pool.index.held_blocks("w0") > 0)
    await gateway.workers[0].die()
    started_s = time.monotonic()
    await until(lambda: not gateway.parts.pool.workers["w0"].connected)
    assert time.monotonic() - started_s < 1
    assert (await gateway.client.generate(LONG, sampling=GREEDY)).route.worker_id == "w1"
    gateway.workers[0].log.held.clear()
    await gateway.workers[0].listen()
    await gateway.sees(2)
    assert gateway.parts.pool.index.held_blocks("w0") == 0, "a new epoch starts from its own snapshot"


async def test_a_worker_without_lease_and_stream_is_forgotten(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{}, {}])
    gateway.workers[0].hold([b"k" * 32])
    await until(lambda: gateway.parts.pool.index.held_blocks("w0") == 1)
    await gateway.workers[0].drop_lease()
    await gateway.workers[0].die()
    await until(lambda: set(gateway.parts.pool.workers) == {"w1"})
    assert gateway.parts.pool.index.held_blocks("w0") == 0


async def test_a_watch_that_breaks_is_resumed_where_it_was(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    worker = gateway.workers[0]
    worker.hold([b"a" * 32])
    await until(lambda: gateway.parts.pool.index.held_blocks("w0") == 1)
    await worker.die()
    await gateway.sees(0)
    worker.hold([b"b" * 32])
    await worker.listen(same_epoch=True)
    await gateway.sees(1)
    await until(lambda: gateway.parts.pool.index.held_blocks("w0") == 2)
    assert (worker.watches[-1].epoch, worker.watches[-1].after_sequence) == (worker.epoch, 1)


async def test_a_silent_worker_is_chosen_only_when_no_other_is_left(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{}, {}])
    gateway.workers[0].now(silent=True)
    await gateway.sees(1)
    assert (await gateway.client.generate("hello", sampling=GREEDY)).route.worker_id == "w1"
    await gateway.workers[1].die()
    await until(lambda: not gateway.parts.pool.workers["w1"].connected)
    assert (await gateway.client.generate("hello", sampling=GREEDY)).route.worker_id == "w0"


# Cancellation and deadlines


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
    first = await gateway.client.remember("notes", "The code of Alder\nis 7731.")
    second = await gateway.client.remember("notes", "The code of Birch is 1902.")
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
            f"{Settings().recall_instruction}\n[1] The code of Alder is 7731.\n[2] The code of Birch "
            "is 1902.",
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
    best = await gateway.client.remember("notes", "The code of Alder is 7731.")
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
async def test_without_redis_answers_go_on(start_gateway: StartGateway, tmp_path: Any, gone: str) -> None:
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
