"""The copies of KV offloading on the CPU platform, where both memories belong to one process.

They go between the paged KV tensors ("device" memory) and the host region.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion

from memserve.worker.kv.arrivals import Arrival, ArrivingLoadSpec

# After this the scheduler's thread takes in new requests again. The shortest step of a model of half a
# billion weights takes as long.
MAX_WAIT_S = 0.02
# For the next chunks. A chunk of 1.5 MB takes 0.4 ms from a Redis on the same machine.
CHUNK_WAIT_S = 0.001
# Waking up for every single chunk would take the processor from the thread that brings them.
CHUNKS_AT_ONCE = 2


class _Piece(NamedTuple):
    """The blocks of a load or store that lie in one chunk."""

    refs: list[CanonicalKVCacheRef]
    """The KV tensors of a KV cache group."""
    blocks: npt.NDArray[np.int64]
    """Device blocks, in order."""
    chunk: int
    """The chunk's place in host memory."""
    slot: int
    """The first block's place in the chunk."""


@dataclass(slots=True)
class _Transfer:
    """A load or store under way."""

    job_id: int
    started_s: float
    awaited: deque[tuple[_Piece, Arrival]] = field(default_factory=deque)
    """Pieces whose chunks are still on their way, in the order in which the chunks are loaded."""
    copied_bytes: int = 0


