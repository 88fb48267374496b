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

WORD_FEATURES = ("bm25_ahead", "bm25_behind", "bm25_share", "leads_by_words")
"""What counts of a query in letters that the embedder cannot spell."""
FEATURES = (
    "cosine",
    "cosine_ahead",
    "cosine_behind",
    "share",
    "bm25_ahead",
    "bm25_behind",
    "bm25_share",
    "rarest",
    "has_codes",
    "lacks_codes",
    "agreement",
    "leads_by_words",
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
    """For all other letters. The cosine does not count there."""

    def of(self, query: str) -> RelevanceModel:
        """The model for a query, by most of its letters."""
        letters = [letter for letter in query if letter.isalpha()]
        latin = sum(letter < "\u0250" for letter in letters)
        spelt = sum(_SPELT.match(letter) is not None for letter in letters)
        if 2 * latin >= len(letters):
            return self.known
        return self.spelt if 2 * (latin + spelt) >= len(letters) else self.foreign


BUNDLED = RelevanceModels(
    known=RelevanceModel(
        (-3.221, 2.841, 7.57, 5.748, 1.866, 6.398, 5.655, -1.815, -0.072, 0.432, 0.991, 1.723, 0.425)
    ),
    spelt=RelevanceModel(
        (-3.239, 1.233, 0.918, 2.28, 2.475, 7.962, 6.64, -1.758, 0.0, 0.0, 0.0, 2.878, 0.84)
    ),
    foreign=RelevanceModel((-2.632, 0.0, 0.0, 0.0, 0.0, 6.939, 5.856, 1.962, 0.0, 0.0, 0.0, 0.0, 1.294)),
)
"""Of all-MiniLM-L6-v2, the embedder that comes with memserve."""
OTHER = RelevanceModels(
    known=RelevanceModel(
        (-2.243, 0.642, 6.782, 2.911, 1.846, 6.097, 5.111, -1.96, -0.086, -0.091, 0.526, 1.99, 0.457),
        ranked_cosine=True,
    ),
    spelt=RelevanceModel(
        (-3.262, 0.923, 1.181, 0.498, 2.362, 7.412, 6.661, -1.824, 0.0, 0.0, 0.0, 3.688, 0.888),
        ranked_cosine=True,
    ),
    foreign=RelevanceModel(
        (-2.632, 0.0, 0.0, 0.0, 0.0, 6.939, 5.856, 1.962, 0.0, 0.0, 0.0, 0.0, 1.294), ranked_cosine=True
    ),
)
"""Of any other embedder. Cosines of two models differ in their range, so only their order counts here, and
the words decide more."""


def features_of(
    cosines: Sequence[float | None],
    scores: Sequence[WordScore],
    subjects: Sequence[int],
    *,
    ranked_cosine: bool,
) -> list[list[float]]:
    """The features of a query's candidates.

    cosines: [n]. None, because the search by meaning did not look at the memory: the least of the others.
    subjects: [n], as of `subjects_of`. A candidate is ahead of those of other subjects, or behind them.
    Returns [n][FEATURES].
    """
    known = [cosine for cosine in cosines if cosine is not None]
    least = min(known, default=0.0)
    values = [least if cosine is None else cosine for cosine in cosines]
    if ranked_cosine:
        span = max(known, default=0.0) - least
        values = [(value - least) / span if span > 0 else 0.0 for value in values]
    margins = _margins(values, subjects)
    bm25_margins = _margins([score.bm25_share for score in scores], subjects)
    return [
        [
            value,
            max(0.0, margin),
            min(0.0, margin),
            score.share,
            max(0.0, bm25_margin),
            min(0.0, bm25_margin),
            score.bm25_share,
            score.rarest,
            float(score.codes is True),
            float(score.codes is False),
            value * score.share,
            float(bm25_margin >= 0 < score.bm25_share),
        ]
        for value, margin, score, bm25_margin in zip(values, margins, scores, bm25_margins, strict=True)
    ]


def probability(log_odds: float) -> float:
    """From 0 to 1."""
    if log_odds >= 0:
        return 1 / (1 + math.exp(-log_odds))
    power = math.exp(max(log_odds, -700.0))
    return power / (1 + power)


def _margins(values: Sequence[float], subjects: Sequence[int]) -> list[float]:
    """How far each one is above the best of the other subjects. 0 when there are no others."""
    best_by_subject: dict[int, float] = {}
    for value, subject in zip(values, subjects, strict=True):
        best_by_subject[subject] = max(value, best_by_subject.get(subject, value))
    ordered = sorted(best_by_subject, key=lambda subject: -best_by_subject[subject])
    if len(ordered) < 2:
        return [0.0] * len(values)
    best, second = (best_by_subject[subject] for subject in ordered[:2])
    return [
        value - (second if subject == ordered[0] else best)
        for value, subject in zip(values, subjects, strict=True)
    ]
