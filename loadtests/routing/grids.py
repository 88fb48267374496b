"""The scenes of `goodput`, and their results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loadtests.simulator.runs import SYNTHETIC, Ran, Run

GOODPUT = 0.9
MARGINS = (1.1, 1.3, 1.6, 2.0)
BASELINES = ("lmetric", "least_ttft", "cheapest_feasible")
SYNTHETIC_LOADS = (3.0, 4.0, 4.5, 5.0, 5.5, 6.0, 7.0)
SYNTHETIC_LOW_LOADS = (3.0, 3.5, 4.0, 4.5, 5.0)
STUDENT = {2: 12.7, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""97.5 % quantiles, by the number of seeds."""


@dataclass(frozen=True, slots=True)
class Line:
    """A policy, and how it admits."""

    policy: str
    margin: float = 0.0
    rooms: bool = False
    slot_aware: bool = True

    @property
    def name(self) -> str:
        admits = (
            "waiting room" if self.rooms else f"margin {self.margin:g}" if self.margin else "no admission"
        )
        return f"{self.policy}, {admits}"


OURS = Line("least_harm", rooms=True)
WITHOUT = [Line(policy) for policy in BASELINES]
PLAIN = [Line(policy, MARGINS[0]) for policy in BASELINES]
TUNED = [Line(policy, margin) for policy in BASELINES for margin in MARGINS]
BLIND = [Line(policy, margin, slot_aware=False) for policy in ("lmetric", "least_ttft") for margin in MARGINS]


@dataclass(frozen=True, slots=True)
class Grid:
    """A scene: some lines at some loads."""

    name: str
    base: Run
    lines: Sequence[Line]
    loads: Sequence[float]
    """The trace's speed."""
    seeds: int

    def runs(self) -> list[Run]:
        return [
            replace(
                self.base,
                policy=line.policy,
                margin=line.margin,
                rooms=line.rooms,
                slot_aware=line.slot_aware,
                speed=load,
                seed=seed,
            )
            for line in self.lines
            for load in self.loads
            for seed in range(self.seeds)
        ]


class Results:
    """Of a grid, by line and load."""

    def __init__(self, grid: Grid, ran: Iterable[Ran]) -> None:
        self.grid = grid
        self._ran: dict[tuple[Line, float], list[Ran]] = {}
        for each in ran:
            run = each.run
            line = Line(run.policy, run.margin, run.rooms, run.slot_aware)
            self._ran.setdefault((line, run.speed), []).append(each)

    def goodput(self, line: Line, load: float) -> float:
        """The mean over seeds."""
        return statistics.mean(each.outcomes.requests.goodput for each in self._ran[line, load])

    def interval(self, line: Line, load: float) -> float:
        """Half of the 95 % interval over seeds (Student). 0 for one seed."""
        goodputs = [each.outcomes.requests.goodput for each in self._ran[line, load]]
        if len(goodputs) < 2:
            return 0.0
        deviation: float = statistics.stdev(goodputs)
        return STUDENT.get(len(goodputs), 2.2) * deviation / math.sqrt(len(goodputs))

    def weighted(self, line: Line, load: float) -> float:
        """Goodput weighted by prompt tokens."""
        return statistics.mean(each.outcomes.tokens.goodput for each in self._ran[line, load])

    def classes(self, line: Line, load: float) -> list[float]:
        """Goodput of the classes of prompt length."""
        of_seeds = [[tally.goodput for tally in each.outcomes.classes] for each in self._ran[line, load]]
        return [statistics.mean(of_class) for of_class in zip(*of_seeds, strict=True)]

    def forecast_errors(self, line: Line, load: float) -> tuple[float, float]:
        """MAPE and bias of the forecasts of answered requests."""
        ended = [each.outcomes for each in self._ran[line, load]]
        answers = sum(each.answers for each in ended) or 1
        return sum(each.error for each in ended) / answers, sum(each.bias for each in ended) / answers

    def sustained(self, line: Line) -> float:
        """The load at 90 % goodput, between the loads of the grid; beyond them, the first or last."""
        loads = self.grid.loads
        before_load, before = loads[0], self.goodput(line, loads[0])
        if before < GOODPUT:
            return before_load
        for load in loads[1:]:
            here = self.goodput(line, load)
            if here < GOODPUT:
                part = (before - GOODPUT) / (before - here)
                return before_load + part * (load - before_load)
            before_load, before = load, here
        return before_load

    def best(self, lines: Sequence[Line]) -> float:
        """The load that the best of the lines sustains."""
        return max(self.sustained(line) for line in lines)

    def most_behind(self, *, weighted: bool = False, above: float = 0.0) -> float:
        """The most points of goodput that ours lacks to the best other line, over the loads.

        above: only loads of at least so much of what the best other line sustains.
        """
        others = [line for line in self.grid.lines if line != OURS]
        measure = self.weighted if weighted else self.goodput
        from_load = above * self.best(others)
        return max(
            100 * (max(measure(line, load) for line in others) - measure(OURS, load))
            for load in self.grid.loads
            if load >= from_load
        )

    def figures(self) -> dict[str, object]:
        """By line: goodput and token-weighted goodput by load, and the sustained load."""
        return {
            line.name: {
                "loads": list(self.grid.loads),
                "goodput": [round(self.goodput(line, load), 4) for load in self.grid.loads],
                "by_tokens": [round(self.weighted(line, load), 4) for load in self.grid.loads],
                "load_at_90": round(self.sustained(line), 3),
            }
            for line in self.grid.lines
        }


