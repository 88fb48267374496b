"""Puts what a search has found into a cross-encoder's order, within the time that is left."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from memserve.domain import ScoredMemory
from memserve.errors import QuotaExceeded
from memserve.memory.texts.encoders.cross_encoder import Reranker
from memserve.metrics.embedding import EmbeddingMetrics
from memserve.policy.recall.reranking import candidates_in_time, reordered
from memserve.turns import FairThreads, leave_one

log = logging.getLogger("memserve.memory.texts.encoders.reranking")

# One thread more than a tenant may have.
THREADS = 2
# Until it is measured: seconds for a token of a model of six layers and 384 numbers, on one core.
FIRST_TOKEN_S = 0.0005
# Weight of the newest measurement.
_NEW = 0.3
# Part of the time left that the reckoned time may take. The rest is for what the reckoning does not know.
SAFE = 0.8
NO_TIME = "not reranked: the time of the search does not do for it"


@dataclass(frozen=True, slots=True)
class Reranked:
    """Hits, best first."""

    hits: tuple[ScoredMemory, ...]
    note: str = ""
    """What was left out and why, for a person. "": every candidate was read."""


class Reranking:
    """A reranker off the event loop, where tenants take turns. It belongs to one event loop."""

    def __init__(
        self,
        reranker: Reranker,
        candidates: int,
        *,
        metrics: EmbeddingMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """candidates: how many hits it reads at most."""
        self.reranker = reranker
        self.candidates = candidates
        self._metrics = metrics or EmbeddingMetrics()
        self._clock = clock
        self._token_s = FIRST_TOKEN_S
        self._threads = FairThreads("reranking", THREADS, share=leave_one)

    @property
    def name(self) -> str:
        """For people, with the first digits of the identity."""
        return f"{self.reranker.name} ({self.reranker.identity[:12]})"

    async def __call__(self, tenant: str, query: str, hits: Sequence[ScoredMemory], end_s: float) -> Reranked:
        """The first hits in the reranker's order, the others behind them as they were.

        end_s: by the clock. As many candidates are read as fit in until then; below two, none are.
        A reranker that fails leaves the hits as they were, and says so.
        """
        if len(hits) < 2:
            return Reranked(tuple(hits))
        try:
            async with asyncio.timeout(max(0.0, end_s - self._clock())):
                ranked, outcome = await self._ranked(tenant, query, hits, end_s)
        except TimeoutError:
            # It waited for its turn, or took longer than reckoned. What has begun runs to its end.
            ranked, outcome = Reranked(tuple(hits), NO_TIME), "skipped"
        except QuotaExceeded as error:
            ranked, outcome = Reranked(tuple(hits), f"not reranked: {error}"), "skipped"
        except Exception as error:
            log.exception("reranking failed; the search's own order stays")
            ranked, outcome = Reranked(tuple(hits), f"not reranked: {type(error).__name__}"), "failed"
        self._metrics.reranked.labels(outcome).inc()
        return ranked

    def close(self) -> None:
        self._threads.close()

    async def _ranked(
        self, tenant: str, query: str, hits: Sequence[ScoredMemory], end_s: float
    ) -> tuple[Reranked, str]:
        texts = [hit.memory.text for hit in hits[: self.candidates]]

        def read() -> list[float]:
            # In the tenant's turn: the time that it has waited is gone.
            tokens = self.reranker.tokens(query, texts)
            left_s = (end_s - self._clock()) * SAFE
            fitting = candidates_in_time(tokens, self._token_s, left_s)
            if fitting < 2:
                return []
            begun_s = self._clock()
            scores = self.reranker.score(query, texts[:fitting])
            took_s = self._clock() - begun_s
            self._metrics.rerank_seconds.observe(took_s)
            self._token_s += _NEW * (took_s / sum(tokens[:fitting]) - self._token_s)
            return scores

        scores = await self._threads.run(tenant, read)
        if not scores:
            return Reranked(tuple(hits), NO_TIME), "skipped"
        scored = [replace(hit, rerank_score=score) for hit, score in zip(hits, scores, strict=False)]
        order = reordered(scores)
        ranked = (*(scored[number] for number in order), *hits[len(scores) :])
        if len(scores) == len(texts):
            return Reranked(ranked), "whole"
        return Reranked(ranked, f"reranked {len(scores)} of {len(texts)} candidates: no more time"), "part"
