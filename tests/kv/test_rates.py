"""What the tier measures as it goes."""

from __future__ import annotations

import pytest

from memserve.kv.rates import MIN_SAMPLES, STALE_S, MeasuredRates


def test_a_rate_is_unknown_before_there_are_enough_measurements() -> None:
    rates = MeasuredRates()
    for number in range(MIN_SAMPLES):
        known, stale = rates.now(float(number))
        assert (known.bytes_per_s, known.prefill_tokens_per_s) == (0, 0)
        assert stale == (number == 0)
        rates.loaded(1000, 0.1, now_s=float(number))
        rates.prefilled(500, 0.5)
    known, _ = rates.now(float(MIN_SAMPLES))
    assert known.bytes_per_s == pytest.approx(10_000)
    assert known.prefill_tokens_per_s == pytest.approx(1000)


def test_the_first_slow_load_is_soon_outweighed() -> None:
    rates = MeasuredRates()
    rates.loaded(1000, 10.0, now_s=0.0)
    for _ in range(20):
        rates.loaded(1000, 0.001, now_s=0.0)
    assert rates.now(0.0)[0].bytes_per_s > 30_000


def test_a_load_without_a_result_lowers_the_rate() -> None:
    rates = MeasuredRates()
    for _ in range(MIN_SAMPLES):
        rates.loaded(1000, 0.1, now_s=0.0)
    before = rates.now(0.0)[0].bytes_per_s
    rates.loaded(0, 2.0, now_s=0.0)
    assert rates.now(0.0)[0].bytes_per_s < before / 2


def test_the_round_trip_is_not_counted_twice() -> None:
    rates = MeasuredRates()
    rates.looked_up(0.05)
    for _ in range(MIN_SAMPLES):
        rates.loaded(1000, 0.15, now_s=0.0)
    known, _ = rates.now(0.0)
    assert known.latency_s == pytest.approx(0.05)
    assert known.bytes_per_s == pytest.approx(10_000)


def test_a_bandwidth_that_was_measured_long_ago_is_stale() -> None:
    rates = MeasuredRates()
    rates.loaded(1000, 0.1, now_s=100.0)
    assert not rates.now(100.0 + STALE_S)[1]
    assert rates.now(100.1 + STALE_S)[1]
