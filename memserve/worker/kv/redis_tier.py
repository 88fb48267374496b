"""The Redis tier of vLLM's KV offloading: chunks go from the engine's host memory to Redis and back.

vLLM calls `RedisTier` on the scheduler's thread. Nothing here blocks it: look-ups run on one thread, batched
by scheduler step, loads and stores each on a small pool. What Redis does not answer, or answers wrongly, is a
miss, and vLLM computes it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.logger import init_logger
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
from vllm.v1.kv_offload.tiering.async_lookup import AsyncLookupManager
from vllm.v1.kv_offload.tiering.backpressure import BackpressureDetector
from vllm.v1.kv_offload.tiering.base import JobId, JobResult, SecondaryTierManager, TransferJob
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from memserve.kv.ledger.records import Owner, Quotas
from memserve.kv.ledger.upkeep import Upkeep
from memserve.kv.outcomes import Account, Put
from memserve.kv.rates import MeasuredRates
from memserve.kv.store import RedisChunkStore
from memserve.kv.values.codecs import chunk_codec
from memserve.policy.kv.eviction import worth_per_use
from memserve.policy.kv.loading import Decision, chunks_to_load
from memserve.worker.kv.metrics import PREFIX, metric_definitions, tier_stats

logger = init_logger(__name__)

# Nothing waits for a store but the host memory that it holds.
_STORE_BUDGET_S = 5.0
# Of chunks that wait to be stored, in the host tier: more would leave too little for loads, which requests
# wait for.
_MOST_WAITING_SHARE = 0.5
# Uses are told to the ledger behind the stores; while so much is under way they are not.
_MOST_IN_FLIGHT = 64
# The key under which a request's `kv_transfer_params` say whose it is: {"tenant": …, "module": …, "keep": …}.
OWNER = "memserve"
DEFAULT_OWNER = Owner()
# The end of a key of the first KV cache group, the one whose keys make a chain.
FIRST_GROUP = bytes(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisTierSettings:
    """The tier's part of `kv_connector_extra_config["secondary_tiers"]`.

    namespace: `CacheNamespace.digest`. codec, layout: as `memserve.kv.values.codecs.chunk_codec` takes them.
    ttl_s: seconds from an entry's last use to its end. cache_quota_bytes, tenant_quota_bytes: 0 for
    none. admit_on_use: 1 or 2. load_budget_s: how long a request waits for its chunks; what has not come by
    then is computed. always_load: what is computed sooner, too. threads: for loads, and as many for stores.
    announce: publish a KV event of medium "STORAGE" for every chunk that has reached Redis. Nothing announces
    what Redis evicts or expires.
    """

    redis_url: str
    namespace: str
    codec: str = "raw"
    layout: dict[str, Any] | None = None
    ttl_s: int = 24 * 3600
    cache_quota_bytes: int = 0
    tenant_quota_bytes: int = 0
    admit_on_use: int = 1
    always_load: bool = False
    io_timeout_s: float = 0.5
    lookup_timeout_s: float = 0.1
    load_budget_s: float = 2.0
    connect_timeout_s: float = 0.5
    failures_to_open: int = 2
    pause_s: float = 1.0
    # Two to a core are too many: the server and the engine want theirs.
    threads: int = max(1, min(4, (os.cpu_count() or 2) // 2))
    announce: bool = False

    @classmethod
    def parse(cls, parameters: Mapping[str, Any]) -> RedisTierSettings:
        """Raises ValueError for a parameter that does not exist or is missing, by name."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(parameters) - known):
            raise ValueError(
                f"RedisTier has no parameter {', '.join(unknown)}; it has {', '.join(sorted(known))}"
            )
        if missing := sorted({"redis_url", "namespace"} - set(parameters)):
            raise ValueError(f"RedisTier needs {', '.join(missing)}")
        return cls(**parameters)


def owner_parameters(tenant: str, module_digest: str, keep: bool) -> dict[str, Any]:
    """What a request's `kv_transfer_params` carry under OWNER. keep: store all of its prompt, at its first
    use.
    """
    return {"tenant": tenant, "module": module_digest, "keep": keep}


@dataclass(slots=True)
class _Request:
    """What the tier knows of a request.

    load_until_tokens: where its loads from Redis end, once that is decided. loaded: chunks of which the
    ledger is not told yet.
    """

    owner: Owner
    keep: bool
    load_until_tokens: int | None = None
    loaded: list[OffloadKey] = field(default_factory=list)
    finished: bool = False

    @classmethod
    def of(cls, req_context: ReqContext) -> _Request:
        request: _Request | None = req_context.get_state(cls)
        if request is None:
            given = (req_context.kv_transfer_params or {}).get(OWNER) or {}
            request = cls(
                Owner(given.get("tenant") or DEFAULT_OWNER.tenant, given.get("module") or ""),
                bool(given.get("keep")),
            )
            req_context.set_state(request)
        return request


