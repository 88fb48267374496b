"""Which workers may be asked, and which of them is the least loaded."""

from __future__ import annotations

import time
from collections.abc import Sequence

from memserve.errors import NoWorker
from memserve.gateway.workers.pool import WorkerPool
from memserve.gateway.workers.pooled_worker import PooledWorker


def ready_workers(pool: WorkerPool, worker_id: str = "") -> list[PooledWorker]:
    """All that are ready, or the named one. Raises NoWorker when a worker is named that is not ready."""
    ready = pool.ready(time.monotonic())
    if not worker_id:
        return ready
    named = [worker for worker in ready if worker.lease.worker_id == worker_id]
    if not named:
        raise NoWorker(f"worker {worker_id} is not ready")
    return named


def workers_for(pool: WorkerPool, tenant: str, worker_id: str = "") -> list[PooledWorker]:
    """The workers that a tenant's work may go to: the named one, or those that are open to the tenant.

    Raises as `ready_workers`.
    """
    return ready_workers(pool, worker_id) if worker_id else pool.open_to(tenant, time.monotonic())


def least_loaded(workers: Sequence[PooledWorker]) -> PooledWorker:
    """Raises NoWorker when there is none."""
    if not workers:
        raise NoWorker("none is ready")
    return min(workers, key=lambda worker: worker.load)
