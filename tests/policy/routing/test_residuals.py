"""What earlier errors say of the next forecast."""

from __future__ import annotations

import random

import pytest

from memserve.policy.routing.residuals import KNOWN_AFTER, WORKERS_MAX, Residuals


def told(residuals: Residuals, worker: str, model_s: float, actual_s: float) -> float:
    """A forecast of a model, corrected, and what came of it. Returns the forecast."""
    learned_s = residuals.correction_s(worker)
    residuals.observe(worker, model_s + learned_s, learned_s, actual_s)
    return model_s + learned_s


def test_an_error_of_all_workers_is_learned_and_new_workers_have_it_too() -> None:
    residuals = Residuals()
    assert (residuals.correction_s("a"), residuals.mape, residuals.bias) == (0, 0, 0)
    for number in range(300):
        told(residuals, "ab"[number % 2], 1.0, 1.5)
    assert residuals.correction_s("a") == pytest.approx(0.5, abs=0.05)
    assert residuals.correction_s("new") == pytest.approx(0.5, abs=0.05)
    assert residuals.mape < 0.05


def test_a_slower_worker_is_told_from_the_others() -> None:
    residuals = Residuals()
    for _ in range(1000):
        told(residuals, "slow", 1.0, 2.0)
        told(residuals, "quick", 1.0, 1.0)
    assert residuals.correction_s("slow") - residuals.correction_s("quick") > 0.8


def test_a_few_very_late_answers_hardly_move_the_others_forecasts() -> None:
    residuals, dice = Residuals(), random.Random(1)
    for number in range(1000):
        told(residuals, "a", 1.0, 30.0 if number % 10 == 0 else dice.gauss(1.0, 0.05))
    assert residuals.correction_s("a") == pytest.approx(0.0, abs=0.1)


def test_a_few_slow_answers_do_not_move_their_worker_against_the_others() -> None:
    residuals = Residuals()
    for _ in range(100):
        told(residuals, "a", 1.0, 1.0)
    for _ in range(KNOWN_AFTER - 1):
        told(residuals, "b", 1.0, 5.0)
    assert residuals.correction_s("b") == residuals.correction_s("new")


def test_the_live_error_says_how_far_and_to_which_side() -> None:
    residuals = Residuals()
    residuals.observe("a", 0.5, 0.0, 1.0)
    assert (residuals.mape, residuals.bias) == (pytest.approx(0.5), pytest.approx(-0.5))
    residuals.observe("a", 1.0, 0.0, 0.5)
    assert 0.5 < residuals.mape <= 1.0


def test_the_interval_holds_nine_of_ten() -> None:
    residuals, dice = Residuals(), random.Random(1)
    inside = 0
    for number in range(4000):
        model_s, actual_s = 1.0, dice.gauss(1.2, 0.1)
        interval_s = residuals.interval_s("a")
        error_s = abs(told(residuals, "a", model_s, actual_s) - actual_s)
        inside += number >= 1000 and error_s <= interval_s
    assert 0.85 <= inside / 3000 <= 0.93
    assert residuals.coverage == pytest.approx(0.9, abs=0.1)


def test_its_memory_is_bounded() -> None:
    residuals = Residuals()
    for number in range(WORKERS_MAX + 10):
        residuals.observe(f"w{number}", 1.0, 0.0, 1.0)
    assert len(residuals._of) == WORKERS_MAX
