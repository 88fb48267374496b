"""The fit of relevance, and how far its probabilities are from the observed shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_RIDGE = 1.0
_STEPS = 50
BINS = 10


def fit_logistic(features: Sequence[Sequence[float]], labels: Sequence[bool]) -> tuple[float, ...]:
    """The coefficients of a logistic model with a small ridge, the intercept first (Newton's method)."""
    x = np.column_stack([np.ones(len(features)), np.array(features, dtype=np.float64)])
    y = np.array(labels, dtype=np.float64)
    ridge = np.diag([0.0] + [_RIDGE] * (x.shape[1] - 1))
    weights = np.zeros(x.shape[1])
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        slope = x.T @ (y - p) - ridge @ weights
        curve = (x * (p * (1 - p))[:, None]).T @ x + ridge + 1e-9 * np.eye(x.shape[1])
        step: npt.NDArray[np.float64] = np.linalg.solve(curve, slope)
        weights = weights + step
        if float(np.abs(step).max()) < 1e-8:
            break
    return tuple(round(float(weight), 3) for weight in weights)


@dataclass(frozen=True, slots=True)
class Reliability:
    """Predicted probabilities held against what was observed."""

    ece: float
    """Expected calibration error: the mean distance of predicted and observed, by the hits of the bins."""
    brier: float
    rows: list[tuple[str, int, float, float]]
    """By bin: its bounds, hits, mean prediction and share of hits that answer."""


def reliability(predicted: Sequence[float], observed: Sequence[bool]) -> Reliability:
    """Over BINS bins of equal width. Empty bins are left out."""
    p, y = np.array(predicted), np.array(observed, dtype=np.float64)
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    rows, ece = [], 0.0
    for place in range(BINS):
        chosen = bins == place
        if not chosen.any():
            continue
        mean, share = float(p[chosen].mean()), float(y[chosen].mean())
        ece += abs(mean - share) * int(chosen.sum()) / len(p)
        rows.append((f"{place / BINS:.1f} to {(place + 1) / BINS:.1f}", int(chosen.sum()), mean, share))
    return Reliability(ece, float(((p - y) ** 2).mean()), rows)
