"""The tool's arithmetic against a server whose truth is known, over both of its ways."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from memserve.bench.generator import Generator, Snapshot
from memserve.bench.rows import Heard, Outcome
from memserve.bench.runs import Bench, Choices, Place, Ran, Results, Watchers
from memserve.bench.scenario import Limits, Scenario, Slo, scenario_of
from memserve.bench.workload import Planned, make_plan
from tests.bench.planted_server import (
    CACHED_TOKENS,
    PAUSE_S,
    PROMPT_TOKENS,
    SLOW_S,
    TOKENS,
    Truth,
    grpc_server,
    http_server,
)

REQUESTS, SECONDS = 100, 1.0
TIMEOUT_S = 2.2
SCENARIO = scenario_of(
    {
        "arrivals": {"order": "constant", "rate_per_s": REQUESTS / SECONDS, "seconds": SECONDS},
        "output": {"tokens": TOKENS},
        # Every plant is well beyond these, and nothing else is near them.
        "slo": {"ttft_ms": 1000 * (SLOW_S - 0.5), "tpot_ms": 1000 * (PAUSE_S - 0.15)},
        "limits": {"timeout_s": TIMEOUT_S, "late_p99_ms": 500.0, "cpu_share": 8.0, "stall_ms": 5000.0},
    },
    "test",
)
QUIET = Watchers(lambda line: None, lambda snapshot: None)


async def run_bench(place: Place, scenario: Scenario = SCENARIO) -> Results:
    return await Bench(place, Choices(scenario), (), QUIET, asyncio.Event()).run()


@pytest.fixture(scope="module", params=["grpc", "http"])
def measured(request: pytest.FixtureRequest) -> tuple[Ran, Truth]:
    """One run against the planted server, and what was planted."""
    truth = Truth()
    serve: Callable[[Truth], AbstractAsyncContextManager[str]] = (
        grpc_server if request.param == "grpc" else http_server
    )

    async def run() -> Ran:
        async with serve(truth) as where:
            place = Place(where) if request.param == "grpc" else Place("127.0.0.1:1", http_url=where)
            return (await run_bench(place)).runs[0]

    return asyncio.run(run()), truth


def test_every_planted_outcome_is_counted_exactly(measured: tuple[Ran, Truth]) -> None:
    ran, truth = measured
    planted = truth.planted
    assert planted["met"] == 70 and all(planted[kind] == 5 for kind in planted if kind != "met")
    assert ran.figures.outcomes == {
        "met": planted["met"],
        "late": planted["slow"] + planted["dragging"],
        "refused": planted["refused"],
        "failed": planted["failed"] + planted["silent"],
        "cut_off": planted["cut_off"],
        "shed": 0,
        "unfinished": 0,
    }
    assert ran.figures.offered == REQUESTS
    assert ran.figures.goodput == planted["met"] / REQUESTS
    assert ran.figures.invalid == () and ran.figures.is_complete


def test_every_miss_has_its_reason(measured: tuple[Ran, Truth]) -> None:
    reasons = measured[0].figures.reasons
    assert reasons["late"] == {"ttft": 5, "tpot": 5}
    assert reasons["refused"] == {"queue_full": 5}
    assert reasons["failed"]["timeout"] == 5
    assert sum(reasons["failed"].values()) == 10
    assert sum(reasons["cut_off"].values()) == 5


def test_the_times_are_the_planted_times(measured: tuple[Ran, Truth]) -> None:
    ran, _ = measured
    slow = [row for row in ran.rows if row.reason == "ttft"]
    dragging = [row for row in ran.rows if row.reason == "tpot"]
    assert all(SLOW_S <= (row.ttft_s or 0) < SLOW_S + 0.5 for row in slow)
    assert all(PAUSE_S * 0.95 <= (row.tpot_s or 0) < PAUSE_S + 0.2 for row in dragging)
    assert all(len(row.token_times_s) == TOKENS for row in (*slow, *dragging))
    assert ran.figures.ttft_ms is not None and ran.figures.ttft_ms.count == 80


def test_rates_and_hits_are_what_the_server_gave(measured: tuple[Ran, Truth]) -> None:
    figures = measured[0].figures
    assert figures.requested_per_s == pytest.approx(REQUESTS / SECONDS)
    assert 0.5 * figures.requested_per_s < figures.sent_per_s <= figures.requested_per_s
    # The last whole answer comes from a slow one, about 2.1 s after the start.
    assert 80 / 3.5 < figures.completed_per_s < 80 / (SLOW_S + 0.9)
    assert figures.hit_share == CACHED_TOKENS / PROMPT_TOKENS
    assert figures.workers == {"w0": 80}


class Instant:
    """Answers at once, with the times that a test asks for."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    async def ask(self, request: Planned, heard: Heard, clock: Callable[[], float]) -> None:
        await asyncio.sleep(self.seconds)
        heard.token_times_s.append(clock())


