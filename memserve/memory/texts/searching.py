"""Search by meaning and by word, and what is near the hits by place and by link."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from memserve.domain import FoundMemories, Memory, MemoryKind, ScoredMemory, SearchQuery
from memserve.domain.memories import MetadataValue
from memserve.errors import InvalidField
from memserve.memory.texts.encoders.reranking import Reranking
from memserve.memory.texts.following import Following, Wishes
from memserve.memory.texts.reads import matches, narrowed
from memserve.memory.texts.records import memory_key, tenant_key
from memserve.memory.texts.rules import (
    LINK_DEPTH_MAX,
    NEIGHBOURS_MAX,
    TIME_MAX_S,
    checked_query,
)
from memserve.memory.texts.store import DenseHit, RecordStore, Scope, WordHits
from memserve.policy.recall.choosing import (
    Candidate,
    Candidates,
    SearchWishes,
    choose_ranked,
    rank_candidates,
    usable_at,
)
from memserve.policy.recall.conditions import condition_verdict
from memserve.policy.recall.expressions import Expression, parse_filter
from memserve.policy.recall.metadata import checked_metadata
from memserve.policy.recall.ranking import WordStatistics, index_words, query_terms
from memserve.policy.recall.relevance import BUNDLED, OTHER
from memserve.tracing import child_span

LIMIT_DEFAULT = 8
CANDIDATES_MIN = 32
CANDIDATES_MAX = 1024
"""Of each half. A filter that lets through too few of them cuts the search."""
VECTORS_MAX = 128
"""Candidates whose vectors are read, where their cosine is not known or hits shall differ."""
Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A search whose values are checked."""

    query: SearchQuery
    scope: Scope
    text: str
    limit: int
    expression: Expression | None
    now_s: float
    context: Mapping[str, MetadataValue]
    reflections_first: bool = False

    def applies(self, memory: Memory) -> bool:
        return condition_verdict(memory, self.context).holds

    def is_usable(self, memory: Memory) -> bool:
        return usable_at(memory, self.now_s) is None and self.applies(memory)


@dataclass(frozen=True, slots=True)
class _Found:
    """What both halves found."""

    memories: dict[str, tuple[Memory, float | None]]
    """By key, with the cosine where the search by meaning found it."""
    statistics: WordStatistics
    is_whole: bool
    """Whether there is nothing more to find."""


