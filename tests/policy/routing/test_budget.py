"""How many requests may be tried again on another worker."""

from __future__ import annotations

from memserve.policy.routing.budget import LEAST_PER_S, MOST, PART, RetryBudget


def test_retries_are_a_part_of_the_requests() -> None:
    budget = RetryBudget()
    assert [budget.spend(0.0) for _ in range(int(MOST) + 5)].count(True) == MOST
    for _ in range(100):
        budget.request()
    assert [budget.spend(0.0) for _ in range(200)].count(True) == 100 * PART


def test_a_few_are_always_allowed_and_none_are_saved_beyond_the_most() -> None:
    budget = RetryBudget()
    while budget.spend(0.0):
        pass
    assert [budget.spend(3.0) for _ in range(10)].count(True) == 3 * LEAST_PER_S
    assert [budget.spend(1e9) for _ in range(1000)].count(True) == MOST
