"""Searches of generated memories: a seam for a real store, and an exact one in this process."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from memserve.domain import Memory
from memserve.memory.texts.embedding import BertEmbedder
from memserve.policy.recall.choosing import Candidate, Candidates
from memserve.policy.recall.ranking import WordStatistics, index_words, memory_words, query_terms
from memserve.policy.recall.relevance import RelevanceModels

DENSE_CANDIDATES = 32
WORD_CANDIDATES = 64


class Searcher(Protocol):
    """Finds the candidates of both halves. VectorMemory's index stands behind it as well."""

    def candidates(self, question: str, vector: npt.NDArray[np.float32]) -> Candidates:
        """The nearest by cosine and the best by BM25 over any of the question's words, without repeats."""
        ...


class ExactSearcher:
    """All memories in this process: exact cosines, and plain BM25 over words as an index computes it."""

    def __init__(self, memories: Sequence[Memory], embedder: BertEmbedder, models: RelevanceModels) -> None:
        self._memories = memories
        self._models = models
        self._vectors = np.concatenate(
            [
                embedder.embed([memory.text for memory in memories[first : first + 64]])
                for first in range(0, len(memories), 64)
            ]
        )
        self._words = [memory_words(memory) for memory in memories]
        self._lengths = np.array([len(words) for words in self._words], dtype=np.float32)
        rows: dict[str, list[int]] = {}
        counts: dict[str, list[int]] = {}
        for row, words in enumerate(self._words):
            for word, count in Counter(words).items():
                rows.setdefault(word, []).append(row)
                counts.setdefault(word, []).append(count)
        self._rows = {word: np.array(places) for word, places in rows.items()}
        self._counts = {word: np.array(values, dtype=np.float32) for word, values in counts.items()}

    def candidates(self, question: str, vector: npt.NDArray[np.float32]) -> Candidates:
        cosines = self._vectors @ vector
        asked = index_words(query_terms(question))
        scores = self._bm25(asked)
        dense = np.argsort(-cosines, kind="stable")[:DENSE_CANDIDATES]
        by_words = np.argsort(-scores, kind="stable")[:WORD_CANDIDATES]
        rows = dict.fromkeys([*map(int, dense), *(int(row) for row in by_words if scores[row] > 0)])
        frequencies = {word: len(self._rows[word]) for word in asked if word in self._rows}
        return Candidates(
            [Candidate(self._memories[row], float(cosines[row]), self._words[row]) for row in rows],
            WordStatistics(len(self._memories), float(self._lengths.mean()), frequencies),
            self._models,
        )

    def _bm25(self, words: Sequence[str]) -> npt.NDArray[np.float32]:
        scores = np.zeros(len(self._memories), dtype=np.float32)
        norms = 1.2 * (0.25 + 0.75 * self._lengths / self._lengths.mean())
        for word in words:
            if word in self._rows:
                rows, counts = self._rows[word], self._counts[word]
                idf = math.log(1 + (len(self._memories) - len(rows) + 0.5) / (len(rows) + 0.5))
                scores[rows] += idf * counts * 2.2 / (counts + norms[rows])
        return scores
