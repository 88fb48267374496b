"""One hybrid search of the index: the nearest rows by meaning, and the best rows by word."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memserve.memory.texts.index import VectorIndex
from memserve.memory.texts.journal import Write
from memserve.memory.texts.milvus import MilvusMemories
from memserve.memory.texts.records import memory_key, tenant_key
from memserve.memory.texts.store import Scope
from memserve.policy.recall.ranking import ScoredRow, query_words, rank_by_words
from memserve.policy.recall.words import words_of
from memserve.tracing import child_span

_MIN_CANDIDATES = 32


@dataclass(frozen=True, slots=True)
class Search:
    """A search whose namespaces, query and limit are checked."""

    tenant: str
    namespaces: tuple[str, ...]
    query: str
    limit: int

    @property
    def candidates(self) -> int:
        """How many rows each half of the search asks for."""
        return max(_MIN_CANDIDATES, 2 * self.limit)


@dataclass(frozen=True, slots=True)
class Halves:
    """What both halves of a search found, best first."""

    dense: list[ScoredRow]
    bm25: list[ScoredRow]
    calls: int
    """How often Milvus was asked."""

    def keys(self, tenant: str) -> list[str]:
        """The keys of all rows, sorted."""
        return sorted({_key(tenant, row) for row in (*self.dense, *self.bm25)})

    def without_outdated(self, tenant: str, pending: Mapping[str, Write]) -> Halves:
        """Without rows that a later write has replaced or deleted.

        pending: by key, the writes that Milvus may not have yet.
        """

        def is_current(row: ScoredRow) -> bool:
            write = pending.get(_key(tenant, row))
            return write is None or write.memory == row[0]

        return Halves(
            [row for row in self.dense if is_current(row)],
            [row for row in self.bm25 if is_current(row)],
            self.calls,
        )


async def search_index(
    index: VectorIndex, search: Search, vector: npt.NDArray[np.float32], deadline_s: float
) -> Halves:
    """Ask Milvus for both halves of a search.

    vector: [dim], the query's.
    deadline_s: on the monotonic clock.
    """

    def left_s() -> float:
        return max(0.001, deadline_s - time.monotonic())

    scope = Scope(tenant_key(search.tenant), search.namespaces)

    def nearest(store: MilvusMemories) -> list[ScoredRow]:
        hits = store.nearest(scope, vector, search.candidates, timeout_s=left_s())
        return [(hit.memory, hit.cosine) for hit in hits]

    def by_words(store: MilvusMemories) -> list[ScoredRow]:
        hits = store.by_words(scope, words, search.candidates, timeout_s=left_s())
        found = [memory for _, memory in hits.memories]
        by_word = [
            [memory for memory in found if word in words_of("\n".join((memory.text, *memory.keywords)))]
            for word in words
        ]
        return rank_by_words(words, found, by_word, search.candidates)

    with child_span("search milvus", {"db.system.name": "milvus", "db.operation.name": "search"}):
        dense = await index.read(search.tenant, nearest)
        words = query_words(search.query)
        bm25 = await index.read(search.tenant, by_words) if words else []
    return Halves(dense, bm25, calls=2)


def _key(tenant: str, row: ScoredRow) -> str:
    return memory_key(tenant, row[0].namespace, row[0].memory_id)
