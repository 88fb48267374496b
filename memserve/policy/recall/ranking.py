"""Ranks of memories.

Which words of a query count, BM25 over the memories that a search found, and the fusion of both halves of a
search.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from memserve.domain import Memory, ScoredMemory
from memserve.policy.recall.words import words_of

ScoredRow = tuple[Memory, float]

# Function words are not indexed. Rank fusion would count a memory that "where is the" finds as much as a
# memory that its code word finds.
# fmt: off
STOP_WORDS = [
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "can", "could", "did", "do", "does", "for",
    "from", "had", "has", "have", "how", "i", "if", "in", "into", "is", "it", "its", "me", "my", "no",
    "not", "of", "on", "or", "our", "shall", "should", "so", "such", "than", "that", "the", "their",
    "them", "then", "there", "these", "they", "this", "those", "to", "was", "we", "were", "what",
    "when", "where", "which", "who", "whom", "whose", "why", "will", "with", "would", "you", "your",
]
# fmt: on

_QUERY_WORDS_MAX = 8
_BM25_K1 = 1.2
_BM25_B = 0.75
_RRF_K = 60


def query_words(query: str) -> list[str]:
    """The 8 longest different words of a query, in lower case and without function words.

    The longest words are mostly the rarest.
    """
    words = dict.fromkeys(word for word in words_of(query) if word not in STOP_WORDS)
    return sorted(words, key=lambda word: (-len(word), word))[:_QUERY_WORDS_MAX]


def rank_by_words(
    words: Sequence[str], hits: Sequence[Memory], hits_by_word: Sequence[Sequence[Memory]], cap: int
) -> list[ScoredRow]:
    """Score by BM25 the memories that Milvus found for the whole query and for each of its words.

    Milvus Lite's own scores are not used, because they use the word statistics of one segment at a time. A
    new memory that held the code word of the query scored 0.3 in its small segment, while memories in a large
    segment scored 6 for three common words. Here a word's weight comes from the number of memories that
    Milvus found for the word, at most `cap`. A word that fills its list is common.

    words: [n].
    hits_by_word: [n][at most cap].
    Returns the memories with scores above 0, best first.
    """
    memories = {_key(memory): memory for memories_found in (hits, *hits_by_word) for memory in memories_found}
    counts = {
        key: Counter(words_of("\n".join((memory.text, *memory.keywords)))) for key, memory in memories.items()
    }
    mean_length = sum(map(Counter.total, counts.values())) / max(1, len(counts))
    weights = {}
    for word, word_hits in zip(words, hits_by_word, strict=True):
        holders = min(cap, max(len(word_hits), sum(word in count for count in counts.values())))
        weights[word] = math.log(1 + (2 * cap - holders + 0.5) / (holders + 0.5))
    rows: list[ScoredRow] = []
    for key, memory in memories.items():
        norm = _BM25_K1 * (1 - _BM25_B + _BM25_B * counts[key].total() / mean_length)
        score = sum(
            weights[word] * counts[key][word] * (_BM25_K1 + 1) / (counts[key][word] + norm) for word in words
        )
        if score > 0:
            rows.append((memory, score))
    return sorted(rows, key=lambda row: (-row[1], _key(row[0])))[:cap]


def fuse(dense: Sequence[ScoredRow], bm25: Sequence[ScoredRow], limit: int) -> list[ScoredMemory]:
    """Reciprocal rank fusion of one tenant's two result lists.

    dense: cosine, [-1, 1].
    bm25: above 0. Either list may hold a memory twice.
    Returns at most `limit` memories, best first. `score` is the sum of 1 / (60 + rank) over the halves that
    found the memory, at most 2 / 61. Equal scores share a rank. Memories that are still equal are ordered by
    namespace and id, so that the order never depends on Milvus' own.
    Source: Cormack et al. 2009.
    """
    memories = {_key(memory): memory for memory, _ in (*dense, *bm25)}
    # Rounded, because the scores of equal rows may differ in the last bit, by their place in a matrix.
    dense_scores = {_key(memory): round(score, 6) for memory, score in dense}
    bm25_scores = {_key(memory): round(score, 6) for memory, score in bm25}
    dense_ranks, bm25_ranks = _ranks(dense_scores), _ranks(bm25_scores)
    hits = [
        ScoredMemory(
            memory=memory,
            score=sum(1 / (_RRF_K + ranks[key]) for ranks in (dense_ranks, bm25_ranks) if key in ranks),
            dense_score=dense_scores.get(key),
            bm25_score=bm25_scores.get(key),
        )
        for key, memory in memories.items()
    ]
    hits.sort(key=lambda hit: (-hit.score, _key(hit.memory)))
    return hits[:limit]


def _key(memory: Memory) -> tuple[str, str]:
    return memory.namespace, memory.memory_id


def _ranks(scores: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], int]:
    """By key, 1 for the best. Equal scores have the rank of the first of them."""
    first: dict[float, int] = {}
    for rank, score in enumerate(sorted(scores.values(), reverse=True), start=1):
        first.setdefault(score, rank)
    return {key: first[score] for key, score in scores.items()}
