"""vLLM's tiers of KV on the CPU, but that a prefix found in Redis is given its blocks when it is found, not
when it has come.

vLLM first loads a prefix into host memory, all of it, then allocates blocks and copies it there. On the CPU
both are memory of one process: here each chunk is copied to its blocks when it has come and is verified,
while those behind it are still on their way. Chunks that do not come are reported as blocks that failed to
load, and vLLM computes from the first of them on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm.v1.kv_offload.base import LoadStoreSpec, LookupResult, OffloadKey, ReqContext, ScheduleEndContext
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager
from vllm.v1.kv_offload.tiering.manager import (
    CPUPrimaryTierOffloadingManager,
    JobMetadata,
    TieringOffloadingManager,
)

from memserve.worker.kv.redis_tier import RedisTier

if TYPE_CHECKING:
    from memserve.worker.kv.cpu_copies import CpuOffloadingWorker

Arrival = Future[bool]
"""Whether a chunk has come from Redis, verified."""


class ArrivingLoadSpec(CPULoadStoreSpec):  # type: ignore[misc]
    """Host chunks to load from, some still on their way. Goes from the scheduler to the worker within a
    process.
    """

    def __init__(self, chunk_ids: list[int], arrivals: Sequence[Arrival | None]) -> None:
        """arrivals: one for each chunk; None for one that is there."""
        super().__init__(chunk_ids)
        self.arrivals = arrivals


@dataclass(slots=True)
class _EarlyLoad:
    """A chunk whose blocks were allocated before it had come. pinned: it has since, and is kept in host
    memory until it is copied.
    """

    arrival: Arrival
    pinned: bool = False


class EarlyLoadingManager(TieringOffloadingManager):  # type: ignore[misc]
    """`TieringOffloadingManager` whose look-ups count a chunk as there in the step in which its load from
    Redis is decided.

    Whoever cannot use that now (there are no free blocks, or another request loads a part of the prefix
    already) looks again until all has come, as vLLM does. All of it is called on the scheduler's thread.
    """

    def __init__(
        self,
        primary_tier: CPUPrimaryTierOffloadingManager,
        secondary_tiers: list[SecondaryTierManager],
        worker: Callable[[], CpuOffloadingWorker | None],
    ) -> None:
        """worker: the engine's, when it is in this process; without it nothing is early."""
        super().__init__(primary_tier, secondary_tiers)
        self._worker = worker
        self.enabled = True
        """Whether vLLM can compute what fails to load: set by the connector, which knows the model's KV cache
        groups.
        """
        # Of this step, by request and chunk: the tier that is to load it.
        self._found: dict[tuple[str, OffloadKey], RedisTier] = {}
        # Of this step, by request: chunks that were there, and those of them that no load may evict now.
        self._hits: dict[str, list[OffloadKey]] = {}
        self._held: list[tuple[list[OffloadKey], ReqContext]] = []
        self._early: dict[tuple[str, OffloadKey], _EarlyLoad] = {}
        self._lost: dict[str, int] = {}

    def lookup(
        self, key: OffloadKey, req_context: ReqContext, *, exclude_tier_idx: int | None = None
    ) -> LookupResult:
        result = super().lookup(key, req_context, exclude_tier_idx=exclude_tier_idx)
        if result is LookupResult.HIT:
            self._hits.setdefault(req_context.req_id, []).append(key)
        if result is LookupResult.HIT_PENDING and (req_context.req_id, key) in self._found:
            return LookupResult.HIT
        return result

    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        request_id = req_context.req_id
        if not any((request_id, key) in self._found for key in keys):
            return super().prepare_load(keys, req_context)
        super().prepare_load([key for key in keys if (request_id, key) not in self._found], req_context)
        chunk_ids = [int(self.primary_tier._policy.get(key).chunk_id) for key in keys]
        arrivals: list[Arrival | None] = []
        for key, chunk_id in zip(keys, chunk_ids, strict=True):
            tier = self._found.get((request_id, key))
            if tier is None:
                arrivals.append(None)
                continue
            arrival = Arrival()
            tier.tell_arrival(chunk_id, arrival)
            self._early[request_id, key] = _EarlyLoad(arrival)
            arrivals.append(arrival)
        return ArrivingLoadSpec(chunk_ids, arrivals)

    def complete_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        """The worker has done what it could: what did not come was never pinned."""
        pinned: list[OffloadKey] = []
        for key in keys:
            early = self._early.pop((req_context.req_id, key), None)
            if early is None or early.pinned:
                pinned.append(key)
            if early is not None and not early.arrival.result(0):
                end_tokens = req_context.get_offload_key_position(key) or 0
                self._lost[req_context.req_id] = min(
                    end_tokens, self._lost.get(req_context.req_id, end_tokens)
                )
        super().complete_load(pinned, req_context)

    def take_lost(self) -> dict[str, int]:
        """By request: where the first chunk ends, in tokens, that was counted as there and did not come.
        Since the last call.
        """
        lost, self._lost = self._lost, {}
        return lost

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        for keys, req_context in self._held:
            self.primary_tier.complete_read(keys, req_context)
        self._held.clear()
        self._hits.clear()
        super().on_schedule_end(context)  # begins the loads
        self._found.clear()

    def reset_cache(self) -> None:
        worker = self._worker()
        if worker is not None:
            for tier in self.secondary_tiers:
                tier.drain_jobs()
            worker.copy_what_came()  # before its place in host memory is another's
        super().reset_cache()
        self._early.clear()
        self._lost.clear()

    def _initiate_promotion(self, tier_idx: int, key: OffloadKey, req_context: ReqContext) -> bool:
        tier = self.secondary_tiers[tier_idx]
        if not (self.enabled and isinstance(tier, RedisTier) and self._worker() is not None):
            begun: bool = super()._initiate_promotion(tier_idx, key, req_context)
            return begun
        # What this request was told is there must be when its blocks are allocated; vLLM would look it up
        # again before.
        hits = self._hits.pop(req_context.req_id, None)
        if hits:
            self.primary_tier.prepare_read(hits, req_context)
            self._held.append((hits, req_context))
        begun = super()._initiate_promotion(tier_idx, key, req_context)
        if begun:
            self._found[req_context.req_id, key] = tier
        return begun

    def _complete_promotion(self, job_metadata: JobMetadata, completed_job: JobResult) -> None:
        super()._complete_promotion(job_metadata, completed_job)
        context = job_metadata.transfer_job.req_context
        for key in job_metadata.transfer_job.keys:
            early = self._early.get((context.req_id, key))
            if early is not None and self.primary_tier.lookup(key, context) is LookupResult.HIT:
                self.primary_tier.prepare_load([key], context)
                early.pinned = True
