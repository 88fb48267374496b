"""How the window opens and closes in which tokens are joined."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memserve.policy.pressure import WINDOW_MAX_S, next_window_s

LOADS = st.tuples(st.floats(0, 1), st.floats(0, 2))


def test_without_pressure_nothing_waits() -> None:
    assert next_window_s(0.0, late_s=0.0, busy=0.1) == 0.0


def test_the_window_opens_for_a_busy_loop_and_for_a_late_one() -> None:
    for late_s, busy in ((0.0, 0.95), (0.05, 0.1)):
        window_s, looks = 0.0, 0
        while window_s < WINDOW_MAX_S:
            window_s, looks = next_window_s(window_s, late_s, busy), looks + 1
        assert looks <= 4


def test_between_the_bounds_it_stays_as_it_is() -> None:
    assert next_window_s(0.01, late_s=0.005, busy=0.7) == 0.01


@given(st.lists(LOADS))
def test_no_token_ever_waits_longer_than_the_limit(loads: list[tuple[float, float]]) -> None:
    window_s = 0.0
    for late_s, busy in loads:
        window_s = next_window_s(window_s, late_s, busy)
        assert 0 <= window_s <= WINDOW_MAX_S


@given(st.floats(0, WINDOW_MAX_S))
def test_it_closes_when_the_pressure_is_gone(window_s: float) -> None:
    for _ in range(10):
        window_s = next_window_s(window_s, late_s=0.0, busy=0.1)
    assert window_s == 0.0
