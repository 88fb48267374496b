"""How probable it is that a memory answers a query, from what both halves of a search say of it.

A small logistic model. Its coefficients were fitted to generated questions with known answers, by
`python -m loadtests.memory_quality fit`; `loadtests.memory_quality` holds them against other ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from memserve.policy.recall.ranking import WordScore

FEATURES = (
    "cosine",
    "cosine_margin",
    "share",
    "share_margin",
    "rarest",
    "has_codes",
    "lacks_codes",
    "agreement",
)


@dataclass(frozen=True, slots=True)
class RelevanceModel:
    """A logistic model of [FEATURES], with its intercept first."""

    coefficients: tuple[float, ...]
    ranked_cosine: bool = False
    """Whether the cosine counts by its place between the least and the greatest of the candidates."""

    def log_odds(self, features: Sequence[float]) -> float:
        intercept, *weights = self.coefficients
        return intercept + sum(weight * feature for weight, feature in zip(weights, features, strict=True))


@dataclass(frozen=True, slots=True)
class RelevanceModels:
    """The models of one embedder, by the script of the query."""

    known: RelevanceModel
    """For scripts that the embedder has learned."""
    foreign: RelevanceModel

    def of(self, query: str) -> RelevanceModel:
        """The model for a query. Latin letters are what the bundled embedder knows."""
        letters = [letter for letter in query if letter.isalpha()]
        latin = sum(letter < "\u0250" for letter in letters)
        return self.known if 2 * latin >= len(letters) else self.foreign


# fmt: off
BUNDLED = RelevanceModels(
    known=RelevanceModel((-3.916, 4.236, 8.756, 0.048, 10.593, 0.285, 1.092, 1.704, 2.427)),
    foreign=RelevanceModel((-2.446, 0.109, 0.589, 2.22, 15.673, -2.169, 0.0, 0.0, 2.42)),
)
"""Of all-MiniLM-L6-v2, the embedder that comes with memserve."""
OTHER = RelevanceModels(
    known=RelevanceModel((-1.07, -0.198, 5.541, 0.412, 10.422, 0.393, 0.187, 0.923, 1.966), ranked_cosine=True),
    foreign=RelevanceModel((-0.045, -2.249, 2.822, 2.783, 15.482, -2.129, 0.0, 0.0, 1.853), ranked_cosine=True),
)
"""Of any other embedder. Cosines of two models differ in their range, so only their order counts here, and
the words decide more."""
# fmt: on


def features_of(
    cosines: Sequence[float | None], scores: Sequence[WordScore], *, ranked_cosine: bool
) -> list[list[float]]:
    """The features of a query's candidates.

    cosines: [n]. None, because the search by meaning did not look at the memory: the least of the others.
    Returns [n][FEATURES].
    """
    known = [cosine for cosine in cosines if cosine is not None]
    least = min(known, default=0.0)
    values = [least if cosine is None else cosine for cosine in cosines]
    if ranked_cosine:
        span = max(known, default=0.0) - least
        values = [(value - least) / span if span > 0 else 0.0 for value in values]
    margins = _margins(values)
    share_margins = _margins([score.share for score in scores])
    return [
        [
            value,
            margin,
            score.share,
            share_margin,
            score.rarest,
            float(score.codes is True),
            float(score.codes is False),
            value * score.share,
        ]
        for value, margin, score, share_margin in zip(values, margins, scores, share_margins, strict=True)
    ]


def probability(log_odds: float) -> float:
    """From 0 to 1."""
    if log_odds >= 0:
        return 1 / (1 + math.exp(-log_odds))
    power = math.exp(max(log_odds, -700.0))
    return power / (1 + power)


def _margins(values: Sequence[float]) -> list[float]:
    """How far each one is above the best of the others. 0 when there are no others."""
    if len(values) < 2:
        return [0.0] * len(values)
    best, second = sorted(values, reverse=True)[:2]
    return [value - (second if value == best else best) for value in values]
