"""Loads whose blocks are allocated when they begin: the scheduler's half and the worker's over a real tier
and Redis, without an engine.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memserve.kv.keys import CacheNamespace, redis_key
from memserve.kv.store import RedisChunkStore
from tests.kv.one_chunk import put
from tests.kv.redis_server import RedisServer, wait_until

NAMESPACE = CacheNamespace(
    model_digest="early", kv_dtype="int8", kv_layout="test", block_size_tokens=32, blocks_per_chunk=2
)
LAYERS, PAGE_BYTES, BLOCKS, HOST_CHUNKS = 2, 4096, 32, 8
CHUNK_BYTES = LAYERS * NAMESPACE.blocks_per_chunk * PAGE_BYTES
KEYS = [bytes([number]) * 32 + bytes(4) for number in range(1, 6)]


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    (tmp_path / "redis").mkdir()
    server.start()
    yield server
    server.stop()


class Halves:
    """The manager and the worker of one engine, as vLLM's scheduler and model runner call them."""

    def __init__(self, redis_url: str, **tier: Any) -> None:
        import torch
        from vllm.v1.kv_offload.base import CanonicalKVCacheRef, CanonicalKVCaches, CanonicalKVCacheTensor
        from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
        from vllm.v1.kv_offload.tiering.manager import CPUPrimaryTierOffloadingManager

        from memserve.worker.kv.cpu_copies import CpuOffloadingWorker
        from memserve.worker.kv.early_loads import EarlyLoadingManager
        from memserve.worker.kv.offload import drop_name
        from memserve.worker.kv.redis_tier import RedisTier

        self.engine_id = uuid.uuid4().hex

        def region(rank: int | None) -> Any:
            return SharedOffloadRegion(
                engine_id=self.engine_id,
                num_chunks=HOST_CHUNKS,
                rank=rank,
                kv_bytes_per_chunk=CHUNK_BYTES,
                cpu_page_size=CHUNK_BYTES,
            )

        made, joined = region(None), region(0)
        drop_name(made)
        drop_name(joined)
        primary = CPUPrimaryTierOffloadingManager(num_chunks=HOST_CHUNKS, mmap_region=made)
        self.device = [torch.zeros((BLOCKS, PAGE_BYTES), dtype=torch.int8) for _ in range(LAYERS)]
        caches = CanonicalKVCaches(
            [CanonicalKVCacheTensor(tensor, PAGE_BYTES) for tensor in self.device],
            [[CanonicalKVCacheRef(number, PAGE_BYTES) for number in range(LAYERS)]],
        )
        spec: Any = SimpleNamespace(kv_events_config=SimpleNamespace(enable_kv_cache_events=False))
        self.tier = RedisTier(
            spec,
            primary.get_kv_memoryview(),
            "RedisTier",
            redis_url=redis_url,
            namespace=NAMESPACE.digest,
            always_load=True,
            **tier,
        )
        self.manager = EarlyLoadingManager(
            primary, [self.tier], lambda: CpuOffloadingWorker.here.get(self.engine_id)
        )
        self.worker = CpuOffloadingWorker(self.engine_id, caches, NAMESPACE.blocks_per_chunk, joined)

    def request(self, name: str) -> Any:
        from vllm.v1.kv_offload.base import OffloadKey, ReqContext

        context = ReqContext(name)
        for number, key in enumerate(KEYS, start=1):
            context.set_offload_key_position(OffloadKey(key), NAMESPACE.chunk_tokens * number)
        self.manager.on_new_request(context)
        return context

    def look_up(self, context: Any) -> list[str]:
        return [self.manager.lookup(key, context).name for key in KEYS]

    def end_step(self) -> None:
        from vllm.v1.kv_offload.base import ScheduleEndContext

        self.manager.on_schedule_end(ScheduleEndContext([], []))

    def look_up_until_found(self, context: Any) -> list[str]:
        """As vLLM does, step by step; the step in which something is found is not ended."""
        found: list[str] = []

        def looked_up() -> bool:
            nonlocal found
            found = self.look_up(context)
            if "RETRY" in found:
                self.end_step()
            return "RETRY" not in found

        wait_until(looked_up)
        return found

    def begin_load(
        self, context: Any, blocks: Sequence[int], keys: Sequence[bytes] = KEYS, job_id: int = 1
    ) -> None:
        """What a step does with a request that was allocated these blocks."""
        from vllm.v1.kv_offload.base import GPULoadStoreSpec

        source = self.manager.prepare_load(keys, context)
        self.end_step()
        self.worker.submit_load(job_id, source, GPULoadStoreSpec(list(blocks), [len(blocks)], [0]))

    def finish_load(self) -> set[int]:
        """Returns the blocks that were lost."""
        results: list[Any] = []

        def ended() -> bool:
            self.worker.wait_for_chunks()
            results.extend(self.worker.get_finished())
            return bool(results)

        wait_until(ended)
        return self.worker.take_lost_blocks()

    def fill_host_memory(self) -> None:
        """A request loads all chunks, and ends."""
        context = self.request("beginning")
        self.look_up_until_found(context)
        self.begin_load(context, BLOCK_IDS)
        self.finish_load()
        self.manager.complete_load(KEYS, context)
        self.end_step()

    def chunk_on_device(self, blocks: Sequence[int]) -> bytes:
        return b"".join(tensor[list(blocks)].numpy().tobytes() for tensor in self.device)

    def pinned(self) -> list[int]:
        """How often each chunk in host memory is held: 0 can be evicted, -1 is still on its way."""
        chunks = [self.manager.primary_tier._policy.get(key) for key in KEYS]
        return [chunk.ref_cnt for chunk in chunks if chunk is not None]

    def close(self) -> None:
        self.worker.shutdown()
        self.manager.shutdown()


