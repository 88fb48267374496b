"""The workers that this gateway knows: found in the registry, and watched over their own streams."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field

from memserve.domain import CacheLayout, ModulePlace, WorkerLease
from memserve.domain.worker_calls import (
    BlockChange,
    BlockEvent,
    WorkerCalls,
    WorkerDied,
    WorkerFailure,
    WorkerFaulty,
    WorkerLate,
    WorkerState,
)
from memserve.errors import RegistryUnavailable
from memserve.kv.index import BlockIndex
from memserve.policy.sharing.fairness import engine_share, worker_to_leave
from memserve.processes.supervised import Failed, repeat, uncounted
from memserve.registry.leases import Registry
from memserve.turns import Turns

log = logging.getLogger("memserve.gateway.workers.pool")

DISCOVERY_S = 0.25
# A worker speaks four times a second. One that is silent for longer is chosen only when no other is left.
SILENT_S = 1.0
RECONNECT_S = 0.2
# Answers of a tenant that wait for a place. Their callers are limited before; this is for gates and warm-ups.
PLACES_WAITING = 1024


@dataclass(slots=True)
class PooledWorker:
    """A worker as this gateway sees it."""

    lease: WorkerLease
    calls: WorkerCalls
    """Outside this file, through `calling`."""
    connected: bool = False
    heard_s: float = 0.0
    state: WorkerState = field(default_factory=WorkerState)
    sent: dict[str, int] = field(default_factory=dict)
    """Prompt tokens of this gateway's requests that have no first token yet, by request id."""
    running: int = 0
    in_slots: Counter[str] = field(default_factory=Counter)
    """Digests of the modules that this gateway's requests need in slots of the batch, counted."""
    tenants: Counter[str] = field(default_factory=Counter)
    """Whose this gateway's requests are, counted."""
    watch: asyncio.Task[None] | None = None
    epoch: int = 0
    """Of the last block event, as `sequence` is."""
    sequence: int = 0

    @contextlib.contextmanager
    def calling(self) -> Iterator[WorkerCalls]:
        """The calls to the worker. A call that finds it dead is noted here, and here alone: the worker is
        chosen no more until its stream is back.
        """
        try:
            yield self.calls
        except WorkerDied as error:
            log.warning("worker %s failed a call: %s", self.lease.worker_id, error.detail)
            self.connected = False
            raise

    @contextlib.contextmanager
    def serving(
        self, tenant: str, request_id: str, uncached_tokens: int, slot_digest: str = ""
    ) -> Iterator[None]:
        """Count a request from the moment of its routing, so that the next one is routed knowing of it.

        slot_digest: of its module that needs a slot of the batch.
        """
        self.sent[request_id] = uncached_tokens
        self.running += 1
        self.in_slots += Counter([slot_digest] if slot_digest else [])
        self.tenants += Counter([tenant])
        try:
            yield
        finally:
            self.running -= 1
            self.in_slots -= Counter([slot_digest])  # a module that is at 0 leaves
            self.tenants -= Counter([tenant])
            self.sent.pop(request_id, None)

    def has_first_token(self, request_id: str) -> None:
        """The request's prompt is computed."""
        self.sent.pop(request_id, None)

    def place_of(self, digest: str) -> ModulePlace:
        """Where the worker said last that it has a module."""
        return self.state.modules.get(digest, ModulePlace.ABSENT)

    @property
    def prefill_tokens_per_s(self) -> float:
        """0: not measured, or what was said is no speed."""
        speed = self.state.prefill_tokens_per_s
        return speed if math.isfinite(speed) and speed > 0 else 0.0

    @property
    def pending_prefill_tokens(self) -> int:
        """The larger of what this gateway sent and what the worker last said; other gateways use it too."""
        return max(sum(self.sent.values()), self.state.pending_prefill_tokens)

    @property
    def load(self) -> tuple[int, int]:
        """What the least loaded worker has the least of."""
        return self.pending_prefill_tokens, self.running


