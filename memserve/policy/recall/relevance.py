"""How probable it is that a memory answers a query, from what both halves of a search say of it.

A small logistic model. Its coefficients were fitted to generated questions with known answers, by
`python -m loadtests.memory_quality fit`; `loadtests.memory_quality` holds them against other ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from memserve.policy.recall.ranking import WordScore

_SPELT = re.compile("[\u0370-\u052f\u3040-\u30ff\u4e00-\u9fff]")
"""Greek, Cyrillic, kana and Han: they are in the vocabulary of BERT's English tokenizer."""

FEATURES = (
    "cosine",
    "cosine_margin",
    "share",
    "share_margin",
    "bm25_share",
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
    """The models of one embedder, by the letters of the query."""

    known: RelevanceModel
    """For letters of languages that the embedder has learned."""
    spelt: RelevanceModel
    """For letters that it can spell, so that its cosines tell like texts from unlike ones."""
    foreign: RelevanceModel
    """For all other letters."""

    def of(self, query: str) -> RelevanceModel:
        """The model for a query, by most of its letters."""
        letters = [letter for letter in query if letter.isalpha()]
        latin = sum(letter < "\u0250" for letter in letters)
        spelt = sum(_SPELT.match(letter) is not None for letter in letters)
        if 2 * latin >= len(letters):
            return self.known
        return self.spelt if 2 * (latin + spelt) >= len(letters) else self.foreign


# fmt: off
BUNDLED = RelevanceModels(
    known=RelevanceModel((-3.898, 4.205, 8.758, 0.257, 10.584, -0.25, 0.278, 1.088, 1.698, 2.502)),
    spelt=RelevanceModel((-2.718, 0.863, 3.066, 2.242, 13.658, -1.205, 0.0, 0.0, 0.0, 3.769)),
    foreign=RelevanceModel((-1.542, -1.491, 0.744, -1.223, 13.452, 4.207, -2.739, 0.0, 0.0, 2.481)),
)
"""Of all-MiniLM-L6-v2, the embedder that comes with memserve."""
OTHER = RelevanceModels(
    known=RelevanceModel((-1.015, -0.261, 5.518, 0.848, 10.401, -0.612, 0.384, 0.176, 0.912, 2.174), ranked_cosine=True),
    spelt=RelevanceModel((-1.561, -0.613, 1.723, 2.144, 13.168, -1.651, 0.0, 0.0, 0.0, 4.99), ranked_cosine=True),
    foreign=RelevanceModel((-2.334, -0.747, 0.035, -0.874, 13.481, 4.272, -2.752, 0.0, 0.0, 2.318), ranked_cosine=True),
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
            score.bm25_share,
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
