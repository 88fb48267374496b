"""What a tenant may ask for in a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.errors import QuotaExceeded
from memserve.policy.sharing import rates
from memserve.policy.sharing.rates import Buckets, Pace, RateLimit


def test_a_quiet_tenant_may_do_half_a_minutes_at_once_and_is_then_told_how_long_to_wait() -> None:
    limit = RateLimit("changes", 60)
    for _ in range(30):
        limit.take("noisy", 0.0)
    with pytest.raises(
        QuotaExceeded, match="changes a minute of tenant noisy: the limit of 60 is reached; try again in 1 s"
    ) as refusal:
        limit.take("noisy", 0.0)
    limit.take("quiet", 0.0)
    limit.take("noisy", refusal.value.retry_after_s)
    with pytest.raises(QuotaExceeded):
        limit.take("noisy", refusal.value.retry_after_s)


@given(st.lists(st.floats(0, 0.5), max_size=200))
def test_over_any_time_no_more_than_the_burst_and_the_rate_are_let_through(gaps_s: list[float]) -> None:
    limit, now_s, taken = RateLimit("changes", 120, burst=5), 0.0, 0
    for gap_s in gaps_s:
        now_s += gap_s
        try:
            limit.take("a", now_s)
            taken += 1
        except QuotaExceeded:
            pass
        assert taken <= 5 + 2 * now_s + 1e-6


def test_a_cost_above_the_burst_is_let_through_by_a_full_bucket_and_paid_for_afterwards() -> None:
    limit = RateLimit("bytes", 60, burst=10)
    limit.take("a", 0.0, cost=100)
    with pytest.raises(QuotaExceeded):
        limit.take("a", 60.0)
    limit.take("a", 95.0)


def test_calls_that_come_too_quickly_wait_one_after_the_other_and_then_are_refused() -> None:
    pace = Pace("calls", 10, burst=2, patience_s=0.5)
    assert [round(pace.delay_s("a", 0.0), 3) for _ in range(7)] == [0, 0, 0.1, 0.2, 0.3, 0.4, 0.5]
    with pytest.raises(QuotaExceeded, match="calls of tenant a: the limit of 10"):
        pace.delay_s("a", 0.0)
    assert pace.delay_s("b", 0.0) == 0
    assert round(pace.delay_s("a", 0.3), 3) == 0.3, "a refusal takes no place"


def test_only_the_tenants_that_came_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "TENANTS_MAX", 3)
    buckets = Buckets(1.0, 5.0)
    for number in range(10):
        buckets.spend(f"t{number}", 5.0, 0.0)
    assert len(buckets._levels) == 3
    assert buckets.level("t9", 0.0) == 0
    assert buckets.level("t0", 0.0) == 5
