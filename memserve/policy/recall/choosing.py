"""Which of the memories that both halves of a search found are hits, in which order, and why others are not.

1. What does not hold now, or whose condition does not hold, is skipped (`usable_at`).
2. The rest is ordered by relevance and strength. Of memories that say different things of one subject, the
   newest goes first (`newest_first`).
3. What is less relevant than asked for is skipped. A recall puts reflections on the task first. Diversity,
   the limit and the tokens cut what is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from memserve.domain import FoundMemories, Memory, ScoredMemory, Skipped, SkipReason
from memserve.policy.recall.diversity import Vector, diversify
from memserve.policy.recall.prompt import reflections_first
from memserve.policy.recall.ranking import (
    WordScore,
    WordStatistics,
    memory_words,
    query_terms,
    score_words,
)
from memserve.policy.recall.relevance import BUNDLED, RelevanceModels, features_of, probability
from memserve.policy.recall.versions import RankedHit, newest_first, subjects_of

CLOCK_SKEW_S = 2.0
_STRENGTH_LEAST, _STRENGTH_MOST = 1e-3, 1e3


@dataclass(frozen=True, slots=True)
class SearchWishes:
    """What the caller wants of the hits. Checked where calls come in."""

    limit: int
    min_relevance: float = 0.0
    """Hits with a smaller probability of answering are skipped, 0 to 1."""
    diversity: float = 0.0
    """0: by score alone. 1: each hit as unlike those before it as can be."""
    max_tokens: int | None = None
    """Of all hits' texts. None: any."""
    clock_skew_s: float = CLOCK_SKEW_S
    """How far the writers' clocks may be ahead."""
    task: str = ""
    """What was learned from an earlier try of this task goes first, before the limit cuts. "": nothing."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A memory that a half of the search found."""

    memory: Memory
    cosine: float | None
    """With the query, exact. None: the memory's vector was not compared."""
    words: Sequence[str] | None = None
    """As they are indexed. None: they are taken from the memory, which costs more."""
    vector: Vector | None = None
    """For diversity. None: the words are compared."""
    size_tokens: int = 0
    """Of its text in the prompt. Only for a budget of tokens."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What both halves of a search found, each memory once, and what judges it."""

    found: Sequence[Candidate]
    statistics: WordStatistics
    models: RelevanceModels = BUNDLED
    """Those of the embedder that the cosines come from."""
    strengths: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """By `Memory.name`. Without an entry: 1. The odds of a hit's relevance are multiplied with it."""
    applies: Callable[[Memory], bool] | None = None
    """Whether the memory's `applies_when` holds. None: conditions are not looked at."""
    cut: bool = False
    """As of FoundMemories."""


def rank_candidates(
    candidates: Candidates, query: str, now_s: float, *, clock_skew_s: float = CLOCK_SKEW_S
) -> tuple[list[ScoredMemory], list[Skipped]]:
    """All candidates that hold now, best first, and the others. A reranker takes the hits from here."""
    skipped: list[Skipped] = []
    usable: list[Candidate] = []
    for candidate in candidates.found:
        reason = usable_at(candidate.memory, now_s, clock_skew_s)
        if reason is not None:
            skipped.append(skipped_as(candidate.memory, reason, _VALIDITY[reason]))
        elif candidates.applies is not None and not candidates.applies(candidate.memory):
            skipped.append(skipped_as(candidate.memory, SkipReason.CONDITION, "applies_when does not hold"))
        else:
            usable.append(candidate)
    terms = query_terms(query)
    words = [
        memory_words(candidate.memory) if candidate.words is None else candidate.words for candidate in usable
    ]
    scores = score_words(terms, words, candidates.statistics)
    model = candidates.models.of(query)
    subjects = subjects_of([candidate.memory for candidate in usable], scores, words)
    features = features_of(
        [candidate.cosine for candidate in usable], scores, subjects, ranked_cosine=model.ranked_cosine
    )
    hits = []
    for candidate, score, subject, row in zip(usable, scores, subjects, features, strict=True):
        strength = candidates.strengths.get(candidate.memory.name, 1.0)
        hits.append(RankedHit(_scored(candidate, score, model.log_odds(row), strength), subject))
    hits.sort(key=lambda ranked: (-ranked.hit.score, ranked.hit.memory.name))
    return newest_first(hits), skipped


