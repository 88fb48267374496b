"""Amounts of the last minute, from the counts of two minutes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.policy.sharing.windows import WINDOW_S, seconds_until_below, used


@pytest.mark.parametrize(
    ("before", "counted", "part", "amount"),
    [(0, 0, 0.5, 0), (100, 0, 0.0, 100), (100, 0, 0.75, 25), (100, 40, 0.5, 90), (-5, -5, 0.5, 0)],
)
def test_what_counts_of_the_minute_before(before: int, counted: int, part: float, amount: float) -> None:
    assert used(before, counted, part) == amount


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.floats(0, 0.999), st.integers(1, 10**9))
def test_after_the_told_time_there_is_room(before: int, counted: int, part: float, limit: int) -> None:
    if used(before, counted, part) < limit:
        return
    wait_s = seconds_until_below(before, counted, part, limit)
    assert 0 <= wait_s <= 2 * WINDOW_S
    later = part + (wait_s + 1e-3) / WINDOW_S
    if later < 1:
        assert used(before, counted, later) < limit * (1 + 1e-9)
    elif later < 2:
        assert used(counted, 0, later - 1) < limit * (1 + 1e-9)
