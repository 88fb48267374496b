"""The knee: the highest rate at which the wanted part of the requests is in time. Pure arithmetic."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

# Student's t for a two-sided 95 % interval, by degrees of freedom from 1.
T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
T_95_BEYOND = 1.960


@dataclass(frozen=True, slots=True)
class Knee:
    """The knee over seeds."""

    per_s: float | None
    """Mean over the seeds. None: it lies outside the rates for at least one seed, as `bound` says."""
    plus_minus_per_s: float | None
    """Half of the 95 % interval by Student's t. None with fewer than two seeds."""
    seeds: tuple[float | None, ...]
    """Of each seed. None: outside the rates."""
    bound: str
    """Where the knee lies when `per_s` is None, for a person."""


def knee_of(points: Mapping[float, float], wanted: float) -> float | None:
    """Of one seed: where the line through the points falls below `wanted` for the first time.

    points: goodput by rate. Between two rates the goodput is taken as a straight line.
    None: it does not fall below within the rates, or is below at the lowest.
    """
    rates = sorted(points)
    for before, after in pairwise(rates):
        if points[before] < wanted:
            return None
        if points[after] < wanted:
            share = (points[before] - wanted) / (points[before] - points[after])
            return before + share * (after - before)
    return None


def knee_over(seeds: Sequence[Mapping[float, float]], wanted: float) -> Knee:
    """seeds: for each seed the goodput by rate; all have the same rates, at least one."""
    found = tuple(knee_of(points, wanted) for points in seeds)
    known = [knee for knee in found if knee is not None]
    if len(known) < len(found):
        lowest, highest = min(seeds[0]), max(seeds[0])
        below = any(points[lowest] < wanted for points in seeds)
        bound = f"below {lowest:g}/s" if below else f"above {highest:g}/s"
        return Knee(None, None, found, bound)
    return Knee(statistics.fmean(known), half_interval(known), found, "")


def half_interval(values: Sequence[float]) -> float | None:
    """Half of the 95 % confidence interval of the mean. None with fewer than two values."""
    if len(values) < 2:
        return None
    freedom = len(values) - 1
    t = T_95[freedom - 1] if freedom <= len(T_95) else T_95_BEYOND
    return t * statistics.stdev(values) / math.sqrt(len(values))


def next_rates(points: Sequence[tuple[float, float]], wanted: float, max_rate: float) -> list[float]:
    """The rates to try next in a search without given rates; empty at its end.

    points: what was tried, with the lowest goodput of all seeds. First the rate doubles until two rates are
    past the knee, or halves until one holds. Then the gap around the knee is cut into four.
    """
    tried = dict(points)
    rates = sorted(tried)
    if len(rates) >= 24:
        return []
    if tried[rates[0]] < wanted:
        return [rates[0] / 2] if rates[0] > 0.02 else []
    past = [rate for rate in rates if tried[rate] < wanted]
    if len(past) < 2:
        return [rates[-1] * 2] if rates[-1] * 2 <= max_rate else []
    first_past = past[0]
    last_good = max(rate for rate in rates if rate < first_past)
    if first_past / last_good < 1.9:
        return []
    step = (first_past - last_good) / 4
    return [last_good + step * number for number in (1, 2, 3)]