@pytest.fixture
def halves(redis_server: RedisServer) -> Iterator[Halves]:
    both = Halves(redis_server.url, load_budget_s=1.0)
    yield both
    both.close()


@pytest.fixture
def chunks(redis_server: RedisServer) -> list[bytes]:
    """What Redis holds under KEYS."""
    random = np.random.default_rng(7)
    values = [random.integers(-128, 127, CHUNK_BYTES, dtype=np.int8).tobytes() for _ in KEYS]
    store = RedisChunkStore(redis_server.url, NAMESPACE.digest)
    for key, value in zip(KEYS, values, strict=True):
        put(store, key, value)
    store.close()
    return values


BLOCK_IDS = [9, 3, 4, 20, 21, 22, 0, 1, 31, 30]  # two for each chunk


def of_chunk(number: int) -> list[int]:
    return BLOCK_IDS[2 * number : 2 * number + 2]


def test_what_is_found_is_a_hit_at_once_and_comes_to_its_blocks(halves: Halves, chunks: list[bytes]) -> None:
    context = halves.request("r")
    assert halves.look_up_until_found(context) == ["HIT"] * 5
    halves.begin_load(context, BLOCK_IDS)
    assert halves.finish_load() == set()
    assert [halves.chunk_on_device(of_chunk(number)) for number in range(5)] == chunks
    halves.manager.complete_load(KEYS, context)
    halves.end_step()
    assert halves.manager.take_lost() == {}
    assert halves.pinned() == [0] * 5
    assert halves.look_up(halves.request("another")) == ["HIT"] * 5  # in host memory now


@pytest.mark.parametrize("told_first", ["the load", "the copies"])
def test_nothing_stays_pinned_whichever_ends_first(
    halves: Halves, chunks: list[bytes], told_first: str
) -> None:
    context = halves.request("r")
    halves.look_up_until_found(context)
    halves.begin_load(context, BLOCK_IDS)
    halves.finish_load()
    halves.tier.drain_jobs()
    if told_first == "the load":
        halves.end_step()
        assert halves.pinned() == [1] * 5
    else:
        assert halves.pinned() == [-1] * 5
    halves.manager.complete_load(KEYS, context)
    halves.end_step()
    assert halves.pinned() == [0] * 5


def test_a_chunk_that_does_not_come_is_told_with_its_blocks(
    halves: Halves, chunks: list[bytes], redis_server: RedisServer
) -> None:
    context = halves.request("r")
    halves.look_up_until_found(context)
    redis_server.client.setrange(redis_key(NAMESPACE.digest, KEYS[1]), 300, b"\x00\xff\x00")
    redis_server.client.delete(redis_key(NAMESPACE.digest, KEYS[3]))
    halves.begin_load(context, BLOCK_IDS)
    assert halves.finish_load() == {*of_chunk(1), *of_chunk(3)}
    assert halves.worker.take_lost_blocks() == set()
    assert [halves.chunk_on_device(of_chunk(number)) for number in (0, 2, 4)] == [
        chunks[number] for number in (0, 2, 4)
    ]
    assert halves.chunk_on_device([*of_chunk(1), *of_chunk(3)]) == bytes(2 * CHUNK_BYTES)
    halves.manager.complete_load(KEYS, context)
    halves.end_step()
    assert halves.manager.take_lost() == {"r": 2 * NAMESPACE.chunk_tokens}
    assert halves.manager.take_lost() == {}
    assert halves.pinned() == [0] * 3  # those that came


