"""vLLM's tiers of KV on the CPU, where a prefix gets its blocks when it is found in Redis.

vLLM itself loads the whole prefix into host memory first, then allocates blocks and copies it there. On the
CPU both memories belong to one process, so each chunk goes on to its blocks as soon as it is there:

1. A look-up finds a chunk in Redis and begins to load it. `lookup` counts the chunk as there in this step.
2. vLLM allocates blocks for the prefix. `prepare_load` gives the worker an `Arrival` for every chunk that is
   still on its way.
3. At the end of the step the tier submits its loads. A thread of the tier sets each arrival once the chunk
   is in host memory and verified.
4. The worker copies chunks to their blocks as their arrivals are set (`cpu_copies.py`). A chunk that did not
   come is reported as blocks that failed to load.
5. vLLM computes the prompt from the first such block on. `complete_load` remembers where that is, for the
   connector.

The load and the copies may end in either order. A chunk that came is held in host memory from the end of the
load (`_complete_promotion`) to the end of the copies (`complete_load`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from vllm.v1.kv_offload.base import LoadStoreSpec, LookupResult, OffloadKey, ReqContext, ScheduleEndContext
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager
from vllm.v1.kv_offload.tiering.manager import (
    CPUPrimaryTierOffloadingManager,
    JobMetadata,
    TieringOffloadingManager,
)

from memserve.worker.kv.arrivals import Arrival, ArrivingLoadSpec
from memserve.worker.kv.cpu_copies import CpuOffloadingWorker
from memserve.worker.kv.redis_tier import RedisTier
from memserve.worker.kv.vllm_internals import host_chunk


@dataclass(slots=True)
class _EarlyLoad:
    """A chunk whose blocks were allocated before it had come."""

    arrival: Arrival
    pinned: bool = False
    """The load has ended, and host memory keeps the chunk until it is copied."""


class EarlyLoadingManager(TieringOffloadingManager):  # type: ignore[misc]
    """`TieringOffloadingManager` whose look-ups count a chunk as there as soon as its load is decided.

    That holds in the step of the decision. A request that cannot use the chunk in this step looks again until
    the whole load has ended, as with vLLM's own manager: there may be no free blocks, or another request may
    be loading a part of the prefix. Every method belongs to the scheduler's thread.
    """

    def __init__(
        self,
        primary_tier: CPUPrimaryTierOffloadingManager,
        secondary_tiers: list[SecondaryTierManager],
        worker: Callable[[], CpuOffloadingWorker | None],
    ) -> None:
        """worker: the engine's, when it is in this process; None means that nothing is early."""
        super().__init__(primary_tier, secondary_tiers)
        self._worker = worker
        self.enabled = True
        """Whether vLLM can compute chunks that fail to load. The connector sets it: it knows the model's KV
        cache groups.
        """
        # Of this step, by request and chunk: the tier that is to load it.
        self._loading: dict[tuple[str, OffloadKey], RedisTier] = {}
        # Of this step, by request: chunks that were in host memory.
        self._hits: dict[str, list[OffloadKey]] = {}
        # Of this step: those hits that no load may evict now.
        self._held: list[tuple[list[OffloadKey], ReqContext]] = []
        self._early: dict[tuple[str, OffloadKey], _EarlyLoad] = {}
        # By request: where its first chunk ends that did not come, in tokens.
        self._lost: dict[str, int] = {}

    def lookup(
        self, key: OffloadKey, req_context: ReqContext, *, exclude_tier_idx: int | None = None
    ) -> LookupResult:
        result = super().lookup(key, req_context, exclude_tier_idx=exclude_tier_idx)
        if result is LookupResult.HIT:
            self._hits.setdefault(req_context.req_id, []).append(key)
        if result is LookupResult.HIT_PENDING and (req_context.req_id, key) in self._loading:
            return LookupResult.HIT
        return result

    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        request_id = req_context.req_id
        if not any((request_id, key) in self._loading for key in keys):
            return super().prepare_load(keys, req_context)
        super().prepare_load([key for key in keys if (request_id, key) not in self._loading], req_context)
        chunk_ids: list[int] = []
        arrivals: list[Arrival | None] = []
        for key in keys:
            chunk = host_chunk(self.primary_tier, key)
            assert chunk is not None  # a look-up of this step has counted it as there
            chunk_ids.append(int(chunk.chunk_id))
            tier = self._loading.get((request_id, key))
            if tier is None:
                arrivals.append(None)
                continue
            arrival = Arrival()
            tier.tell_arrival(chunk_ids[-1], arrival)
            self._early[request_id, key] = _EarlyLoad(arrival)
            arrivals.append(arrival)
        return ArrivingLoadSpec(chunk_ids, arrivals)

    def complete_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        """The worker has copied what came. Chunks that did not come were never pinned."""
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
        self._loading.clear()

    def reset_cache(self) -> None:
        worker = self._worker()
        if worker is not None:
            for tier in self.secondary_tiers:
                tier.drain_jobs()
            # Before the chunks' places in host memory are given to others.
            worker.copy_what_came()
        super().reset_cache()
        self._early.clear()
        self._lost.clear()

    def _initiate_promotion(self, tier_idx: int, key: OffloadKey, req_context: ReqContext) -> bool:
        tier = self.secondary_tiers[tier_idx]
        if not (self.enabled and isinstance(tier, RedisTier) and self._worker() is not None):
            begun: bool = super()._initiate_promotion(tier_idx, key, req_context)
            return begun
        # Chunks that this request was told are in host memory must still be there when its blocks are
        # allocated. vLLM's own manager would look them up again before that.
        hits = self._hits.pop(req_context.req_id, None)
        if hits:
            self.primary_tier.prepare_read(hits, req_context)
            self._held.append((hits, req_context))
        begun = super()._initiate_promotion(tier_idx, key, req_context)
        if begun:
            self._loading[req_context.req_id, key] = tier
        return begun

    def _complete_promotion(self, job_metadata: JobMetadata, completed_job: JobResult) -> None:
        super()._complete_promotion(job_metadata, completed_job)
        context = job_metadata.transfer_job.req_context
        for key in job_metadata.transfer_job.keys:
            early = self._early.get((context.req_id, key))
            if early is not None and self.primary_tier.lookup(key, context) is LookupResult.HIT:
                self.primary_tier.prepare_load([key], context)
                early.pinned = True
