"""The fleet: gateways that route by a policy, workers, what happens to them, and every request's end."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from loadtests.simulator.caches import Holders, LruTier
from loadtests.simulator.jobs import ADAPTER, Ended, Job, Machine, Report
from loadtests.simulator.outcomes import Outcomes
from loadtests.simulator.worker import SimulatedWorker
from memserve.bench.trace import BLOCK_TOKENS, Arrival
from memserve.domain import ModulePlace
from memserve.policy.routing.candidates import few
from memserve.policy.routing.forecast import Demand, Held, PlacedModule, forecast, misses, slots_ahead
from memserve.policy.routing.policies import MARGIN, Candidate, Policy, Situation
from memserve.policy.routing.residuals import Residuals

OFFERS = 2


@dataclass(frozen=True, slots=True)
class Slo:
    """Of every request."""

    ttft_s: float = 2.0
    ttft_s_per_token: float = 1e-4
    tpot_s: float = 0.1

    def ttft_of(self, prompt_tokens: int) -> float:
        return self.ttft_s + self.ttft_s_per_token * prompt_tokens


@dataclass(frozen=True, slots=True)
class Death:
    """A worker that is killed, and another in its place."""

    at_s: float
    worker: int
    back_after_s: float


@dataclass(frozen=True, slots=True)
class Setting:
    """How a fleet runs."""

    policy: Policy
    workers: int = 8
    gateways: int = 1
    view_age_s: float = 0.0
    """How often workers report. 0: gateways see the workers as they are."""
    rooms: bool = False
    """Whether requests wait in the workers' waiting rooms, which refuse."""
    margin: float = 0.0
    """Gateways refuse what misses its deadline by this margin on the forecast. 0: nothing."""
    scan_all: bool = True
    """Whether all workers are candidates, or a few of them."""
    slot_aware: bool = True
    """Whether forecasts know of adapters and their slots."""
    error: float = 0.0
    """Forecasts are wrong by up to this part, at random for each request and worker."""
    bias: float = 1.0
    """Forecasts are times this."""
    machine: Machine = field(default_factory=Machine)
    slo: Slo = Slo()
    deaths: tuple[Death, ...] = ()
    seed: int = 0