class CpuOffloadingWorker(OffloadingWorker):  # type: ignore[misc]
    """Copies blocks between the paged KV tensors and the host region, on the calling thread.

    A copy runs at memory speed and takes milliseconds. A chunk that is still on its way from Redis is copied
    by the first `get_finished` or `wait_for_chunks` after it has come. Every method belongs to the thread of
    the engine, which is the scheduler's too.
    """

    by_engine_id: ClassVar[WeakValueDictionary[str, CpuOffloadingWorker]] = WeakValueDictionary()
    """The workers of this process. The scheduler's half has no other way to the worker's."""

    def __init__(
        self, engine_id: str, kv_caches: CanonicalKVCaches, blocks_per_chunk: int, region: SharedOffloadRegion
    ) -> None:
        self._region = region
        self._blocks_per_chunk = blocks_per_chunk
        self._page_bytes = [tensor.page_size_bytes for tensor in kv_caches.tensors]
        # [blocks, page_bytes] and [chunks, page_bytes * blocks_per_chunk], for every KV tensor.
        self._pages: list[npt.NDArray[np.int8]] = [
            cache.tensor.view(torch.int8).view(-1, cache.page_size_bytes).numpy()
            for cache in kv_caches.tensors
        ]
        self._chunks: list[npt.NDArray[np.int8]] = [
            region.create_next_worker_view(page_bytes * blocks_per_chunk).numpy()
            for page_bytes in self._page_bytes
        ]
        self._refs_by_group: list[list[CanonicalKVCacheRef]] = kv_caches.group_data_refs
        self._under_way: list[_Transfer] = []
        self._finished: list[TransferResult] = []
        self._lost_blocks: set[int] = set()
        self.by_engine_id[engine_id] = self

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        return self._submit(job_id, src_spec, dst_spec, to_host=True)

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        return self._submit(job_id, dst_spec, src_spec, to_host=False)

    def copy_what_came(self) -> None:
        for transfer in list(self._under_way):
            self._go_on(transfer)

    def get_finished(self) -> list[TransferResult]:
        self.copy_what_came()
        finished, self._finished = self._finished, []
        return finished

    def wait_for_chunks(self) -> None:
        """For a step of the engine that computes nothing: copy chunks as they come, until a load is complete.

        Gives up when the next chunk does not come soon, and after a few milliseconds: requests that arrive
        at the engine meanwhile have to wait.
        """
        deadline_s = time.monotonic() + MAX_WAIT_S
        while self._under_way and not self._finished and time.monotonic() < deadline_s:
            awaited = self._under_way[0].awaited
            _, arrival = awaited[min(CHUNKS_AT_ONCE, len(awaited)) - 1]
            if not wait([arrival], CHUNK_WAIT_S).done:
                return
            self._go_on(self._under_way[0])

    def take_lost_blocks(self) -> set[int]:
        """Device blocks that loads did not fill, because their chunks did not come. Since the last call."""
        lost, self._lost_blocks = self._lost_blocks, set()
        return lost

    def wait(self, job_ids: set[int]) -> None:
        for transfer in [transfer for transfer in self._under_way if transfer.job_id in job_ids]:
            wait(arrival for _, arrival in transfer.awaited)
            self._go_on(transfer)

    def shutdown(self) -> None:
        self._under_way.clear()
        self._pages.clear()
        self._chunks.clear()
        self._region.cleanup()

    def _submit(self, job_id: int, device: GPULoadStoreSpec, host: LoadStoreSpec, *, to_host: bool) -> bool:
        assert isinstance(host, CPULoadStoreSpec)
        transfer = _Transfer(job_id, time.perf_counter())
        pieces = list(self._pieces(device, host))
        arrivals = host.arrivals if isinstance(host, ArrivingLoadSpec) else [None] * len(pieces)
        for piece, arrival in zip(pieces, arrivals, strict=True):
            if arrival is None:
                transfer.copied_bytes += self._copy(piece, to_host=to_host)
            else:
                transfer.awaited.append((piece, arrival))
        self._under_way.append(transfer)
        self._go_on(transfer)
        return True

    def _go_on(self, transfer: _Transfer) -> None:
        """Copy the chunks that have come.

        A load that lost chunks has succeeded as far as vLLM knows: vLLM asks for the lost blocks apart.
        """
        while transfer.awaited and transfer.awaited[0][1].done():
            piece, arrival = transfer.awaited.popleft()
            if arrival.result():
                transfer.copied_bytes += self._copy(piece, to_host=False)
            else:
                self._lost_blocks.update(piece.blocks.tolist())
        if not transfer.awaited:
            self._under_way.remove(transfer)
            seconds = time.perf_counter() - transfer.started_s
            result = TransferResult(
                job_id=transfer.job_id,
                success=True,
                transfer_size=transfer.copied_bytes,
                transfer_time=seconds,
            )
            self._finished.append(result)

    def _copy(self, piece: _Piece, *, to_host: bool) -> int:
        """Returns the bytes copied."""
        copied_bytes = 0
        count = len(piece.blocks)
        for ref in piece.refs:
            page_bytes = self._page_bytes[ref.tensor_idx]
            start = piece.slot * page_bytes
            pages = self._pages[ref.tensor_idx]
            parts = self._chunks[ref.tensor_idx][piece.chunk, start : start + count * page_bytes].reshape(
                count, page_bytes
            )
            parts = parts[:, : ref.page_size_bytes]
            if to_host:
                parts[:] = pages[piece.blocks, : ref.page_size_bytes]
            else:
                pages[piece.blocks, : ref.page_size_bytes] = parts
            copied_bytes += parts.nbytes
        return copied_bytes

    def _pieces(self, device: GPULoadStoreSpec, host: CPULoadStoreSpec) -> Iterator[_Piece]:
        """One piece for each host chunk, in order.

        A group's blocks are consecutive blocks of one request, and may begin and end inside a chunk.
        Source: vllm/v1/kv_offload/cpu/gpu_worker.py 0.32, `SingleDirectionOffloadingHandler.transfer_async`.
        """
        first_block = first_chunk = 0
        for refs, blocks, first_index in zip(
            self._refs_by_group, device.group_sizes, device.block_indices, strict=True
        ):
            if not blocks:
                continue
            skipped = first_index % self._blocks_per_chunk
            ids = np.asarray(device.block_ids[first_block : first_block + blocks])
            for number, start in enumerate(range(-skipped, blocks, self._blocks_per_chunk)):
                piece = ids[max(0, start) : start + self._blocks_per_chunk]
                yield _Piece(refs, piece, int(host.chunk_ids[first_chunk + number]), max(0, -start))
            first_block += blocks
            first_chunk += number + 1
