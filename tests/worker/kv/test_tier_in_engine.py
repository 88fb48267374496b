"""The Redis tier under a real vLLM engine with a tiny random model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import REGISTRY

from memserve.kv.keys import block_keys, redis_key
from memserve.kv.store import RedisChunkStore
from memserve.kv.values.envelope import HEADER_BYTES
from tests.kv.one_chunk import get, put
from tests.kv.redis_server import RedisServer, wait_until
from tests.worker.kv.platform_engine import (
    ENGINE_ENVIRONMENT,
    EventListener,
    PlatformEngine,
    prompt,
    prompt_chunks,
    save_tiny_model,
)
from tests.worker.kv.tier import NAMESPACE

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

FULL_CHUNK_TOKENS = 300 // NAMESPACE.chunk_tokens * NAMESPACE.chunk_tokens
SEEDS = range(5)


class ColdRun(SimpleNamespace):
    """What the first engine answered and left in Redis; that engine is gone."""

    answers: dict[int, list[int]]
    values: dict[bytes, bytes]
    device_pages: set[str]
    events: EventListener


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_tiny_model(path)
    return path


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONHASHSEED", raising=False)
        for name, value in ENGINE_ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def cold_run(
    environment: None, tiny_model: Path, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> ColdRun:
    redis_server.client.flushall()
    engine = PlatformEngine(tiny_model, redis_server.url, tmp_path_factory.mktemp("events"))
    store = RedisChunkStore(redis_server.url, NAMESPACE.digest)
    outputs = {seed: engine.ask(prompt(seed)) for seed in SEEDS}
    assert {output.num_cached_tokens for output in outputs.values()} == {0}
    keys = [key for seed in SEEDS for key in prompt_chunks(prompt(seed))]
    wait_until(lambda: all(store.exists_many(keys)))
    values = {}
    for key in keys:
        payload = get(store, key, redis_server.client.strlen(redis_key(NAMESPACE.digest, key)) - HEADER_BYTES)
        assert payload is not None
        values[key] = payload
    wait_until(lambda: set(prompt_chunks_last_blocks()) <= engine.events.keys("STORAGE"))
    answers = {seed: list(output.outputs[0].token_ids) for seed, output in outputs.items()}
    run = ColdRun(answers=answers, values=values, device_pages=engine.device_pages(), events=engine.events)
    engine.close()
    store.close()
    return run


def prompt_chunks_last_blocks() -> list[bytes]:
    return [key[:32] for seed in SEEDS for key in prompt_chunks(prompt(seed))]


@pytest.fixture(scope="module")
def fresh_engine(
    cold_run: ColdRun, tiny_model: Path, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PlatformEngine]:
    engine = PlatformEngine(tiny_model, redis_server.url, tmp_path_factory.mktemp("events"))
    yield engine
    engine.close()


def payload_pages(payload: bytes, layers: int = 2) -> list[str]:
    """A chunk's payload, [layers, blocks_per_chunk, page], as the digests of its blocks."""
    pages = np.frombuffer(payload, dtype=np.int8).reshape(layers, NAMESPACE.blocks_per_chunk, -1)
    return [
        hashlib.sha256(pages[:, block].tobytes()).hexdigest() for block in range(NAMESPACE.blocks_per_chunk)
    ]


def test_the_gateways_keys_name_exactly_what_the_engine_stores(
    cold_run: ColdRun, redis_server: RedisServer
) -> None:
    expected = {
        redis_key(NAMESPACE.digest, key).encode() for seed in SEEDS for key in prompt_chunks(prompt(seed))
    }
    assert set(redis_server.client.scan_iter("memserve:kv:*", count=1000)) == expected


def test_events_carry_full_block_keys_of_device_host_and_redis(cold_run: ColdRun) -> None:
    blocks = {key for seed in SEEDS for key in block_keys(prompt(seed), 32, lora=None, cache_salt="tenant")}
    in_chunks = {
        key
        for seed in SEEDS
        for key in block_keys(prompt(seed)[:FULL_CHUNK_TOKENS], 32, lora=None, cache_salt="tenant")
    }
    assert blocks <= cold_run.events.keys("GPU")
    assert in_chunks <= cold_run.events.keys("CPU")
    assert in_chunks == cold_run.events.keys("STORAGE")


def test_a_fresh_engine_finds_the_prefix_in_redis_and_answers_the_same(
    cold_run: ColdRun, fresh_engine: PlatformEngine
) -> None:
    output = fresh_engine.ask(prompt(0))
    assert output.num_cached_tokens == FULL_CHUNK_TOKENS
    assert FULL_CHUNK_TOKENS in output.kv_transfer_params["memserve_cached_by_tier"].values()
    assert output.kv_transfer_params["memserve_cached_by_tier"]["redis"] == FULL_CHUNK_TOKENS
    assert list(output.outputs[0].token_ids) == cold_run.answers[0]


