"""The workers that this gateway knows. It finds them in the registry, and watches each over a stream."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping

from memserve.domain import CacheLayout, WorkerLease
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
from memserve.gateway.workers.pooled_worker import PooledWorker
from memserve.kv.index import BlockIndex
from memserve.policy.sharing.fairness import Lately, worker_to_leave
from memserve.processes.supervised import Failed, repeat, uncounted
from memserve.registry.leases import Registry

log = logging.getLogger("memserve.gateway.workers.pool")

DISCOVERY_S = 0.25
# A worker sends its state four times a second. A worker that is silent for longer than this is chosen only
# when no other worker is connected.
SILENT_S = 1.0
HELD_LOOK_S = 0.05
# Of workers while another model is rolled out.
OTHER_MODEL = "it serves another model than this gateway"
LAST = "it is asked while no worker of this gateway's model is connected"
FIRST_S = 2.0
"""A gateway that starts waits so long for the streams of the workers that are there."""
RECONNECT_S = 0.2
# Parts of the index that a worker that is gone is taken out of, at each discovery.
TIDY_STEPS = 8
# A tenant that sent a request within this time is active.
RECENT_S = 10.0


class WorkerPool:
    """Follows the registry and every worker's stream.

    While the registry does not answer, the workers known so far stay.
    """

    def __init__(
        self,
        registry: Registry,
        index: BlockIndex,
        tokenizer_digest: str,
        connect: Callable[[WorkerLease], WorkerCalls],
        failed: Failed = uncounted,
        model_digest: str = "",
    ) -> None:
        """tokenizer_digest: a worker with another tokenizer is not used.

        model_digest: of the model that this gateway serves. A worker of another one, with the same tokenizer,
        is asked only while no worker of this gateway's own is connected. Empty: any is its own.

        connect: returns the calls to a worker without waiting for the worker. It raises ValueError or
        TypeError when the lease's address is no address.
        failed: called when a step of a loop has failed.
        """
        self.workers: dict[str, PooledWorker] = {}
        self.index = index
        self.registry_ok = False
        self._registry = registry
        self._tokenizer_digest = tokenizer_digest
        self._model_digest = model_digest
        self._connect = connect
        self._failed = failed
        # Workers that are not chosen any more, and whose channels are still open.
        self._left: list[PooledWorker] = []
        self.refused: dict[str, str] = {}
        """By id of a worker that has a lease and is not used: why not."""
        self._discovery: asyncio.Task[None] | None = None
        self._looked = asyncio.Event()
        self._lately = Lately(RECENT_S)

    async def start(self) -> None:
        """Look for workers from now on. Returns when one of those that are there is ready, or FIRST_S later:
        a gateway that comes to a running fleet refuses nobody."""
        self._discovery = asyncio.create_task(repeat("discovery", self._discover, DISCOVERY_S, self._failed))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_S):
                await self._looked.wait()
                while self.workers and not self.ready(time.monotonic()):
                    await asyncio.sleep(HELD_LOOK_S)

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
        """The workers that requests may go to.

        Those with a living stream; of them, those of this gateway's own model, if there are any; of these,
        those that were heard within the last SILENT_S seconds, if there are any.
        """
        connected = [worker for worker in self.workers.values() if worker.connected]
        own = [worker for worker in connected if self.is_own(worker)] or connected
        return [worker for worker in own if now_s - worker.heard_s <= SILENT_S] or own

    def is_own(self, worker: PooledWorker) -> bool:
        """Whether the worker serves this gateway's model."""
        return self._model_digest in ("", worker.lease.model_digest)

    def told_of(self, worker: PooledWorker) -> str:
        """What a status says of the worker beside numbers, for people; empty: nothing."""
        other = "" if self.is_own(worker) else f"{OTHER_MODEL} ({worker.lease.model_digest[:12]}): {LAST}"
        return "; ".join(filter(None, (worker.lease.limits, other)))

    async def until_ready(self, timeout_s: float) -> None:
        """Wait until a worker is ready, or for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.ready(time.monotonic()):
                    await asyncio.sleep(HELD_LOOK_S)

    def layouts(self, *, sharing: bool = False) -> list[CacheLayout]:
        """How the workers lay KV out. The layout of most workers comes first. Empty while no worker is known.

        sharing: only the layouts of workers that share KV.
        """
        counted = Counter(
            worker.lease.layout for worker in self.workers.values() if worker.lease.shares_kv or not sharing
        )
        return sorted(counted, key=lambda layout: (-counted[layout], layout.namespace))

    def model_digest(self) -> str:
        """The digest of the model that most workers serve. Empty while no worker is known."""
        counted = Counter(worker.lease.model_digest for worker in self.workers.values())
        return min(counted, key=lambda digest: (-counted[digest], digest), default="")

    def asked(self, tenant: str) -> None:
        """The tenant has sent a request."""
        self._lately.see(tenant, time.monotonic())

    def open_to(self, tenant: str, now_s: float) -> list[PooledWorker]:
        """The ready workers that a request of this tenant may go to.

        While other tenants are active, a tenant leaves one worker to them: `worker_to_leave`. They then need
        not wait for what this tenant does to the other engines.
        """
        ready = self.ready(now_s)
        if len(ready) < 2 or not self._others_ask(tenant):
            return ready
        load = {worker.lease.worker_id: (worker.tenants[tenant], worker.running) for worker in ready}
        left = worker_to_leave(load)
        return [worker for worker in ready if worker.lease.worker_id != left]

    def _others_ask(self, tenant: str) -> bool:
        """Whether another tenant was active lately, or has requests under way."""
        return self._lately.others(tenant) or any(
            worker.tenants.total() > worker.tenants[tenant] for worker in self.workers.values()
        )

    async def _discover(self) -> None:
        await self._look()
        self._looked.set()

    async def _look(self) -> None:
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
        self.refused = {worker_id: why for worker_id, why in self.refused.items() if worker_id in leases}
        for worker_id, lease in leases.items():
            if worker_id not in self.workers and worker_id not in self.refused:
                self._meet(lease)
        for worker_id, worker in list(self.workers.items()):
            # A lease may run out while Redis restarts. A worker whose stream is alive stays.
            if worker_id not in leases and not worker.connected:
                del self.workers[worker_id]
                self.index.forget(worker_id)
                if worker.watch is not None:
                    worker.watch.cancel()
                self._left.append(worker)
        for _ in range(TIDY_STEPS):
            if not self.index.tidy():
                break
            await asyncio.sleep(0)
        # A worker that leaves finishes its answers before its channel is closed.
        for worker in [worker for worker in self._left if not worker.running]:
            self._left.remove(worker)
            await worker.calls.close()

    def _meet(self, lease: WorkerLease) -> None:
        """Begin to watch a worker, or refuse it and log why once.

        A refusal does not raise, so that the other workers are still met.
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
            self.refused[lease.worker_id] = why
            return
        worker = PooledWorker(lease, calls)
        worker.watch = asyncio.create_task(
            repeat("watch", lambda: self._watch(worker), RECONNECT_S, self._failed)
        )
        self.workers[lease.worker_id] = worker

    async def _watch(self, worker: PooledWorker) -> None:
        """Follow one stream of the worker to its end.

        After an event that cannot be handled, the next stream begins with a RESET.
        """
        try:
            await self._follow_stream(worker)
        except (WorkerDied, WorkerLate) as error:
            # The worker is gone or has not started. The next stream will tell. A fault of the worker's own
            # code goes on, to be counted.
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
                    worker.hear(event, worker.heard_s)
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
    """Whether the event follows the last event of the worker.

    A worker of version 0.1.0 sends a large event as several events of the same number.
    """
    known = event.epoch == worker.epoch and worker.sequence <= event.sequence <= worker.sequence + 1
    return known or event.change is BlockChange.RESET