def grids(trace: Path, *, quick: bool, seeds: int) -> dict[str, Grid]:
    """The scenes, by name."""
    conversation = Run("", str(trace), 1.0, first=1500 if quick else 0)
    stale = replace(conversation, gateways=4, view_age_s=0.1)
    loads: Sequence[float] = (
        (1.55, 2.33, 3.1, 4.0) if quick else (0.62, 1.08, 1.55, 1.94, 2.33, 2.7, 3.1, 3.5, 4.0)
    )
    low = (1.08, 1.4, 1.75) if quick else (0.62, 1.08, 1.3, 1.4, 1.55, 1.75, 1.94)
    adapters = replace(conversation, adapters=64, slots=8)
    aware = (0.62, 1.08, 1.55, 2.33) if quick else (0.62, 0.85, 1.08, 1.3, 1.55, 1.94, 2.33)
    scenes: dict[str, Grid] = {
        "conversation": Grid("conversation, fresh views", conversation, [OURS, *TUNED], loads, seeds),
        "conversation, no admission": Grid(
            "conversation, without admission", conversation, WITHOUT, low, seeds
        ),
        "conversation, 4 gateways": Grid(
            "conversation, 4 gateways, views 100 ms old", stale, [OURS, *TUNED], loads, seeds
        ),
        "adapters": Grid(
            "conversation, 64 adapters by Zipf over 8 slots", adapters, [OURS, *BLIND], aware, seeds
        ),
    }
    if quick:
        return scenes
    synthetic = Run("", SYNTHETIC, 1.0, copies=4)
    stale = replace(synthetic, gateways=4, view_age_s=0.1)
    unshared, many = (
        replace(conversation, shared=False),
        replace(conversation, workers=64, copies=8, scan_all=False),
    )
    return scenes | {
        "synthetic": Grid("synthetic, fresh views", synthetic, [OURS, *TUNED], SYNTHETIC_LOADS, seeds),
        "synthetic, no admission": Grid(
            "synthetic, without admission", synthetic, WITHOUT, SYNTHETIC_LOW_LOADS, seeds
        ),
        "synthetic, 4 gateways": Grid(
            "synthetic, 4 gateways, views 100 ms old", stale, [OURS, *TUNED], SYNTHETIC_LOADS, seeds
        ),
        "no sharing": Grid(
            "conversation, no two prompts share a block", unshared, [OURS, *TUNED], (0.62, 1.08, 1.55), seeds
        ),
        "64 workers": Grid(
            "conversation, 64 workers", many, [OURS, *PLAIN], (3.5, 5.0, 6.0, 7.0, 8.0), min(seeds, 3)
        ),
    }