def test_the_engines_memory_holds_the_very_bytes_that_were_stored(
    cold_run: ColdRun, fresh_engine: PlatformEngine
) -> None:
    fresh_engine.ask(prompt(0))
    stored = {page for key in prompt_chunks(prompt(0)) for page in payload_pages(cold_run.values[key])}
    assert len(stored) == FULL_CHUNK_TOKENS // 32
    assert stored <= cold_run.device_pages
    assert stored <= fresh_engine.device_pages()


def test_another_salt_finds_nothing(cold_run: ColdRun, fresh_engine: PlatformEngine) -> None:
    fresh_engine.ask(prompt(0))
    for salt in ("another tenant", None):
        output = fresh_engine.ask(prompt(0), salt)
        assert output.num_cached_tokens == 0
        assert list(output.outputs[0].token_ids) == cold_run.answers[0]


def test_a_tenants_kv_leaves_the_engines_memory_and_no_other_tenants(
    cold_run: ColdRun, fresh_engine: PlatformEngine
) -> None:
    fresh_engine.ask(prompt(0))
    assert fresh_engine.ask(prompt(0)).num_cached_tokens > FULL_CHUNK_TOKENS - 32
    assert fresh_engine.free("another")[:2] == [0, 0]
    assert "redis" not in str(fresh_engine.ask(prompt(0)).kv_transfer_params)
    blocks, chunks, _ = fresh_engine.free("default")
    assert blocks >= 300 // 32
    wait_until(lambda: fresh_engine.free("default") == [0, 0, 0])
    again = fresh_engine.ask(prompt(0))
    # It is neither in device memory nor in host memory any more: only Redis has it.
    assert again.kv_transfer_params["memserve_cached_by_tier"] == {"host": 0, "redis": FULL_CHUNK_TOKENS}
    assert list(again.outputs[0].token_ids) == cold_run.answers[0]
    assert chunks >= 0


def test_a_corrupted_entry_is_a_miss_with_the_same_answer(
    cold_run: ColdRun, fresh_engine: PlatformEngine, redis_server: RedisServer
) -> None:
    keys = prompt_chunks(prompt(1))
    redis_server.client.setrange(redis_key(NAMESPACE.digest, keys[2]), 5000, b"\x00\x01\x02\x03\x04\x05")
    output = fresh_engine.ask(prompt(1))
    assert output.num_cached_tokens == 2 * NAMESPACE.chunk_tokens
    assert list(output.outputs[0].token_ids) == cold_run.answers[1]
    store = RedisChunkStore(redis_server.url, NAMESPACE.digest)
    wait_until(
        lambda: get(store, keys[2], len(cold_run.values[keys[2]])) is not None
    )  # computed again, stored again
    store.close()
    samples = [
        sample
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "memserve_kv_tier_refused_total" and sample.value
    ]
    assert [(sample.labels["reason"], sample.value) for sample in samples] == [("bad_checksum", 1)]


def test_requests_succeed_without_redis_and_its_return_is_noticed(
    cold_run: ColdRun, fresh_engine: PlatformEngine, redis_server: RedisServer
) -> None:
    redis_server.stop()
    started_s = time.monotonic()
    output = fresh_engine.ask(prompt(2))
    assert output.num_cached_tokens == 0
    assert list(output.outputs[0].token_ids) == cold_run.answers[2]
    assert time.monotonic() - started_s < 5

    redis_server.start()
    store = RedisChunkStore(redis_server.url, NAMESPACE.digest)
    for key in prompt_chunks(prompt(3)):
        put(store, key, cold_run.values[key])
    time.sleep(0.4)
    loaded = fresh_engine.ask(prompt(3))
    assert loaded.num_cached_tokens == FULL_CHUNK_TOKENS
    assert list(loaded.outputs[0].token_ids) == cold_run.answers[3]
    fresh_engine.ask(prompt(77))
    wait_until(lambda: all(store.exists_many(prompt_chunks(prompt(77)))))
    store.close()


def test_a_redis_that_hangs_delays_a_request_by_no_more_than_its_timeouts(
    cold_run: ColdRun, fresh_engine: PlatformEngine, redis_server: RedisServer
) -> None:
    redis_server.pause()
    started_s = time.monotonic()
    assert fresh_engine.tokens(prompt(4)) == cold_run.answers[4]
    elapsed_s = time.monotonic() - started_s
    redis_server.resume()
    assert elapsed_s < 3
