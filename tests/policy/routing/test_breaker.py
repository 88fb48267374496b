"""Workers that keep failing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.policy.routing.breaker import FAILURES, FIRST_S, LONGEST_S, WORKERS_MAX, Breakers


def broken(times: int = FAILURES, at_s: float = 0.0) -> Breakers:
    breakers = Breakers()
    for _ in range(times):
        breakers.failed("w", at_s)
    return breakers


def test_a_worker_is_left_alone_after_failures_in_a_row() -> None:
    assert broken(FAILURES - 1).open_s("w", 0.0) == 0
    breakers = broken()
    assert breakers.open_s("w", 0.25) == pytest.approx(FIRST_S - 0.25)
    assert breakers.open_s("other", 0.25) == 0
    assert breakers.open_s("w", FIRST_S) == 0


def test_a_success_between_failures_begins_the_count_anew() -> None:
    breakers = broken(FAILURES - 1)
    breakers.succeeded("w")
    breakers.failed("w", 0.0)
    assert breakers.open_s("w", 0.0) == 0


def test_one_request_tries_it_again_and_the_others_wait_for_what_comes() -> None:
    breakers = broken()
    breakers.asked("w", 2.0)
    assert breakers.open_s("w", 2.5) > 0
    breakers.succeeded("w")
    assert breakers.open_s("w", 2.5) == 0


def test_the_pause_doubles_up_to_a_limit() -> None:
    breakers, now_s, pauses = broken(), 0.0, []
    for _ in range(8):
        pauses.append(breakers.open_s("w", now_s))
        now_s += pauses[-1]
        breakers.asked("w", now_s)
        breakers.failed("w", now_s)
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert pauses[-1] == LONGEST_S


@given(st.lists(st.tuples(st.sampled_from(["failed", "asked", "succeeded"]), st.floats(0, 5)), max_size=60))
def test_no_worker_is_left_alone_for_longer_than_the_limit(steps: list[tuple[str, float]]) -> None:
    breakers, now_s = Breakers(), 0.0
    for what, after_s in steps:
        now_s += after_s
        if what == "succeeded":
            breakers.succeeded("w")
        else:
            getattr(breakers, what)("w", now_s)
        assert 0 <= breakers.open_s("w", now_s) <= LONGEST_S + 1e-9


def test_its_memory_is_bounded() -> None:
    breakers = Breakers()
    for number in range(WORKERS_MAX + 5):
        breakers.failed(f"w{number}", 0.0)
    assert len(breakers._of) == WORKERS_MAX
