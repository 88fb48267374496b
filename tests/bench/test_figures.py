"""Quantiles, silences of workers, bounds, the knee and its interval: arithmetic on known values."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest

from memserve.bench.figures import Spread, figures_of, invalid_by, spread
from memserve.bench.generator import Sending
from memserve.bench.knee import half_interval, knee_of, knee_over, next_rates
from memserve.bench.rows import Heard, Outcome, Row, judged
from memserve.bench.scenario import Limits, Slo


def row(
    number: int,
    intended_s: float,
    tokens_s: Sequence[float],
    worker: str = "w0",
    *,
    outcome: Outcome = Outcome.MET,
    sent_s: float | None = None,
) -> Row:
    """sent_s: None for the intended time."""
    times_s = array("d", tokens_s)
    sent = intended_s if sent_s is None else sent_s
    ended_s = times_s[-1] if times_s else sent
    counts = (100, len(times_s), 50)
    return Row(number, intended_s, sent, ended_s, outcome, "", worker, "", 0, "", *counts, times_s)


def figures(rows: Sequence[Row], **limits: float):  # type: ignore[no-untyped-def]
    return figures_of(Sending(tuple(rows), len(rows), 10.0, 10.0, 1.0), Slo(ttft_ms=200.0), Limits(**limits))


def test_quantiles_are_times_that_were_measured_by_nearest_rank() -> None:
    assert spread(number / 1000 for number in range(1, 101)) == Spread(100, 50.0, 90.0, 99.0, 100.0)
    assert spread([0.007]) == Spread(1, 7.0, 7.0, 7.0, 7.0)
    assert spread([]) is None


def test_latency_counts_from_the_intended_time_and_gaps_between_messages() -> None:
    measured = figures([row(0, 1.0, [1.5, 1.6, 1.9], sent_s=1.25)])
    assert measured.ttft_ms.most == pytest.approx(500)
    assert measured.e2e_ms.most == pytest.approx(900)
    assert measured.tpot_ms.most == pytest.approx(200)
    assert (measured.itl_ms.p50, measured.itl_ms.most) == (pytest.approx(100), pytest.approx(300))
    assert measured.lateness_ms.most == pytest.approx(250)
    assert measured.hit_share == 0.5


def test_an_answer_that_is_late_by_the_generator_alone_is_told_apart() -> None:
    late = Outcome.LATE
    own = row(0, 0.0, [0.3], sent_s=0.2, outcome=late)
    servers = row(1, 0.0, [0.5], sent_s=0.2, outcome=late)
    drags = row(2, 0.0, [0.1, 5.0], outcome=late)
    assert figures([own, servers, drags]).late_by_generator == 1


def test_goodput_is_over_everything_that_was_offered() -> None:
    outcomes = [*[Outcome.MET] * 5, *Outcome]
    measured = figures([row(number, 0.0, [0.1], outcome=each) for number, each in enumerate(outcomes)])
    assert measured.offered == 12 == sum(measured.outcomes.values())
    assert measured.goodput == 6 / 12


def test_rates_count_until_the_last_one_where_that_is_later() -> None:
    measured = figures([row(0, 0.0, [0.1]), row(1, 9.0, [20.0], sent_s=16.0)])
    assert (measured.requested_per_s, measured.sent_per_s, measured.completed_per_s) == (0.2, 2 / 16, 0.1)


def test_a_silence_is_a_time_in_which_a_worker_owes_answers_and_sends_no_token() -> None:
    rows = [
        row(0, 0.0, [0.1, 0.2, 0.9, 1.0]),  # silent from 0.2 on
        row(1, 0.3, [0.8, 1.1]),  # until here: this answer's token ends it
        row(2, 5.0, [5.05]),  # nothing was owed from 1.1 to 5.0
        row(3, 0.0, [0.5], "w1"),
    ]
    measured = figures(rows, stall_ms=500.0)
    assert measured.longest_silence_ms == {"w0": pytest.approx(600), "w1": pytest.approx(500)}
    assert [(stall.worker, pytest.approx(stall.from_s)) for stall in measured.stalls] == [
        ("w1", 0.0),
        ("w0", 0.2),
    ]


@pytest.mark.parametrize(
    ("slo", "outcome", "missed"),
    [
        (Slo(), Outcome.MET, ""),
        (Slo(ttft_ms=500.1), Outcome.MET, ""),
        (Slo(ttft_ms=499.9), Outcome.LATE, "ttft"),
        (Slo(ttft_ms=1.0, tpot_ms=99.0, e2e_ms=600.0), Outcome.LATE, "ttft, tpot, e2e"),
        (Slo(tpot_ms=101.0, e2e_ms=701.0), Outcome.MET, ""),
    ],
)
def test_a_whole_answer_is_judged_by_each_time_that_the_slo_has(
    slo: Slo, outcome: Outcome, missed: str
) -> None:
    heard = Heard(token_times_s=array("d", [1.5, 1.7]), output_tokens=3)
    assert judged(slo, 1.0, 1.7, heard) == (outcome, missed)


@pytest.mark.parametrize(
    ("shed", "p99_ms", "cpu", "broken"),
    [
        (0, 20.0, 0.8, []),
        (1, 20.0, 0.8, ["limits.max_outstanding"]),
        (0, 20.1, 0.8, ["limits.late_p99_ms"]),
        (0, 20.0, 0.81, ["limits.cpu_share"]),
        (1, 99.0, 0.99, ["limits.max_outstanding", "limits.late_p99_ms", "limits.cpu_share"]),
    ],
)
def test_each_bound_that_is_broken_is_named(shed: int, p99_ms: float, cpu: float, broken: list[str]) -> None:
    lateness = Spread(10, 1.0, 2.0, p99_ms, p99_ms)
    reasons = list(invalid_by(shed, lateness, cpu, Limits()))
    assert [name in reason for name, reason in zip(broken, reasons, strict=True)] == [True] * len(broken)


@pytest.mark.parametrize(
    ("points", "knee"),
    [
        ({1: 1.0, 2: 1.0, 4: 0.9}, 3.0),
        ({1: 0.95, 2: 0.9}, 1.0),
        ({1: 1.0, 2: 0.9, 4: 1.0, 8: 0.0}, 1.5),  # the first fall counts
        ({1: 1.0, 2: 1.0}, None),
        ({1: 0.9, 2: 1.0, 4: 0.5}, None),
    ],
)
def test_the_knee_is_where_the_goodput_first_falls_below(points: dict[float, float], knee: float) -> None:
    found = knee_of(points, 0.95)
    assert found == (None if knee is None else pytest.approx(knee))


def test_the_interval_is_students_over_the_seeds() -> None:
    """Three values with standard deviation 1: 4.303 / √3."""
    assert half_interval([1.0, 2.0, 3.0]) == pytest.approx(2.4843, abs=1e-3)
    assert half_interval([1.0]) is None
    knee = knee_over([{1: 1.0, 2: 0.9}, {1: 1.0, 2: 0.9}], 0.95)
    assert (knee.per_s, knee.plus_minus_per_s, knee.bound) == (pytest.approx(1.5), pytest.approx(0), "")


def test_a_knee_outside_the_rates_is_a_bound_and_no_number() -> None:
    above = knee_over([{1: 1.0, 2: 0.5}, {1: 1.0, 2: 1.0}], 0.95)
    below = knee_over([{1: 0.5, 2: 0.4}], 0.95)
    assert (above.per_s, above.bound) == (None, "above 2/s")
    assert (below.per_s, below.bound) == (None, "below 1/s")


def test_a_search_doubles_past_the_knee_and_then_cuts_its_gap() -> None:
    tried: list[tuple[float, float]] = []
    rates = [1.0]
    while rates:
        tried += [(rate, 1.0 if rate <= 5.2 else 0.5) for rate in rates]
        rates = next_rates(tried, 0.95, 1000.0)
    assert [rate for rate, _ in tried] == [1, 2, 4, 8, 16, 5, 6, 7]


def test_a_search_that_begins_past_the_knee_halves_first_and_ends_at_its_bounds() -> None:
    assert next_rates([(8.0, 0.1)], 0.95, 100.0) == [4.0]
    assert next_rates([(8.0, 1.0)], 0.95, 10.0) == []
    assert next_rates([(0.01, 0.1)], 0.95, 10.0) == []
