"""What the gateway knows of its workers, whatever one of them says, and when they are not alike."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from memserve.domain import Sampling
from memserve.gateway.assembly import open_parts
from memserve.kv.keys import block_keys, redis_key
from memserve.pb.worker.v1 import worker_pb2 as pb
from memserve.registry.leases import WORKERS, lease_key
from tests.contract.fake_worker import NAMESPACE, FakeWorker
from tests.contract.scripted_worker import BLOCK_TOKENS, Script
from tests.gateway.fixtures import StartGateway
from tests.gateway.running import RunningGateway, until

LONG = "the gate of the north tower opens at nine and closes at five " * 12
GREEDY = Sampling(max_tokens=2)
KEYS = [number.to_bytes(32, "big") for number in range(20_000)]
OTHER_NAMESPACE = "cd" * 32


def write_lease(gateway: RunningGateway, worker_id: str, value: str) -> None:
    gateway.redis.client.set(lease_key(worker_id), value)
    gateway.redis.client.sadd(WORKERS, worker_id)


def keys_of(gateway: RunningGateway, block_tokens: int) -> list[bytes]:
    return block_keys(gateway.token_ids(LONG)[:-1], block_tokens, lora=None, cache_salt=gateway.cache_salt)


async def test_a_gateway_that_comes_to_a_running_fleet_is_ready_with_it(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    first = await start_gateway()
    settings = first.settings.model_copy(update={"data_dir": tmp_path})
    async with open_parts(settings) as parts:
        assert parts.pool.ready(time.monotonic()), "it refuses nobody while it gets to know the workers"


async def test_a_reset_that_breaks_after_its_first_message_is_told_again_whole(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    worker = gateway.workers[0]
    worker.hold(KEYS)
    await until(lambda: gateway.parts.pool.index.held_blocks("w0") == len(KEYS))
    await worker.die()
    await gateway.sees(0)
    before = worker.epoch
    worker.breaks_between_messages = 3
    await worker.listen()
    await until(lambda: not worker.breaks_between_messages)
    await gateway.sees(1)
    assert gateway.parts.pool.index.held_blocks("w0") == len(KEYS)
    assert [watch.epoch for watch in worker.watches[-3:]] == [before] * 3, (
        "of what has not come whole, no number is taken"
    )


async def test_a_large_change_that_breaks_is_told_again_whole(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{"keys_in_a_message": 10}])
    worker = gateway.workers[0]
    worker.hold(KEYS[:5])
    await until(lambda: gateway.parts.pool.index.held_blocks("w0") == 5)
    worker.breaks_between_messages = 2
    worker.hold(KEYS[:100])
    await until(lambda: gateway.parts.pool.index.held_blocks("w0") == 100)
    worker.breaks_between_messages = 1
    worker.log.remove(KEYS[:50], "GPU")
    await until(lambda: gateway.parts.pool.index.held_blocks("w0") == 50)


async def test_a_worker_that_leaves_gets_nothing_more_and_finishes_what_it_is_at(
    start_gateway: StartGateway,
) -> None:
    """Others have taken its place: a restart costs no answer."""
    gateway = await start_gateway(workers=[{"script": Script(pause_s=0.02)}, {}])
    answer = gateway.client.stream("hello", sampling=Sampling(max_tokens=100), worker_id="w0")
    events = [await anext(answer), await anext(answer)]
    await gateway.workers[0].leave()
    await until(lambda: set(gateway.parts.pool.workers) == {"w1"})
    assert (await gateway.client.generate("hello", sampling=GREEDY)).route.worker_id == "w1"
    events += [event async for event in answer]
    assert len(events) == 102, "the receipt, every token and the usage"
    await gateway.workers[0].die()


async def test_events_that_a_worker_leaves_out_make_the_gateway_begin_anew(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    worker = gateway.workers[0]
    worker.log.sequence += 5  # numbers that nobody was told
    worker.hold(KEYS[:3])
    await until(lambda: gateway.parts.pool.index.held_blocks("w0") == 3)
    assert worker.watches[-1].epoch == 0


@pytest.mark.parametrize(
    "lease",
    [
        {"zone": "eu-1", "gpus": [1]},
        {"address": "no address at all"},
        {"address": 7},
        {"block_tokens": 0},
        {"namespace": None},
        {"started_s": "yesterday"},
    ],
    ids=str,
)
async def test_a_lease_of_another_version_does_not_end_discovery(
    start_gateway: StartGateway, lease: dict[str, object]
) -> None:
    gateway = await start_gateway()
    strange = asdict(replace(gateway.workers[0].lease, worker_id="a-strange")) | lease
    write_lease(gateway, "a-strange", json.dumps(strange))
    write_lease(gateway, "b-broken", "{")
    late = FakeWorker(
        gateway.redis.url, gateway.parts.model, gateway.settings.modules_root, worker_id="z-late"
    )
    async with late:
        await until(
            lambda: "z-late" in gateway.parts.pool.workers and gateway.parts.pool.workers["z-late"].connected
        )
    assert gateway.parts.pool.registry_ok
    assert ("a-strange" in gateway.parts.pool.workers) == ("zone" in lease), (
        "a field more is no reason not to use it"
    )


async def test_a_worker_may_say_anything_of_itself(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{}, {}])
    strange = gateway.workers[0]
    module = pb.ModuleResidency(digest="d" * 64)
    module.place = 99  # type: ignore[assignment]
    strange.now(running=-5, prefill_tokens_per_s=float("nan"), pending_prefill_tokens=-1, modules=[module])
    strange.hold([b"", b"\xff", b"k" * 4096])
    await until(lambda: gateway.parts.pool.index.held_blocks("w0") == 3)
    assert len((await gateway.client.status()).workers) == 2
    for _ in range(4):
        assert (await gateway.client.generate("hello", sampling=GREEDY)).usage.output_tokens == 2


async def test_a_watch_that_fails_in_the_workers_code_is_counted_said_once_and_taken_again(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await start_gateway()
    worker = gateway.workers[0]
    await worker.die()
    await gateway.sees(0)
    worker.watch_faults = 3
    await worker.listen()
    await until(lambda: gateway.parts.pool.workers["w0"].connected)
    counted = gateway.parts.metrics.registry.get_sample_value(
        "memserve_loop_failures_total", {"loop": "watch"}
    )
    assert counted == 3
    assert sum("the loop 'watch' failed" in record.getMessage() for record in caplog.records) == 1


async def test_what_is_not_used_any_more_is_forgotten(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    pool = gateway.parts.pool
    write_lease(
        gateway,
        "a-other",
        json.dumps(asdict(replace(gateway.workers[0].lease, worker_id="a-other", tokenizer_digest="0" * 64))),
    )
    await until(lambda: "a-other" in pool.refused)
    gateway.redis.client.delete(lease_key("a-other"))
    await until(lambda: not pool.refused)


# Fleets of several layouts


async def test_a_prefix_is_looked_up_in_the_layout_of_each_worker(start_gateway: StartGateway) -> None:
    """Whichever worker comes first in the gateway's table: before, its block size and namespace went for
    all.
    """
    other = {"namespace": OTHER_NAMESPACE, "block_tokens": 64}
    for workers in ([{}, other], [other, {}], [other, other, {}]):
        gateway = await start_gateway(workers=workers, lookup_timeout_ms=1000)
        fine = next(worker for worker in gateway.workers if worker.block_tokens == BLOCK_TOKENS)
        coarse = next(worker for worker in gateway.workers if worker.block_tokens == 64)
        fine.hold(keys_of(gateway, BLOCK_TOKENS))
        await until(lambda name=fine.worker_id, gateway=gateway: gateway.parts.pool.index.held_blocks(name))
        route = (await gateway.client.generate(LONG, sampling=GREEDY)).route
        assert (route.worker_id, route.expected_cached_tokens) == (
            fine.worker_id,
            len(keys_of(gateway, BLOCK_TOKENS)) * BLOCK_TOKENS,
        )
        named = (await gateway.client.generate(LONG, sampling=GREEDY, worker_id=coarse.worker_id)).route
        assert named.expected_cached_tokens == 0
        coarse_keys = keys_of(gateway, 64)
        await until(lambda name=coarse.worker_id, gateway=gateway: gateway.parts.pool.index.held_blocks(name))
        assert (
            await gateway.client.generate(LONG, sampling=GREEDY, worker_id=coarse.worker_id)
        ).route.expected_cached_tokens == (len(coarse_keys) * 64)


async def test_kv_in_redis_counts_for_the_workers_of_its_namespace_only(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{"namespace": OTHER_NAMESPACE}, {}], lookup_timeout_ms=1000)
    keys = keys_of(gateway, BLOCK_TOKENS)
    for key in keys[:3]:
        gateway.redis.client.set(redis_key(NAMESPACE, key + bytes(4)), b"kv")
    assert (
        await gateway.client.generate(LONG, sampling=GREEDY, worker_id="w0")
    ).route.expected_cached_tokens == 0
    gateway.workers[0].log.clear()
    gateway.workers[1].log.clear()
    await until(lambda: not gateway.parts.pool.index.held_blocks("w0"))
    route = (await gateway.client.generate(LONG, sampling=GREEDY)).route
    assert (route.worker_id, route.expected_cached_tokens) == ("w1", 3 * BLOCK_TOKENS)


async def test_a_prefix_is_told_for_each_worker_in_its_own_layout(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{"namespace": OTHER_NAMESPACE, "block_tokens": 64}, {}, {}])
    for worker in gateway.workers:
        worker.hold(
            block_keys(gateway.token_ids(LONG), worker.block_tokens, lora=None, cache_salt=gateway.cache_salt)
        )
    found = await gateway.client.activation.lookup(LONG)
    tokens = len(gateway.token_ids(LONG))
    assert found.chunk_tokens == BLOCK_TOKENS, "that of most workers"
    assert {each.worker_id: each.device_tokens for each in found.workers} == {
        "w0": tokens // 64 * 64,
        "w1": tokens // BLOCK_TOKENS * BLOCK_TOKENS,
        "w2": tokens // BLOCK_TOKENS * BLOCK_TOKENS,
    }
