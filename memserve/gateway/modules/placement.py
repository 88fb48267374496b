"""Where module versions are on this gateway's workers: loaded, unloaded, looked up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from memserve.domain import ModulePlace, ModuleVersion, WorkerResidency
from memserve.domain.worker_calls import WorkerCalls, WorkerFailure
from memserve.errors import NoWorker
from memserve.gateway.workers.picking import ready_workers
from memserve.gateway.workers.pool import WorkerPool
from memserve.gateway.workers.pooled_worker import PooledWorker
from memserve.memory.modules.registry.store import ModuleStore

LOAD_TIMEOUT_S = 120.0
PLACES_TIMEOUT_S = 5.0
# Of a load that a change of traffic waits for. A worker that takes longer loads when it is asked to answer.
SWAP_TIMEOUT_S = 30.0
# Characters of what a worker says why it has not loaded a module.
REFUSAL_MAX = 1000

Ask = Callable[[WorkerCalls], Awaitable[ModulePlace]]


class ModulePlacement:
    """Module versions of any tenant, on the workers of the pool."""

    def __init__(self, pool: WorkerPool, store: ModuleStore) -> None:
        self._pool = pool
        self._store = store

    async def load(
        self, version: ModuleVersion, *, pin: bool, worker_id: str = "", timeout_s: float = LOAD_TIMEOUT_S
    ) -> list[WorkerResidency]:
        """Have the workers load a version, each in its own time. A worker that cannot says why.

        Raises NoWorker when a worker is named that is not ready.
        """
        return await self._ask(
            version,
            ready_workers(self._pool, worker_id),
            lambda calls: calls.load_module(version.digest, version.kind, pin=pin, timeout_s=timeout_s),
        )

    async def load_for_traffic(self, version: ModuleVersion) -> None:
        """Raises NoWorker when no worker could load it: an alias that pointed at it would answer nothing."""
        residencies = await self.load(version, pin=False, timeout_s=SWAP_TIMEOUT_S)
        if all(residency.refusal for residency in residencies):
            refusals = "; ".join(f"{residency.worker_id}: {residency.refusal}" for residency in residencies)
            raise NoWorker(
                f"none can load {version.reference}: {refusals}" if residencies else "none is ready"
            )

    async def unload(self, version: ModuleVersion, worker_id: str) -> list[WorkerResidency]:
        """As `load`. Content that another version is preloaded for stays."""
        preloads = [load for load in await self._store.preloads() if load.digest == version.digest]
        kept = {preload.worker_id for preload in preloads}
        workers = [
            worker
            for worker in ready_workers(self._pool, worker_id)
            if not kept & {"", worker.lease.worker_id}
        ]
        return await self._unload(version, workers, forget=False)

    async def forget(self, version: ModuleVersion) -> None:
        """Have every worker unload the version and delete its copy of the files."""
        connected = [worker for worker in self._pool.workers.values() if worker.connected]
        await self._unload(version, connected, forget=True)

    async def residency(self, version: ModuleVersion) -> list[WorkerResidency]:
        """Where each ready worker has the version, by its own word."""

        async def place(calls: WorkerCalls) -> ModulePlace:
            return (await calls.module_places([version.digest], PLACES_TIMEOUT_S))[0]

        return await self._ask(version, ready_workers(self._pool), place)

    def check_worker(self, worker_id: str) -> None:
        """Raises NoWorker when a worker is named that is not ready."""
        ready_workers(self._pool, worker_id)

    async def _unload(
        self, version: ModuleVersion, workers: Sequence[PooledWorker], *, forget: bool
    ) -> list[WorkerResidency]:
        return await self._ask(
            version,
            workers,
            lambda calls: calls.unload_module(
                version.digest, version.kind, forget=forget, timeout_s=LOAD_TIMEOUT_S
            ),
        )

    async def _ask(
        self, version: ModuleVersion, workers: Sequence[PooledWorker], ask: Ask
    ) -> list[WorkerResidency]:
        async def residency(worker: PooledWorker) -> WorkerResidency:
            try:
                with worker.calling() as calls:
                    return WorkerResidency(worker.lease.worker_id, await ask(calls))
            except WorkerFailure as error:
                place = worker.place_of(version.digest)
                return WorkerResidency(worker.lease.worker_id, place, error.detail[:REFUSAL_MAX])

        residencies = await asyncio.gather(*map(residency, workers))
        return sorted(residencies, key=lambda each: each.worker_id)
