"""A request's way through the gateway, from the accepted call to the last token. Read this first.

The numbers are those of `docs/architecture.md`. What each step does is in `gateway/steps/`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

from memserve.config import Settings
from memserve.domain import GenerationRequest, RecallOutcome, Route, Tenant, TextDelta, Usage
from memserve.domain.worker_calls import WorkerFailure, WorkerFull
from memserve.errors import InvalidField, Overloaded
from memserve.gateway.access.callers import Inflight
from memserve.gateway.access.token_quota import TokenQuota
from memserve.gateway.live import LiveRequest, LiveRequests
from memserve.gateway.provenance import Provenance
from memserve.gateway.steps.check import RequestCheck
from memserve.gateway.steps.lookup import CacheLookup, timed
from memserve.gateway.steps.prompt import PromptFitting
from memserve.gateway.steps.recall import NO_ROOM, Recall, Recalled, with_chosen
from memserve.gateway.steps.receipt import receipt_head
from memserve.gateway.steps.resolve import AnsweringModules, ModuleUses, resolve_modules
from memserve.gateway.steps.route import Router
from memserve.gateway.steps.stream import Answers, RoutedRequest, operation_of
from memserve.gateway.taught import TaughtFacts
from memserve.gateway.warm_pinned import WarmPinned
from memserve.gateway.workers.pool import WorkerPool
from memserve.memory.modules.memory import ParametricMemory
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.uses import UseLedger
from memserve.metrics.instruments import GatewayMetrics
from memserve.policy.sampling import check_min_tokens


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The steps of a request, in their order."""

    settings: Settings
    inflight: Inflight
    live: LiveRequests
    metrics: GatewayMetrics
    check: RequestCheck
    modules: ParametricMemory
    uses: ModuleUses
    texts: VectorMemory
    recall: Recall
    fit: PromptFitting
    pool: WorkerPool
    look_up: CacheLookup
    router: Router
    answers: Answers
    tokens: TokenQuota
    provenance: Provenance
    ledger: UseLedger
    warm_pinned: WarmPinned
    taught: TaughtFacts

    async def generate(
        self, request: GenerationRequest, tenant: Tenant, deadline_s: float | None
    ) -> AsyncGenerator[Route | TextDelta | Usage, None]:
        """Stream one answer: a Route, then TextDeltas, last a Usage. Closing the iterator aborts the work.

        deadline_s: on the monotonic clock, or None. The edge has taken step 1, the call, and authenticated
        its caller. Raises refusals of memserve.errors.
        """
        accepted_s = time.monotonic()
        event: Route | TextDelta | Usage | None = None
        async with contextlib.AsyncExitStack() as held:
            held.push(lambda _, error, __: self._count(request, accepted_s, event, error))
            held.enter_context(self.inflight.one(tenant.name))
            held.enter_context(self.metrics.inflight.track_inprogress())
            live = held.enter_context(self.live.request(tenant.name))
            # 2. Immutable module versions for the whole answer.
            self.check(request.model, request.messages, tools=request.tools)
            wanted_tokens = request.sampling.max_tokens or self.settings.default_max_tokens
            check_min_tokens(request.sampling.min_tokens, wanted_tokens)
            modules = await resolve_modules(self.modules, request, tenant.name)
            # A version that is used from here on is not deleted.
            held.enter_context(self.uses.holding(modules))
            # 3. Recall: what is late or down is left out, and the receipt says so.
            live.step(3)
            recalled = await self.recall(request, tenant.name)
            named = request, modules
            request, modules, recalled = await with_chosen(self.modules, *named, recalled, tenant.name)
            if recalled.module is not None:
                held.enter_context(self.uses.holding(modules))
            outdated = await self.taught.outdated(tenant.name, modules.versions, recalled.passages)
            recalled = replace(recalled, outdated=outdated)
            if not modules.origin.prefix:
                self.warm_pinned.recalled(request, tenant, modules.adapter_version)
            while True:
                answer = self._answer(request, tenant, modules, recalled, held, live, accepted_s, deadline_s)
                try:
                    async with contextlib.aclosing(answer) as events:
                        async for event in events:
                            yield event
                    return
                except InvalidField:
                    if recalled.module is None or event is not None:
                        raise
                    # The caller did not ask for the module that leaves too little of the context.
                    (request, modules), recalled = named, recalled.without_module(NO_ROOM)
                except Overloaded:
                    if not (request.slo.skip_recall and recalled.passages):
                        raise
                    recalled = Recalled(RecallOutcome.SKIPPED)

    def _count(
        self,
        request: GenerationRequest,
        accepted_s: float,
        last: Route | TextDelta | Usage | None,
        error: BaseException | None,
    ) -> None:
        """A request that ends without a whole answer. last: what was sent of it."""
        if error is not None and not isinstance(last, Usage):
            self.metrics.not_answered(operation_of(request), error, time.monotonic() - accepted_s)

    async def _answer(
        self,
        request: GenerationRequest,
        tenant: Tenant,
        modules: AnsweringModules,
        recalled: Recalled,
        held: contextlib.AsyncExitStack,
        live: LiveRequest,
        accepted_s: float,
        deadline_s: float | None,
    ) -> AsyncGenerator[Route | TextDelta | Usage, None]:
        """From the prompt on. Raises as `generate`, Overloaded before the first token only.

        held: what is held until the request has ended.
        """
        live.step(4)  # The prompt: token ids.
        prompt = await self.fit(request, recalled.passages, tenant.name, modules.origin.prefix_tokens)
        check_min_tokens(request.sampling.min_tokens, prompt.max_tokens)
        request = replace(request, sampling=replace(request.sampling, max_tokens=prompt.max_tokens))
        spent = await held.enter_async_context(
            self.tokens.answer(tenant.name, len(prompt.token_ids), prompt.max_tokens)
        )
        await self._until_ready(tenant.name)
        # 5. Look-up of the prompt's KV in Redis, but for the last token: the engine always computes it.
        live.step(5)
        cached, took_ms = await timed(self.look_up(prompt.token_ids[:-1], tenant, modules.origin))
        attempts = self.router.attempts(request, tenant.name, prompt.token_ids)
        lost = self.texts.lost(tenant.name, request.namespaces)
        while True:
            # 6. Routing.
            live.step(6)
            worker, choice = self.router.choose(
                request, tenant.name, modules, len(prompt.token_ids), cached, attempts, accepted_s
            )
            route = receipt_head(modules, recalled, prompt, choice, lost=lost, look_up_ms=took_ms)
            routed = RoutedRequest(
                request, tenant, modules, prompt.token_ids, route, accepted_s, deadline_s,
                choice.forecast.learned_s, live,
            )  # fmt: skip
            self.answers.routed(routed)
            # 7. The worker streams. A worker that fails before its first token is replaced.
            live.step(7)
            try:
                followed = held.enter_context(self.provenance.following(routed))
                with worker.serving(tenant.name, route.request_id, choice.sent, modules.slot_digest):
                    yield route
                    self.ledger.used(tenant.name, [hit.memory for hit in prompt.passages], time.time())
                    async with contextlib.aclosing(self.answers.stream(routed, worker)) as events:
                        async for event in events:
                            spent.see(event)
                            followed.see(event)
                            yield event  # 8. Text, last the usage.
                return
            except WorkerFull as full:
                self.answers.refused(routed, full)
                attempts.full(full)
            except WorkerFailure as failure:
                self.answers.failed(routed, failure)
                attempts.failed(failure)
                self.metrics.rerouted.inc()

    async def _until_ready(self, tenant: str) -> None:
        """Hold a request for a first worker, as the settings say."""
        self.pool.asked(tenant)
        if self.settings.hold_s and not self.pool.ready(time.monotonic()):
            with self.metrics.held.track_inprogress():
                await self.pool.until_ready(self.settings.hold_s)
