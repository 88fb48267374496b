"""Step 3 of a request: text memories for the prompt. Late or down means an answer without passages."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from memserve.config import Settings
from memserve.domain import GenerationRequest, RecallOutcome, Role, ScoredMemory, SearchQuery
from memserve.errors import VectorStoreUnavailable
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.rules import QUERY_MAX_BYTES
from memserve.metrics.instruments import GatewayMetrics
from memserve.policy.recall.prompt import one_line, order_passages

log = logging.getLogger("memserve.gateway.steps.recall")


@dataclass(frozen=True, slots=True)
class Recalled:
    """Passages for the prompt, in its order, and what became of the search."""

    outcome: RecallOutcome
    passages: tuple[ScoredMemory, ...] = ()


class Recall:
    """Searches the request's namespaces for its last question, within a time budget."""

    def __init__(
        self, texts: VectorMemory, tokenizer: ChatTokenizer, settings: Settings, metrics: GatewayMetrics
    ) -> None:
        self._texts = texts
        self._tokenizer = tokenizer
        self._settings = settings
        self._metrics = metrics

    async def __call__(self, request: GenerationRequest, tenant: str) -> Recalled:
        if not request.namespaces:
            return Recalled(RecallOutcome.NOT_ASKED)
        started_s = time.monotonic()
        timeout_s = request.recall_timeout_s or self._settings.recall_timeout_ms / 1000
        limit = request.recall_limit or self._settings.recall_limit
        query = next(message.content for message in reversed(request.messages) if message.role is Role.USER)
        query = query.strip().encode()[:QUERY_MAX_BYTES].decode(errors="ignore")
        try:
            search = SearchQuery(tuple(request.namespaces), query, limit, rerank=True)
            hits = (await self._texts.search(tenant, search, timeout_s)).hits
        except VectorStoreUnavailable as error:
            late = time.monotonic() - started_s >= timeout_s
            log.warning("answering without passages: %s", error)
            recalled = Recalled(RecallOutcome.LATE if late else RecallOutcome.UNAVAILABLE)
        else:
            usable = [hit for hit in hits if self._tokenizer.can_quote(one_line(hit.memory.text))]
            outcome = RecallOutcome.FOUND if usable else RecallOutcome.EMPTY
            recalled = Recalled(outcome, tuple(order_passages(usable)))
        self._metrics.recall.labels(recalled.outcome).observe(time.monotonic() - started_s)
        return recalled
