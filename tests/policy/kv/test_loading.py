"""Load or recompute, on rates that are given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.policy.kv.eviction import SLOW_ENGINE_TOKENS_PER_S, worth_per_use
from memserve.policy.kv.loading import PROBE_CHUNKS, Decision, LoadRates, chunks_to_load

MIB = 1 << 20


def decide(
    chunks_found: int, rates: LoadRates, *, waiting_bytes: int = 0, budget_s: float = 2.0, stale: bool = False
) -> tuple[int, Decision]:
    return chunks_to_load(
        chunks_found,
        chunk_tokens=100,
        chunk_bytes=MIB,
        waiting_bytes=waiting_bytes,
        rates=rates,
        budget_s=budget_s,
        stale=stale,
    )


def test_what_comes_sooner_than_it_is_computed_is_loaded() -> None:
    assert decide(10, LoadRates(0.001, 1000 * MIB, 1000)) == (10, Decision.LOAD)


def test_what_is_computed_sooner_is_not_loaded() -> None:
    assert decide(10, LoadRates(0.001, 5 * MIB, 1000)) == (0, Decision.RECOMPUTE)


def test_a_round_trip_that_takes_longer_than_computing_a_short_prefix_is_not_worth_it() -> None:
    slow_start = LoadRates(0.15, 1000 * MIB, 1000)
    assert decide(1, slow_start) == (0, Decision.RECOMPUTE)
    assert decide(10, slow_start) == (10, Decision.LOAD)


def test_loads_under_way_come_first() -> None:
    rates = LoadRates(0.0, 100 * MIB, 1000)
    assert decide(2, rates) == (2, Decision.LOAD)
    assert decide(2, rates, waiting_bytes=50 * MIB) == (0, Decision.RECOMPUTE)


def test_the_rest_of_a_chain_that_would_come_too_late_is_computed() -> None:
    assert decide(500, LoadRates(0.0, 100 * MIB, 1000)) == (200, Decision.SHORTENED)
    assert decide(500, LoadRates(0.0, 100 * MIB, 1000), budget_s=0.0) == (0, Decision.RECOMPUTE)


def test_what_is_not_measured_is_loaded_to_measure_it() -> None:
    assert decide(10, LoadRates()) == (10, Decision.UNMEASURED)
    assert decide(10, LoadRates(0.001, 1000 * MIB, 0)) == (10, Decision.UNMEASURED)


def test_a_bandwidth_that_was_low_long_ago_is_measured_again_with_a_few_chunks() -> None:
    assert decide(10, LoadRates(0.001, MIB, 1000), stale=True) == (PROBE_CHUNKS, Decision.PROBE)
    assert decide(2, LoadRates(0.001, MIB, 1000), stale=True) == (2, Decision.PROBE)
    assert decide(10, LoadRates(0.001, 1000 * MIB, 1000), stale=True) == (10, Decision.LOAD)


numbers = st.floats(0, 1e12, allow_nan=False)


@given(
    st.integers(0, 5000), numbers, numbers, numbers, st.integers(0, 1 << 40), st.floats(0, 100), st.booleans()
)
def test_never_more_than_is_there(
    chunks_found: int,
    latency: float,
    bandwidth: float,
    speed: float,
    waiting: int,
    budget: float,
    stale: bool,
) -> None:
    chunks, _ = decide(
        chunks_found,
        LoadRates(latency, bandwidth, speed),
        waiting_bytes=waiting,
        budget_s=budget,
        stale=stale,
    )
    assert 0 <= chunks <= chunks_found


def test_a_chunk_is_worth_the_prefill_it_saves_by_what_it_occupies() -> None:
    assert worth_per_use(100, 2 * MIB, 50) == 1.0
    assert worth_per_use(100, MIB, 50) == 2 * worth_per_use(100, 2 * MIB, 50)
    assert worth_per_use(100, MIB, 0) == worth_per_use(100, MIB, SLOW_ENGINE_TOKENS_PER_S)
    with pytest.raises(ValueError, match="0 tokens"):
        worth_per_use(0, 1, 1)
