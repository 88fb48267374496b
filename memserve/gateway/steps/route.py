"""Step 6 of a request: the worker that the policy picks, and what to do when it fails."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from memserve.config import Settings
from memserve.domain import CacheLayout, ExcludedWorker, GenerationRequest, RefusalReason, RouteCandidate
from memserve.domain.worker_calls import WorkerDied, WorkerFailure, WorkerFull
from memserve.errors import NoWorker, Overloaded, WorkersLost
from memserve.gateway.steps.lookup import LookedUp
from memserve.gateway.steps.resolve import AnsweringModule, AnsweringModules
from memserve.gateway.workers.pool import LAST, OTHER_MODEL, WorkerPool
from memserve.gateway.workers.pooled_worker import PooledWorker, Sent
from memserve.policy.routing.breaker import Breakers
from memserve.policy.routing.budget import RetryBudget
from memserve.policy.routing.candidates import few
from memserve.policy.routing.forecast import (
    Demand,
    Forecast,
    Held,
    PlacedModule,
    forecast,
    misses,
    slots_ahead,
)
from memserve.policy.routing.load import WorkerLoad
from memserve.policy.routing.policies import MARGIN, POLICIES, Candidate, Situation
from memserve.policy.routing.promises import PromisedWorkers, mark_of
from memserve.policy.routing.residuals import Residuals

ATTEMPTS = 3
# What ends one worker may end the next, and then the one after it.
LOST_RETRIES = 1
TOLD_MAX = 64
"""Workers in a receipt."""
# These need not see every worker of a large fleet.
OF_FEW = frozenset({"least_ttft", "least_harm", "cheapest_feasible", "lmetric", "least_tokens"})


@dataclass(frozen=True, slots=True)
class RoutingChoice:
    """The chosen worker, and why."""

    chosen: Candidate
    demand: Demand
    model: str
    """The name of the model that the worker serves."""
    reason: str
    """One line for a person."""
    candidates: tuple[RouteCandidate, ...]
    excluded: tuple[ExcludedWorker, ...]
    within_s: float
    """Nine of ten first tokens came within so much of their prediction lately."""

    @property
    def worker_id(self) -> str:
        return self.chosen.load.worker

    @property
    def forecast(self) -> Forecast:
        return self.chosen.forecast

    @property
    def sent(self) -> Sent:
        """What the worker gets to do by it."""
        forecast = self.forecast
        return Sent(forecast.computed_tokens, self.demand.band, self.demand.deadline_s, forecast.own_s)


class Router:
    """Says which workers may answer and what is known of each, and lets the policy of the settings pick."""

    def __init__(
        self, pool: WorkerPool, settings: Settings, residuals: Residuals, breakers: Breakers
    ) -> None:
        self._pool = pool
        self._breakers = breakers
        self._settings = settings
        self._policy = POLICIES[settings.routing_policy]
        self._residuals = residuals
        self._decided = 0
        self._promised = PromisedWorkers()
        self._budget = RetryBudget()

    def attempts(self, request: GenerationRequest, tenant: str, token_ids: Sequence[int]) -> Attempts:
        """For a request that comes."""
        self._budget.request()
        known_by = (tenant, request.priority.band, mark_of(token_ids))
        return Attempts(self._pool, self._promised, self._budget, known_by, only=request.worker_id)

    def choose(
        self,
        request: GenerationRequest,
        tenant: str,
        modules: AnsweringModules,
        prompt_tokens: int,
        cached: Mapping[CacheLayout, LookedUp],
        attempts: Attempts,
        accepted_s: float,
    ) -> tuple[PooledWorker, RoutingChoice]:
        """Raises NoWorker, and Overloaded when a worker has refused the request and no other would be in
        time."""
        now_s = time.monotonic()
        wish_ms = request.slo.ttft_ms or self._settings.default_ttft_ms
        demand = Demand(
            prompt_tokens,
            accepted_s + wish_ms / 1000,
            request.sampling.max_tokens,
            request.priority.band,
            request.session,
        )
        eligible, excluded = self._eligible(request, tenant, modules, demand, attempts.tried, now_s)
        if not eligible:
            attempts.nobody_is_left()
            raise NoWorker(
                f"worker {request.worker_id} is not ready" if request.worker_id else "none is ready"
            )
        if not attempts.tried:
            promised = self._promised.take(*attempts.known_by, now_s)
            eligible = [each for each in eligible if each.lease.worker_id == promised] or eligible
        candidates = self._candidates(eligible, demand, modules, cached, now_s)
        chosen = self._policy(Situation(demand, now_s, self._decided, random.random), candidates)
        self._decided += 1
        # Policies that take no forecast learn nothing from it, and a session would leave its worker.
        explores = self._settings.routing_policy in OF_FEW and not attempts.tried
        explored = explores and random.random() < self._settings.routing_exploration
        if explored:
            in_time = [each for each in candidates if not misses(demand, each.forecast.ttft_s, now_s, MARGIN)]
            chosen = random.choice(in_time or [chosen])
        attempts.second_offer(demand, chosen.forecast, now_s)
        worker_id = chosen.load.worker
        self._breakers.asked(worker_id, now_s)
        worker = next(each for each in eligible if each.lease.worker_id == worker_id)
        other = "" if self._pool.is_own(worker) else f"; {OTHER_MODEL}, whose own are not connected"
        choice = RoutingChoice(
            chosen,
            demand,
            worker.lease.model,
            self._reason(chosen, len(candidates), prompt_tokens, explored=explored) + other,
            tuple(_told(each) for each in candidates[:TOLD_MAX]),
            tuple(excluded[:TOLD_MAX]),
            self._residuals.interval_s(worker_id),
        )
        return worker, choice

    def _eligible(
        self,
        request: GenerationRequest,
        tenant: str,
        modules: AnsweringModules,
        demand: Demand,
        tried: Collection[str],
        now_s: float,
    ) -> tuple[list[PooledWorker], list[ExcludedWorker]]:
        """The workers that may answer, and why the others may not."""
        ready = {worker.lease.worker_id for worker in self._pool.ready(now_s)}
        open_to = {worker.lease.worker_id for worker in self._pool.open_to(tenant, now_s)}
        eligible: list[PooledWorker] = []
        last: list[PooledWorker] = []
        excluded: list[ExcludedWorker] = []
        for worker_id, worker in self._pool.workers.items():
            if request.worker_id not in ("", worker_id):
                why = "another worker was asked for"
            elif worker_id in tried:
                why = "it has failed this request"
            elif not worker.connected:
                why = "its stream is down"
            elif request.model not in ("", worker.lease.model):
                why = f"it serves the model {worker.lease.model}"
            elif worker_id not in ready and not self._pool.is_own(worker):
                why = f"{OTHER_MODEL}; {LAST}"
            elif worker_id not in ready:
                why = f"silent for {now_s - worker.heard_s:.1f} s"
            elif (context := worker.lease.max_context_tokens) < demand.prompt_tokens + demand.output_tokens:
                why = f"its context has {context} tokens"
            elif not modules.fit(worker.lease.model_digest):
                why = "the request's modules are for another base model than it serves"
            elif (open_s := self._breakers.open_s(worker_id, now_s)) > 0:
                last.append(worker)
                why = f"its last requests failed; it is tried again in {open_s:.1f} s"
            elif worker_id not in open_to:
                last.append(worker)
                why = "left to other tenants"
            else:
                eligible.append(worker)
                continue
            excluded.append(ExcludedWorker(worker_id, why))
        if eligible or not last:
            return eligible, excluded
        # A worker that is left to other tenants, or that failed lately, is better than none.
        names = {worker.lease.worker_id for worker in last}
        return last, [each for each in excluded if each.worker_id not in names]

    def _candidates(
        self,
        eligible: Sequence[PooledWorker],
        demand: Demand,
        modules: AnsweringModules,
        cached: Mapping[CacheLayout, LookedUp],
        now_s: float,
    ) -> list[Candidate]:
        leading: dict[str, int] = {}
        for prompt in cached.values():
            leading |= self._pool.index.leading(prompt.keys)
        numbers: Sequence[int] = range(len(eligible))
        if self._settings.routing_policy in OF_FEW:
            held = {
                number: leading[worker.lease.worker_id]
                for number, worker in enumerate(eligible)
                if worker.lease.worker_id in leading
            }
            numbers = few(
                len(eligible), held, [backlog_s(worker.report) for worker in eligible], random.random
            )
        found = []
        for number in numbers:
            worker = eligible[number]
            lease = worker.lease
            prompt = cached.get(lease.layout, LookedUp())
            held_by = Held(
                max(leading.get(lease.worker_id, 0) * lease.block_tokens, prompt.supplied_tokens),
                prompt.redis_tokens if lease.shares_kv else 0,
                tuple(self._placed(worker, module) for module in modules.modules),
            )
            load = worker.report
            learned_s = self._residuals.correction_s(lease.worker_id)
            found.append(Candidate(load, held_by, forecast(load, demand, held_by, now_s, learned_s)))
        return found

    def _placed(self, worker: PooledWorker, module: AnsweringModule) -> PlacedModule:
        digest, row = module.version.digest, module.row
        ahead = 0
        if row.slots_setting:
            ahead = slots_ahead(digest, worker.in_slots, getattr(self._settings, row.slots_setting))
        return PlacedModule(worker.place_of(digest), row.costs, ahead)

    def _reason(self, chosen: Candidate, candidates: int, prompt_tokens: int, *, explored: bool) -> str:
        cached = chosen.forecast.cached_tokens
        where = "its own memory" if cached <= chosen.held.held_tokens else "Redis"
        policy = self._settings.routing_policy.replace("_", " ").replace("least ttft", "least predicted TTFT")
        policy = "explored, one" if explored else policy
        return (
            f"{policy} of {candidates}: {cached} of {prompt_tokens} tokens cached"
            + (f" in {where}" if cached else "")
            + f", {chosen.load.queued_tokens} tokens queued, {chosen.load.requests} running"
        )


class Attempts:
    """The workers that one request was sent to in vain."""

    def __init__(
        self,
        pool: WorkerPool,
        promised: PromisedWorkers,
        budget: RetryBudget,
        known_by: tuple[str, int, int],
        *,
        only: str = "",
    ) -> None:
        """known_by: the request's tenant, band and mark.

        only: the id of the one worker that the request may go to; empty: any.
        """
        self.known_by = known_by
        self._pool = pool
        self._promised = promised
        self._budget = budget
        self._only = only
        self._lost = 0
        self._full: WorkerFull | None = None
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
        if not self._budget.spend(time.monotonic()):
            raise NoWorker(f"too many requests are tried again: {failure.detail}") from None

    def full(self, failure: WorkerFull) -> None:
        """The worker has too much to do. Raises Overloaded when it is not the first that says so."""
        self.tried.add(failure.worker_id)
        if failure.reason is RefusalReason.LEAVING and not self._only:
            return
        if self._full is not None or self._only:
            raise self._overloaded(failure) from None
        self._full = failure

    def nobody_is_left(self) -> None:
        """Raises Overloaded where a worker had too much to do."""
        if self._full is not None:
            raise self._overloaded(self._full) from None

    def second_offer(self, demand: Demand, forecast: Forecast, now_s: float) -> None:
        """After a refusal, the request is offered to one other worker, if that would be in time.

        Raises Overloaded otherwise.
        """
        late = misses(demand, forecast.ttft_s, now_s, MARGIN)
        if self._full is not None and self._full.reason is RefusalReason.LATE and late:
            raise self._overloaded(self._full) from None

    def _overloaded(self, failure: WorkerFull) -> Overloaded:
        now_s = time.monotonic()
        self._promised.told(
            *self.known_by, failure.worker_id, due_s=now_s + failure.retry_after_s, now_s=now_s
        )
        return Overloaded(failure.reason, failure.detail, failure.retry_after_s)


def backlog_s(load: WorkerLoad) -> float:
    """The time that the engine needs for all that it has."""
    return load.waiting.total_s + load.costs.drain_s(load.prefill_s, load.answers, load.kv_tokens)


def _told(candidate: Candidate) -> RouteCandidate:
    of = candidate.forecast
    return RouteCandidate(
        worker_id=candidate.load.worker,
        ttft_ms=of.ttft_s * 1000,
        queue_ms=of.queue_s * 1000,
        slot_ms=of.slot_s * 1000,
        memory_ms=of.room_s * 1000,
        fetch_ms=of.fetch_s * 1000,
        prefill_ms=of.prefill_s * 1000,
        load_ms=of.load_s * 1000,
        learned_ms=of.learned_s * 1000,
        cached_tokens=of.cached_tokens,
        queued_tokens=candidate.load.queued_tokens,
        running=candidate.load.requests,
    )