class Gateway:
    """One gateway's view of the fleet: the last reports, and what it has sent since."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self._fleet = fleet
        self._dice = random.Random(fleet.setting.seed * 1000 + number)
        self._views: list[Report] = []
        self._decided = 0
        self.residuals = Residuals()

    def hear(self, reports: Sequence[Report]) -> None:
        """All workers have reported."""
        self._views = [
            replace(report, load=replace(report.load, waiting=report.load.waiting.copy()))
            for report in reports
        ]

    def route(self, job: Job, now_s: float, tried: int = -1) -> int | None:
        """The number of the worker to offer the request to. None: it is refused.

        tried: a worker that has refused it.
        """
        setting, arrival = self._fleet.setting, job.arrival
        demand = Demand(
            arrival.prompt_tokens, job.deadline_s, arrival.output_tokens, arrival.band, arrival.session
        )
        views = self._views if setting.view_age_s else [each.report(now_s) for each in self._fleet.workers]
        numbers, candidates = self._candidates(views, demand, job, now_s, tried)
        if not candidates:
            return None
        situation = Situation(demand, now_s, self._decided, self._dice.random, setting.margin or 1.0)
        self._decided += 1
        chosen = setting.policy(situation, candidates)
        of = chosen.forecast
        job.predicted_s, job.learned_s = now_s + of.ttft_s, of.learned_s
        margin = MARGIN if tried >= 0 else setting.margin
        if margin and misses(demand, of.ttft_s, now_s, margin):
            return None
        number = numbers[candidates.index(chosen)]
        if setting.view_age_s:
            if setting.rooms:
                chosen.load.sent(arrival.band, job.deadline_s, of.own_s, of.computed_tokens)
            else:  # first come, first served
                own_s = chosen.load.costs.prefill_s(of.cached_tokens, arrival.prompt_tokens)
                chosen.load.pushed(own_s + of.load_s, of.computed_tokens)
            if arrival.adapter:
                views[number].busy = views[number].busy | {arrival.adapter}
        return number

    def _candidates(
        self, views: Sequence[Report], demand: Demand, job: Job, now_s: float, tried: int
    ) -> tuple[list[int], list[Candidate]]:
        """Their numbers, and what is known of them."""
        fleet, setting = self._fleet, self._fleet.setting
        blocks = job.full_blocks
        holders = fleet.holders.leading(blocks)
        most = (demand.prompt_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        shared = min(fleet.redis.leading(blocks) * BLOCK_TOKENS, most)
        numbers: Sequence[int] = range(len(views))
        if not setting.scan_all:
            backlog_s = [view.load.waiting.total_s + view.load.prefill_s for view in views]
            numbers = few(len(views), holders, backlog_s, self._dice.random)
        numbers = [number for number in numbers if number != tried and fleet.up[number]]
        found = []
        for number in numbers:
            held_tokens = min(holders.get(number, 0) * BLOCK_TOKENS, most)
            held = Held(held_tokens, shared, self._modules(views[number], job.arrival.adapter))
            load = views[number].load
            learned_s = self.residuals.correction_s(load.worker)
            each = Candidate(load, held, forecast(load, demand, held, now_s, learned_s))
            if setting.error or setting.bias != 1.0:
                wrong = setting.bias * (1 + setting.error * (2 * self._dice.random() - 1))
                each.forecast.prefill_s *= wrong
                each.forecast.queue_s *= wrong
            found.append(each)
        return numbers, found

    def _modules(self, view: Report, adapter: str) -> tuple[PlacedModule, ...]:
        setting = self._fleet.setting
        if not adapter or not setting.slot_aware:
            return ()
        place = ModulePlace.DEVICE if adapter in view.adapters else ModulePlace.DISK
        return (PlacedModule(place, ADAPTER, slots_ahead(adapter, view.busy, setting.machine.slots)),)


class Fleet:
    """Runs arrivals to their end."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.holders = Holders()
        self.redis = LruTier(setting.machine.redis_blocks * setting.workers)
        self.workers = [self._worker(number) for number in range(setting.workers)]
        self.up = [True] * setting.workers
        self.gateways = [Gateway(self, number) for number in range(setting.gateways)]
        self._events: list[tuple[float, int, int]] = []
        self._dice = random.Random(setting.seed)
        self.outcomes = Outcomes(setting.slo.tpot_s)

    def run(self, arrivals: Iterable[Arrival], count: int) -> Outcomes:
        """Every arrival to its end. count: how many there are."""
        setting, events = self.setting, self._events
        deaths = sorted(setting.deaths, key=lambda death: death.at_s)
        next_report_s = 0.0 if setting.view_age_s else math.inf
        returns: list[tuple[float, int]] = []
        self.outcomes.begin(count)
        for number, arrival in enumerate(arrivals):
            now_s = arrival.at_s
            while True:
                next_s = events[0][0] if events else math.inf
                dies_s = deaths[0].at_s if deaths else math.inf
                back_s = returns[0][0] if returns else math.inf
                first_s = min(next_s, next_report_s, dies_s, back_s)
                if first_s > now_s:
                    break
                if first_s == next_report_s:
                    self._report(first_s)
                    next_report_s += setting.view_age_s
                elif first_s == dies_s:
                    death = deaths.pop(0)
                    heapq.heappush(returns, (death.at_s + death.back_after_s, death.worker))
                    self._kill(death.worker, first_s)
                elif first_s == back_s:
                    self.up[heapq.heappop(returns)[1]] = True
                else:
                    self._advance()
            deadline_s = now_s + setting.slo.ttft_of(arrival.prompt_tokens)
            job = Job(number, arrival, int(self._dice.random() * setting.gateways), deadline_s)
            self._send(job, now_s)
        while events:
            self._advance()
        return self.outcomes

    def _worker(self, number: int) -> SimulatedWorker:
        setting = self.setting
        return SimulatedWorker(number, setting.machine, self.holders, self.redis, rooms=setting.rooms)

    def _report(self, now_s: float) -> None:
        reports = [worker.report(now_s) for worker in self.workers]
        for gateway in self.gateways:
            gateway.hear(reports)

    def _send(self, job: Job, now_s: float, tried: int = -1) -> None:
        number = self.gateways[job.gateway].route(job, now_s, tried)
        if number is None:
            self.outcomes.refused(job)
            return
        self._after(number, self.workers[number].offer(job, now_s), now_s)

    def _advance(self) -> None:
        at_s, _, number = heapq.heappop(self._events)
        worker = self.workers[number]
        if worker.next_s != at_s:
            return  # it has been changed since
        worker.next_s = math.inf
        self._after(number, worker.advance(at_s), at_s)

    def _after(self, number: int, ended: Ended, now_s: float) -> None:
        worker = self.workers[number]
        if worker.next_s < math.inf:
            heapq.heappush(self._events, (worker.next_s, number, number))
        for job in ended.finished:
            self.outcomes.answered(job, now_s)
            self.gateways[job.gateway].residuals.observe(
                worker.name, job.predicted_s - job.offered_s, job.learned_s, job.first_s - job.offered_s
            )
        for job in ended.refused:
            if job.offers < OFFERS:
                self._send(job, now_s, tried=number)
            else:
                self.outcomes.refused(job)

    def _kill(self, number: int, now_s: float) -> None:
        """What had begun to stream is lost. The rest is sent again."""
        jobs = self.workers[number].die()
        self.workers[number] = self._worker(number)
        self.up[number] = False
        for job in jobs:
            if job.first_s:
                self.outcomes.lost(job)
            else:
                self._send(job, now_s)
