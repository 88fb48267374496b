"""The Redis tier of vLLM's KV offloading: chunks go from the engine's host memory to Redis and back.

vLLM calls `RedisTier` on the scheduler's thread. Nothing here blocks it: look-ups run on one thread, batched by scheduler step, loads and
stores each on a small pool. What Redis does not answer, or answers wrongly, is a miss, and vLLM computes it.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.logger import init_logger
from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadingCounterMetadata,
    OffloadingEvent,
    OffloadingGaugeMetadata,
    OffloadingMetricMetadata,
    OffloadingSpec,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
)
from vllm.v1.kv_offload.tiering.async_lookup import AsyncLookupManager
from vllm.v1.kv_offload.tiering.backpressure import BackpressureDetector
from vllm.v1.kv_offload.tiering.base import JobId, JobResult, SecondaryTierManager, TransferJob
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from memserve.kv.breaker import Circuit
from memserve.kv.store import Put, RedisChunkStore

logger = init_logger(__name__)

_PREFIX = "memserve_kv_tier_"
_COUNTERS = {
    "hits": "Chunks loaded from Redis and verified.",
    "misses": "Chunks that were to be loaded and were not: gone, refused, or not answered.",
    "stored": "Chunks stored in Redis.",
    "already_present": "Chunks that were to be stored and were there already.",
    "store_failures": "Chunks that were to be stored and were not.",
    "unanswered": "Calls that Redis failed or did not answer in time.",
    "skipped": "Calls not made because the circuit was open.",
    "circuit_opened": "Times that Redis was given up for a while.",
    "read_bytes": "KV bytes loaded from Redis.",
    "written_bytes": "KV bytes stored in Redis.",
    "read_seconds": "Time spent loading, summed over threads.",
    "write_seconds": "Time spent storing, summed over threads.",
}
_REFUSED = "refused"
# Nothing waits for a store but the host memory that it holds.
_STORE_BUDGET_S = 5.0
_Move = Callable[[list[OffloadKey], list[memoryview]], list[bool]]
_CIRCUIT = "circuit_state"


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisTierSettings:
    """The tier's part of `kv_connector_extra_config["secondary_tiers"]`.

    namespace: `CacheNamespace.digest`. ttl_s: seconds from an entry's last use to its end. load_budget_s: how long a request waits for its
    chunks; what has not come by then is computed. threads: for loads, and as many for stores.
    announce: publish a KV event of medium "STORAGE" for every chunk that has reached Redis. Nothing announces what Redis evicts or expires.
    """

    redis_url: str
    namespace: str
    ttl_s: int = 24 * 3600
    io_timeout_s: float = 0.5
    lookup_timeout_s: float = 0.1
    load_budget_s: float = 2.0
    connect_timeout_s: float = 0.5
    failures_to_open: int = 2
    pause_s: float = 1.0
    threads: int = 2
    announce: bool = False

    @classmethod
    def parse(cls, parameters: Mapping[str, Any]) -> RedisTierSettings:
        """Raises ValueError for a parameter that does not exist or is missing, by name."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(parameters) - known):
            raise ValueError(f"RedisTier has no parameter {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        if missing := sorted({"redis_url", "namespace"} - set(parameters)):
            raise ValueError(f"RedisTier needs {', '.join(missing)}")
        return cls(**parameters)


class _RedisLookups(AsyncLookupManager):  # type: ignore[misc]
    """Asks Redis which chunks exist, one round trip for each request's chunks of a scheduler step."""

    def __init__(self, store: RedisChunkStore, tier_type: str) -> None:
        self._store = store
        super().__init__(tier_type=tier_type)

    def batch_lookup(self, keys: list[OffloadKey], req_context: ReqContext) -> Iterable[bool]:
        return self._store.exists_many(keys)


@dataclass(slots=True)
class _Job:
    """A load or store in progress. `done` and `unfinished_parts` change under the tier's lock."""

    job_id: JobId
    keys: list[OffloadKey]
    is_load: bool
    started_s: float
    unfinished_parts: int
    done: set[OffloadKey]


class RedisTier(SecondaryTierManager):  # type: ignore[misc]
    """A secondary tier of `TieringOffloadingSpec`, shared by all engines of one cache namespace.

    A load may succeed in part: the chunks that were loaded and verified are kept, the others are computed.
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
        """primary_kv_view: [chunks, chunk_bytes] of the host tier. parameters: see `RedisTierSettings`; others are refused."""
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self.locality = Locality.REMOTE
        settings = RedisTierSettings.parse(parameters)
        self._threads = settings.threads
        self._load_budget_s = settings.load_budget_s
        self._store = RedisChunkStore(
            settings.redis_url,
            settings.namespace,
            ttl_s=settings.ttl_s,
            io_timeout_s=settings.io_timeout_s,
            lookup_timeout_s=settings.lookup_timeout_s,
            connect_timeout_s=settings.connect_timeout_s,
            failures_to_open=settings.failures_to_open,
            pause_s=settings.pause_s,
        )
        self._host_bytes = primary_kv_view.cast("B")
        self._lookups = _RedisLookups(self._store, tier_type)
        self._load_pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="memserve_kv_load")
        self._store_pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="memserve_kv_store")
        self._lock = threading.Lock()
        self._finished: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._in_flight: set[Future[None]] = set()
        self._closing = threading.Event()
        self._events: list[OffloadingEvent] | None = (
            [] if settings.announce and offloading_spec.kv_events_config.enable_kv_cache_events else None
        )
        self._reported_circuit: Circuit | None = None

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._lookups.cleanup(req_context.req_id)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        self._lookups.flush()

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        found = self._lookups.lookup(key, req_context)
        if found is None:
            return LookupResult.RETRY
        return LookupResult.HIT if found else LookupResult.MISS

    def submit_load(self, job_metadata: TransferJob) -> None:
        self._submit(job_metadata, self._load_pool, self._load)

    def submit_store(self, job_metadata: TransferJob) -> None:
        self._submit(job_metadata, self._store_pool, self._save)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        results: list[JobResult] = []
        while True:
            try:
                job = self._finished.get_nowait()
            except queue.Empty:
                return results
            results.append(self._result(job))

    def take_events(self) -> Iterable[OffloadingEvent]:
        """The chunks that have reached Redis since the last call, where that is to be announced."""
        if self._events:
            yield from self._events
            self._events.clear()

    def drain_jobs(self) -> None:
        wait(list(self._in_flight))

    def shutdown(self) -> None:
        """Ends within a few I/O timeouts: what has not begun is given up."""
        self._closing.set()
        self._lookups.shutdown()
        for pool in (self._load_pool, self._store_pool):
            pool.shutdown(wait=True, cancel_futures=True)
        self._host_bytes.release()
        self._store.close()

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        """vLLM registers these in the front-end's process, and does not unregister them: one engine per process."""
        definitions: dict[str, OffloadingMetricMetadata] = {
            _PREFIX + name: OffloadingCounterMetadata(documentation=text) for name, text in _COUNTERS.items()
        }
        definitions[_PREFIX + _REFUSED] = OffloadingCounterMetadata(
            documentation="Values found in Redis that did not verify, and were deleted.", labelnames=("reason",)
        )
        definitions[_PREFIX + _CIRCUIT] = OffloadingGaugeMetadata(
            documentation="0: Redis answers. 1: one call is out to see whether it does again. 2: it does not, and is not asked."
        )
        return definitions

    def get_stats(self) -> OffloadingConnectorStats | None:
        """What happened since the last call; vLLM asks after every step of the engine."""
        taken = self._store.take_stats()
        stats = OffloadingConnectorStats()
        for name in _COUNTERS:
            if value := getattr(taken, name.replace("_seconds", "_s")):
                stats.increase_counter(_PREFIX + name, value)
        for refusal, count in taken.refused.items():
            stats.increase_counter(_PREFIX + _REFUSED, count, (refusal.value,))
        if self._store.circuit is not self._reported_circuit:
            self._reported_circuit = self._store.circuit
            stats.set_gauge(_PREFIX + _CIRCUIT, self._reported_circuit.value)
        return None if stats.is_empty() else stats

    def _load(self, keys: list[OffloadKey], chunks: list[memoryview]) -> list[bool]:
        return self._store.load(keys, chunks, budget_s=self._load_budget_s)

    def _save(self, keys: list[OffloadKey], chunks: list[memoryview]) -> list[bool]:
        return [outcome is not Put.FAILED for outcome in self._store.store(keys, chunks, budget_s=_STORE_BUDGET_S)]

    def _submit(self, transfer: TransferJob, pool: ThreadPoolExecutor, move: _Move) -> None:
        """Share a job's chunks out over the threads; the part that ends last reports the job."""
        pairs = list(zip(transfer.keys, (int(chunk) for chunk in transfer.chunk_ids), strict=True))
        parts = [part for part in (pairs[i :: self._threads] for i in range(self._threads)) if part]
        job = _Job(transfer.job_id, [key for key, _ in pairs], transfer.is_promotion, time.monotonic(), len(parts), set())
        if not parts:
            self._finished.put(job)
        for part in parts:
            future = pool.submit(functools.partial(self._move_part, job, part, move))
            self._in_flight.add(future)
            future.add_done_callback(self._in_flight.discard)

    def _move_part(self, job: _Job, part: list[tuple[OffloadKey, int]], move: _Move) -> None:
        """On a pool's thread."""
        done = set()
        try:
            if not self._closing.is_set():
                size = self._block_size_bytes
                with contextlib.ExitStack() as views:
                    chunks = [views.enter_context(self._host_bytes[chunk * size : (chunk + 1) * size]) for _, chunk in part]
                    keys = [key for key, _ in part]
                    done = {key for key, moved in zip(keys, move(keys, chunks), strict=True) if moved}
        except Exception:
            logger.exception("KV %s of %d chunks failed", "load" if job.is_load else "store", len(part))
        with self._lock:
            job.done |= done
            job.unfinished_parts -= 1
            if job.unfinished_parts:
                return
        self._finished.put(job)

    def _result(self, job: _Job) -> JobResult:
        """On the scheduler's thread."""
        successful = [key for key in job.keys if key in job.done]
        success = len(successful) == len(job.keys)
        if job.is_load:
            # Without this the scheduler would ask for a load that fails again and again.
            self._lookups.mark_miss([key for key in job.keys if key not in job.done])
        elif self._events is not None and successful:
            self._events.append(
                OffloadingEvent(keys=successful, medium=self.medium, removed=False, locality=self.locality, ownership=self.tier_type)
            )
        return JobResult(
            job_id=job.job_id,
            success=success,
            successful_keys=None if success else tuple(successful) or None,
            transfer_time=time.monotonic() - job.started_s,
            transfer_bytes=len(successful) * self._block_size_bytes,
        )