def choose_ranked(
    ranked: Sequence[ScoredMemory],
    skipped: Sequence[Skipped],
    candidates: Candidates,
    wishes: SearchWishes,
) -> FoundMemories:
    """Cut ranked hits to what the caller wants. Returns the hits, and what was found and is not among them.

    skipped: what was skipped before. Memories that the limit alone leaves out are not told.
    """
    left_out = list(skipped)
    relevant = []
    for hit in ranked:
        if hit.relevance >= wishes.min_relevance:
            relevant.append(hit)
        else:
            detail = f"relevance {hit.relevance:.2f} is below {wishes.min_relevance:.2f}"
            left_out.append(skipped_as(hit.memory, SkipReason.SCORE, detail))
    if wishes.task:
        relevant = reflections_first(relevant, wishes.task)
    by_key = {candidate.memory.name: candidate for candidate in candidates.found}
    if wishes.diversity > 0:
        vectors = {key: candidate.vector for key, candidate in by_key.items() if candidate.vector is not None}
        chosen = diversify(relevant, vectors, wishes.diversity, wishes.limit)
        names = {hit.memory.name for hit in chosen}
        for hit in relevant[: wishes.limit]:
            if hit.memory.name not in names:
                left_out.append(skipped_as(hit.memory, SkipReason.DIVERSITY, "a better hit is like it"))
    else:
        chosen = list(relevant[: wishes.limit])
    if wishes.max_tokens is not None:
        sizes = [by_key[hit.memory.name].size_tokens for hit in chosen]
        chosen, too_long = within_budget(chosen, sizes, wishes.max_tokens)
        left_out.extend(too_long)
    return FoundMemories(tuple(chosen), tuple(left_out), candidates.cut)


def usable_at(memory: Memory, now_s: float, clock_skew_s: float = CLOCK_SKEW_S) -> SkipReason | None:
    """Why a memory does not hold now. None: it holds.

    A memory that becomes valid within `clock_skew_s` holds already, because its writer's clock may be ahead.
    One that has expired is never used.
    """
    if memory.valid_until_s is not None and now_s >= memory.valid_until_s:
        return SkipReason.EXPIRED
    if memory.valid_from_s is not None and now_s + clock_skew_s < memory.valid_from_s:
        return SkipReason.NOT_YET_VALID
    return None


def within_budget(
    hits: Sequence[ScoredMemory], sizes_tokens: Sequence[int], max_tokens: int
) -> tuple[list[ScoredMemory], list[Skipped]]:
    """Keep hits in their order while they fit. A hit that does not fit leaves its room to shorter ones.

    sizes_tokens: [hits].
    Returns the hits that are kept, and the others.
    """
    kept, skipped, left = [], [], max_tokens
    for hit, size in zip(hits, sizes_tokens, strict=True):
        if size <= left:
            kept.append(hit)
            left -= size
        else:
            detail = f"{size} tokens, and {left} of {max_tokens} are left"
            skipped.append(skipped_as(hit.memory, SkipReason.TOKENS, detail))
    return kept, skipped


def skipped_as(memory: Memory, reason: SkipReason, detail: str) -> Skipped:
    return Skipped(memory.namespace, memory.memory_id, memory.version, reason, detail)


_VALIDITY = {
    SkipReason.EXPIRED: "valid_until_s has passed",
    SkipReason.NOT_YET_VALID: "valid_from_s has not come",
}


def _scored(candidate: Candidate, score: WordScore, log_odds: float, strength: float) -> ScoredMemory:
    weighed = log_odds + math.log(min(_STRENGTH_MOST, max(_STRENGTH_LEAST, strength)))
    return ScoredMemory(
        memory=candidate.memory,
        score=probability(weighed),
        dense_score=candidate.cosine,
        bm25_score=score.bm25 if score.bm25 > 0 else None,
        relevance=probability(log_odds),
        strength=strength,
    )
