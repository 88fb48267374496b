"""When a worker would stream a request's first token."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.domain import ModulePlace
from memserve.domain.kinds import LoadCosts
from memserve.policy.routing.costs import EngineCosts
from memserve.policy.routing.forecast import Demand, Held, PlacedModule, forecast, misses, slots_ahead
from memserve.policy.routing.load import BUCKET_S, BUCKETS, WaitingTime, WorkerLoad

COSTS = EngineCosts(step_s=0.0, token_s=1e-3, context_s=0.0, answer_s=0.004, kv_token_s=0.0, step_limit_s=1.0)
ADAPTER = LoadCosts(load_s=0.05, swap_s=0.005, slot_wait_s=0.1)
EXPERT = LoadCosts(load_s=0.5, swap_s=0.5)
DEMAND = Demand(prompt_tokens=1000, deadline_s=10.0, output_tokens=100)
IDLE = WorkerLoad("w0", 0.0, COSTS, WaitingTime(0.0), fetch_tokens_per_s=100_000.0)


def ttft_s(load: WorkerLoad = IDLE, held: Held = Held(), now_s: float = 0.0) -> float:  # noqa: B008
    return forecast(load, DEMAND, held, now_s).ttft_s


def modules(
    adapter: ModulePlace = ModulePlace.DEVICE, expert: ModulePlace = ModulePlace.DEVICE, ahead: int = 0
) -> Held:
    return Held(modules=(PlacedModule(adapter, ADAPTER, ahead), PlacedModule(expert, EXPERT)))


def test_an_uncached_prompt_takes_its_prefill_and_held_tokens_cost_nothing() -> None:
    assert ttft_s() == pytest.approx(1.0)
    assert ttft_s(held=Held(750)) == pytest.approx(0.25)
    assert ttft_s(held=Held(1000)) == 0


def test_an_engine_s_speed_is_the_same_however_a_prompt_s_time_falls_to_tokens_and_context() -> None:
    by_context = replace(COSTS, token_s=1e-7, context_s=2 * (1e-3 - 1e-7) / 1024)
    assert COSTS.prefill_tokens_per_s == pytest.approx(1000.0)
    assert by_context.prefill_tokens_per_s == pytest.approx(1000.0)


def test_prefill_grows_with_the_context() -> None:
    costs = replace(COSTS, context_s=1e-6)
    assert costs.prefill_s(0, 1000) == pytest.approx(1.0 + 0.5)
    assert costs.prefill_s(500, 1000) == pytest.approx(0.5 + 500 * 750e-6)
    assert costs.prefill_s(0, 500) + costs.prefill_s(500, 1000) == pytest.approx(costs.prefill_s(0, 1000))


def test_shared_tokens_cost_their_way_from_redis_where_that_is_shorter() -> None:
    assert ttft_s(held=Held(0, 1000)) == pytest.approx(0.01)
    assert ttft_s(held=Held(400, 1000)) == pytest.approx(0.006)
    slow = replace(IDLE, fetch_tokens_per_s=500.0)
    assert ttft_s(slow, Held(0, 1000)) == pytest.approx(1.0)


def test_the_whole_of_a_prefix_decides_whether_redis_is_faster_not_its_first_token() -> None:
    costs = replace(COSTS, token_s=1e-6, context_s=1e-6)
    dear_at_its_end = replace(IDLE, costs=costs)
    assert forecast(dear_at_its_end, DEMAND, Held(0, 1000), 0.0).cached_tokens == 1000
    assert forecast(dear_at_its_end, DEMAND, Held(0, 10), 0.0).cached_tokens == 0


def test_what_arrives_while_the_request_waits_is_not_computed() -> None:
    slow = replace(IDLE, fetch_tokens_per_s=500.0, prefill_s=1.0)
    of = forecast(slow, DEMAND, Held(0, 1000), 0.0)
    assert (of.cached_tokens, of.computed_tokens) == (500, 500)
    assert of.ttft_s == pytest.approx(1.5)
    behind = replace(slow, fetch_free_s=0.6)
    assert forecast(behind, DEMAND, Held(0, 1000), 0.0).cached_tokens == 200


def test_queues_answers_and_missing_modules_each_cost() -> None:
    assert ttft_s(replace(IDLE, prefill_s=0.5)) == pytest.approx(1.5)
    # Ten answers take 40 ms of every second, and half a step of theirs is still to go.
    assert ttft_s(replace(IDLE, answers=10)) == pytest.approx(1 / 0.96 + 0.02)
    assert ttft_s(held=modules(adapter=ModulePlace.DISK)) == pytest.approx(1.05)
    assert ttft_s(held=modules(adapter=ModulePlace.HOST)) == pytest.approx(1.005)
    assert ttft_s(held=modules(ahead=3)) == pytest.approx(1.3)
    assert ttft_s(held=modules(expert=ModulePlace.ABSENT)) == pytest.approx(1.5)


def test_a_request_waits_for_room_for_its_kv() -> None:
    full = replace(IDLE, free_tokens=600, released_tokens_per_s=1000.0)
    assert ttft_s(full) == pytest.approx(1.5)
    assert ttft_s(replace(full, free_tokens=1100)) == pytest.approx(1.0)


def test_an_old_report_has_shrunk_since() -> None:
    queued = replace(IDLE, prefill_s=0.5)
    assert ttft_s(queued, now_s=0.2) == pytest.approx(1.3)
    assert ttft_s(queued, now_s=9.0) == pytest.approx(1.0)


def test_a_request_waits_only_for_those_that_go_before_it() -> None:
    waiting = WaitingTime(0.0)
    waiting.add(1, 1.0, 0.3)
    waiting.add(1, 8.0, 0.4)
    waiting.add(0, 9.0, 0.2)
    waiting.add(2, 0.1, 5.0)
    assert waiting.before_s(0, 20.0) == pytest.approx(0.2)
    assert waiting.before_s(1, 0.5) == pytest.approx(0.2)
    assert waiting.before_s(1, 5.0) == pytest.approx(0.5)
    assert waiting.before_s(1, 20.0) == pytest.approx(0.9)
    assert waiting.total_s == pytest.approx(5.9)
    copy = waiting.copy()
    copy.add(0, 1.0, 1.0)
    assert waiting.before_s(0, 20.0) == pytest.approx(0.2)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(-5, 30), st.floats(0, 2)), max_size=20), st.floats(-5, 40)
)
def test_waiting_time_never_exceeds_its_sum_and_grows_with_the_deadline(
    items: list[tuple[int, float, float]], deadline_s: float
) -> None:
    waiting = WaitingTime(0.0)
    for item in items:
        waiting.add(*item)
    before = [waiting.before_s(band, deadline_s) for band in range(3)]
    assert before == sorted(before)
    assert before[2] <= waiting.total_s + 1e-9
    assert before[1] <= waiting.before_s(1, deadline_s + 1.0) + 1e-9
    assert waiting.before_s(3, 0.0) == pytest.approx(waiting.total_s)
    assert waiting.before_s(2, BUCKET_S * BUCKETS) == pytest.approx(waiting.total_s)


def test_a_request_waits_for_a_slot_only_when_other_adapters_have_them_all() -> None:
    assert slots_ahead("mine", {"a", "b", "c"}, slots=4) == 0
    assert slots_ahead("mine", {"a", "b", "c", "d"}, slots=4) == 1
    assert slots_ahead("mine", {"a", "b", "c", "d", "e", "f"}, slots=4) == 3
    assert slots_ahead("mine", {"mine", "a", "b", "c", "d", "e"}, slots=4) == 0


def test_a_margin_makes_a_forecast_late_before_it_is() -> None:
    assert not misses(DEMAND, 9.5, 0.0, margin=1.0)
    assert misses(DEMAND, 9.5, 0.0, margin=1.1)
    assert misses(DEMAND, 9.5, 1.0, margin=1.0)


@given(
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.floats(0, 10),
    st.integers(0, 100),
    st.integers(1, 500),
    st.sampled_from([0.0, 500.0, 1e5]),
)
def test_more_held_tokens_or_less_work_never_makes_a_worker_later(
    held: int, shared: int, prefill_s: float, answers: int, more: int, fetch: float
) -> None:
    load = replace(IDLE, prefill_s=prefill_s, answers=answers, fetch_tokens_per_s=fetch)
    now_s = ttft_s(load, Held(held, shared))
    sooner = [
        ttft_s(load, Held(min(held + more, 1000), shared)),
        ttft_s(load, Held(held, min(shared + more, 1000))),
        ttft_s(replace(load, prefill_s=max(prefill_s - more / 100, 0.0)), Held(held)),
        ttft_s(replace(load, answers=max(answers - more, 0)), Held(held)),
    ]
    limits = [now_s, now_s, ttft_s(load, Held(held)), ttft_s(load, Held(held))]
    assert all(0 <= other <= limit + 1e-9 for other, limit in zip(sooner, limits, strict=True))
