"""What the searches of one set of questions give, arm by arm."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loadtests.texts.memory_quality.questions import NOW_S, Question, QuestionSet
from loadtests.texts.memory_quality.searching import Searcher
from memserve.domain import Memory, ScoredMemory
from memserve.memory.texts.embedding import BertEmbedder
from memserve.policy.recall.choosing import Candidate, Candidates, rank_candidates, usable_at
from memserve.policy.recall.ranking import query_terms, score_words

FOUND_IN = 5
HYBRID, DENSE, WORDS, BY_RANK, WEIGHTED = "hybrid", "dense", "words", "rank fusion", "weighted fusion"
ARMS = (DENSE, WORDS, HYBRID, BY_RANK, WEIGHTED)
_WORD_SHARE = 0.5
_RRF_K = 60
ScoredRow = tuple[Memory, float]


@dataclass(slots=True)
class Measured:
    """Of the questions of one tongue."""

    found: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    """By arm and question that has an answer: whether it is among the first FOUND_IN."""
    found_by_kind: dict[tuple[str, str], list[bool]] = field(default_factory=lambda: defaultdict(list))
    newest: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    """By the change of CHANGES, for changed subjects that are found: whether the first of the subject's
    memories is the one that holds."""
    hits: list[tuple[float, bool]] = field(default_factory=list)
    """Relevance of each of the first FOUND_IN hits, and whether it is about what was asked for."""
    first: list[tuple[float, bool, bool]] = field(default_factory=list)
    """By question: the first hit's relevance, whether it is right, and whether the question has an answer."""
    first_hits: list[tuple[float, bool]] = field(default_factory=list)
    """As `hits`, of the first ones alone."""
    ranking_s: float = 0.0
    """Of processor time, in `rank_candidates`."""


def embedded(
    questions: Sequence[Question], embedder: BertEmbedder, report: Callable[[str], None]
) -> list[list[float]]:
    """[questions] their vectors."""
    vectors: list[list[float]] = []
    for first in range(0, len(questions), 64):
        texts = [question.text for question in questions[first : first + 64]]
        vectors.extend(embedder.embed(texts, query=True))  # type: ignore[arg-type]
    report(f"  {len(vectors)} questions are embedded")
    return vectors


def measure(made: QuestionSet, searcher: Searcher, vectors: Sequence[object]) -> Measured:
    """Ask every question."""
    measured = Measured()
    for question, vector in zip(made.questions, vectors, strict=True):
        candidates = searcher.candidates(question.text, vector)  # type: ignore[arg-type]
        started_s = time.process_time()
        hybrid, _ = rank_candidates(candidates, question.text, NOW_S)
        measured.ranking_s += time.process_time() - started_s
        _note_hits(measured, question, hybrid)
        if question.right is None:
            continue
        orders = {HYBRID: [hit.memory for hit in hybrid], **_other_orders(candidates, question.text)}
        for arm in ARMS:
            among = question.right in [memory.memory_id for memory in orders[arm][:FOUND_IN]]
            measured.found[arm].append(among)
            measured.found_by_kind[arm, question.kind].append(among)
        if question.changed:
            ids = [memory.memory_id for memory in orders[HYBRID][:FOUND_IN]]
            subject = [memory_id for memory_id in ids if memory_id in question.subject]
            if subject:
                measured.newest[question.changed].append(subject[0] == question.right)
    return measured


def _note_hits(measured: Measured, question: Question, hits: Sequence[ScoredMemory]) -> None:
    for hit in hits[:FOUND_IN]:
        measured.hits.append((hit.relevance, hit.memory.memory_id in question.subject))
    best = hits[0] if hits else None
    if best is not None:
        measured.first_hits.append((best.relevance, best.memory.memory_id in question.subject))
    measured.first.append(
        (
            best.relevance if best else 0.0,
            best is not None and best.memory.memory_id == question.right,
            question.right is not None,
        )
    )


def _other_orders(candidates: Candidates, query: str) -> dict[str, list[Memory]]:
    """The orders of the other arms, over the candidates that hold now."""
    usable = [candidate for candidate in candidates.found if usable_at(candidate.memory, NOW_S) is None]
    dense: list[ScoredRow] = sorted(
        ((candidate.memory, candidate.cosine or 0.0) for candidate in usable), key=lambda row: -row[1]
    )
    scores = score_words(
        query_terms(query), [candidate.words or () for candidate in usable], candidates.statistics
    )
    words: list[ScoredRow] = sorted(
        (
            (candidate.memory, score.bm25)
            for candidate, score in zip(usable, scores, strict=True)
            if score.bm25 > 0
        ),
        key=lambda row: (-row[1], row[0].memory_id),
    )
    return {
        DENSE: [memory for memory, _ in dense],
        WORDS: [memory for memory, _ in words],
        BY_RANK: _fused(dense[:32], words[:32]),
        WEIGHTED: _weighted(usable, words),
    }


def _fused(*halves: Sequence[ScoredRow]) -> list[Memory]:
    """Reciprocal rank fusion. Source: Cormack et al. 2009."""
    by_id = {memory.memory_id: memory for half in halves for memory, _ in half}
    scores = dict.fromkeys(by_id, 0.0)
    for half in halves:
        # Equal scores share a rank.
        ranks: dict[float, int] = {}
        for rank, (memory, score) in enumerate(half, start=1):
            scores[memory.memory_id] += 1 / (_RRF_K + ranks.setdefault(round(score, 6), rank))
    return [by_id[memory_id] for memory_id in sorted(scores, key=lambda each: (-scores[each], each))]


def _weighted(usable: Sequence[Candidate], words: Sequence[ScoredRow]) -> list[Memory]:
    """Half of the cosine and half of the BM25 score, each between the least and the greatest."""
    cosines = [candidate.cosine or 0.0 for candidate in usable]
    least, span = min(cosines, default=0.0), (max(cosines, default=0.0) - min(cosines, default=0.0)) or 1.0
    best = words[0][1] if words else 1.0
    by_id = {memory.memory_id: score / best for memory, score in words}

    def score(candidate: Candidate) -> float:
        cosine = ((candidate.cosine or 0.0) - least) / span
        return (1 - _WORD_SHARE) * cosine + _WORD_SHARE * by_id.get(candidate.memory.memory_id, 0.0)

    return [candidate.memory for candidate in sorted(usable, key=lambda candidate: -score(candidate))]
