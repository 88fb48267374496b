"""Where a request goes, as a pure decision."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.config.values import RoutingPolicy
from memserve.domain import ModulePlace
from memserve.domain.kinds import LoadCosts
from memserve.policy.routing.costs import EngineCosts
from memserve.policy.routing.forecast import Demand, Held, PlacedModule, forecast
from memserve.policy.routing.load import WaitingTime, WorkerLoad
from memserve.policy.routing.policies import POLICIES, Candidate, Policy, Situation, least_harm, least_ttft

COSTS = EngineCosts(0.002, 1e-3, 0.0, 0.004, 0.0, step_limit_s=1.0)
ADAPTER = LoadCosts(load_s=0.05, swap_s=0.005, slot_wait_s=0.1)
DEMAND = Demand(prompt_tokens=1000, deadline_s=2.0, output_tokens=50, session="s")
NOBODY = WorkerLoad("w0", 0.0, COSTS, WaitingTime(0.0), fetch_tokens_per_s=100_000.0)

tokens = st.integers(0, 1000)
loads = st.builds(
    WorkerLoad,
    worker=st.sampled_from(["a", "b", "c", "d"]),
    at_s=st.just(0.0),
    costs=st.just(COSTS),
    waiting=st.just(WaitingTime(0.0)),
    prefill_s=st.floats(0, 10),
    answers=st.integers(0, 100),
    requests=st.integers(0, 100),
    queued_tokens=st.integers(0, 100_000),
    fetch_tokens_per_s=st.sampled_from([0.0, 500.0, 1e5]),
)
helds = st.builds(
    Held,
    held_tokens=tokens,
    shared_tokens=tokens,
    modules=st.tuples(
        st.builds(PlacedModule, st.sampled_from(ModulePlace.known()), st.just(ADAPTER), st.integers(0, 20))
    ),
)
pools = st.lists(st.tuples(loads, helds), min_size=1, max_size=4, unique_by=lambda pair: pair[0].worker).map(
    lambda pairs: [candidate(load, held) for load, held in pairs]
)


def candidate(load: WorkerLoad = NOBODY, held: Held = Held()) -> Candidate:  # noqa: B008
    return Candidate(load, held, forecast(load, DEMAND, held, 0.0))


def picked(policy: Policy, candidates: Sequence[Candidate], decided: int = 0) -> str:
    return policy(Situation(DEMAND, 0.0, decided, random.Random(1).random), candidates).load.worker


def busy(worker: str, seconds: float) -> WorkerLoad:
    return replace(NOBODY, worker=worker, prefill_s=seconds, requests=3, queued_tokens=int(seconds * 1000))


def test_the_setting_names_every_policy() -> None:
    assert set(get_args(RoutingPolicy)) == POLICIES.keys()


@pytest.mark.parametrize("name", POLICIES)
@given(pool=pools)
def test_a_policy_picks_one_of_the_candidates(name: str, pool: list[Candidate]) -> None:
    assert picked(POLICIES[name], pool) in {each.load.worker for each in pool}


@pytest.mark.parametrize("name", sorted(POLICIES.keys() - {"round_robin", "power_of_two"}))
@given(pool=pools, order=st.randoms())
def test_but_for_those_that_take_turns_the_order_of_the_workers_does_not_matter(
    name: str, pool: list[Candidate], order: random.Random
) -> None:
    """Of equal workers any may be picked."""
    shuffled = list(pool)
    order.shuffle(shuffled)
    (one,) = [each for each in pool if each.load.worker == picked(POLICIES[name], pool)]
    (other,) = [each for each in pool if each.load.worker == picked(POLICIES[name], shuffled)]
    assert (
        one is other
        or (one.forecast, one.load.requests) == (other.forecast, other.load.requests)
        or (name not in ("least_ttft", "session_hash"))
    )


def test_round_robin_takes_each_in_turn() -> None:
    pool = [candidate(replace(NOBODY, worker=name)) for name in "abc"]
    assert [picked(POLICIES["round_robin"], pool, number) for number in range(4)] == ["a", "b", "c", "a"]


def test_a_session_stays_with_its_worker_when_another_worker_comes() -> None:
    pool = [candidate(replace(NOBODY, worker=name)) for name in "abcdef"]
    chosen = picked(POLICIES["session_hash"], pool)
    others = [each for each in pool if each.load.worker == chosen or each.load.worker in "ab"]
    assert picked(POLICIES["session_hash"], others) == chosen


def test_affinity_follows_the_prefix_until_the_worker_has_too_much() -> None:
    holder = candidate(replace(NOBODY, worker="holder", requests=1), Held(992))
    idle = [candidate(replace(NOBODY, worker=name)) for name in "ab"]
    assert picked(POLICIES["prefix_affinity"], [holder, *idle]) == "holder"
    holder.load.requests = 10
    assert picked(POLICIES["prefix_affinity"], [holder, *idle]) in "ab"


@given(pools)
def test_least_ttft_picks_nobody_that_is_later_than_another(pool: list[Candidate]) -> None:
    chosen = least_ttft(Situation(DEMAND, 0.0, 0, random.random), pool)
    assert chosen.forecast.ttft_s == min(each.forecast.ttft_s for each in pool)


@pytest.mark.parametrize("policy", [least_ttft, least_harm, POLICIES["lmetric"]])
def test_a_cached_prefix_beats_a_short_queue_and_loses_to_a_long_one(policy: Policy) -> None:
    idle = candidate(replace(NOBODY, worker="idle"))
    assert picked(policy, [idle, candidate(busy("holder", 0.2), Held(992))]) == "holder"
    assert picked(policy, [idle, candidate(busy("holder", 5.0), Held(992))]) == "idle"


def test_least_harm_lets_a_request_wait_for_its_prefix_where_it_has_the_time() -> None:
    holder, idle = candidate(busy("holder", 1.2), Held(992)), candidate(replace(NOBODY, worker="idle"))
    assert holder.forecast.ttft_s > idle.forecast.ttft_s
    assert picked(least_harm, [idle, holder]) == "holder"
    assert picked(least_ttft, [idle, holder]) == "idle"


def test_least_harm_and_cheapest_feasible_prefer_any_worker_in_time_to_a_late_one() -> None:
    late = candidate(busy("late", 3.0), Held(992))
    in_time = candidate(busy("in time", 0.5))
    for name in ("least_harm", "cheapest_feasible"):
        assert picked(POLICIES[name], [late, in_time]) == "in time"
        assert picked(POLICIES[name], [late]) == "late"