class Searching(Following):
    """Both halves of a search, and the choice of its hits."""

    reranking: Reranking | None
    """Set by the owner, before the first search. Closed with the memory."""

    async def search(
        self, tenant: str, query: SearchQuery, timeout_s: float, *, reflections_first: bool = False
    ) -> FoundMemories:
        """Hybrid search. Hits are ordered by relevance and strength (`policy/recall/choosing.py`).

        While the filter, validity and conditions leave too few hits, twice as many candidates are looked at,
        up to CANDIDATES_MAX of each half. Neighbours and linked memories follow the hits, with `via`.

        While the local index is built again, the search answers from what is there, and `cut` says so.
        timeout_s: bound on the whole, waiting included.
        reflections_first: put what was learned from an earlier try of the task ahead of all other hits.
        Raises NamespaceNotFound.
        """
        asked = replace(self._asked(tenant, query), reflections_first=reflections_first)
        end_s = time.monotonic() + timeout_s

        async def find() -> FoundMemories:
            vector = await self.embed(tenant, asked.text, query=True)
            await self._namespaces.require(tenant, asked.scope.namespaces)
            found, usable = await self._candidates(tenant, asked, vector, end_s)
            hits = await self._chosen(tenant, asked, found, usable, vector, end_s)
            more = await self._beside(tenant, asked, hits.hits)
            cut = self.settling.needs_mending or (not found.is_whole and len(hits.hits) < asked.limit)
            return FoundMemories((*hits.hits, *more), hits.skipped, cut)

        return await self._within(timeout_s, find)

    async def search_as_if(
        self,
        tenant: str,
        query: SearchQuery,
        timeout_s: float,
        instead: Sequence[tuple[Memory, Vector]],
        without: Collection[tuple[str, str]],
    ) -> FoundMemories:
        """What `search` would find if some memories were there in place of others. Nothing is written.

        instead: what would be there, with the vectors of their texts. without: the names of the others.
        Neighbours and links are not followed. Raises as `search`.
        """
        asked = self._asked(tenant, query)
        end_s = time.monotonic() + timeout_s

        async def find() -> FoundMemories:
            vector = await self.embed(tenant, asked.text, query=True)
            await self._namespaces.require(tenant, asked.scope.namespaces)
            wider = replace(asked, limit=min(asked.limit + len(without), CANDIDATES_MAX))
            found, usable = await self._candidates(tenant, wider, vector, end_s)
            through = {key: hit for key, hit in usable.items() if hit[0].name not in without}
            for memory, own in instead:
                through[memory_key(tenant, *memory.name)] = memory, _cosine(own, vector)
            return await self._chosen(tenant, asked, found, through, vector, end_s)

        return await self._within(timeout_s, find)

    def _asked(self, tenant: str, query: SearchQuery) -> _Asked:
        limit = query.limit or LIMIT_DEFAULT
        namespaces, text = checked_query(query.namespaces, query.text, limit)
        for field, value, most in (
            ("min_relevance", query.min_relevance, 1.0),
            ("diversity", query.diversity, 1.0),
            ("max_tokens", query.max_tokens, 2**31),
            ("neighbours", query.neighbours, NEIGHBOURS_MAX),
            ("link_depth", query.link_depth, LINK_DEPTH_MAX),
        ):
            if not (math.isfinite(value) and 0 <= value <= most):
                raise InvalidField(field, f"must be 0 to {most:g}")
        if query.as_of_s is not None and not (
            math.isfinite(query.as_of_s) and abs(query.as_of_s) <= TIME_MAX_S
        ):
            raise InvalidField("as_of_s", "must be seconds since the epoch")
        if not set(query.kinds) <= set(MemoryKind.known()):
            raise InvalidField("kinds", f"must be some of {', '.join(MemoryKind.known())}")
        scope = Scope(tenant_key(tenant), namespaces, kinds=frozenset(query.kinds) or None)
        expression = parse_filter("filter", query.filter) if query.filter else None
        if expression is not None:
            scope = narrowed(scope, expression)
        now_s = self._now_s() if query.as_of_s is None else query.as_of_s
        context = checked_metadata("context", query.context)
        return _Asked(query, scope, text, limit, expression, now_s, context)

    async def _candidates(
        self, tenant: str, asked: _Asked, vector: Vector, end_s: float
    ) -> tuple[_Found, dict[str, tuple[Memory, float | None]]]:
        """What was found, and of it what the filter lets through."""
        if asked.scope.kinds is not None and not asked.scope.kinds:
            return _Found({}, WordStatistics(0, 0.0, {}), True), {}
        words = index_words(query_terms(asked.text))
        limit = max(CANDIDATES_MIN, 2 * asked.limit)
        while True:
            # Copied before the search: a write may reach the store, and leave `unapplied`, while it runs.
            before = dict(self.settling.unapplied)
            found = await self._both_halves(tenant, asked.scope, vector, words, limit, end_s)
            pending = before | await self._pending_of(list(found.memories))
            through = {
                key: hit
                for key, hit in found.memories.items()
                # A later write has replaced the memory or taken it away.
                if (key not in pending or pending[key].memory == hit[0])
                and matches(hit[0], asked.scope, asked.expression)
            }
            usable = sum(asked.is_usable(memory) for memory, _ in through.values())
            if usable >= asked.limit or found.is_whole or limit >= CANDIDATES_MAX:
                return found, through
            limit = min(CANDIDATES_MAX, 2 * limit)

    async def _both_halves(
        self, tenant: str, scope: Scope, vector: Vector, words: Sequence[str], limit: int, end_s: float
    ) -> _Found:
        def nearest(store: RecordStore) -> list[DenseHit]:
            return store.nearest(scope, vector, limit, timeout_s=_left_s(end_s))

        def by_words(store: RecordStore) -> WordHits:
            return store.by_words(scope, words, limit, timeout_s=_left_s(end_s))

        with child_span("search memories", {"db.operation.name": "search"}):
            if words:
                dense, worded = await asyncio.gather(
                    self._searched.read(tenant, nearest), self._searched.read(tenant, by_words)
                )
            else:
                dense = await self._searched.read(tenant, nearest)
                worded = WordHits((), {}, len(dense), 1.0)
        memories: dict[str, tuple[Memory, float | None]] = {
            hit.key: (hit.memory, hit.cosine) for hit in dense
        }
        for key, memory in worded.memories:
            memories.setdefault(key, (memory, None))
        statistics = WordStatistics(worded.rows, worded.mean_length, worded.document_frequency)
        return _Found(memories, statistics, len(dense) < limit and len(worded.memories) < limit)

    async def _chosen(
        self,
        tenant: str,
        asked: _Asked,
        found: _Found,
        through: Mapping[str, tuple[Memory, float | None]],
        vector: Vector,
        end_s: float,
    ) -> FoundMemories:
        vectors = await self._vectors(tenant, asked, through)
        counted = asked.query.max_tokens > 0
        candidates = Candidates(
            [
                Candidate(
                    memory,
                    _cosine(vectors.get(key), vector) if cosine is None else round(cosine, 6),
                    vector=_listed(vectors.get(key)) if asked.query.diversity > 0 else None,
                    size_tokens=self._tokens(memory.text) if counted else 0,
                )
                for key, (memory, cosine) in through.items()
            ],
            found.statistics,
            BUNDLED if self.embedding.embedder.vectors.embedder == "" else OTHER,
            await self._strengths(tenant, [memory for memory, _ in through.values()], asked.now_s),
            asked.applies,
        )
        wishes = SearchWishes(
            asked.limit,
            asked.query.min_relevance,
            asked.query.diversity,
            asked.query.max_tokens or None,
            task=asked.text if asked.reflections_first else "",
        )
        ranked, skipped = rank_candidates(candidates, asked.text, asked.now_s)
        if asked.query.rerank and self.reranking is not None:
            ranked = list((await self.reranking(tenant, asked.text, ranked, end_s)).hits)
        return choose_ranked(ranked, skipped, candidates, wishes)

    async def _vectors(
        self, tenant: str, asked: _Asked, through: Mapping[str, tuple[Memory, float | None]]
    ) -> dict[str, Vector]:
        """Of candidates that the search by meaning did not find; of all, where hits shall differ."""
        keys = [key for key, (_, cosine) in through.items() if cosine is None or asked.query.diversity > 0]
        records = await self._read_many(tenant, keys[:VECTORS_MAX], with_vectors=True)
        return {key: record.vector for key, record in records.items() if record.vector is not None}

    async def _beside(self, tenant: str, asked: _Asked, hits: Sequence[ScoredMemory]) -> list[ScoredMemory]:
        query = asked.query
        wishes = Wishes(query.neighbours, query.link_depth, frozenset(query.link_kinds))
        if not hits or not (wishes.neighbours or wishes.link_depth):
            return []
        more = await self._around(tenant, asked.scope.namespaces, hits, wishes, asked.now_s)
        return [hit for hit in more if asked.is_usable(hit.memory)]

    def _tokens(self, text: str) -> int:
        count = self.search_parts.count_tokens
        return math.ceil(len(text.encode()) / 4) if count is None else count(text)


def _cosine(vector: Vector | None, query: Vector) -> float | None:
    # Rounded, because the cosines of equal texts may differ in the last bit, by their place in a matrix.
    return None if vector is None else round(float(vector @ query), 6)


def _listed(vector: Vector | None) -> list[float] | None:
    return None if vector is None else [float(number) for number in vector]


def _left_s(end_s: float) -> float:
    return max(0.001, end_s - time.monotonic())