@dataclass(frozen=True, slots=True)
class _Prompt:
    """Where a store's chunks stand in their prompt. positions: the end of every chunk, tokens, in the order
    of the prompt.
    """

    request: _Request
    positions: dict[OffloadKey, int]

    @property
    def chunk_tokens(self) -> int:
        return next(iter(self.positions.values()), 1)

    def depth_tokens(self, key: OffloadKey) -> int:
        return self.positions.get(key, 0)

    def account(self, keys: Sequence[OffloadKey], worth: float) -> Account:
        """keys: in order. Only the first KV cache group makes a chain."""
        chain = [key for key in self.positions if key[-4:] == FIRST_GROUP]
        depths = [self.depth_tokens(key) for key in keys]
        parents: list[bytes] = [b""] * len(keys)
        for number, (key, depth) in enumerate(zip(keys, depths, strict=True)):
            if key[-4:] == FIRST_GROUP and depth > self.chunk_tokens:
                parents[number] = chain[depth // self.chunk_tokens - 2]
        return Account(self.request.owner, parents, depths, worth, at_once=self.request.keep)


class _RedisLookups(AsyncLookupManager):  # type: ignore[misc]
    """Asks Redis which chunks exist, one round trip for each request's chunks of a scheduler step."""

    def __init__(self, store: RedisChunkStore, rates: MeasuredRates, tier_type: str) -> None:
        self._store = store
        self._rates = rates
        super().__init__(tier_type=tier_type)

    def batch_lookup(self, keys: list[OffloadKey], req_context: ReqContext) -> Iterable[bool]:
        started_s = time.monotonic()
        found = self._store.exists_many(keys)
        self._rates.looked_up(time.monotonic() - started_s)
        return found

    def may_be_there(self, key: OffloadKey) -> bool:
        """Not known to be missing: what the host tier holds is never asked here. On the scheduler's
        thread.
        """
        state = self._lookup_state.get(key)
        return state is None or state.result is not False


@dataclass(slots=True)
class _Job:
    """A load or store in progress. `done` and `unfinished_parts` change under the tier's lock.

    arrivals: of a load, to be told as soon as a chunk has come or is known not to. prompt: of a store.
    """

    job_id: JobId
    request: _Request
    request_id: str
    keys: list[OffloadKey]
    is_load: bool
    started_s: float
    unfinished_parts: int
    done: set[OffloadKey]
    arrivals: dict[OffloadKey, Future[bool]] = field(default_factory=dict)
    ended_s: float = 0.0
    prompt: _Prompt | None = None


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
        """primary_kv_view: [chunks, chunk_bytes] of the host tier. parameters: see `RedisTierSettings`;
        others are refused.
        """
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self.locality = Locality.REMOTE
        settings = RedisTierSettings.parse(parameters)
        self._threads = settings.threads
        self._load_budget_s = settings.load_budget_s
        self._store = RedisChunkStore(
            settings.redis_url,
            settings.namespace,
            codec=chunk_codec(settings.codec, settings.layout, chunk_bytes=self._block_size_bytes),
            ttl_s=settings.ttl_s,
            quotas=Quotas(settings.cache_quota_bytes, settings.tenant_quota_bytes),
            admit_on_use=settings.admit_on_use,
            io_timeout_s=settings.io_timeout_s,
            lookup_timeout_s=settings.lookup_timeout_s,
            connect_timeout_s=settings.connect_timeout_s,
            failures_to_open=settings.failures_to_open,
            pause_s=settings.pause_s,
        )
        self._host_bytes = primary_kv_view.cast("B")
        self._rates = MeasuredRates()
        self._always_load = settings.always_load
        self._lookups = _RedisLookups(self._store, self._rates, tier_type)
        self._upkeep = Upkeep(self._store.ledger, self._store.removed, failed=self._store.loop_failed)
        self._load_pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="memserve_kv_load")
        self._store_pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="memserve_kv_store")
        self._lock = threading.Lock()
        self._finished: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._in_flight: set[Future[None]] = set()
        self._closing = threading.Event()
        self._events: list[OffloadingEvent] | None = (
            [] if settings.announce and offloading_spec.kv_events_config.enable_kv_cache_events else None
        )
        self._reported: dict[str, int] = {}  # gauges
        self._decisions: Counter[Decision] = Counter()
        self._loading_chunks = self._storing_chunks = self._dropped_chunks = 0
        self._loads_by_request: Counter[str] = Counter()
        self._arrivals: dict[int, Future[bool]] = {}
        self._most_waiting_chunks = max(1, int(len(primary_kv_view) * _MOST_WAITING_SHARE))

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        keep = _Request.of(req_context).keep
        return RequestOffloadingContext(OffloadPolicy.REQUEST_LEVEL if keep else OffloadPolicy.CHUNK_LEVEL)

    def prefilled(self, tokens: int, seconds: float) -> None:
        """The engine has computed prompt tokens in a step. Called on the scheduler's thread."""
        self._rates.prefilled(tokens, seconds)

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._lookups.cleanup(req_context.req_id)
        request = _Request.of(req_context)
        request.finished = True
        self._tell_uses(request)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        self._lookups.flush()

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        found = self._lookups.lookup(key, req_context)
        if found is None:
            return LookupResult.RETRY
        return LookupResult.HIT if found and self._worth_loading(key, req_context) else LookupResult.MISS

    def only_waits(self, request_id: str) -> bool:
        """Whether chunks of this request are on their way from Redis, and no load has ended since
        `get_finished_jobs`.

        Then looking its chunks up again can tell nothing new. On the scheduler's thread.
        """
        return request_id in self._loads_by_request and self._finished.empty()

    def tell_arrival(self, chunk: int, arrival: Future[bool]) -> None:
        """Of the load that is submitted next: tell whether this chunk of host memory was filled.

        True once it is verified; False at the end of the load. On the scheduler's thread.
        """
        self._arrivals[chunk] = arrival

    def submit_load(self, job_metadata: TransferJob) -> None:
        pairs = list(zip(job_metadata.keys, (int(chunk) for chunk in job_metadata.chunk_ids), strict=True))
        self._loading_chunks += len(pairs)
        parts = [part for part in (pairs[i :: self._threads] for i in range(self._threads)) if part]
        job = self._job(job_metadata, [key for key, _ in pairs], len(parts), is_load=True)
        job.arrivals = {key: self._arrivals.pop(chunk) for key, chunk in pairs if chunk in self._arrivals}
        self._loads_by_request[job.request_id] += 1
        self._submit(job, parts, self._load_pool)

    def submit_store(self, job_metadata: TransferJob) -> None:
        """One part: its chunks are counted, and may push each other out, in the order of their chain."""
        pairs = list(zip(job_metadata.keys, (int(chunk) for chunk in job_metadata.chunk_ids), strict=True))
        job = self._job(job_metadata, [key for key, _ in pairs], 1 if pairs else 0, is_load=False)
        waiting = self._storing_chunks + len(pairs)
        if waiting > self._most_waiting_chunks and self._storing_chunks and not job.request.keep:
            self._dropped_chunks += len(pairs)
            self._submit(job, [], self._store_pool)
            return
        self._storing_chunks = waiting
        # What it takes to put them in order is the pool's work; the positions are the scheduler's, which goes
        # on filling them.
        job.prompt = _Prompt(job.request, dict(job_metadata.req_context._offload_key_positions))
        self._submit(job, [pairs] if pairs else [], self._store_pool)

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
        self._upkeep.close()
        self._lookups.shutdown()
        for pool in (self._load_pool, self._store_pool):
            pool.shutdown(wait=True, cancel_futures=True)
        self._host_bytes.release()
        self._store.close()

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        """vLLM registers these in the front-end's process, and does not unregister them: one engine per
        process.
        """
        return metric_definitions()

    def get_stats(self) -> OffloadingConnectorStats | None:
        """What happened since the last call; vLLM asks after every step of the engine."""
        stats = tier_stats(self._store.take_stats(), self._decisions, self._dropped_chunks)
        self._decisions, self._dropped_chunks = Counter(), 0
        gauges = {
            "circuit_state": self._store.circuit.value,
            "cache_bytes": self._upkeep.counted_bytes,
            "cache_quota_bytes": self._store.ledger.quotas.cache_bytes,
        }
        for name, gauge in gauges.items():
            if gauge is not None and gauge != self._reported.get(name):
                self._reported[name] = gauge
                stats.set_gauge(PREFIX + name, gauge)
        return None if stats.is_empty() else stats

    def _job(self, metadata: TransferJob, keys: list[OffloadKey], parts: int, *, is_load: bool) -> _Job:
        context = metadata.req_context
        return _Job(
            metadata.job_id,
            _Request.of(context),
            context.req_id,
            keys,
            is_load,
            time.monotonic(),
            parts,
            set(),
        )

    def _worth_loading(self, key: OffloadKey, req_context: ReqContext) -> bool:
        """Whether a chunk that is in Redis is to be fetched. Decided once for a request, from the rates at
        its first hit.
        """
        end_tokens: int | None = req_context.get_offload_key_position(key)
        if self._always_load or end_tokens is None:
            return True
        request = _Request.of(req_context)
        if request.load_until_tokens is None:
            rates, stale = self._rates.now(time.monotonic())
            chain = [each for each in req_context._offload_key_positions if each[-4:] == key[-4:]]
            first = chain.index(key)
            found = sum(1 for _ in itertools.takewhile(self._lookups.may_be_there, chain[first:]))
            chunks, decision = chunks_to_load(
                found,
                chunk_tokens=end_tokens // (first + 1),
                chunk_bytes=self._block_size_bytes,
                waiting_bytes=self._loading_chunks * self._block_size_bytes,
                rates=rates,
                budget_s=self._load_budget_s,
                stale=stale,
            )
            self._decisions[decision] += 1
            request.load_until_tokens = end_tokens // (first + 1) * (first + chunks)
        return end_tokens <= request.load_until_tokens

    def _tell_uses(self, request: _Request) -> None:
        """Once the request has ended: the ledger can wait, and its first token should not wait for the
        ledger.
        """
        used, request.loaded = request.loaded, []
        if used and len(self._in_flight) < _MOST_IN_FLIGHT:
            self._start(self._store_pool, functools.partial(self._store.use, used))

    def _move(self, job: _Job, part: list[tuple[OffloadKey, int]]) -> set[OffloadKey]:
        """Returns the keys of what was moved."""
        if job.prompt is not None:
            part = sorted(part, key=lambda pair: job.prompt.depth_tokens(pair[0]) if job.prompt else 0)
        keys = [key for key, _ in part]
        size = self._block_size_bytes
        with contextlib.ExitStack() as views:
            chunks = [
                views.enter_context(self._host_bytes[chunk * size : (chunk + 1) * size]) for _, chunk in part
            ]
            if job.prompt is None:

                def loaded_one(number: int) -> None:
                    arrival = job.arrivals.get(keys[number])
                    if arrival is not None:
                        arrival.set_result(True)

                loaded = self._store.load(keys, chunks, budget_s=self._load_budget_s, loaded_one=loaded_one)
                return {key for key, came in zip(keys, loaded, strict=True) if came}
            rates, _ = self._rates.now(time.monotonic())
            worth = worth_per_use(job.prompt.chunk_tokens, size, rates.prefill_tokens_per_s)
            outcomes = self._store.store(
                keys, chunks, budget_s=_STORE_BUDGET_S, account=job.prompt.account(keys, worth)
            )
            return {
                key
                for key, put in zip(keys, outcomes, strict=True)
                if put in (Put.STORED, Put.ALREADY_PRESENT)
            }

    def _submit(
        self, job: _Job, parts: Sequence[list[tuple[OffloadKey, int]]], pool: ThreadPoolExecutor
    ) -> None:
        """The part that ends last reports the job."""
        if not parts:
            job.ended_s = job.started_s
            self._finished.put(job)
        for part in parts:
            self._start(pool, functools.partial(self._move_part, job, part))

    def _start(self, pool: ThreadPoolExecutor, work: Callable[[], None]) -> None:
        future = pool.submit(work)
        self._in_flight.add(future)
        future.add_done_callback(self._in_flight.discard)

    def _move_part(self, job: _Job, part: list[tuple[OffloadKey, int]]) -> None:
        """On a pool's thread."""
        done: set[OffloadKey] = set()
        try:
            if not self._closing.is_set():
                done = self._move(job, part)
        except Exception:
            logger.exception("KV %s of %d chunks failed", "load" if job.is_load else "store", len(part))
        for key, _ in part:
            arrival = job.arrivals.get(key)
            if arrival is not None and not arrival.done():
                arrival.set_result(False)
            elif arrival is not None:
                done.add(key)  # whoever was told so copies it, whatever failed after
        with self._lock:
            job.done |= done
            job.unfinished_parts -= 1
            job.ended_s = time.monotonic()
            if job.unfinished_parts:
                return
        self._finished.put(job)

    def _result(self, job: _Job) -> JobResult:
        """On the scheduler's thread."""
        successful = [key for key in job.keys if key in job.done]
        success = len(successful) == len(job.keys)
        seconds = job.ended_s - job.started_s
        if job.is_load:
            self._loading_chunks -= len(job.keys)
            self._loads_by_request[job.request_id] -= 1
            if not self._loads_by_request[job.request_id]:
                del self._loads_by_request[job.request_id]
            self._rates.loaded(len(successful) * self._block_size_bytes, seconds, job.ended_s)
            job.request.loaded += successful
            if job.request.finished:
                self._tell_uses(job.request)
            # Without this the scheduler would ask for a load that fails again and again.
            self._lookups.mark_miss([key for key in job.keys if key not in job.done])
        else:
            self._storing_chunks -= len(job.keys) if job.prompt is not None else 0
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
        return JobResult(
            job_id=job.job_id,
            success=success,
            successful_keys=None if success else tuple(successful) or None,
            transfer_time=seconds,
            transfer_bytes=len(successful) * self._block_size_bytes,
        )
