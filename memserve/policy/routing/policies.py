"""The policies that pick a worker. Each is a function of what is known; a setting names one.

Sources: LMetric, arXiv 2603.15202; bounded loads, Mirrokni, Thorup and Zadimoghaddam 2018; power of two
choices, Mitzenmacher 2001; rendezvous hashing, Thaler and Ravishankar 1998.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memserve.policy.routing.forecast import Demand, Forecast, Held, misses
from memserve.policy.routing.load import WorkerLoad

BOUNDED_LOAD = 1.25


@dataclass(slots=True)
class Candidate:
    """A worker that could answer."""

    load: WorkerLoad
    held: Held
    forecast: Forecast


@dataclass(frozen=True, slots=True)
class Situation:
    """What a policy may look at, beside the candidates."""

    demand: Demand
    now_s: float
    decided: int
    """How many requests this gateway has routed before."""
    random: Callable[[], float]
    """From 0 to 1."""
    margin: float = 1.0
    """Times a forecast: what misses the deadline then is refused."""


Policy = Callable[[Situation, Sequence[Candidate]], Candidate]
"""Picks one of at least one candidate."""


def round_robin(situation: Situation, candidates: Sequence[Candidate]) -> Candidate:
    """Each in turn."""
    return candidates[situation.decided % len(candidates)]


def power_of_two(situation: Situation, candidates: Sequence[Candidate]) -> Candidate:
    """The one with fewer requests of two at random."""
    two = [candidates[int(situation.random() * len(candidates))] for _ in range(2)]
    return min(two, key=lambda each: each.load.requests)


def least_tokens(situation: Situation, candidates: Sequence[Candidate]) -> Candidate:
    """The fewest uncached tokens to compute, with this request's."""
    return min(candidates, key=lambda each: each.load.queued_tokens + each.forecast.computed_tokens)


def session_hash(situation: Situation, candidates: Sequence[Candidate]) -> Candidate:
    """The same worker for all requests of a session."""
    return max(candidates, key=lambda each: _hash(situation.demand, each))


def prefix_affinity(situation: Situation, candidates: Sequence[Candidate]) -> Candidate:
    """The one that holds most of the prompt, of those with at most 1.25 times the mean of requests."""
    most = BOUNDED_LOAD * (1 + sum(each.load.requests for each in candidates) / len(candidates))
    fitting = [each for each in candidates if each.load.requests <= most] or candidates
    return max(fitting, key=lambda each: (each.held.held_tokens, _hash(situation.demand, each)))


def lmetric(situation: Situation, candidates: Sequence[Candidate]) -> Candidate:
    """The least product of tokens to compute and batch size."""
    return min(
        candidates,
        key=lambda each: (each.load.queued_tokens + each.forecast.computed_tokens) * (each.load.requests + 1),
    )


def least_ttft(situation: Situation, candidates: Sequence[Candidate]) -> Candidate:
    """The least predicted time to the first token; of equal ones, the fewest requests."""
    return min(candidates, key=lambda each: (each.forecast.ttft_s, each.load.requests, each.load.worker))


def cheapest_feasible(situation: Situation, candidates: Sequence[Candidate]) -> Candidate:
    """The least time of an engine, of those that make the deadline; else the least TTFT."""
    feasible = [
        each
        for each in candidates
        if not misses(situation.demand, each.forecast.ttft_s, situation.now_s, situation.margin)
    ]
    if not feasible:
        return least_ttft(situation, candidates)
    return min(feasible, key=lambda each: (each.forecast.own_s, each.forecast.ttft_s))


WAIT_WEIGHT = 0.3
TOTAL_WEIGHT = 0.02
DECODE_WEIGHT = 0.05
MISS_S = 1000.0
MARGIN = 1.1


def least_harm(situation: Situation, candidates: Sequence[Candidate]) -> Candidate:
    """The least time of an engine, with some of the request's own wait and a little of what waits there.

    A worker that would miss the deadline comes after all that make it. The time of an engine counts in full,
    because every later request goes without it; a wait delays this request alone, which has until its
    deadline.
    """

    def cost_s(each: Candidate) -> float:
        of = each.forecast
        late_s = MISS_S + of.ttft_s if misses(situation.demand, of.ttft_s, situation.now_s, MARGIN) else 0.0
        load, demand = each.load, situation.demand
        # A step of the answer takes longer beside others, and makes theirs longer.
        step_s = load.costs.fixed_s(load.requests, load.kv_tokens) - load.costs.step_s
        decode_s = demand.output_tokens * step_s
        wait_s = WAIT_WEIGHT * of.wait_s + TOTAL_WEIGHT * load.waiting.total_s
        return of.own_s + wait_s + DECODE_WEIGHT * decode_s + late_s

    return min(candidates, key=lambda each: (cost_s(each), situation.random()))


POLICIES: dict[str, Policy] = {
    policy.__name__: policy
    for policy in (
        round_robin,
        power_of_two,
        least_tokens,
        session_hash,
        prefix_affinity,
        lmetric,
        least_ttft,
        cheapest_feasible,
        least_harm,
    )
}


def _hash(demand: Demand, each: Candidate) -> int:
    return zlib.crc32(f"{demand.session} {each.load.worker}".encode())
