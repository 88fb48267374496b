"""Which worker a request goes to, and what becomes of it when workers fail."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from memserve.domain import (
    Message,
    ModuleKind,
    ModulePlace,
    RefusalReason,
    Role,
    Route,
    TextDelta,
    Usage,
)
from memserve.kv.keys import redis_key
from memserve.model.files import open_model
from tests.contract.fake_worker import NAMESPACE, FakeWorker
from tests.contract.scripted_worker import BLOCK_TOKENS, Script
from tests.gateway.asking import (
    GREEDY,
    HANGS,
    LONG,
    UNAVAILABLE,
    events_of,
    failure_of,
    prompt_keys,
    published,
)
from tests.gateway.fixtures import StartGateway
from tests.gateway.running import TIMEOUT_S, until


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
        ready = {worker.worker_id: worker.ready for worker in (await gateway.client.status()).workers}
        assert ready == {"a-other": False, "w0": True, "z-late": True}
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
    gateway = await start_gateway(
        workers=[{"script": Script(fails_with=code)}, {}], routing_policy="least_ttft"
    )
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


async def test_a_request_is_held_until_a_first_worker_is_ready(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[], hold_s=TIMEOUT_S)
    asked = asyncio.create_task(gateway.client.generate("hello", sampling=GREEDY))
    held = gateway.parts.metrics.held
    await until(lambda: held._value.get() == 1)
    assert not asked.done()
    model = open_model(Path(gateway.settings.model))
    async with FakeWorker(gateway.redis.url, model, gateway.settings.modules_root, worker_id="first"):
        assert (await asked).route.worker_id == "first"
    assert held._value.get() == 0


async def test_a_request_that_is_held_in_vain_is_refused(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[], hold_s=0.2)
    failure = await failure_of(gateway.client.generate("hello", sampling=GREEDY))
    assert failure.code is UNAVAILABLE
    assert failure.reason is RefusalReason.NO_WORKER


async def test_a_part_of_the_requests_goes_to_any_worker_that_would_be_in_time(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(workers=[{}, {}], routing_exploration=1.0)
    routes = [(await gateway.client.generate("hello", sampling=GREEDY)).route for _ in range(20)]
    assert {route.worker_id for route in routes} == {"w0", "w1"}
    assert all(route.reason.startswith("explored, one of 2") for route in routes)
