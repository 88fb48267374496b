"""The Redis tier of vLLM's KV offloading: chunks go from the engine's host memory to Redis and back.

vLLM calls `RedisTier` on the scheduler's thread, and nothing here blocks that thread. Look-ups run on one
thread, batched by scheduler step (`tier_lookups.py`). Loads and stores run on a small pool each
(`tier_jobs.py`). A chunk that Redis does not answer, or answers wrongly, is a miss, and vLLM computes it.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadingEvent,
    OffloadingMetricMetadata,
    OffloadingSpec,
    OffloadKey,
    OffloadPolicy,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
)
from vllm.v1.kv_offload.tiering.backpressure import BackpressureDetector
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from memserve.kv.ledger.records import Quotas
from memserve.kv.ledger.upkeep import Upkeep
from memserve.kv.rates import MeasuredRates
from memserve.kv.store import RedisChunkStore
from memserve.kv.transport.limits import CacheLimits
from memserve.kv.values.codecs import chunk_codec
from memserve.policy.kv.loading import Decision, chunks_to_load
from memserve.worker.kv.arrivals import Arrival
from memserve.worker.kv.metrics import PREFIX, begin, metric_definitions, tier_stats
from memserve.worker.kv.tier_jobs import Job, Transfers
from memserve.worker.kv.tier_lookups import RedisLookups
from memserve.worker.kv.tier_requests import StoredPrompt, TierRequest
from memserve.worker.kv.tier_settings import RedisTierSettings
from memserve.worker.kv.vllm_internals import offload_key_positions

# Of host memory, for chunks that wait to be stored. Requests wait for loads, which need the rest.
MAX_WAITING_SHARE = 0.5


class RedisTier(SecondaryTierManager):  # type: ignore[misc]
    """A secondary tier of `TieringOffloadingSpec`, shared by all engines of one cache namespace.

    A load may succeed in part: the chunks that were loaded and verified are kept, the others are computed.
    Every method belongs to the scheduler's thread.
    """

    medium: ClassVar[Medium] = Medium.STORAGE
    cache_hit_source: ClassVar[CacheHitSource] = CacheHitSource.EXTERNAL_UNSPECIFIED

    def __init__(
        self,
        offloading_spec: OffloadingSpec,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: BackpressureDetector | None = None,
        **parameters: Any,
    ) -> None:
        """primary_kv_view: [chunks, chunk_bytes] of host memory.

        parameters: as `RedisTierSettings`, in vLLM's form. Raises ValueError for others.
        """
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self.locality = Locality.REMOTE
        settings = RedisTierSettings.parse(parameters)
        self._load_budget_s = settings.load_budget_s
        self._store = RedisChunkStore(
            settings.redis_url,
            settings.namespace,
            codec=chunk_codec(settings.codec, settings.layout, chunk_bytes=self.block_size_bytes),
            ttl_s=settings.ttl_s,
            quotas=Quotas(settings.cache_quota_bytes, settings.tenant_quota_bytes),
            admit_on_use=settings.admit_on_use,
            limits=CacheLimits(
                io_s=settings.io_timeout_s,
                lookup_s=settings.lookup_timeout_s,
                connect_s=settings.connect_timeout_s,
                failures_to_open=settings.failures_to_open,
                pause_s=settings.pause_s,
            ),
        )
        self._rates = MeasuredRates()
        self._always_load = settings.always_load
        self._lookups = RedisLookups(self._store, self._rates, tier_type)
        self._upkeep = Upkeep(self._store.ledger, self._store.removed, failed=self._store.loop_failed)
        self._transfers = Transfers(
            self._store, primary_kv_view, self.block_size_bytes, self._rates, settings
        )
        self._events: list[OffloadingEvent] | None = (
            [] if settings.announce and offloading_spec.kv_events_config.enable_kv_cache_events else None
        )
        self._reported_gauges: dict[str, int] = {}
        self._decisions: Counter[Decision] = Counter()
        self._loading_chunks = self._storing_chunks = self._dropped_chunks = 0
        self._loads_by_request: Counter[str] = Counter()
        # By place in host memory, of the load that is submitted next.
        self._arrivals: dict[int, Arrival] = {}
        self._max_waiting_chunks = max(1, int(len(primary_kv_view) * MAX_WAITING_SHARE))

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        whole = TierRequest.of(req_context).store_whole_prompt
        return RequestOffloadingContext(OffloadPolicy.REQUEST_LEVEL if whole else OffloadPolicy.CHUNK_LEVEL)

    def prefilled(self, tokens: int, seconds: float) -> None:
        """Take in that the engine has computed prompt tokens in a step."""
        self._rates.prefilled(tokens, seconds)

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._lookups.cleanup(req_context.req_id)
        request = TierRequest.of(req_context)
        request.finished = True
        self._count_uses(request)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        self._lookups.flush()

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        is_there = self._lookups.lookup(key, req_context)
        if is_there is None:
            return LookupResult.RETRY
        return LookupResult.HIT if is_there and self._worth_loading(key, req_context) else LookupResult.MISS

    def only_waits(self, request_id: str) -> bool:
        """Whether looking up this request's chunks again can tell nothing new.

        So it is while chunks of it are on their way from Redis and no load has ended since
        `get_finished_jobs`.
        """
        return request_id in self._loads_by_request and self._transfers.none_has_ended()

    def tell_arrival(self, chunk: int, arrival: Arrival) -> None:
        """Have `arrival` set when this chunk of host memory is filled by the load that is submitted next.

        It is set to True once the chunk is verified, and to False when the load ends without it.
        """
        self._arrivals[chunk] = arrival

    def submit_load(self, job_metadata: TransferJob) -> None:
        chunks = _chunks_of(job_metadata)
        self._loading_chunks += len(chunks)
        job = _job(job_metadata, chunks, is_load=True)
        job.arrivals = {key: self._arrivals.pop(place) for key, place in chunks if place in self._arrivals}
        self._loads_by_request[job.request_id] += 1
        self._transfers.load(job, chunks)

    def submit_store(self, job_metadata: TransferJob) -> None:
        chunks = _chunks_of(job_metadata)
        job = _job(job_metadata, chunks, is_load=False)
        waiting = self._storing_chunks + len(chunks)
        too_many = waiting > self._max_waiting_chunks and self._storing_chunks > 0
        if too_many and not job.request.store_whole_prompt:
            self._dropped_chunks += len(chunks)
            self._transfers.drop(job)
            return
        self._storing_chunks = waiting
        # A copy: the scheduler's thread goes on filling the positions. The pool puts the chunks in order.
        job.prompt = StoredPrompt(job.request, dict(offload_key_positions(job_metadata.req_context)))
        self._transfers.store(job, chunks)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        return [self._result(job) for job in self._transfers.take_ended()]

    def take_events(self) -> Iterable[OffloadingEvent]:
        """The chunks that have reached Redis since the last call, where they are to be announced."""
        if self._events:
            yield from self._events
            self._events.clear()

    def drain_jobs(self) -> None:
        self._transfers.drain()

    def shutdown(self) -> None:
        """Ends within a few I/O timeouts: jobs that have not begun are given up."""
        self._transfers.close()
        self._upkeep.close()
        self._lookups.shutdown()
        self._store.close()

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        """vLLM registers these in the front-end's process and never unregisters them.

        So a process can have one engine in its life.
        """
        return metric_definitions()

    def get_stats(self) -> OffloadingConnectorStats | None:
        """What happened since the last call. vLLM asks after every step of the engine."""
        stats = tier_stats(self._store.take_stats(), self._decisions, self._dropped_chunks)
        self._decisions, self._dropped_chunks = Counter(), 0
        if not self._reported_gauges:
            begin(stats)
        gauges = {
            "circuit_state": self._store.circuit.value,
            "cache_bytes": self._upkeep.counted_bytes,
            "cache_quota_bytes": self._store.ledger.quotas.cache_bytes,
        }
        for name, gauge in gauges.items():
            if gauge is not None and gauge != self._reported_gauges.get(name):
                self._reported_gauges[name] = gauge
                stats.set_gauge(PREFIX + name, gauge)
        return None if stats.is_empty() else stats

    def _worth_loading(self, key: OffloadKey, req_context: ReqContext) -> bool:
        """Whether a chunk that is in Redis is to be fetched.

        Decided once for a request, from the rates at its first hit.
        """
        end_tokens: int | None = req_context.get_offload_key_position(key)
        if self._always_load or end_tokens is None:
            return True
        request = TierRequest.of(req_context)
        if request.load_until_tokens is None:
            rates, stale = self._rates.now(time.monotonic())
            group = key[-4:]
            chain = [other for other in offload_key_positions(req_context) if other[-4:] == group]
            first = chain.index(key)
            in_redis = sum(1 for _ in itertools.takewhile(self._lookups.may_be_there, chain[first:]))
            chunks, decision = chunks_to_load(
                in_redis,
                chunk_tokens=end_tokens // (first + 1),
                chunk_bytes=self.block_size_bytes,
                waiting_bytes=self._loading_chunks * self.block_size_bytes,
                rates=rates,
                budget_s=self._load_budget_s,
                stale=stale,
            )
            self._decisions[decision] += 1
            request.load_until_tokens = end_tokens // (first + 1) * (first + chunks)
        return end_tokens <= request.load_until_tokens

    def _count_uses(self, request: TierRequest) -> None:
        """Once the request has ended: its first token must not wait for the ledger."""
        used, request.loaded = request.loaded, []
        if used:
            self._transfers.count_uses(used)

    def _result(self, job: Job) -> JobResult:
        successful = [key for key in job.keys if key in job.done]
        success = len(successful) == len(job.keys)
        seconds = job.ended_s - job.started_s
        if job.is_load:
            self._load_ended(job, successful, seconds)
        else:
            self._store_ended(job, successful)
        return JobResult(
            job_id=job.job_id,
            success=success,
            successful_keys=None if success else tuple(successful) or None,
            transfer_time=seconds,
            transfer_bytes=len(successful) * self.block_size_bytes,
        )

    def _load_ended(self, job: Job, successful: list[OffloadKey], seconds: float) -> None:
        self._loading_chunks -= len(job.keys)
        self._loads_by_request[job.request_id] -= 1
        if not self._loads_by_request[job.request_id]:
            del self._loads_by_request[job.request_id]
        self._rates.loaded(len(successful) * self.block_size_bytes, seconds, job.ended_s)
        job.request.loaded += successful
        if job.request.finished:
            self._count_uses(job.request)
        # Else the scheduler would submit a load that fails again and again.
        self._lookups.mark_miss([key for key in job.keys if key not in job.done])

    def _store_ended(self, job: Job, successful: list[OffloadKey]) -> None:
        if job.prompt is not None:
            self._storing_chunks -= len(job.keys)
        if self._events is not None and successful:
            self._events.append(
                OffloadingEvent(
                    keys=successful,
                    medium=self.medium,
                    removed=False,
                    locality=self.locality,
                    ownership=self.tier_type,
                )
            )


def _chunks_of(job_metadata: TransferJob) -> list[tuple[OffloadKey, int]]:
    """Keys, and their places in host memory."""
    places = (int(place) for place in job_metadata.chunk_ids)
    return list(zip(job_metadata.keys, places, strict=True))


def _job(job_metadata: TransferJob, chunks: Sequence[tuple[OffloadKey, int]], *, is_load: bool) -> Job:
    context = job_metadata.req_context
    return Job(
        job_metadata.job_id,
        TierRequest.of(context),
        context.req_id,
        [key for key, _ in chunks],
        is_load,
        started_s=time.monotonic(),
    )
