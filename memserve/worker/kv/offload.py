"""vLLM's KV offloading as a worker uses it: which connector and spec by platform, and the shape of chunks.

On CUDA the stock `TieringOffloadingSpec` moves blocks between device and host memory. It refuses to make a
worker on the CPU platform, so there `CpuTieringOffloadingSpec` takes its place.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

import torch
from vllm.config import KVTransferConfig
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingManager, OffloadingWorker
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

from memserve.worker.kv.connector import MemserveConnector
from memserve.worker.kv.cpu_copies import CpuOffloadingWorker
from memserve.worker.kv.early_loads import EarlyLoadingManager
from memserve.worker.kv.host_regions import drop_name
from memserve.worker.kv.redis_tier import RedisTier
from memserve.worker.kv.tier_settings import RedisTierSettings
from memserve.worker.kv.vllm_internals import cpu_attention_packing, replace_manager, scheduler_region

Platform = Literal["cpu", "cuda"]

MIN_CHUNK_BYTES, MAX_CHUNK_BYTES = 1 << 20, 2 << 20
# A prefix loses its last partial chunk: 90 tokens are 3 % of 3,000. A chunk of a good size may lose more.
_MAX_LOST_TOKENS = 90
_MAX_LOST_TOKENS_FOR_SIZE = 128


def kv_transfer_config(
    *,
    platform: Platform,
    tier: RedisTierSettings,
    host_bytes: int,
    blocks_per_chunk: int,
    engine_id: str | None = None,
) -> KVTransferConfig:
    """What `AsyncEngineArgs(kv_transfer_config=…)` takes so that KV goes to host memory and to Redis.

    host_bytes: of the host tier. All of it is shared memory in /dev/shm, taken at start. On the CPU platform
    the host tier is only the way to Redis and back, so that room for a few prompts is enough.
    blocks_per_chunk: from `chunk_blocks`.

    The engine also needs prefix_caching_hash_algo="sha256_cbor", enable_prefix_caching=True, and the block
    size that `blocks_per_chunk` was computed for.
    """
    spec = TieringOffloadingSpec if platform == "cuda" else CpuTieringOffloadingSpec
    return KVTransferConfig(
        kv_connector=MemserveConnector.__name__,
        kv_connector_module_path=MemserveConnector.__module__,
        kv_role="kv_both",
        engine_id=engine_id,
        kv_load_failure_policy="recompute",
        kv_connector_extra_config={
            "spec_name": spec.__name__,
            "spec_module_path": spec.__module__,
            "cpu_bytes_to_use": host_bytes,
            "blocks_per_chunk": blocks_per_chunk,
            "self_describing_kv_events": True,
            "secondary_tiers": [
                {"type": RedisTier.__name__, "module_path": RedisTier.__module__, **asdict(tier)}
            ],
        },
    )


def chunk_blocks(*, kv_bytes_per_token: int, block_size_tokens: int) -> int:
    """How many blocks make a chunk: 1 to 2 MiB where that is at most 128 tokens, else what 90 tokens take.

    Values of half that size come a third slower. But the tokens behind a prefix's last full chunk are
    computed again.

    kv_bytes_per_token: over all layers and all tensor-parallel ranks. Returns at least 1: a single block may
    be larger than 2 MiB.
    """
    block_bytes = kv_bytes_per_token * block_size_tokens
    by_size = MAX_CHUNK_BYTES // block_bytes
    sizeable = min(by_size, _MAX_LOST_TOKENS_FOR_SIZE // block_size_tokens)
    if sizeable * block_bytes >= MIN_CHUNK_BYTES:
        return sizeable
    return max(1, min(by_size, _MAX_LOST_TOKENS // block_size_tokens))


def kv_layout(
    *,
    platform: Platform,
    dtype: torch.dtype,
    block_size_tokens: int,
    head_size: int,
    tensor_parallel_size: int,
) -> str:
    """How the bytes of a chunk are arranged, for `CacheNamespace.kv_layout`.

    Two engines share KV only if their layouts are equal. On the CPU vLLM packs keys by instruction set (AMX,
    vector, …): the same model on another kind of CPU has other bytes.
    """
    packing = cpu_attention_packing(dtype, block_size_tokens, head_size) if platform == "cpu" else "device"
    return f"{platform}/{packing}/LBHNC/tp{tensor_parallel_size}"


class CpuTieringOffloadingSpec(TieringOffloadingSpec):  # type: ignore[misc]
    """`TieringOffloadingSpec` on the CPU platform: "device" memory is this process's paged KV tensors."""

    def get_manager(self) -> OffloadingManager:
        manager = super().get_manager()
        if not isinstance(manager, EarlyLoadingManager):
            engine_id = self.config.engine_id
            manager = EarlyLoadingManager(
                manager.primary_tier,
                manager.secondary_tiers,
                lambda: CpuOffloadingWorker.by_engine_id.get(engine_id),
            )
            replace_manager(self, manager)
            drop_name(scheduler_region(self))
        return manager

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        region = SharedOffloadRegion(
            engine_id=self.config.engine_id,
            num_chunks=self.num_chunks,
            rank=self.config.parallel.rank,
            kv_bytes_per_chunk=self.kv_bytes_per_chunk,
            cpu_page_size=self.cpu_page_size_per_worker,
        )
        drop_name(region)
        return CpuOffloadingWorker(self.config.engine_id, kv_caches, self.blocks_per_chunk, region)