async def sent(
    target: Instant,
    *,
    limits: Limits,
    stop: asyncio.Event | None = None,
    progress: Callable[[Snapshot], None] = lambda snapshot: None,
) -> Results:
    from memserve.bench.ceiling import Ceiling
    from memserve.bench.figures import figures_of

    plan = make_plan(SCENARIO, 0, "s")
    generator = Generator(target, Slo(), limits, stop or asyncio.Event(), progress)
    sending = await generator.run(plan.requests, plan.seconds)
    figures = figures_of(sending, Slo(), limits)
    run = Ran(None, 0, "s", True, figures, Ceiling(0.0, "words"), 0, sending.rows)
    return Results((run,), None, stop is not None and stop.is_set())


async def test_a_late_generator_makes_the_run_invalid_and_its_lateness_counts_as_latency() -> None:
    blocked: list[float] = []

    def block(snapshot: Snapshot) -> None:
        if not blocked:
            blocked.append(snapshot.elapsed_s)
            time.sleep(0.3)

    results = await sent(Instant(), limits=Limits(cpu_share=8.0), progress=block)
    figures = results.runs[0].figures
    assert blocked
    assert not results.is_valid and "limits.late_p99_ms" in figures.invalid[0]
    assert figures.lateness_ms is not None and figures.lateness_ms.most >= 250
    assert figures.ttft_ms is not None and figures.ttft_ms.most >= 250, "counted from the intended time"


async def test_a_generator_that_takes_too_much_of_a_core_makes_the_run_invalid() -> None:
    def spin(snapshot: Snapshot) -> None:
        until_s = time.process_time() + 0.05
        while time.process_time() < until_s:
            pass

    results = await sent(Instant(), limits=Limits(cpu_share=0.01, late_p99_ms=1000.0), progress=spin)
    assert ["limits.cpu_share" in reason for reason in results.runs[0].figures.invalid] == [True]


async def test_what_the_generator_holds_back_makes_the_run_invalid() -> None:
    limits = Limits(max_outstanding=10, cpu_share=8.0, late_p99_ms=1000.0)
    results = await sent(Instant(5.0 / 100 * 3), limits=limits)
    figures = results.runs[0].figures
    assert figures.outcomes["shed"] > 0
    assert figures.offered == sum(figures.outcomes.values()) == REQUESTS
    assert "limits.max_outstanding" in figures.invalid[0]


async def test_an_interrupted_run_keeps_what_there_is_and_says_that_it_is_incomplete() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.3, stop.set)
    results = await sent(Instant(0.1), limits=Limits(cpu_share=8.0, late_p99_ms=1000.0), stop=stop)
    figures = results.runs[0].figures
    assert not results.is_complete and not figures.is_complete
    assert 0 < figures.offered < REQUESTS
    assert figures.outcomes["met"] > 0 and figures.outcomes["unfinished"] > 0
    assert figures.offered == sum(figures.outcomes.values())
    assert {row.outcome for row in results.runs[0].rows} == {Outcome.MET, Outcome.UNFINISHED}
