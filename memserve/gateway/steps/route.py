"""Step 6 of a request: the worker with the least predicted TTFT, and what to do when it fails."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

from memserve.config import Settings
from memserve.domain import CacheLayout, GenerationRequest
from memserve.domain.worker_calls import WorkerDied, WorkerFailure
from memserve.errors import NoWorker, WorkersLost
from memserve.gateway.steps.lookup import LookedUp
from memserve.gateway.steps.resolve import AnsweringModule, AnsweringModules
from memserve.gateway.workers.pool import PooledWorker, WorkerPool
from memserve.policy.routing.choose import RoutingChoice, choose_worker
from memserve.policy.routing.predict import RoutingCosts
from memserve.policy.routing.snapshot import PlacedModule, WorkerSnapshot, slots_ahead

ATTEMPTS = 3
# What ends one worker may end the next, and then the one after it.
LOST_RETRIES = 1


class Router:
    """Builds a snapshot of each worker that may answer, and lets the policy choose."""

    def __init__(self, pool: WorkerPool, settings: Settings, costs: RoutingCosts) -> None:
        self._pool = pool
        self._settings = settings
        self._costs = costs

    def choose(
        self,
        request: GenerationRequest,
        tenant: str,
        modules: AnsweringModules,
        prompt_tokens: int,
        cached: Mapping[CacheLayout, LookedUp],
        tried: Collection[str],
    ) -> tuple[PooledWorker, RoutingChoice]:
        """Raises NoWorker. tried: ids of the workers that have failed this request."""
        now_s = time.monotonic()

        def fitting(workers: Sequence[PooledWorker]) -> dict[str, PooledWorker]:
            return {
                worker.lease.worker_id: worker
                for worker in workers
                if worker.lease.worker_id not in tried
                and modules.fit(worker.lease.model_digest)
                and request.worker_id in ("", worker.lease.worker_id)
            }

        # The worker that is left to other tenants is better than none.
        ready = fitting(self._pool.open_to(tenant, now_s)) or fitting(self._pool.ready(now_s))
        snapshots = [
            self._snapshot(worker, modules, cached.get(worker.lease.layout, LookedUp()))
            for worker in ready.values()
        ]
        choice = choose_worker(snapshots, prompt_tokens, self._costs)
        if choice is None:
            raise NoWorker(
                f"worker {request.worker_id} is not ready" if request.worker_id else "none is ready"
            )
        return ready[choice.worker_id], choice

    def _snapshot(self, worker: PooledWorker, modules: AnsweringModules, prompt: LookedUp) -> WorkerSnapshot:
        held_blocks = self._pool.index.longest_prefix(worker.lease.worker_id, prompt.keys)
        return WorkerSnapshot(
            worker_id=worker.lease.worker_id,
            running=max(worker.running, worker.state.running + worker.state.waiting),
            pending_prefill_tokens=worker.pending_prefill_tokens,
            held_tokens=held_blocks * worker.lease.block_tokens,
            shared_tokens=prompt.redis_tokens if worker.lease.shares_kv else 0,
            prefill_tokens_per_s=worker.prefill_tokens_per_s,
            modules=tuple(self._placed(worker, module) for module in modules.modules),
        )

    def _placed(self, worker: PooledWorker, module: AnsweringModule) -> PlacedModule:
        digest, row = module.version.digest, module.row
        ahead = 0
        if row.slots_setting:
            ahead = slots_ahead(digest, worker.in_slots, getattr(self._settings, row.slots_setting))
        return PlacedModule(worker.place_of(digest), row.costs, ahead)


class Attempts:
    """The workers that one request was sent to in vain."""

    def __init__(self, pool: WorkerPool, *, only: str) -> None:
        """only: the id of the one worker that the request may go to; empty: any."""
        self._pool = pool
        self._only = only
        self._lost = 0
        self.tried: set[str] = set()

    def failed(self, failure: WorkerFailure) -> None:
        """The worker failed before its first token. Raises WorkersLost or NoWorker when no other is asked."""
        self.tried.add(failure.worker_id)
        self._lost += isinstance(failure, WorkerDied)
        if self._lost > LOST_RETRIES:
            raise WorkersLost(self._lost, failure.detail) from None
        others = {worker.lease.worker_id for worker in self._pool.ready(time.monotonic())} - self.tried
        if len(self.tried) >= ATTEMPTS or self._only or not others:
            raise NoWorker(failure.detail) from None
