"""Log-probabilities of a given text by the served model: what write policies and explanations stand on."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from memserve.domain import (
    GenerationRequest,
    Message,
    Priority,
    Sampling,
    ScoredMemory,
    Tenant,
    TextDelta,
)
from memserve.domain.worker_calls import (
    SCORED_TOKENS_MAX,
    ScoringRequest,
    TokenScores,
    WorkerDied,
    WorkerFailure,
    WorkerFull,
    WorkerLate,
    WrongRequest,
)
from memserve.errors import DeadlineExceeded, InvalidField, QuotaExceeded
from memserve.gateway.access.token_quota import TokenQuota
from memserve.gateway.layout import PromptLayout
from memserve.gateway.steps.lookup import CacheLookup
from memserve.gateway.steps.resolve import AnsweringModules
from memserve.gateway.steps.route import Router
from memserve.gateway.tokenizer import TokenSpan
from memserve.gateway.workers.pooled_worker import PooledWorker
from memserve.policy.routing.breaker import Breakers
from memserve.turns import FairThreads

AT_ONCE = 8
"""Texts of one tenant that are scored at the same time. Others wait."""
WAITING_MAX = 256
"""Texts of one tenant that are scored or wait for it."""
RETRY_AFTER_S = 0.5
BASE = AnsweringModules()


@dataclass(slots=True)
class _Turns:
    """Of one tenant."""

    free: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    texts: int = 0


class Scoring:
    """Has workers score texts, behind all that they answer."""

    def __init__(
        self,
        layout: PromptLayout,
        tokenizing: FairThreads,
        look_up: CacheLookup,
        router: Router,
        breakers: Breakers,
        tokens: TokenQuota,
    ) -> None:
        self._layout = layout
        self._tokenizing = tokenizing
        self._look_up = look_up
        self._router = router
        self._breakers = breakers
        self._tokens = tokens
        self._turns: dict[str, _Turns] = {}

    async def prompt(
        self, tenant: Tenant, messages: Sequence[Message], passages: Sequence[ScoredMemory] = ()
    ) -> list[int]:
        """[prompt_tokens] of a conversation, as a request has them. Raises InvalidField."""
        encode = partial(_encode, self._layout, messages, passages)
        return await self._tokenizing.run(tenant.name, encode)

    async def continuation(self, tenant: Tenant, text: str) -> list[TokenSpan]:
        """[tokens] of a text as the assistant would say it. Raises InvalidField."""
        return await self._tokenizing.run(tenant.name, partial(_encode_text, self._layout, text))

    async def score(
        self,
        tenant: Tenant,
        token_ids: Sequence[int],
        continuation: Sequence[int],
        modules: AnsweringModules = BASE,
        *,
        deadline_s: float,
    ) -> tuple[float, ...]:
        """[continuation tokens] natural logarithms: how likely each is behind the prompt and those before it.

        They are the model's with its LoRA, before a logit expert shifts the logits.

        token_ids: [prompt_tokens]. With a cartridge among the modules, its placeholders come first.
        continuation: [1 to SCORED_TOKENS_MAX tokens]. deadline_s: on the monotonic clock. Cancelling aborts
        the work. Raises DeadlineExceeded, InvalidField, NoWorker, WorkersLost, Overloaded and QuotaExceeded.
        """
        if not 0 < len(continuation) <= SCORED_TOKENS_MAX:
            raise InvalidField("continuation", f"1 to {SCORED_TOKENS_MAX} tokens, not {len(continuation)}")
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()), self._turn(tenant.name):
                return (await self._scores(tenant, token_ids, continuation, modules, deadline_s)).logprobs
        except TimeoutError:
            raise DeadlineExceeded from None

    async def score_all(
        self,
        tenant: Tenant,
        prompts: Sequence[Sequence[int]],
        continuation: Sequence[int],
        modules: AnsweringModules = BASE,
        *,
        deadline_s: float,
    ) -> list[tuple[float, ...]]:
        """[prompts] as `score`. The first failure cancels the others, and is raised."""
        score = partial(self.score, tenant, modules=modules, deadline_s=deadline_s)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(score(token_ids, continuation)) for token_ids in prompts]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    @contextlib.asynccontextmanager
    async def _turn(self, tenant: str) -> AsyncIterator[None]:
        """Raises QuotaExceeded where too many of the tenant's texts wait."""
        turns = self._turns.setdefault(tenant, _Turns())
        if turns.texts >= WAITING_MAX:
            raise QuotaExceeded(f"texts that are scored for tenant {tenant}", WAITING_MAX, RETRY_AFTER_S)
        turns.texts += 1
        try:
            async with turns.free:
                yield
        finally:
            turns.texts -= 1
            if not turns.texts:
                del self._turns[tenant]

    async def _scores(
        self,
        tenant: Tenant,
        token_ids: Sequence[int],
        continuation: Sequence[int],
        modules: AnsweringModules,
        deadline_s: float,
    ) -> TokenScores:
        accepted_s, sampling = time.monotonic(), Sampling(max_tokens=len(continuation))
        request = GenerationRequest((), sampling, priority=Priority.BACKGROUND)
        cached = await self._look_up(token_ids[:-1], tenant, modules.origin)
        async with self._tokens.answer(tenant.name, len(token_ids), len(continuation)) as spent:
            attempts = self._router.attempts(request, tenant.name, token_ids)
            while True:
                worker, choice = self._router.choose(
                    request, tenant.name, modules, len(token_ids), cached, attempts, accepted_s
                )
                asked = ScoringRequest(
                    request_id=uuid.uuid4().hex,
                    token_ids=token_ids,
                    continuation=continuation,
                    tenant=tenant.name,
                    cache_salt=tenant.cache_salt,
                    modules=modules.applied,
                    cached_tokens=choice.forecast.cached_tokens,
                )
                try:
                    with worker.serving(tenant.name, asked.request_id, choice.sent, modules.slot_digest):
                        scores = await self._ask(worker, asked, deadline_s)
                except WorkerFull as full:
                    attempts.full(full)
                except WorkerFailure as failure:
                    attempts.failed(failure)
                else:
                    spent.see(TextDelta("", tuple(continuation)))
                    spent.tokens -= min(scores.cached.total, len(token_ids))
                    return scores

    async def _ask(self, worker: PooledWorker, asked: ScoringRequest, deadline_s: float) -> TokenScores:
        try:
            with worker.calling() as calls:
                scores = await calls.score_tokens(asked, max(deadline_s - time.monotonic(), 0.001))
        except WorkerLate:
            raise DeadlineExceeded from None
        except WrongRequest as error:
            raise InvalidField("continuation", error.detail) from None
        except WorkerDied as error:
            # A worker of an older version cannot score, and answers well.
            self._breakers.failed(error.worker_id, time.monotonic())
            raise
        self._breakers.succeeded(worker.lease.worker_id)
        return scores


def _encode(layout: PromptLayout, messages: Sequence[Message], passages: Sequence[ScoredMemory]) -> list[int]:
    return layout.encode(layout.arrange(messages, passages))


def _encode_text(layout: PromptLayout, text: str) -> list[TokenSpan]:
    if token := layout.tokenizer.special_token_in(text):
        raise InvalidField("text", f"must not contain the model's control token {token!r}")
    return layout.tokenizer.spans(text)