def test_a_redis_that_stops_holds_no_step_and_all_blocks_are_lost(
    halves: Halves, chunks: list[bytes], redis_server: RedisServer
) -> None:
    context = halves.request("r")
    halves.look_up_until_found(context)
    redis_server.pause()
    try:
        halves.begin_load(context, BLOCK_IDS)
        halves.worker.wait_for_chunks()
        assert halves.worker.get_finished() == []
        assert halves.finish_load() == set(BLOCK_IDS)
    finally:
        redis_server.resume()
    halves.manager.complete_load(KEYS, context)
    assert halves.manager.take_lost() == {"r": NAMESPACE.chunk_tokens}


def test_a_request_that_gets_no_blocks_waits_as_vllms_do(halves: Halves, chunks: list[bytes]) -> None:
    context = halves.request("r")
    assert halves.look_up_until_found(context) == ["HIT"] * 5
    halves.end_step()  # nothing was allocated
    halves.tier.drain_jobs()
    assert halves.look_up(context) == ["HIT"] * 5
    halves.begin_load(context, BLOCK_IDS)
    assert halves.finish_load() == set()
    assert [halves.chunk_on_device(of_chunk(number)) for number in range(5)] == chunks
    assert halves.pinned() == [1] * 5
    halves.manager.complete_load(KEYS, context)
    assert halves.pinned() == [0] * 5


def test_another_request_waits_for_chunks_that_are_on_their_way(
    halves: Halves, chunks: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halves.tier, "get_finished_jobs", list)  # the load goes on for as long as this
    first, second = halves.request("first"), halves.request("second")
    assert halves.look_up_until_found(first) == ["HIT"] * 5
    assert halves.look_up(second) == ["HIT_PENDING"] * 5
    halves.begin_load(first, BLOCK_IDS)
    assert halves.look_up(second) == ["HIT_PENDING"] * 5
    assert halves.finish_load() == set()
    monkeypatch.undo()
    halves.manager.complete_load(KEYS, first)
    halves.tier.drain_jobs()
    halves.end_step()
    assert halves.look_up(second) == ["HIT"] * 5


def test_what_host_memory_has_and_what_comes_are_loaded_together(halves: Halves, chunks: list[bytes]) -> None:
    halves.fill_host_memory()
    for key in KEYS[2:]:  # host memory forgets the end
        halves.manager.primary_tier._policy.remove(key)
    for tensor in halves.device:
        tensor.zero_()
    context = halves.request("r")
    assert halves.look_up_until_found(context) == ["HIT"] * 5
    halves.begin_load(context, BLOCK_IDS, job_id=2)
    assert halves.finish_load() == set()
    assert [halves.chunk_on_device(of_chunk(number)) for number in range(5)] == chunks


def test_waiting_for_a_job_waits_for_its_chunks(halves: Halves, chunks: list[bytes]) -> None:
    context = halves.request("r")
    halves.look_up_until_found(context)
    halves.begin_load(context, BLOCK_IDS)
    halves.worker.wait({1})
    (result,) = halves.worker.get_finished()
    assert (result.job_id, result.success, result.transfer_size) == (1, True, 5 * CHUNK_BYTES)
    assert [halves.chunk_on_device(of_chunk(number)) for number in range(5)] == chunks


def test_a_reset_while_chunks_come_leaves_nothing_behind(halves: Halves, chunks: list[bytes]) -> None:
    context = halves.request("r")
    halves.look_up_until_found(context)
    halves.begin_load(context, BLOCK_IDS)
    halves.manager.reset_cache()
    halves.tier._host_bytes[:] = bytes(len(halves.tier._host_bytes))  # it is others' now
    assert [halves.chunk_on_device(of_chunk(number)) for number in range(5)] == chunks
    halves.worker.wait({1})
    assert halves.look_up_until_found(halves.request("another")) == ["HIT"] * 5
    halves.end_step()
    halves.tier.drain_jobs()
    halves.end_step()
    assert halves.pinned() == [0] * 5


@pytest.mark.parametrize(
    "why", ["the worker is in another process", "vLLM cannot compute what fails to load"]
)
def test_nothing_is_early_where_it_must_not_be(halves: Halves, chunks: list[bytes], why: str) -> None:
    if why == "the worker is in another process":
        halves.manager._worker = lambda: None
    else:
        halves.manager.enabled = False
    context = halves.request("r")
    assert halves.look_up_until_found(context) == ["HIT_PENDING"] * 5


def test_vllm_computes_what_fails_to_load_with_one_group_of_full_attention_only() -> None:
    import torch
    from vllm.v1.kv_cache_interface import (
        FullAttentionSpec,
        KVCacheConfig,
        KVCacheGroupSpec,
        SlidingWindowSpec,
    )

    from memserve.worker.kv.connector import computes_what_fails_to_load

    shape: dict[str, Any] = {"block_size": 32, "num_kv_heads": 2, "head_size": 64, "dtype": torch.bfloat16}
    full = KVCacheGroupSpec(["a"], FullAttentionSpec(**shape))
    window = KVCacheGroupSpec(["b"], SlidingWindowSpec(**shape, sliding_window=128))

    def computes(*groups: KVCacheGroupSpec) -> bool:
        return computes_what_fails_to_load(
            KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=list(groups))
        )

    assert computes(full)
    assert not computes(window)
    assert not computes(full, full)


