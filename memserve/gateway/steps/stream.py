"""Steps 7 and 8 of a request: the worker streams its answer, last comes the usage."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass, field, replace

from memserve.domain import (
    CachedTokens,
    FinishReason,
    GenerationRequest,
    Route,
    Tenant,
    TextDelta,
    Usage,
)
from memserve.domain.worker_calls import (
    AnswerPart,
    WorkerFailure,
    WorkerFull,
    WorkerLate,
    WorkerRefused,
    WorkerRequest,
    WrongRequest,
)
from memserve.errors import DeadlineExceeded, InvalidField, WorkerLost
from memserve.gateway.decisions import ANSWERED, Decisions
from memserve.gateway.live import LiveRequest
from memserve.gateway.outcomes import OutcomeCounts
from memserve.gateway.steps.resolve import AnsweringModules
from memserve.gateway.workers.pooled_worker import PooledWorker
from memserve.metrics.instruments import CHAT, COMPLETION, GatewayMetrics
from memserve.policy.lineage.receipts import rungs_of
from memserve.policy.routing.breaker import Breakers
from memserve.policy.routing.residuals import Residuals


@dataclass(frozen=True, slots=True)
class RoutedRequest:
    """A request whose route is decided: all that a worker needs, and when the call was accepted."""

    request: GenerationRequest
    tenant: Tenant
    modules: AnsweringModules
    token_ids: Sequence[int]
    route: Route
    accepted_s: float
    """On the monotonic clock, as `deadline_s` is."""
    deadline_s: float | None
    learned_s: float = 0.0
    """The part of the predicted TTFT that is a correction by earlier errors."""
    live: LiveRequest = field(default_factory=LiveRequest)
    routed_s: float = field(default_factory=time.monotonic)

    def for_worker(self) -> WorkerRequest:
        return WorkerRequest(
            request_id=self.route.request_id,
            token_ids=self.token_ids,
            tenant=self.tenant.name,
            cache_salt=self.tenant.cache_salt,
            sampling=self.request.sampling,
            modules=self.modules.applied,
            priority=self.request.priority,
            first_token_s=self._left_s,
            refuse_late=self.request.slo.refuse_late,
            do_not_queue=self.request.do_not_queue,
            cached_tokens=self.route.expected_cached_tokens,
        )

    @property
    def _left_s(self) -> float | None:
        """For the first token, of the time that the caller wishes for."""
        wish_ms = self.request.slo.ttft_ms
        return None if wish_ms is None else self.accepted_s + wish_ms / 1000 - time.monotonic()


class Answers:
    """Streams answers, and counts them."""

    def __init__(
        self,
        metrics: GatewayMetrics,
        outcomes: OutcomeCounts,
        decisions: Decisions,
        residuals: Residuals,
        breakers: Breakers,
    ) -> None:
        self._metrics = metrics
        self._outcomes = outcomes
        self._decisions = decisions
        self._residuals = residuals
        self._breakers = breakers

    async def stream(
        self, routed: RoutedRequest, worker: PooledWorker
    ) -> AsyncGenerator[TextDelta | Usage, None]:
        """Closing the iterator aborts the worker's work.

        Raises WorkerFailure when the worker fails before its first token: another may answer. After it,
        WorkerLost. DeadlineExceeded and InvalidField at any time.
        """
        now_s = time.monotonic()
        if routed.deadline_s is not None and routed.deadline_s <= now_s:
            raise DeadlineExceeded
        timeout_s = None if routed.deadline_s is None else routed.deadline_s - now_s
        first_s: float | None = None
        output_tokens = 0
        try:
            with worker.calling() as calls:
                async with contextlib.aclosing(calls.generate(routed.for_worker(), timeout_s)) as parts:
                    async for part in parts:
                        if first_s is None:
                            first_s = time.monotonic()
                            self._began(routed, worker, first_s)
                        output_tokens += len(part.token_ids)
                        if part.text or part.token_ids:
                            yield TextDelta(part.text, part.token_ids, part.logprobs)
                        if part.finish_reason is not None:
                            usage = usage_of(
                                routed,
                                part,
                                output_tokens,
                                first_s,
                                time.monotonic(),
                                worker.lease.block_tokens,
                            )
                            self._ended(routed, usage)
                            self._decisions.ended(routed.route.request_id, ANSWERED, usage)
                            yield usage
        except WorkerLate:
            self._decisions.ended(routed.route.request_id, "the call's deadline passed")
            raise DeadlineExceeded from None
        except WrongRequest as error:
            self._decisions.ended(routed.route.request_id, f"refused by the worker: {error.detail}")
            raise InvalidField("request", error.detail) from None
        except WorkerFailure:
            if first_s is not None:
                self._decisions.ended(routed.route.request_id, "the worker was lost in the answer")
                raise WorkerLost(worker.lease.worker_id) from None
            raise
        except (asyncio.CancelledError, GeneratorExit):
            self._decisions.ended(routed.route.request_id, "the caller went away")
            raise

    def routed(self, routed: RoutedRequest) -> None:
        """A worker has been chosen."""
        self._decisions.routed(routed.tenant.name, routed.route)
        routed.live.routed(routed.route)
        wish_ms = routed.request.slo.ttft_ms
        if wish_ms is not None and routed.route.predicted_ttft_ms > wish_ms:
            self._metrics.predicted_misses.inc()

    def refused(self, routed: RoutedRequest, full: WorkerFull) -> None:
        """The worker has too much to do."""
        self._decisions.ended(routed.route.request_id, f"refused by the worker, {full.reason}: {full}")

    def failed(self, routed: RoutedRequest, failure: WorkerFailure) -> None:
        """The worker has failed before the first token."""
        self._decisions.ended(routed.route.request_id, f"the worker failed before a token: {failure}")
        if isinstance(failure, WorkerRefused):
            # It lives, and would not answer with the request's modules.
            for module in routed.modules.used:
                self._outcomes.add(module.digest, refused=1)
        else:
            self._breakers.failed(failure.worker_id, time.monotonic())

    def _began(self, routed: RoutedRequest, worker: PooledWorker, now_s: float) -> None:
        worker.has_first_token(routed.route.request_id)
        routed.live.step(8)
        self._breakers.succeeded(worker.lease.worker_id)
        residuals = self._residuals
        predicted_s = routed.route.predicted_ttft_ms / 1000
        actual_s = now_s - routed.routed_s
        residuals.observe(worker.lease.worker_id, predicted_s, routed.learned_s, actual_s)
        self._metrics.prompt_tokens.inc(len(routed.token_ids))
        for module in routed.modules.used:
            self._outcomes.add(module.digest, answered=1)
            self._metrics.module_answers.labels(module.kind).inc()

    def _ended(self, routed: RoutedRequest, usage: Usage) -> None:
        routed.live.ended(usage)
        metrics, cached = self._metrics, usage.cached
        operation = operation_of(routed.request)
        metrics.answered(operation, usage, time.monotonic() - routed.accepted_s)
        metrics.ttft.observe(usage.ttft_ms / 1000)
        metrics.output_tokens.inc(usage.output_tokens)
        if usage.tpot_ms is not None:
            metrics.tpot.observe(usage.tpot_ms / 1000)
        for tier, tokens in asdict(cached).items():
            metrics.cached_tokens.labels(tier).inc(tokens)
        ttft_met, tpot_met = wishes_met(routed, usage.ttft_ms, usage.tpot_ms)
        for wish, met in (("ttft", ttft_met), ("tpot", tpot_met)):
            if not met:
                metrics.slo_missed.labels(wish).inc()


def operation_of(request: GenerationRequest) -> str:
    """As the metrics name it."""
    return COMPLETION if request.raw else CHAT


def usage_of(
    routed: RoutedRequest,
    last: AnswerPart,
    output_tokens: int,
    first_s: float,
    ended_s: float,
    block_tokens: int,
) -> Usage:
    """What an answer took.

    last: its last part. first_s, ended_s: when its first and its last part came. block_tokens: of the
    worker's KV.
    """
    prompt_tokens, cached = len(routed.token_ids), last.cached or CachedTokens()
    ttft_ms = (first_s - routed.accepted_s) * 1000
    tpot_ms = (ended_s - first_s) * 1000 / (output_tokens - 1) if output_tokens > 1 else None
    usage = Usage(
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        cached=cached,
        ttft_ms=ttft_ms,
        tpot_ms=tpot_ms,
        slo_met=all(wishes_met(routed, ttft_ms, tpot_ms)),
        finish_reason=last.finish_reason or FinishReason.STOP,
        stored_tokens=max(prompt_tokens // block_tokens * block_tokens - cached.total, 0),
    )
    return replace(usage, rungs=rungs_of(routed.route, usage, routed.modules.versions))


def wishes_met(routed: RoutedRequest, ttft_ms: float, tpot_ms: float | None) -> tuple[bool, bool]:
    """Whether the caller's SLOs for TTFT and TPOT were met. No wish is met by anything."""
    slo = routed.request.slo
    return (
        slo.ttft_ms is None or ttft_ms <= slo.ttft_ms,
        slo.tpot_ms is None or tpot_ms is None or tpot_ms <= slo.tpot_ms,
    )
