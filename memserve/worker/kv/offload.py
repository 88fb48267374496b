"""vLLM's KV offloading as a worker uses it: which connector and spec by platform, and the host regions.

On CUDA the stock `TieringOffloadingSpec` moves blocks between device and host memory. On the CPU platform it
refuses to make a worker, and only there `CpuTieringOffloadingSpec` takes its place.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from vllm.config import KVTransferConfig
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingManager, OffloadingWorker
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

from memserve.worker.kv.connector import MemserveConnector
from memserve.worker.kv.cpu_copies import CpuOffloadingWorker
from memserve.worker.kv.early_loads import EarlyLoadingManager
from memserve.worker.kv.redis_tier import RedisTier, RedisTierSettings

Platform = Literal["cpu", "cuda"]

MIN_CHUNK_BYTES, MAX_CHUNK_BYTES = 1 << 20, 2 << 20
# Of a prefix, its last partial chunk is lost: 3 % of 3,000 tokens at most, or so many tokens where that makes
# a chunk of a good size.
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
    """What `AsyncEngineArgs(kv_transfer_config=…)` takes for an engine whose KV goes to host memory and on to
    Redis.

    host_bytes: of the host tier, all of it shared memory in /dev/shm, taken at start. On the CPU platform it
    is only the way to Redis and back, so room for a few prompts is enough. blocks_per_chunk: from
    `chunk_blocks`. The engine also needs prefix_caching_hash_algo="sha256_cbor", enable_prefix_caching=True
    and the block size that `blocks_per_chunk` was computed for.
    """
    stock = platform == "cuda"
    spec = TieringOffloadingSpec if stock else CpuTieringOffloadingSpec
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
    """How many blocks make a chunk: 1 to 2 MiB where that is no more than 128 tokens, else what 90 tokens
    take.

    Values of half that size come a third slower. But what follows a prefix's last full chunk is computed
    again. kv_bytes_per_token: over all layers and all tensor-parallel ranks. Returns at least 1: a single
    block may be larger than 2 MiB.
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
    """How the bytes of a chunk are arranged, for `CacheNamespace.kv_layout`. Two engines share KV only if
    these are equal.

    On the CPU vLLM packs keys by instruction set (AMX, vector, …): the same model on another kind of CPU has
    other bytes.
    """
    packing = _get_attn_isa(dtype, block_size_tokens, head_size) if platform == "cpu" else "device"
    return f"{platform}/{packing}/LBHNC/tp{tensor_parallel_size}"


class CpuTieringOffloadingSpec(TieringOffloadingSpec):  # type: ignore[misc]
    """`TieringOffloadingSpec` on the CPU platform: "device" memory is the paged KV tensors in this
    process.
    """

    _manager: OffloadingManager | None

    def get_manager(self) -> OffloadingManager:
        if self._manager is None:
            made = super().get_manager()
            engine_id = self.config.engine_id
            self._manager = EarlyLoadingManager(
                made.primary_tier, made.secondary_tiers, lambda: CpuOffloadingWorker.here.get(engine_id)
            )
            drop_name(self._scheduler_mmap)
        return self._manager

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


def drop_name(region: SharedOffloadRegion) -> None:
    """Take a region's name away once both have it mapped: its memory is then freed however the process ends,
    by kill -9 too.

    The scheduler and the one worker of this platform map it; the second of them, which did not make it, does
    this.
    """
    if not region._creator:
        Path(region.mmap_path).unlink()
    region._creator = False  # its clean-up has no name to remove


def sweep_orphan_regions(directory: Path = Path("/dev/shm"), *, minimum_age_s: float = 60.0) -> list[Path]:
    """Delete the host regions that engines left behind when they were killed.

    A region is deleted when it is ours, no process of ours has it mapped or open, and it is older than
    `minimum_age_s` (one that is being made is not mapped yet). A process of ours whose maps cannot be read
    counts as having it when it uses that much shared memory: an engine's scheduler has touched its whole
    region. Processes in another PID namespace cannot be seen: `directory` must not be shared with them.
    Returns what was deleted.
    """
    regions = [(path, path.stat()) for path in directory.glob("vllm_offload_*.mmap")]
    old = [
        (path, stat)
        for path, stat in regions
        if stat.st_uid == os.geteuid() and time.time() - stat.st_ctime > minimum_age_s
    ]
    if not old:
        return []
    used, hidden_bytes = _files_in_use()
    orphans = [
        path
        for path, stat in old
        if (stat.st_dev, stat.st_ino) not in used and stat.st_blocks * 512 > hidden_bytes
    ]
    for path in orphans:
        path.unlink(missing_ok=True)
    return orphans


def _files_in_use() -> tuple[set[tuple[int, int]], int]:
    """(device, inode) of every file that a process of ours has mapped or open, and the most shared memory of
    one that hides its files.
    """
    used: set[tuple[int, int]] = set()
    hidden_bytes = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid != os.geteuid():
                continue
            try:
                used |= _mapped_files(process) | _open_files(process)
            except PermissionError:
                hidden_bytes = max(hidden_bytes, _shared_bytes(process))
        except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
            continue
    return used, hidden_bytes


def _mapped_files(process: Path) -> set[tuple[int, int]]:
    files = set()
    for line in (process / "maps").read_text(encoding="utf-8").splitlines():
        _, _, _, device, inode, *_ = line.split(maxsplit=5)
        major, minor = (int(part, 16) for part in device.split(":"))
        files.add((os.makedev(major, minor), int(inode)))
    return files


def _open_files(process: Path) -> set[tuple[int, int]]:
    files = set()
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since, or a socket's
            stat = descriptor.stat()
            files.add((stat.st_dev, stat.st_ino))
    return files


def _shared_bytes(process: Path) -> int:
    """Resident shared memory of a process; its status is readable where its maps are not."""
    lines = (process / "status").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssShmem:")), 0)
