"""What became of the requests: goodput over what was offered, in several weightings."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from loadtests.simulator.jobs import Job

WARM_UP = 0.1
WINDOW_S = 10.0
TTFTS_MAX = 10_000
CLASSES = (4_000, 16_000, 48_000, math.inf)
"""Prompt lengths below which a request is in the first class, the second, and so on."""


@dataclass(slots=True)
class Tally:
    """Offered requests, and those that met their SLO. A request that was refused, late or lost has not."""

    offered: float = 0.0
    good: float = 0.0

    @property
    def goodput(self) -> float:
        return self.good / self.offered if self.offered else 1.0


@dataclass(slots=True)
class Outcomes:
    """Counts. Its memory does not grow with the requests."""

    tpot_s: float
    requests: Tally = field(default_factory=Tally)
    tokens: Tally = field(default_factory=Tally)
    """Weighted by prompt tokens."""
    classes: list[Tally] = field(default_factory=lambda: [Tally() for _ in CLASSES])
    tenants: dict[str, Tally] = field(default_factory=dict)
    bands: dict[int, Tally] = field(default_factory=dict)
    served_tokens: Counter[str] = field(default_factory=Counter)
    """Uncached prompt tokens, by tenant."""
    ends: Counter[str] = field(default_factory=Counter)
    """How requests ended: good, ttft, tpot, refused, lost."""
    cached_tokens: int = 0
    prompt_tokens: int = 0
    error: float = 0.0
    """Sum over answers of |forecast - TTFT| / TTFT."""
    bias: float = 0.0
    """Sum of (forecast - TTFT) / TTFT."""
    from_number: int = 0
    ttft_s: list[float] = field(default_factory=list)
    """Of the first TTFTS_MAX answers."""
    windows: list[Tally] = field(default_factory=list)
    """By the WINDOW_S in which requests arrived."""
    lost_before_a_token: int = 0

    def begin(self, count: int) -> None:
        """count: how many requests will come."""
        self.from_number = int(WARM_UP * count)

    def answered(self, job: Job, now_s: float) -> None:
        ttft_s, arrival = job.first_s - job.arrival.at_s, job.arrival
        late = job.first_s > job.deadline_s
        between_s = (now_s - job.first_s) / (arrival.output_tokens - 1) if arrival.output_tokens > 1 else 0.0
        end = "ttft" if late else "tpot" if between_s > self.tpot_s else "good"
        if self._count(job, end):
            if len(self.ttft_s) < TTFTS_MAX:
                self.ttft_s.append(ttft_s)
            self.prompt_tokens += arrival.prompt_tokens
            self.cached_tokens += job.cached_tokens
            self.served_tokens[arrival.tenant] += arrival.prompt_tokens - job.cached_tokens
            wrong = (job.predicted_s - job.first_s) / ttft_s
            self.error += abs(wrong)
            self.bias += wrong

    def refused(self, job: Job) -> None:
        self._count(job, "refused")

    def lost(self, job: Job) -> None:
        """Its worker died."""
        self._count(job, "lost")
        self.lost_before_a_token += job.first_s == 0

    @property
    def median_ttft_s(self) -> float:
        return statistics.median(self.ttft_s)

    @property
    def answers(self) -> int:
        return self.ends["good"] + self.ends["ttft"] + self.ends["tpot"]

    def _count(self, job: Job, end: str) -> bool:
        arrival, good = job.arrival, end == "good"
        place = int(arrival.at_s // WINDOW_S)
        while len(self.windows) <= place:
            self.windows.append(Tally())
        tallies = [(self.windows[place], 1)]
        counted = job.number >= self.from_number
        if counted:
            self.ends[end] += 1
            tokens = arrival.prompt_tokens
            number = next(place for place, below in enumerate(CLASSES) if tokens < below)
            tallies += [
                (self.requests, 1),
                (self.tokens, tokens),
                (self.classes[number], 1),
                (self.tenants.setdefault(arrival.tenant, Tally()), 1),
                (self.bands.setdefault(arrival.band, Tally()), 1),
            ]
        for tally, weight in tallies:
            tally.offered += weight
            tally.good += weight * good
        return counted


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all are equal, 1/n when one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0
