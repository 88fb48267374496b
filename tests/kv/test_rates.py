"""What the tier measures as it goes."""

from __future__ import annotations

import pytest

from memserve.kv.rates import LOADS, MIN_SAMPLES, STALE_S, MeasuredRates


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


@pytest.mark.parametrize("slow_bytes", [1000, 100])
def test_loads_that_meet_a_stall_and_small_loads_change_nothing_beside_one_that_does_not(
    slow_bytes: int,
) -> None:
    for place in range(LOADS):
        rates = MeasuredRates()
        for number in range(LOADS):
            rates.loaded(*((10_000, 0.1) if number == place else (slow_bytes, 1.0)), now_s=0.0)
        assert rates.now(0.0)[0].bytes_per_s == pytest.approx(100_000)


@pytest.mark.parametrize("payload_bytes", [1000, 0])
def test_loads_that_go_on_being_slow_or_bring_nothing_are_believed(payload_bytes: int) -> None:
    rates = MeasuredRates()
    for _ in range(LOADS):
        rates.loaded(1000, 0.01, now_s=0.0)
    for _ in range(LOADS):
        assert rates.now(0.0)[0].bytes_per_s == pytest.approx(100_000)
        rates.loaded(payload_bytes, 1.0, now_s=0.0)
    assert 0 < rates.now(0.0)[0].bytes_per_s <= 1000


def test_one_probe_ends_a_slow_time() -> None:
    rates = MeasuredRates()
    for _ in range(LOADS):
        rates.loaded(60_000, 6.0, now_s=0.0)
    assert rates.now(0.0)[0].bytes_per_s == pytest.approx(10_000)
    rates.loaded(4_000, 0.04, now_s=0.0)
    assert rates.now(0.0)[0].bytes_per_s == pytest.approx(100_000)


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
