"""Seeded recall traffic: memories about subjects, and questions that come as often as Zipf's law says."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from memserve.demo import facts
from memserve.demo.facts import Question
from memserve.domain import Memory, ScoredMemory
from memserve.memory.texts.embedding import BertEmbedder
from memserve.policy.recall.choosing import (
    Candidate,
    Candidates,
    SearchWishes,
    choose_ranked,
    rank_candidates,
)
from memserve.policy.recall.ranking import WordStatistics, memory_words
from memserve.policy.recall.words import words_of

TOP = 5
NAMESPACE = "notes"
CANDIDATES = 32
"""Memories that the search ranks for a question: the nearest ones by cosine."""
ZIPF = 1.0
PHRASINGS = 20
"""Ways in which a fact is asked for. Some of them are the same."""
EMBED_AT_ONCE = 16
_BEGUN_S = 1.7e9


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the traffic is."""

    subjects: int
    facts_each: int
    requests: int
    fillers: tuple[int, int] = (1, 6)
    """Sentences beside the fact in a memory, from and to: 20 to 80 tokens in all."""


@dataclass(frozen=True, slots=True)
class Request:
    """A question with what the search finds for it."""

    question: Question
    hits: tuple[ScoredMemory, ...]
    """Best first, [TOP]."""


def memories_and_questions(shape: Shape, seed: int) -> tuple[list[Memory], list[list[list[Question]]]]:
    """The memories in the order of their creation, where subjects are mixed, and the questions:
    [subjects][facts][phrasings].
    """
    rng = random.Random(f"memory-reuse-{seed}")
    stated = []
    subjects: dict[str, None] = {}
    while len(subjects) < shape.subjects:
        kind = rng.choice(["station", "ship", "laboratory", "archive", "telescope", "farm", "person"])
        about = facts.entity(rng, "held_out", kind)
        if about.name in subjects:
            continue
        subjects[about.name] = None
        known: dict[tuple[str, str], facts.Fact] = {}
        while len(known) < shape.facts_each:
            drawn = facts.fact(rng, "held_out", about=about, wild_share=0.3)
            known.setdefault(drawn.key, drawn)
        stated.append(list(known.values()))
    questions = [
        [[facts.question(rng, fact) for _ in range(PHRASINGS)] for fact in of_subject]
        for of_subject in stated
    ]
    everything = list(itertools.chain.from_iterable(stated))
    rng.shuffle(everything)
    memories = []
    for number, fact in enumerate(everything):
        fillers = [facts.filler(rng) for _ in range(rng.randint(*shape.fillers))]
        text = " ".join([facts.statement(rng, fact), *fillers])
        memories.append(Memory(f"m{number:05d}", NAMESPACE, text, "", (), _BEGUN_S + 60 * number))
    return memories, questions


def draw_requests(shape: Shape, seed: int) -> tuple[list[Memory], list[Request]]:
    """Embeds and ranks with the parts of memserve's search. The subject of a question, and then its fact, are
    Zipf-popular.
    """
    memories, questions = memories_and_questions(shape, seed)
    rng = random.Random(f"memory-reuse-requests-{seed}")
    by_subject, by_fact = _zipf(shape.subjects), _zipf(shape.facts_each)
    asked: list[Question] = []
    for _ in range(shape.requests):
        [subject] = rng.choices(range(shape.subjects), by_subject)
        [fact] = rng.choices(range(shape.facts_each), by_fact)
        asked.append(rng.choice(questions[subject][fact]))
    found = _search(memories, list(dict.fromkeys(one.text for one in asked)))
    return memories, [Request(one, found[one.text]) for one in asked]


def _zipf(count: int) -> list[float]:
    return [1 / (rank**ZIPF) for rank in range(1, count + 1)]


def _search(memories: Sequence[Memory], queries: Sequence[str]) -> Mapping[str, tuple[ScoredMemory, ...]]:
    embedder = BertEmbedder()
    vectors = _embed(embedder, [memory.text for memory in memories], query=False)
    asked = _embed(embedder, queries, query=True)
    indexed = [memory_words(memory) for memory in memories]
    frequency: dict[str, int] = {}
    for each in indexed:
        for word in set(each):
            frequency[word] = frequency.get(word, 0) + 1
    mean_length = sum(map(len, indexed)) / len(indexed)
    statistics = WordStatistics(len(memories), mean_length, frequency)
    found = {}
    for query, vector in zip(queries, asked, strict=True):
        cosines = vectors @ vector
        places = set(np.argsort(-cosines)[:CANDIDATES].tolist())
        rare = {word for word in words_of(query) if 0 < frequency.get(word, 0) <= CANDIDATES}
        places |= {place for place, each in enumerate(indexed) if rare.intersection(each)}
        candidates = Candidates(
            [Candidate(memories[place], float(cosines[place]), indexed[place]) for place in sorted(places)],
            statistics,
        )
        ranked, skipped = rank_candidates(candidates, query, memories[-1].created_s)
        found[query] = choose_ranked(ranked, skipped, candidates, SearchWishes(TOP)).hits
    return found


def _embed(embedder: BertEmbedder, texts: Sequence[str], *, query: bool) -> np.ndarray:
    batches = [
        embedder.embed(texts[start : start + EMBED_AT_ONCE], query=query)
        for start in range(0, len(texts), EMBED_AT_ONCE)
    ]
    return np.concatenate(batches)
