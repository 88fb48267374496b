"""Loads whose blocks are allocated when they begin: the scheduler's half and the worker's over a real tier and Redis, without an engine."""

from __future__ import annotations

import os
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

NAMESPACE = CacheNamespace(model_digest="early", kv_dtype="int8", kv_layout="test", block_size_tokens=32, blocks_per_chunk=2)
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

        from memserve.worker.cpu_offload import drop_name
        from memserve.worker.cpu_worker import CpuOffloadingWorker
        from memserve.worker.early_loads import EarlyLoadingManager
        from memserve.worker.redis_tier import RedisTier

        self.engine_id = uuid.uuid4().hex

        def region(rank: int | None) -> Any:
            return SharedOffloadRegion(
                engine_id=self.engine_id, num_chunks=HOST_CHUNKS, rank=rank, kv_bytes_per_chunk=CHUNK_BYTES, cpu_page_size=CHUNK_BYTES
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
        self.manager = EarlyLoadingManager(primary, [self.tier], lambda: CpuOffloadingWorker.takes_early_loads(self.engine_id))
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

    def begin_load(self, context: Any, blocks: Sequence[int], keys: Sequence[bytes] = KEYS, job_id: int = 1) -> None:
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
def test_nothing_stays_pinned_whichever_ends_first(halves: Halves, chunks: list[bytes], told_first: str) -> None:
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


def test_a_chunk_that_does_not_come_is_told_with_its_blocks(halves: Halves, chunks: list[bytes], redis_server: RedisServer) -> None:
    context = halves.request("r")
    halves.look_up_until_found(context)
    redis_server.client.setrange(redis_key(NAMESPACE.digest, KEYS[1]), 300, b"\x00\xff\x00")
    redis_server.client.delete(redis_key(NAMESPACE.digest, KEYS[3]))
    halves.begin_load(context, BLOCK_IDS)
    assert halves.finish_load() == {*of_chunk(1), *of_chunk(3)}
    assert halves.worker.take_lost_blocks() == set()
    assert [halves.chunk_on_device(of_chunk(number)) for number in (0, 2, 4)] == [chunks[number] for number in (0, 2, 4)]
    assert halves.chunk_on_device([*of_chunk(1), *of_chunk(3)]) == bytes(2 * CHUNK_BYTES)
    halves.manager.complete_load(KEYS, context)
    halves.end_step()
    assert halves.manager.take_lost() == {"r": 2 * NAMESPACE.chunk_tokens}
    assert halves.manager.take_lost() == {}
    assert halves.pinned() == [0] * 3  # those that came


def test_a_redis_that_stops_holds_no_step_and_all_blocks_are_lost(halves: Halves, chunks: list[bytes], redis_server: RedisServer) -> None:
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
    beginning = halves.request("beginning")
    halves.look_up_until_found(beginning)
    halves.begin_load(beginning, BLOCK_IDS)
    halves.finish_load()
    halves.manager.complete_load(KEYS, beginning)
    halves.end_step()
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
    halves.worker.wait({1})
    assert halves.look_up_until_found(halves.request("another")) == ["HIT"] * 5
    halves.end_step()
    halves.tier.drain_jobs()
    halves.end_step()
    assert halves.pinned() == [0] * 5


def test_without_a_worker_in_this_process_nothing_is_early(halves: Halves, chunks: list[bytes]) -> None:
    from memserve.worker.cpu_worker import CpuOffloadingWorker

    assert not CpuOffloadingWorker.takes_early_loads(f"{os.getpid()} is no engine")
    halves.manager._worker_takes_them = lambda: False
    context = halves.request("r")
    assert halves.look_up_until_found(context) == ["HIT_PENDING"] * 5
