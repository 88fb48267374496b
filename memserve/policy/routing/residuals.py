"""How wrong forecasts were, worker by worker, and what that says of the next."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

SMOOTHING = 0.05
WORKERS_MAX = 4096
KNOWN_AFTER = 20
"""A worker's own error counts after so many first tokens. Before, the worker is taken for one like the
others: a single slow answer must not send requests away from the KV that they need."""
SPREADS = 2.0
"""The interval around a forecast, in mean absolute errors: it holds 9 of 10 of a normal distribution's."""


@dataclass(slots=True)
class _Median:
    """The running median of errors. A few answers that were very late hardly move it."""

    value_s: float = 0.0
    _scale_s: float | None = None

    def sample(self, error_s: float) -> None:
        off_s = error_s - self.value_s
        if self._scale_s is None:
            self._scale_s = abs(off_s)
        self.value_s += SMOOTHING * math.copysign(min(self._scale_s, abs(off_s)), off_s)
        self._scale_s += SMOOTHING * (min(abs(off_s), 4 * self._scale_s + 1e-4) - self._scale_s)


@dataclass(slots=True)
class _Errors:
    """Of one worker."""

    own: _Median = field(default_factory=_Median)
    """Less that of all workers."""
    spread_s: float = 0.0
    """The mean absolute error of corrected forecasts."""
    samples: int = 0


class Residuals:
    """Smoothed errors of the time to the first token, of all workers and of each.

    A forecast is corrected by their medians. So what the model of an engine leaves out is learned, like
    prompts that come later and share a step.
    """

    def __init__(self) -> None:
        self._all = _Median()
        self._of: dict[str, _Errors] = {}
        self._relative = self._bias = self._inside = self._weight = 0.0

    def correction_s(self, worker: str) -> float:
        """What to add to a forecast."""
        errors = self._of.get(worker)
        if errors is None or errors.samples < KNOWN_AFTER:
            return self._all.value_s
        return self._all.value_s + errors.own.value_s

    def interval_s(self, worker: str) -> float:
        """Nine of ten first tokens come within this time of the corrected forecast."""
        errors = self._of.get(worker)
        return SPREADS * errors.spread_s if errors else 0.0

    def observe(self, worker: str, forecast_s: float, learned_s: float, actual_s: float) -> None:
        """A first token has come.

        forecast_s, actual_s: from the routing on. learned_s: the part of the forecast that was a correction.
        """
        errors = self._of.pop(worker, None) or _Errors()
        self._of[worker] = errors
        if len(self._of) > WORKERS_MAX:
            del self._of[next(iter(self._of))]
        error_s = actual_s - forecast_s
        inside = abs(error_s) <= SPREADS * errors.spread_s
        model_s = error_s + learned_s
        self._all.sample(model_s)
        errors.own.sample(model_s - self._all.value_s)
        errors.spread_s += SMOOTHING * (abs(error_s) - errors.spread_s)
        errors.samples += 1
        relative = -error_s / max(actual_s, 1e-3)
        self._relative += SMOOTHING * (abs(relative) - self._relative)
        self._bias += SMOOTHING * (relative - self._bias)
        self._inside += SMOOTHING * (inside - self._inside)
        self._weight += SMOOTHING * (1 - self._weight)

    @property
    def mape(self) -> float:
        """Mean of |forecast - actual| / actual, lately. 0 before the first."""
        return self._relative / self._weight if self._weight else 0.0

    @property
    def bias(self) -> float:
        """Mean of (forecast - actual) / actual, lately. Below 0: forecasts are too hopeful."""
        return self._bias / self._weight if self._weight else 0.0

    @property
    def coverage(self) -> float:
        """The part of the first tokens that came within the interval of their forecast."""
        return self._inside / self._weight if self._weight else 0.0
