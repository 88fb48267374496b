"""The loads and stores of the Redis tier, on threads of their own."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from vllm.logger import init_logger
from vllm.v1.kv_offload.base import OffloadKey
from vllm.v1.kv_offload.tiering.base import JobId

from memserve.kv.outcomes import Put
from memserve.kv.rates import MeasuredRates
from memserve.kv.store import RedisChunkStore
from memserve.policy.kv.eviction import worth_per_use
from memserve.worker.kv.arrivals import Arrival
from memserve.worker.kv.tier_requests import StoredPrompt, TierRequest
from memserve.worker.kv.tier_settings import RedisTierSettings

logger = init_logger(__name__)

# Only the host memory that a store holds waits for it.
STORE_BUDGET_S = 5.0
# The ledger counts uses behind the stores. While this much is under way, it counts none.
MAX_IN_FLIGHT = 64

Part = Sequence[tuple[OffloadKey, int]]
"""Chunks that one thread moves: keys and their places in host memory."""


@dataclass(slots=True)
class Job:
    """A load or a store of chunks, as vLLM has submitted it."""

    job_id: JobId
    request: TierRequest
    request_id: str
    keys: list[OffloadKey]
    is_load: bool
    started_s: float
    arrivals: dict[OffloadKey, Arrival] = field(default_factory=dict)
    """Of a load: what to set as soon as a chunk has come, or is known not to come."""
    prompt: StoredPrompt | None = None
    """Of a store; None for a store that was dropped."""
    unfinished_parts: int = 0
    """Changes under the lock of `Transfers`."""
    done: set[OffloadKey] = field(default_factory=set)
    """The chunks that were moved. Changes under the lock of `Transfers`."""
    ended_s: float = 0.0


class Transfers:
    """Moves chunks between host memory and Redis.

    Loads and stores have a pool of threads each: requests wait for loads, so stores must not hold loads up.
    The scheduler's thread owns the public methods, except where one says otherwise.
    """

    def __init__(
        self,
        store: RedisChunkStore,
        host: memoryview,
        chunk_bytes: int,
        rates: MeasuredRates,
        settings: RedisTierSettings,
    ) -> None:
        """host: [chunks, chunk_bytes] of host memory."""
        self._store = store
        self._host_bytes = host.cast("B")
        self._chunk_bytes = chunk_bytes
        self._rates = rates
        self._threads = settings.threads
        self._load_budget_s = settings.load_budget_s
        self._load_pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="memserve_kv_load")
        self._store_pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="memserve_kv_store")
        self._lock = threading.Lock()
        self._finished: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._in_flight: set[Future[None]] = set()
        self._closing = threading.Event()

    def load(self, job: Job, chunks: Part) -> None:
        """Begin a load, spread over the threads."""
        parts = [chunks[first :: self._threads] for first in range(self._threads)]
        self._submit(job, [part for part in parts if part], self._load_pool)

    def store(self, job: Job, chunks: Part) -> None:
        """Begin a store in one part: the ledger counts its chunks in the order of their chain."""
        self._submit(job, [chunks] if chunks else [], self._store_pool)

    def drop(self, job: Job) -> None:
        """End a job without moving anything."""
        self._submit(job, [], self._store_pool)

    def count_uses(self, keys: list[OffloadKey]) -> None:
        """Have the ledger count a use of these chunks, unless too much is under way already."""
        if len(self._in_flight) < MAX_IN_FLIGHT:
            self._start(self._store_pool, functools.partial(self._store.use, keys))

    def none_has_ended(self) -> bool:
        """Whether no job has ended since the last `take_ended`."""
        return self._finished.empty()

    def take_ended(self) -> Iterator[Job]:
        """The jobs that have ended since the last call."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._finished.get_nowait()

    def drain(self) -> None:
        """Wait until everything that was begun has ended."""
        wait(list(self._in_flight))

    def close(self) -> None:
        """Ends within a few I/O timeouts: jobs that have not begun are given up."""
        self._closing.set()
        for pool in (self._load_pool, self._store_pool):
            pool.shutdown(wait=True, cancel_futures=True)
        self._host_bytes.release()

    def _submit(self, job: Job, parts: Sequence[Part], pool: ThreadPoolExecutor) -> None:
        """The part that ends last reports the job."""
        job.unfinished_parts = len(parts)
        if not parts:
            job.ended_s = job.started_s
            self._finished.put(job)
        for part in parts:
            self._start(pool, functools.partial(self._move_part, job, part))

    def _start(self, pool: ThreadPoolExecutor, work: Callable[[], None]) -> None:
        future = pool.submit(work)
        self._in_flight.add(future)
        future.add_done_callback(self._in_flight.discard)

    def _move_part(self, job: Job, part: Part) -> None:
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
                # The worker copies a chunk as soon as its arrival is set, whatever fails after that.
                done.add(key)
        with self._lock:
            job.done |= done
            job.unfinished_parts -= 1
            job.ended_s = time.monotonic()
            if job.unfinished_parts:
                return
        self._finished.put(job)

    def _move(self, job: Job, part: Part) -> set[OffloadKey]:
        """On a pool's thread. Returns the keys of the chunks that were moved."""
        prompt = job.prompt
        if prompt is not None:
            part = sorted(part, key=lambda pair: prompt.depth_tokens(pair[0]))
        keys = [key for key, _ in part]
        size = self._chunk_bytes
        with contextlib.ExitStack() as views:
            chunks = [
                views.enter_context(self._host_bytes[place * size : (place + 1) * size]) for _, place in part
            ]
            if prompt is not None:
                return self._store_chunks(keys, chunks, prompt)
            return self._load_chunks(keys, chunks, job.arrivals)

    def _load_chunks(
        self, keys: list[OffloadKey], chunks: list[memoryview], arrivals: dict[OffloadKey, Arrival]
    ) -> set[OffloadKey]:
        """On a pool's thread."""

        def loaded_one(number: int) -> None:
            arrival = arrivals.get(keys[number])
            if arrival is not None:
                arrival.set_result(True)

        loaded = self._store.load(keys, chunks, budget_s=self._load_budget_s, loaded_one=loaded_one)
        return {key for key, came in zip(keys, loaded, strict=True) if came}

    def _store_chunks(
        self, keys: list[OffloadKey], chunks: list[memoryview], prompt: StoredPrompt
    ) -> set[OffloadKey]:
        """On a pool's thread. keys: in the order of the prompt."""
        rates, _ = self._rates.now(time.monotonic())
        worth = worth_per_use(prompt.chunk_tokens, self._chunk_bytes, rates.prefill_tokens_per_s)
        outcomes = self._store.store(
            keys, chunks, budget_s=STORE_BUDGET_S, account=prompt.account(keys, worth)
        )
        return {
            key for key, put in zip(keys, outcomes, strict=True) if put in (Put.STORED, Put.ALREADY_PRESENT)
        }
