"""What an engine has to do, as its worker counts it."""

from __future__ import annotations

import pytest

from memserve.policy.routing.costs import EngineCosts
from memserve.policy.routing.engine_load import FASTEST, FORGOTTEN_S, SLOWEST, EngineLoad

COSTS = EngineCosts(step_s=0.01, token_s=1e-3, context_s=0.0, answer_s=1e-3, kv_token_s=0.0, step_limit_s=1.0)


def began(load: EngineLoad, key: str, now_s: float, tokens: int = 100, cached: int = 0) -> None:
    load.began(key, now_s, tenant="t", band=1, cached_tokens=cached, prompt_tokens=tokens, output_tokens=10)


def test_prompts_are_computed_one_after_the_other() -> None:
    load = EngineLoad(COSTS, seats=4, kv_tokens=10_000)
    began(load, "a", 0.0)
    began(load, "b", 0.0, tokens=200, cached=100)
    assert load.prefill_s(0.0) == pytest.approx(0.2)
    assert load.prefill_s(0.06) == pytest.approx(0.14, rel=0.02)
    # However late the first is, the second has not begun.
    assert load.prefill_s(9.0) == pytest.approx(0.1)
    assert (load.prompt_tokens, load.answers) == (300, 0)
    load.advanced("a", 0.11, 1)
    assert (load.prompt_tokens, load.answers, load.answers_kv_tokens) == (200, 1, 101)
    load.ended("a", 0.2)
    load.ended("b", 0.3)  # it was never answered
    assert (len(load), load.answers_kv_tokens, load.prefill_s(1.0), load.busy_s(1.0)) == (0, 0, 0.0, 0.0)
    assert not load.tenants
    assert not load.bands
    assert not load.prompts_of_band


def test_an_engine_that_takes_twice_as_long_is_learned() -> None:
    load = EngineLoad(COSTS, seats=4, kv_tokens=10_000)
    now_s = 0.0
    for number in range(60):
        began(load, str(number), now_s)
        now_s += 2 * (0.1 + 0.01)  # the prompt and a step
        load.advanced(str(number), now_s, 1)
        load.ended(str(number), now_s)
    assert load.pace == pytest.approx(2.0, rel=0.1)
    assert load.costs.token_s == pytest.approx(2e-3, rel=0.1)


def test_one_prompt_that_waited_for_something_else_hardly_counts() -> None:
    load = EngineLoad(COSTS, seats=4, kv_tokens=10_000)
    began(load, "stuck", 0.0)
    load.advanced("stuck", 3600.0, 1)
    assert load.pace < 2.0


def test_what_a_stall_has_taught_is_forgotten_when_nothing_teaches_better() -> None:
    """It refused every long prompt at an idle worker, and so was never measured again."""
    load = EngineLoad(COSTS, seats=4, kv_tokens=10_000)
    for key in ("a", "b", "c"):
        began(load, key, 0.0)
    for number, key in enumerate(("a", "b", "c")):
        load.advanced(key, 60.0 * (number + 1), 1)
        load.ended(key, 60.0 * (number + 1))
    stalled = load.own_s(0, 4000)
    assert stalled > 4 * COSTS.prefill_s(0, 4000)
    load.rest(180.0 + FORGOTTEN_S - 1)
    assert load.own_s(0, 4000) == stalled
    began(load, "under way", 200.0)
    load.rest(200.0 + 2 * FORGOTTEN_S)
    assert load.own_s(0, 4000) == stalled
    load.ended("under way", 260.0)
    load.rest(260.0 + FORGOTTEN_S + 1)
    assert load.own_s(0, 4000) == pytest.approx(COSTS.prefill_s(0, 4000), rel=0.05)


@pytest.mark.parametrize(("takes_s", "pace"), [(1e-9, FASTEST), (100.0, SLOWEST)])
def test_the_pace_has_bounds(takes_s: float, pace: float) -> None:
    load = EngineLoad(COSTS, seats=4, kv_tokens=10_000)
    for number in range(300):
        began(load, str(number), number * 1000.0, tokens=5000)
        load.advanced(str(number), number * 1000.0 + takes_s, 1)
        load.ended(str(number), number * 1000.0 + takes_s)
    assert load.pace == pytest.approx(pace, rel=0.2)


def test_where_all_seats_are_taken_the_next_waits_for_one() -> None:
    load = EngineLoad(COSTS, seats=2, kv_tokens=10_000)
    for number in range(20):
        began(load, str(number), float(number))
        load.advanced(str(number), number + 0.1, 1)
        if number:
            load.ended(str(number - 1), number + 0.9)
    began(load, "last", 20.0)
    load.advanced("last", 20.1, 1)
    assert load.seat_s == pytest.approx(0.9, rel=0.2)
    assert load.busy_s(20.2) == load.seat_s
    assert load.own_s(0, 10) == load.seat_s
    load.ended("last", 20.3)
    assert (load.seat_s, load.busy_s(20.3)) == (0.0, 0.0)


def test_what_a_request_may_come_to_is_kept_free() -> None:
    load = EngineLoad(COSTS, seats=4, kv_tokens=1000)
    began(load, "a", 0.0, tokens=600, cached=500)
    assert load.free_kv_tokens == 1000 - 100 - 10