def test_what_was_counted_as_there_is_not_evicted_for_what_comes(halves: Halves, chunks: list[bytes]) -> None:
    """The host memory is full, of the request's own beginning and of others that may go."""
    halves.fill_host_memory()
    primary = halves.manager.primary_tier
    for key in KEYS[2:]:
        primary._free_chunk(primary._policy.get(key))
        primary._policy.remove(key)
        primary._num_evictable_cache_chunks -= 1
    others = [bytes([number]) * 32 + bytes(4) for number in range(100, 100 + HOST_CHUNKS - 2)]
    stranger = halves.request("stranger")
    assert primary.prepare_store(others, stranger) is not None
    primary.complete_store(others, stranger)
    primary.touch(others, stranger)  # the request's own are the first to go
    context = halves.request("r")
    assert halves.look_up_until_found(context) == ["HIT"] * 5
    halves.begin_load(context, BLOCK_IDS, job_id=2)
    assert halves.finish_load() == set()
    assert [halves.chunk_on_device(of_chunk(number)) for number in range(5)] == chunks
    halves.manager.complete_load(KEYS, context)
    halves.tier.drain_jobs()
    halves.end_step()
    assert halves.pinned() == [0] * 5


def test_a_load_that_breaks_off_keeps_what_it_told_of(
    halves: Halves, chunks: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = halves.tier._store.load

    def breaks_off(*given: Any, loaded_one: Any, **options: Any) -> list[bool]:
        def two(number: int) -> None:
            if number == 2:
                raise RuntimeError("no thread can be started")
            loaded_one(number)

        return load(*given, loaded_one=two, **options)

    monkeypatch.setattr(halves.tier._store, "load", breaks_off)
    context = halves.request("r")
    halves.look_up_until_found(context)
    halves.begin_load(context, BLOCK_IDS)
    assert halves.finish_load() == {*of_chunk(2), *of_chunk(3), *of_chunk(4)}
    assert [halves.chunk_on_device(of_chunk(number)) for number in range(2)] == chunks[:2]
    halves.tier.drain_jobs()
    halves.end_step()
    assert halves.pinned() == [1, 1]
    halves.manager.complete_load(KEYS, context)
    assert halves.pinned() == [0, 0]
    assert halves.manager.take_lost() == {"r": 3 * NAMESPACE.chunk_tokens}


class Asked:
    """The scheduler's side of a connector with one request: 4,000 tokens, of which 96 were in the engine's
    memory.
    """

    def __init__(self, *, finished: bool = False, preemptions: int = 0) -> None:
        from vllm.v1.metrics.stats import PrefillStats

        self.counted: list[int] = []
        self.stats = PrefillStats()
        self.stats.set(4000, 96, 3904)
        request = SimpleNamespace(
            is_finished=lambda: finished, num_preemptions=preemptions, prefill_stats=self.stats
        )
        self.group = SimpleNamespace(next_stored_chunk_idx=62)
        state = SimpleNamespace(req=request, group_states=(self.group,), num_locally_computed_tokens=96)
        config = SimpleNamespace(kv_group_configs=(SimpleNamespace(tokens_per_chunk=64),))
        self.connector_scheduler = SimpleNamespace(_req_status={"r": state}, config=config)

    def _count_loaded(self, request: Any, tokens: int) -> None:
        self.counted.append(tokens)

    def falls_short(self) -> None:
        from memserve.worker.kv.connector import MemserveConnector

        fell_short: Any = MemserveConnector._load_fell_short
        fell_short(self, "r", 640)


def test_a_request_whose_load_fell_short_counts_what_came_and_stores_the_rest() -> None:
    asked = Asked()
    asked.falls_short()
    assert asked.group.next_stored_chunk_idx == 9
    assert asked.counted == [9 * 64 - 96]
    assert (asked.stats.num_cached_tokens, asked.stats.num_computed_tokens) == (576, 4000 - 576)


def test_the_statistics_of_a_preempted_request_stay_those_of_its_first_admission() -> None:
    asked = Asked(preemptions=1)
    asked.falls_short()
    assert asked.stats.num_cached_tokens == 4000
    assert asked.counted == [9 * 64 - 96]


def test_a_request_that_is_over_is_not_counted_again() -> None:
    asked = Asked(finished=True)
    asked.falls_short()
    assert asked.counted == []
    assert asked.group.next_stored_chunk_idx == 62
