"""The scheduler's half and the worker's half of one engine, over a real tier and Redis, but no engine."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from memserve.kv.keys import CacheNamespace
from tests.kv.redis_server import wait_until

NAMESPACE = CacheNamespace(
    model_digest="early", kv_dtype="int8", kv_layout="test", block_size_tokens=32, blocks_per_chunk=2
)
LAYERS, PAGE_BYTES, BLOCKS, HOST_CHUNKS = 2, 4096, 32, 8
CHUNK_BYTES = LAYERS * NAMESPACE.blocks_per_chunk * PAGE_BYTES
KEYS = [bytes([number]) * 32 + bytes(4) for number in range(1, 6)]
BLOCK_IDS = [9, 3, 4, 20, 21, 22, 0, 1, 31, 30]  # two for each chunk


def of_chunk(number: int) -> list[int]:
    return BLOCK_IDS[2 * number : 2 * number + 2]


class Halves:
    """The manager and the worker of one engine, as vLLM's scheduler and model runner call them."""

    def __init__(self, redis_url: str, **tier: Any) -> None:
        import torch
        from vllm.v1.kv_offload.base import CanonicalKVCacheRef, CanonicalKVCaches, CanonicalKVCacheTensor
        from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
        from vllm.v1.kv_offload.tiering.manager import CPUPrimaryTierOffloadingManager

        from memserve.worker.kv.cpu_copies import CpuOffloadingWorker
        from memserve.worker.kv.early_loads import EarlyLoadingManager
        from memserve.worker.kv.host_regions import drop_name
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

        created, opened = region(None), region(0)
        drop_name(created)
        drop_name(opened)
        primary = CPUPrimaryTierOffloadingManager(num_chunks=HOST_CHUNKS, mmap_region=created)
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
            primary, [self.tier], lambda: CpuOffloadingWorker.by_engine_id.get(self.engine_id)
        )
        self.worker = CpuOffloadingWorker(self.engine_id, caches, NAMESPACE.blocks_per_chunk, opened)

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
        from memserve.worker.kv.vllm_internals import host_chunk

        chunks = [host_chunk(self.manager.primary_tier, key) for key in KEYS]
        return [chunk.ref_cnt for chunk in chunks if chunk is not None]

    def close(self) -> None:
        self.worker.shutdown()
        self.manager.shutdown()