class WorkerPool:
    """Follows the registry and every worker's stream. When the registry does not answer, the workers known so
    far stay.
    """

    def __init__(
        self,
        registry: Registry,
        index: BlockIndex,
        tokenizer_digest: str,
        connect: Callable[[WorkerLease], WorkerCalls],
        failed: Failed = uncounted,
    ) -> None:
        """connect: makes the calls to a worker, without waiting for it; raises ValueError or TypeError where
        the lease has no address.
        """
        self.workers: dict[str, PooledWorker] = {}
        self.index = index
        self.registry_ok = False
        self._registry = registry
        self._tokenizer_digest = tokenizer_digest
        self._connect = connect
        self._failed = failed
        # No longer chosen, their channels not yet closed.
        self._left: list[PooledWorker] = []
        # Of the leases that there are: why a worker is not used.
        self._refused: dict[str, str] = {}
        self._discovery: asyncio.Task[None] | None = None
        self._places = Turns("answers", 1, share=engine_share, waiting_per_tenant=PLACES_WAITING)

    async def start(self) -> None:
        self._discovery = asyncio.create_task(repeat("discovery", self._discover, DISCOVERY_S, self._failed))

    async def close(self) -> None:
        tasks = [
            task for task in [self._discovery, *(w.watch for w in self.workers.values())] if task is not None
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in [*self.workers.values(), *self._left]:
            await worker.calls.close()

    def ready(self, now_s: float) -> list[PooledWorker]:
        """Workers with a living stream; those that were heard within the last second where there is one."""
        connected = [worker for worker in self.workers.values() if worker.connected]
        fresh = [worker for worker in connected if now_s - worker.heard_s <= SILENT_S]
        return fresh or connected

    def layouts(self, *, sharing: bool = False) -> list[CacheLayout]:
        """How the workers lay KV out, that of most workers first; empty while none is known. sharing: of
        those that share KV only.
        """
        counted = Counter(
            worker.lease.layout for worker in self.workers.values() if worker.lease.shares_kv or not sharing
        )
        return sorted(counted, key=lambda layout: (-counted[layout], layout.namespace))

    def model_digest(self) -> str:
        """Of the model that most workers serve; empty while none is known."""
        counted = Counter(worker.lease.model_digest for worker in self.workers.values())
        return min(counted, key=lambda digest: (-counted[digest], digest), default="")

    @contextlib.asynccontextmanager
    async def place(self, tenant: str) -> AsyncIterator[None]:
        """Hold a place in the engines, for one answer; tenants take turns for a free one. Raises
        QuotaExceeded.

        As many places as the engines decode at the same time: what would wait in an engine waits here, where
        its turn is fair.
        """
        self._places.places = max(
            1, sum(worker.lease.max_concurrent for worker in self.ready(time.monotonic()))
        )
        self._places.hand_out()
        async with self._places.of(tenant):
            yield

    def open_to(self, tenant: str, now_s: float) -> list[PooledWorker]:
        """The ready workers that a request of this tenant may go to.

        While other tenants ask too, each leaves them the worker where it has the fewest requests itself: what
        one of them does to an engine, the others need not wait for.
        """
        ready = self.ready(now_s)
        if len(ready) < 2 or not self._places.others_ask(tenant):
            return ready
        load = {worker.lease.worker_id: (worker.tenants[tenant], worker.running) for worker in ready}
        left = worker_to_leave(load)
        return [worker for worker in ready if worker.lease.worker_id != left]

    async def _discover(self) -> None:
        try:
            leases = {lease.worker_id: lease for lease in await self._registry.live_workers()}
        except RegistryUnavailable as error:
            if self.registry_ok:
                log.warning("%s; keeping the workers known so far", error)
            self.registry_ok = False
            return
        self.registry_ok = True
        await self._follow(leases)

    async def _follow(self, leases: Mapping[str, WorkerLease]) -> None:
        self._refused = {worker_id: why for worker_id, why in self._refused.items() if worker_id in leases}
        for worker_id, lease in leases.items():
            if worker_id not in self.workers and worker_id not in self._refused:
                self._meet(lease)
        for worker_id, worker in list(self.workers.items()):
            # A lease may run out while Redis restarts: a worker that still talks stays.
            if worker_id not in leases and not worker.connected:
                del self.workers[worker_id]
                self.index.forget(worker_id)
                if worker.watch is not None:
                    worker.watch.cancel()
                self._left.append(worker)
        # One that leaves finishes the answers that it is at.
        for worker in [worker for worker in self._left if not worker.running]:
            self._left.remove(worker)
            await worker.calls.close()

    def _meet(self, lease: WorkerLease) -> None:
        """Begin to watch a worker, or refuse it and say so once. One that cannot be met keeps no other from
        being.
        """
        why = (
            ""
            if lease.tokenizer_digest == self._tokenizer_digest
            else "it serves another tokenizer than this gateway"
        )
        if not why:
            try:
                calls = self._connect(lease)
            except (TypeError, ValueError) as error:
                why = f"its address is no address: {error}"
        if why:
            log.error("worker %s is not used: %s", lease.worker_id, why)
            self._refused[lease.worker_id] = why
            return
        worker = PooledWorker(lease, calls)
        worker.watch = asyncio.create_task(
            repeat("watch", lambda: self._watch(worker), RECONNECT_S, self._failed)
        )
        self.workers[lease.worker_id] = worker

    async def _watch(self, worker: PooledWorker) -> None:
        """Follow one stream of the worker's to its end.

        A stream that cannot be followed makes the next one begin with a snapshot.
        """
        try:
            await self._follow_stream(worker)
        except (WorkerDied, WorkerLate) as error:
            # Gone, or not there yet: the next stream says. A fault of the worker's own code is counted.
            if isinstance(error, WorkerFaulty):
                raise
        except WorkerFailure:
            raise
        except Exception:
            worker.epoch = worker.sequence = 0
            raise
        finally:
            if worker.connected:
                log.warning("worker %s at %s is gone", worker.lease.worker_id, worker.lease.address)
            worker.connected = False

    async def _follow_stream(self, worker: PooledWorker) -> None:
        events = worker.calls.watch(worker.epoch, worker.sequence)
        async with contextlib.aclosing(events):
            async for event in events:
                worker.heard_s = time.monotonic()
                if isinstance(event, WorkerState):
                    worker.state = event
                    worker.connected = True
                    continue
                if not _is_next(worker, event):
                    log.warning(
                        "worker %s has left block events out; beginning anew with it", worker.lease.worker_id
                    )
                    worker.epoch = worker.sequence = 0
                    return
                self._apply(worker.lease.worker_id, event)
                worker.epoch, worker.sequence = event.epoch, event.sequence

    def _apply(self, worker_id: str, event: BlockEvent) -> None:
        match event.change:
            case BlockChange.RESET:
                self.index.reset(worker_id, event.keys)
            case BlockChange.STORED:
                self.index.add(worker_id, event.keys)
            case BlockChange.REMOVED:
                self.index.remove(worker_id, event.keys)


def _is_next(worker: PooledWorker, event: BlockEvent) -> bool:
    """A large event of a worker of version 0.1.0 comes as several events of the same number."""
    known = event.epoch == worker.epoch and worker.sequence <= event.sequence <= worker.sequence + 1
    return known or event.change is BlockChange.RESET
