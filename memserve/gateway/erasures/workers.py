"""Has every worker forget what it has of erased memories. One that is away is told when it is back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from memserve.domain import FreedMemory
from memserve.domain.kinds import kind_of_name
from memserve.domain.worker_calls import WorkerFailure
from memserve.gateway.workers.pool import WorkerPool
from memserve.gateway.workers.pooled_worker import PooledWorker
from memserve.memory.erasures.records import ErasureRecord, RetiredVersion

TIMEOUT_S = 20.0
HELD_TRIES, HELD_PAUSE_S = 10, 0.2
"""For chunks that are on their way to or from Redis, which takes milliseconds."""
GONE_S = 600.0
"""A worker without a lease for so long has ended, and its memory with it."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the workers have removed."""

    workers: int = 0
    blocks: int = 0
    chunks: int = 0
    trainings: int = 0
    copies: int = 0


class ForgettingWorkers:
    """The workers of this gateway's registry."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    def note(self, record: ErasureRecord) -> None:
        """Every worker that there is has to be told, also one that has come since."""
        record.workers |= {*self._pool.workers, *self._pool.refused} - record.told

    async def tell(
        self, record: ErasureRecord, keys: Sequence[str], versions: Sequence[RetiredVersion], now_s: float
    ) -> Told:
        """Tell those that have not been told. Those that are told leave `record.workers`.

        keys: of the memories. versions: whose content nothing else has.
        """
        self.note(record)
        waiting = sorted(record.workers)
        results = await asyncio.gather(*(self._tell(name, record.tenant, keys, versions) for name in waiting))
        told = Told()
        for name, freed in zip(waiting, results, strict=True):
            if freed is None:
                is_gone = name not in self._pool.workers and name not in self._pool.refused
                if is_gone and now_s - record.erasure.at_s > GONE_S:
                    record.workers.discard(name)
                continue
            record.workers.discard(name)
            record.told.add(name)
            told = Told(
                told.workers + 1,
                told.blocks + freed.blocks,
                told.chunks + freed.chunks,
                told.trainings + freed.trainings,
                told.copies + len(versions),
            )
        return told

    async def _tell(
        self, name: str, tenant: str, keys: Sequence[str], versions: Sequence[RetiredVersion]
    ) -> FreedMemory | None:
        """None: it could not be told, or not all of it could be removed."""
        worker = self._pool.workers.get(name)
        if worker is None or not worker.connected:
            return None
        try:
            freed = await self._freed(worker, tenant, keys)
            with worker.calling() as calls:
                for version in versions:
                    await calls.unload_module(
                        version.digest, kind_of_name(version.kind), forget=True, timeout_s=TIMEOUT_S
                    )
        except WorkerFailure:
            return None
        return None if freed.held else freed

    async def _freed(self, worker: PooledWorker, tenant: str, keys: Sequence[str]) -> FreedMemory:
        total = FreedMemory(0, 0, 0)
        for tries_left in reversed(range(HELD_TRIES)):
            with worker.calling() as calls:
                freed = await calls.forget_memories(tenant, keys, TIMEOUT_S)
            total = FreedMemory(
                total.blocks + freed.blocks,
                total.chunks + freed.chunks,
                freed.held,
                total.trainings + freed.trainings,
            )
            if not freed.held:
                break
            if tries_left:
                await asyncio.sleep(HELD_PAUSE_S)
        return total
