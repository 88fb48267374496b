"""A request's way through the gateway, from the accepted call to the last token. The steps are those of the
README.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import grpc

from memserve.config import Settings
from memserve.disk import DiskWatch
from memserve.domain import (
    CachedTokens,
    CacheLayout,
    FinishReason,
    GenerationRequest,
    Message,
    ModuleKind,
    ModulePlace,
    ModuleVersion,
    RecallOutcome,
    Role,
    Route,
    ScoredMemory,
    Tenant,
    TextDelta,
    Usage,
    UsedModule,
)
from memserve.errors import (
    DeadlineExceeded,
    InvalidField,
    ModelNotFound,
    NoWorker,
    PicklableError,
    VectorStoreUnavailable,
    WorkerLost,
    WorkersLost,
)
from memserve.gateway.access.callers import Inflight
from memserve.gateway.modules.outcomes import OutcomeCounts
from memserve.gateway.steps.prompt import Prompt, Room, check_bytes, fit_prompt, prompt_max_bytes
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.gateway.workers.pool import PooledWorker, WorkerPool
from memserve.kv.keys import block_keys, chunk_keys
from memserve.kv.lookup import PrefixLookup
from memserve.memory.modules.memory import ParametricMemory, Resolved
from memserve.memory.prefixes.memory import ActivationMemory
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.rules import QUERY_MAX_BYTES
from memserve.metrics.instruments import GatewayMetrics
from memserve.model.files import ModelFiles
from memserve.pb.worker.v1 import worker_pb2 as worker_pb
from memserve.policy.recall.prompt import order_passages
from memserve.policy.routing.choose import RoutingChoice, choose_worker
from memserve.policy.routing.predict import RoutingCosts
from memserve.policy.routing.snapshot import WorkerSnapshot, adapters_ahead
from memserve.policy.sampling import check_min_tokens
from memserve.processes.supervised import Background
from memserve.turns import FairThreads

log = logging.getLogger("memserve.gateway.pipeline")

ATTEMPTS = 3
# What ends one worker may end the next, and then the one after it.
LOST_RETRIES = 1
# What a call to a worker that has died ends with.
LOST = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
}
FINISH = {
    worker_pb.FINISH_REASON_STOP: FinishReason.STOP,
    worker_pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
}


@dataclass(frozen=True, slots=True)
class Recalled:
    """Passages for the prompt, in its order, and what became of the search."""

    outcome: RecallOutcome
    passages: tuple[ScoredMemory, ...] = ()


@dataclass(frozen=True, slots=True)
class LookedUp:
    """A prompt as workers of one layout hold it. keys: [full blocks]. redis_tokens: leading tokens that are
    in Redis.
    """

    keys: Sequence[bytes]
    redis_tokens: int


@dataclass(frozen=True, slots=True)
class AnsweringModules:
    """The immutable versions that one answer is made with, and what the receipt says of them."""

    lora: ModuleVersion | None = None
    expert: ModuleVersion | None = None
    alpha: float = 0.0
    used: tuple[UsedModule, ...] = ()

    @property
    def lora_digest(self) -> str:
        return self.lora.digest if self.lora is not None else ""

    def fit(self, model_digest: str) -> bool:
        """Whether they were made for this model: while another is rolled out, workers of both are there."""
        return all(
            version is None or version.base_digest in ("", model_digest)
            for version in (self.lora, self.expert)
        )


@dataclass
class Pipeline:
    """Everything that a request meets on its way.

    Of modules, by digest. using: requests that hold it now. outcomes: what became of answers with it.
    background: work that outlives calls.
    """

    settings: Settings
    model: ModelFiles
    tokenizer: ChatTokenizer
    tokenizing: FairThreads
    inflight: Inflight
    modules: ParametricMemory
    vector: VectorMemory
    activation: ActivationMemory
    pool: WorkerPool
    lookup: PrefixLookup
    metrics: GatewayMetrics
    disk: DiskWatch
    costs: RoutingCosts = field(default_factory=RoutingCosts)
    using: Counter[str] = field(default_factory=Counter)
    outcomes: OutcomeCounts = field(default_factory=OutcomeCounts)
    background: Background = field(default_factory=Background)

    async def generate(
        self, request: GenerationRequest, tenant: Tenant, deadline_s: float | None
    ) -> AsyncGenerator[Route | TextDelta | Usage, None]:
        """Stream one answer: a Route, then TextDeltas, last a Usage. Closing the iterator aborts the work.

        deadline_s: on the monotonic clock, or None. Steps 1 (the call) and the authentication of 2 are behind
        it. Raises facts of memserve.errors.
        """
        accepted_s = time.monotonic()
        async with contextlib.AsyncExitStack() as held:
            held.enter_context(self.inflight.one(tenant.name))
            held.enter_context(self.metrics.inflight.track_inprogress())
            # 2. Immutable module versions for the whole answer.
            self.check(request.model, request.messages)
            check_min_tokens(
                request.sampling.min_tokens, request.sampling.max_tokens or self.settings.default_max_tokens
            )
            modules = await self._modules(request, tenant.name)
            held.enter_context(self._holding(modules.used))
            # 3. Vector recall: late or down means an answer without passages, and says so.
            recalled = await self._recall(request, tenant.name)
            # 4. The prompt: token ids.
            recalled, prompt = await self._prompt(request, recalled, tenant.name)
            token_ids = prompt.token_ids
            check_min_tokens(request.sampling.min_tokens, prompt.max_tokens)
            request = replace(request, sampling=replace(request.sampling, max_tokens=prompt.max_tokens))
            # Its turn at the engines: what is looked up from here on is what is so now.
            await held.enter_async_context(self.pool.place(tenant.name))
            # 5. Activation look-up: the prompt's block keys against Redis here, against what each worker
            #    holds in `_choose`.
            # But for the last token: the engine always computes that one.
            cached = await self._look_up(token_ids[:-1], tenant, modules.lora)
            tried: set[str] = set()
            lost = 0
            while True:
                # 6. Routing.
                worker, choice = self._choose(request, tenant.name, modules, len(token_ids), cached, tried)
                route = Route(
                    request_id=uuid.uuid4().hex,
                    model=self.model.name,
                    worker_id=worker.lease.worker_id,
                    reason=choice.reason,
                    predicted_ttft_ms=choice.predicted_ttft_s * 1000,
                    prompt_tokens=len(token_ids),
                    expected_cached_tokens=choice.expected_cached_tokens,
                    modules=modules.used,
                    recall_outcome=recalled.outcome,
                    passages=recalled.passages,
                    lost_memories=self.vector.lost(tenant.name, request.namespaces),
                )
                # 7. The worker streams. One that fails before its first token is replaced.
                try:
                    with worker.serving(
                        tenant.name,
                        route.request_id,
                        len(token_ids) - route.expected_cached_tokens,
                        modules.lora_digest,
                    ):
                        yield route
                        stream = self._stream(
                            worker, request, tenant, route, modules, token_ids, accepted_s, deadline_s
                        )
                        async with contextlib.aclosing(stream):
                            async for event in stream:
                                yield event  # 8. Text, last the usage.
                    return
                except _NotStarted as failure:
                    if failure.refused:
                        for module in modules.used:
                            self.outcomes.add(module.digest, refused=1)
                    tried.add(worker.lease.worker_id)
                    lost += failure.lost
                    if lost > LOST_RETRIES:
                        raise WorkersLost(lost, failure.detail) from None
                    others = {other.lease.worker_id for other in self.pool.ready(time.monotonic())} - tried
                    if len(tried) >= ATTEMPTS or request.worker_id or not others:
                        raise NoWorker(failure.detail) from None
                    self.metrics.rerouted.inc()

    def check(self, model: str, messages: Sequence[Message], *, field: str = "messages") -> None:
        """Raises ModelNotFound, and InvalidField for messages that cannot fit, or that spell a control token:
        it would be a command.

        field: the request's name for the messages.
        """
        if model not in ("", self.model.name):
            raise ModelNotFound(model, self.model.name)
        check_bytes(field, messages, prompt_max_bytes(self.tokenizer, self.model.max_context_tokens))
        for number, message in enumerate(messages):
            token = self.tokenizer.special_token_in(message.content)
            if token:
                raise InvalidField(
                    f"{field}[{number}].content", f"must not contain the model's control token {token!r}"
                )

    async def _modules(self, request: GenerationRequest, tenant: str) -> AnsweringModules:
        """What the request's references mean now, for its session."""
        key = request.session or uuid.uuid4().hex
        lora = expert = None
        if request.module:
            lora = await self.modules.resolve("module", tenant, request.module, key)
            _of_kind("module", lora, ModuleKind.LORA)
        alpha = request.expert.alpha if request.expert is not None else 0.0
        if request.expert is not None:
            expert = await self.modules.resolve("experts[0].reference", tenant, request.expert.reference, key)
            _of_kind("experts[0].reference", expert, ModuleKind.LOGIT_EXPERT)
        return AnsweringModules(
            lora=lora.version if lora else None,
            expert=expert.version if expert and alpha else None,
            alpha=alpha,
            used=(*([_used(lora)] if lora else []), *([_used(expert, alpha)] if expert and alpha else [])),
        )

    @contextlib.contextmanager
    def _holding(self, used: Sequence[UsedModule]) -> Iterator[None]:
        """While inside, these versions are in use."""
        self.using.update(module.digest for module in used)
        try:
            yield
        finally:
            for module in used:
                self.using[module.digest] -= 1
                if not self.using[module.digest]:
                    del self.using[module.digest]

    async def _recall(self, request: GenerationRequest, tenant: str) -> Recalled:
        if not request.namespaces:
            return Recalled(RecallOutcome.NOT_ASKED)
        started_s = time.monotonic()
        timeout_s = request.recall_timeout_s or self.settings.recall_timeout_ms / 1000
        query = next(m.content for m in reversed(request.messages) if m.role is Role.USER)
        query = query.strip().encode()[:QUERY_MAX_BYTES].decode(errors="ignore")
        try:
            limit = request.recall_limit or self.settings.recall_limit
            found = await self.vector.search(tenant, request.namespaces, query, limit, timeout_s=timeout_s)
            usable = [hit for hit in found if self.tokenizer.can_quote(hit.memory.text)]
            recalled = Recalled(
                RecallOutcome.FOUND if usable else RecallOutcome.EMPTY, tuple(order_passages(usable))
            )
        except VectorStoreUnavailable as error:
            late = time.monotonic() - started_s >= timeout_s
            log.warning("answering without passages: %s", error)
            recalled = Recalled(RecallOutcome.LATE if late else RecallOutcome.UNAVAILABLE)
        self.metrics.recall.labels(recalled.outcome).observe(time.monotonic() - started_s)
        return recalled

    async def _prompt(
        self, request: GenerationRequest, recalled: Recalled, tenant: str
    ) -> tuple[Recalled, Prompt]:
        """Returns the passages that fit, and the prompt with them."""
        room = Room(
            self.model.max_context_tokens, request.sampling.max_tokens, self.settings.default_max_tokens
        )
        work = partial(
            fit_prompt,
            self.tokenizer,
            request.messages,
            recalled.passages,
            room,
            self.settings.recall_instruction,
        )
        prompt = await self.tokenizing.run(tenant, work)
        outcome = RecallOutcome.EMPTY if recalled.passages and not prompt.passages else recalled.outcome
        return Recalled(outcome, prompt.passages), prompt

    async def _look_up(
        self, token_ids: Sequence[int], tenant: Tenant, module: ModuleVersion | None
    ) -> dict[CacheLayout, LookedUp]:
        """The prompt in each way that workers lay KV out. A worker of a layout that has come since counts as
        holding nothing.
        """

        async def look_up(layout: CacheLayout) -> LookedUp:
            keys = prompt_block_keys(token_ids, layout, tenant, module)
            if not keys:
                return LookedUp(keys, 0)
            chunks = await self.lookup.present(layout.namespace, chunk_keys(keys, layout.blocks_per_chunk))
            self.metrics.lookups.labels(
                "unavailable" if chunks is None else "hit" if chunks else "miss"
            ).inc()
            return LookedUp(keys, (chunks or 0) * layout.chunk_tokens)

        layouts = self.pool.layouts()
        return dict(zip(layouts, await asyncio.gather(*map(look_up, layouts)), strict=True))

    def _choose(
        self,
        request: GenerationRequest,
        tenant: str,
        modules: AnsweringModules,
        prompt_tokens: int,
        cached: Mapping[CacheLayout, LookedUp],
        tried: set[str],
    ) -> tuple[PooledWorker, RoutingChoice]:
        now_s = time.monotonic()

        def fitting(workers: Sequence[PooledWorker]) -> dict[str, PooledWorker]:
            fit = [w for w in workers if w.lease.worker_id not in tried and modules.fit(w.lease.model_digest)]
            return {w.lease.worker_id: w for w in fit if request.worker_id in ("", w.lease.worker_id)}

        # The worker that is left to other tenants is better than none.
        ready = fitting(self.pool.open_to(tenant, now_s)) or fitting(self.pool.ready(now_s))
        nothing = LookedUp([], 0)
        prompts = {name: cached.get(worker.lease.layout, nothing) for name, worker in ready.items()}
        snapshots = [
            WorkerSnapshot(
                worker_id=name,
                running=max(worker.running, worker.state.running + worker.state.waiting),
                pending_prefill_tokens=worker.pending_prefill_tokens,
                held_tokens=self.pool.index.longest_prefix(name, prompts[name].keys)
                * worker.lease.block_tokens,
                shared_tokens=prompts[name].redis_tokens if worker.lease.shares_kv else 0,
                prefill_tokens_per_s=worker.prefill_tokens_per_s,
                adapter=worker.place_of(modules.lora_digest)
                if modules.lora is not None
                else ModulePlace.DEVICE,
                adapters_ahead=adapters_ahead(modules.lora_digest, worker.adapters, self.settings.max_loras)
                if modules.lora is not None
                else 0,
                expert=worker.place_of(modules.expert.digest)
                if modules.expert is not None
                else ModulePlace.DEVICE,
            )
            for name, worker in ready.items()
        ]
        choice = choose_worker(snapshots, prompt_tokens, self.costs)
        if choice is None:
            raise NoWorker(
                f"worker {request.worker_id} is not ready" if request.worker_id else "none is ready"
            )
        return ready[choice.worker_id], choice

    async def _stream(
        self,
        worker: PooledWorker,
        request: GenerationRequest,
        tenant: Tenant,
        route: Route,
        modules: AnsweringModules,
        token_ids: list[int],
        accepted_s: float,
        deadline_s: float | None,
    ) -> AsyncGenerator[TextDelta | Usage, None]:
        sampling = request.sampling
        now_s = time.monotonic()
        if deadline_s is not None and deadline_s <= now_s:
            raise DeadlineExceeded
        call = worker.stub.Generate(
            worker_pb.GenerateRequest(
                request_id=route.request_id,
                token_ids=token_ids,
                cache_salt=tenant.cache_salt,
                module_digest=modules.lora_digest,
                expert_digest=modules.expert.digest if modules.expert else "",
                expert_alpha=modules.alpha if modules.expert else 0.0,
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=sampling.seed,
                stop=sampling.stop,
                logprobs=sampling.logprobs,
                min_tokens=sampling.min_tokens,
                tenant=tenant.name,
            ),
            timeout=None if deadline_s is None else deadline_s - now_s,
        )
        first_s: float | None = None
        output_tokens = 0
        try:
            async for response in call:
                if first_s is None:
                    first_s = time.monotonic()
                    worker.sent.pop(route.request_id, None)
                    self.metrics.prompt_tokens.inc(len(token_ids))
                    for module in modules.used:
                        self.outcomes.add(module.digest, answered=1)
                        self.metrics.module_answers.labels(module.kind).inc()
                output_tokens += len(response.token_ids)
                if response.text or response.token_ids:
                    yield TextDelta(response.text, tuple(response.token_ids), tuple(response.logprobs))
                if response.finish_reason:
                    yield self._usage(
                        request,
                        response,
                        len(token_ids),
                        output_tokens,
                        first_s - accepted_s,
                        time.monotonic() - first_s,
                    )
                    return
            # The stream of a worker that shuts down may just end.
            self._fail(worker, started=first_s is not None, detail="the stream ended early", lost=True)
        except grpc.aio.AioRpcError as error:
            self._explain(error, worker, started=first_s is not None)
        finally:
            call.cancel()

    def _explain(self, error: grpc.aio.AioRpcError, worker: PooledWorker, *, started: bool) -> None:
        """Raise what the failure of a call to a worker means for the caller."""
        code, detail = error.code(), error.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise DeadlineExceeded from None
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            raise InvalidField("request", detail) from None
        if code in LOST:
            log.warning("worker %s failed a call: %s %s", worker.lease.worker_id, code.name, detail)
            self.pool.lost(worker)
        self._fail(
            worker,
            started=started,
            detail=detail or code.name,
            refused=code is grpc.StatusCode.FAILED_PRECONDITION,
            lost=code in LOST,
        )

    def _fail(
        self, worker: PooledWorker, *, started: bool, detail: str, refused: bool = False, lost: bool = False
    ) -> None:
        if started:
            raise WorkerLost(worker.lease.worker_id) from None
        raise _NotStarted(detail, refused, lost) from None

    def _usage(
        self,
        request: GenerationRequest,
        last: worker_pb.GenerateResponse,
        prompt_tokens: int,
        output_tokens: int,
        ttft_s: float,
        decode_s: float,
    ) -> Usage:
        tpot_s = decode_s / (output_tokens - 1) if output_tokens > 1 else None
        slo = request.slo
        ttft_met = slo.ttft_ms is None or ttft_s * 1000 <= slo.ttft_ms
        tpot_met = slo.tpot_ms is None or tpot_s is None or tpot_s * 1000 <= slo.tpot_ms
        cached = CachedTokens(last.cached_tokens.device, last.cached_tokens.host, last.cached_tokens.redis)
        m = self.metrics
        m.ttft.observe(ttft_s)
        m.output_tokens.inc(output_tokens)
        if tpot_s is not None:
            m.tpot.observe(tpot_s)
        for tier, tokens in (("device", cached.device), ("host", cached.host), ("redis", cached.redis)):
            m.cached_tokens.labels(tier).inc(tokens)
        for wish, met in (("ttft", ttft_met), ("tpot", tpot_met)):
            if not met:
                m.slo_missed.labels(wish).inc()
        return Usage(
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            cached=cached,
            ttft_ms=ttft_s * 1000,
            tpot_ms=None if tpot_s is None else tpot_s * 1000,
            slo_met=ttft_met and tpot_met,
            # A newer worker may end an answer for a reason that this gateway has no word for.
            finish_reason=FINISH.get(last.finish_reason, FinishReason.STOP),
        )


def prompt_block_keys(
    token_ids: Sequence[int], layout: CacheLayout, tenant: Tenant, module: ModuleVersion | None
) -> list[bytes]:
    """Keys of the full blocks, as an engine of this layout computes them."""
    lora = (module.digest, f"modules/{module.digest}") if module else None
    return block_keys(token_ids, layout.block_tokens, lora=lora, cache_salt=tenant.cache_salt)


class _NotStarted(PicklableError):
    """A worker failed before its first token.

    refused: it lives, and would not answer with the request's modules. lost: it has gone, as far as can be
    told.
    """

    def __init__(self, detail: str, refused: bool, lost: bool) -> None:
        super().__init__(detail)
        self.detail = detail
        self.refused = refused
        self.lost = lost


def _of_kind(field: str, resolved: Resolved, kind: ModuleKind) -> None:
    if resolved.version.kind is not kind:
        other = "experts" if kind is ModuleKind.LORA else "module"
        raise InvalidField(
            field, f"{resolved.version.reference} is of kind {resolved.version.kind}; name it in `{other}`"
        )


def _used(resolved: Resolved, alpha: float = 0.0) -> UsedModule:
    version = resolved.version
    return UsedModule(version.module, version.version, version.digest, version.kind, resolved.reason, alpha)
