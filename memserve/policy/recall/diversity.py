"""Hits that say different things (maximal marginal relevance)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from memserve.domain import ScoredMemory
from memserve.policy.recall.words import words_of

Vector = Sequence[float]

_CANDIDATES_MAX = 64
"""So many hits are compared with each other. Later ones are taken only when these do not suffice."""


def diversify(
    hits: Sequence[ScoredMemory],
    vectors: Mapping[tuple[str, str], Vector],
    diversity: float,
    limit: int,
) -> list[ScoredMemory]:
    """Choose hits one after the other, each by its score less its likeness to the most similar one before.

    hits: best first. Scores are taken relative to the best.
    vectors: by namespace and id. Two hits that have one are as similar as their cosine says, others as their
    words (Jaccard).
    diversity: 0 to 1, the weight of likeness. The score has the rest.
    Returns at most `limit` hits in the order of choice.
    Source: Carbonell and Goldstein 1998 (MMR).
    """
    best = max((hit.score for hit in hits), default=0.0)
    left = list(range(min(len(hits), _CANDIDATES_MAX)))
    words = [frozenset(words_of(hits[place].memory.text)) for place in left]
    norms = {key: math.sqrt(sum(x * x for x in vector)) for key, vector in vectors.items()}

    def likeness(one: int, other: int) -> float:
        keys = [(hits[place].memory.namespace, hits[place].memory.memory_id) for place in (one, other)]
        first, second = (vectors.get(key) for key in keys)
        if first is None or second is None:
            union = len(words[one] | words[other])
            return len(words[one] & words[other]) / union if union else 1.0
        length = norms[keys[0]] * norms[keys[1]]
        return sum(x * y for x, y in zip(first, second, strict=True)) / length if length else 0.0

    nearest = [0.0] * len(left)
    chosen: list[int] = []
    while left and len(chosen) < limit:

        def worth(place: int) -> float:
            score = hits[place].score / best if best > 0 else 0.0
            return (1 - diversity) * score - diversity * nearest[place]

        taken = max(left, key=lambda place: (worth(place), -place))
        left.remove(taken)
        chosen.append(taken)
        for place in left:
            nearest[place] = max(nearest[place], likeness(taken, place))
    rest = hits[len(words) : len(words) + limit - len(chosen)]
    return [*(hits[place] for place in chosen), *rest]
