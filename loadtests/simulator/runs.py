"""Runs of the simulator by name: one fleet, one trace, one load, one seed; many of them on all cores."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from loadtests.simulator.fleet import Death, Fleet, Setting
from loadtests.simulator.jobs import Machine
from loadtests.simulator.outcomes import Outcomes
from loadtests.simulator.traces import (
    copies,
    repeated,
    synthetic_trace,
    unshared,
    with_adapters,
    with_tenants,
)
from memserve.bench.trace import Arrival, read_trace
from memserve.policy.routing.policies import POLICIES

SYNTHETIC = "synthetic"
SYNTHETIC_REQUESTS = 4000


@dataclass(frozen=True, slots=True)
class Run:
    """What is simulated."""

    policy: str
    trace: str
    """A path, or `synthetic`."""
    speed: float
    seed: int = 0
    margin: float = 0.0
    workers: int = 8
    gateways: int = 1
    view_age_s: float = 0.0
    copies: int = 2
    """Of the trace, at the same time."""
    repeat: int = 1
    """How often they come, one after the other."""
    first: int = 0
    """Only so many requests of the trace; 0 for all."""
    shared: bool = True
    """Whether prompts share blocks."""
    adapters: int = 0
    slots: int = 0
    tenants: tuple[float, ...] = ()
    """Shares of the load."""
    deaths: tuple[Death, ...] = ()
    scan_all: bool = True
    error: float = 0.0
    bias: float = 1.0

    rooms: bool = False
    slot_aware: bool = True


@dataclass(frozen=True, slots=True)
class Ran:
    """A run's end."""

    run: Run
    outcomes: Outcomes
    requests: int
    took_s: float


@functools.lru_cache(maxsize=4)
def _trace(name: str, first: int) -> list[Arrival]:
    trace = synthetic_trace(SYNTHETIC_REQUESTS, 0) if name == SYNTHETIC else read_trace(Path(name))
    return trace[: first or None]


def arrivals_of(run: Run) -> list[Arrival]:
    """The arrivals that a run simulates."""
    trace = _trace(run.trace, run.first)
    arrivals = copies(trace if run.shared else unshared(trace), run.copies, run.speed, run.seed)
    if run.adapters:
        arrivals = with_adapters(arrivals, run.adapters, run.seed)
    if run.tenants:
        arrivals = with_tenants(arrivals, run.tenants, run.seed)
    return arrivals


def simulate(run: Run) -> Ran:
    """On this core."""
    arrivals = arrivals_of(run)
    count = len(arrivals) * run.repeat
    started_s = time.perf_counter()
    setting = Setting(
        policy=POLICIES[run.policy],
        workers=run.workers,
        gateways=run.gateways,
        view_age_s=run.view_age_s,
        rooms=run.rooms,
        slot_aware=run.slot_aware,
        margin=run.margin,
        scan_all=run.scan_all,
        error=run.error,
        bias=run.bias,
        machine=replace(Machine(), slots=run.slots),
        deaths=run.deaths,
        seed=run.seed,
    )
    outcomes = Fleet(setting).run(repeated(arrivals, run.repeat), count)
    return Ran(run, outcomes, count, time.perf_counter() - started_s)


def simulate_all(runs: Sequence[Run], processes: int, progress: Callable[[int, Ran], None]) -> Iterator[Ran]:
    """In order. progress: told the number of each run that has ended."""
    with ProcessPoolExecutor(processes) as pool:
        for number, ran in enumerate(pool.map(simulate, runs), 1):
            progress(number, ran)
            yield ran
