"""One hybrid search of the index: the nearest rows by meaning, and the best rows by word."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from memserve.domain import Memory
from memserve.memory.texts.index import VectorIndex
from memserve.memory.texts.journal import Write
from memserve.memory.texts.milvus import MilvusMemories, memory_key
from memserve.policy.recall.ranking import ScoredRow, query_words, rank_by_words
from memserve.policy.recall.words import words_of
from memserve.tracing import child_span

_MIN_CANDIDATES = 32
# How many rows a search may ask of Milvus at once. Milvus Lite takes about 0.1 ms for each row that it finds.
# A search that asks for more takes several turns, so that another tenant's calls come between.
ROWS_IN_A_TURN = 9 * _MIN_CANDIDATES


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

    def nearest(store: MilvusMemories) -> list[ScoredRow]:
        return store.search_dense(
            search.tenant, search.namespaces, vector, search.candidates, timeout_s=left_s()
        )

    def by_words(store: MilvusMemories, queries: Sequence[str], is_last: bool) -> list[ScoredRow]:
        found_by_query.extend(
            store.search_words(
                search.tenant, search.namespaces, queries, search.candidates, timeout_s=left_s()
            )
        )
        if not is_last:
            return []
        return rank_by_words(words, found_by_query[0], found_by_query[1:], search.candidates)

    with child_span("search milvus", {"db.system.name": "milvus", "db.operation.name": "search"}):
        dense = await index.read(search.tenant, nearest)
        words = query_words(search.query)
        queries = [" ".join(words_of(search.query)), *words] if words else []
        found_by_query: list[list[Memory]] = []
        bm25: list[ScoredRow] = []
        at_once = max(1, ROWS_IN_A_TURN // search.candidates)
        for first in range(0, len(queries), at_once):
            batch, is_last = queries[first : first + at_once], first + at_once >= len(queries)
            bm25 = await index.read(search.tenant, partial(by_words, queries=batch, is_last=is_last))
    return Halves(dense, bm25, calls=1 + math.ceil(len(queries) / at_once))


def _key(tenant: str, row: ScoredRow) -> str:
    return memory_key(tenant, row[0].namespace, row[0].memory_id)
