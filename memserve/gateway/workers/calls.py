"""The calls to a worker over gRPC: the only file of the gateway that knows its messages and statuses."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import asdict, fields, replace

import grpc

from memserve.domain import (
    CachedTokens,
    DistilProgress,
    FinishReason,
    FreedMemory,
    ModuleKind,
    ModulePlace,
    RefusalReason,
    WorkerLease,
)
from memserve.domain.worker_calls import (
    REASON,
    RETRY_AFTER,
    AnswerPart,
    BlockChange,
    BlockEvent,
    ComposedPiece,
    ComposeProgress,
    ComposeRecipe,
    CompositionRequest,
    DistillationRequest,
    DistilReport,
    EngineState,
    HeldBlocks,
    ScoringRequest,
    StepCosts,
    StrangeWorker,
    TokenScores,
    WorkerDied,
    WorkerFailure,
    WorkerFaulty,
    WorkerFull,
    WorkerLate,
    WorkerRefused,
    WorkerRequest,
    WorkerState,
    WrongRequest,
)
from memserve.gateway.workers.channels import WorkerChannel, WorkerChannels
from memserve.pb.worker.v1 import worker_pb2 as pb
from memserve.tls.live import LiveTls
from memserve.tracing import sent_headers

# What a status of a worker means. Any other: WorkerFailure, the worker lives and cannot do it now.
MEANS = {
    grpc.StatusCode.UNAVAILABLE: WorkerDied,
    grpc.StatusCode.INTERNAL: WorkerDied,
    grpc.StatusCode.CANCELLED: WorkerDied,
    grpc.StatusCode.UNKNOWN: WorkerFaulty,
    grpc.StatusCode.DEADLINE_EXCEEDED: WorkerLate,
    grpc.StatusCode.FAILED_PRECONDITION: WorkerRefused,
    grpc.StatusCode.INVALID_ARGUMENT: WrongRequest,
    grpc.StatusCode.UNAUTHENTICATED: StrangeWorker,
}
BANDS_MAX = 8
CLOSED = "the gateway has closed its connection to the worker"
_FINISH = {
    pb.FINISH_REASON_STOP: FinishReason.STOP,
    pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
}
_PLACES = {getattr(pb, f"MODULE_PLACE_{place.name}"): place for place in ModulePlace.known()}
_CHANGES = {change.value: change for change in BlockChange}


class GrpcCalls:
    """`WorkerCalls` over gRPC."""

    def __init__(self, lease: WorkerLease, credential: str, tls: LiveTls | None = None) -> None:
        """credential: `credentials.worker_credential`. tls: what the worker sees. Does not connect.

        Raises ValueError or TypeError where the lease's address is no address.
        """
        self._worker_id = lease.worker_id
        self._channels = WorkerChannels(lease.address, credential, tls)

    async def generate(
        self, request: WorkerRequest, timeout_s: float | None
    ) -> AsyncGenerator[AnswerPart, None]:
        async with self._calling() as channel:
            call = channel.generate(
                _generate_request(request), timeout=timeout_s, metadata=(*channel.bearer, *sent_headers())
            )
            try:
                async for response in call:
                    yield _answer_part(response)
                    if response.finish_reason:
                        return
            finally:
                call.cancel()
        # The stream of a worker that shuts down may just end.
        raise WorkerDied(self._worker_id, "the stream ended early")

    async def score_tokens(self, request: ScoringRequest, timeout_s: float | None) -> TokenScores:
        message = pb.ScoreTokensRequest(
            request_id=request.request_id,
            token_ids=request.token_ids,
            continuation=request.continuation,
            cache_salt=request.cache_salt,
            tenant=request.tenant,
            modules=[
                pb.AppliedModule(digest=module.digest, kind=module.kind, strength=module.strength)
                for module in request.modules
            ],
            priority=getattr(pb, f"PRIORITY_{request.priority.name}"),
            expected_cached_tokens=request.cached_tokens,
        )
        async with self._calling() as channel:
            scores = await channel.stub.ScoreTokens(message, timeout=timeout_s)
        cached = scores.cached_tokens
        if len(scores.logprobs) != len(request.continuation):
            raise WorkerFaulty(self._worker_id, "it has scored other tokens than it was asked for")
        return TokenScores(tuple(scores.logprobs), _cached(cached))

    async def lookup_blocks(self, keys: Sequence[bytes], timeout_s: float) -> HeldBlocks:
        async with self._calling() as channel:
            answer = await channel.stub.LookupBlocks(pb.LookupBlocksRequest(keys=keys), timeout=timeout_s)
        return HeldBlocks(answer.device_blocks, answer.held_blocks)

    async def forget_memories(self, tenant: str, keys: Sequence[str], timeout_s: float) -> FreedMemory:
        request = pb.ForgetMemoriesRequest(tenant=tenant, memory_keys=keys)
        async with self._calling() as channel:
            told = await channel.stub.ForgetMemories(request, timeout=timeout_s)
        return FreedMemory(told.blocks, told.chunks, told.held, told.trainings)

    async def load_module(self, digest: str, kind: ModuleKind, *, pin: bool, timeout_s: float) -> ModulePlace:
        request = pb.LoadModuleRequest(digest=digest, kind=kind, pin=pin)
        async with self._calling() as channel:
            return _place((await channel.stub.LoadModule(request, timeout=timeout_s)).place)

    async def unload_module(
        self, digest: str, kind: ModuleKind, *, forget: bool, timeout_s: float
    ) -> ModulePlace:
        request = pb.UnloadModuleRequest(digest=digest, kind=kind, forget=forget)
        async with self._calling() as channel:
            return _place((await channel.stub.UnloadModule(request, timeout=timeout_s)).place)

    async def module_places(self, digests: Sequence[str], timeout_s: float) -> list[ModulePlace]:
        request = pb.GetModulePlacesRequest(digests=digests)
        async with self._calling() as channel:
            answer = await channel.stub.GetModulePlaces(request, timeout=timeout_s)
        places = {module.digest: _place(module.place) for module in answer.modules}
        return [places.get(digest, ModulePlace.ABSENT) for digest in digests]

    async def try_module(self, digest: str, kind: ModuleKind, timeout_s: float) -> float:
        request = pb.TryModuleRequest(digest=digest, kind=kind)
        async with self._calling() as channel:
            return float((await channel.stub.TryModule(request, timeout=timeout_s)).largest_change)

    async def set_pace(self, window_s: float, timeout_s: float) -> None:
        async with self._calling() as channel:
            await channel.stub.SetPace(pb.SetPaceRequest(window_ms=window_s * 1000), timeout=timeout_s)

    async def compose(
        self, request: CompositionRequest, timeout_s: float | None = None
    ) -> AsyncGenerator[ComposeProgress | ComposedPiece | ComposeRecipe, None]:
        message = pb.ComposeModuleRequest(
            method=request.method,
            parents=[pb.ComposeParent(digest=digest, weight=weight) for digest, weight in request.parents],
            rank=request.rank,
            density=request.density,
            seed=request.seed,
        )
        async with self._calling() as channel:
            call = channel.stub.ComposeModule(message, timeout=timeout_s)
            try:
                async for event in call:
                    match event.WhichOneof("event"):
                        case "progress":
                            yield ComposeProgress(event.progress.done, event.progress.total)
                        case "file":
                            yield ComposedPiece(event.file.file_name, event.file.content)
                        case "recipe":
                            yield ComposeRecipe(event.recipe)
            finally:
                call.cancel()

    async def distil(
        self, request: DistillationRequest, timeout_s: float | None = None
    ) -> AsyncGenerator[DistilProgress | ComposedPiece | DistilReport, None]:
        # The fields have the same names.
        message = pb.DistilModuleRequest(**asdict(request))
        async with self._calling() as channel:
            call = channel.stub.DistilModule(message, timeout=timeout_s)
            try:
                async for event in call:
                    match event.WhichOneof("event"):
                        case "progress":
                            yield _distil_progress(event.progress)
                        case "file":
                            yield ComposedPiece(event.file.file_name, event.file.content)
                        case "report":
                            yield DistilReport(event.report)
            finally:
                call.cancel()

    async def watch(
        self, epoch: int, after_sequence: int, timeout_s: float | None = None
    ) -> AsyncGenerator[WorkerState | BlockEvent, None]:
        # An event counts when all of its messages are here: a stream that breaks between has told nothing.
        parts: list[pb.WatchResponse] = []
        while True:
            request = pb.WatchRequest(epoch=epoch, after_sequence=after_sequence)
            async with self._calling() as channel:
                call = channel.stub.Watch(request, timeout=timeout_s)
                try:
                    async for message in call:
                        if message.WhichOneof("event") == "state":
                            yield _state(message.state)
                            # Events come in order: after a state, none is half here.
                            if channel.pem is not self._channels.pem and not parts:
                                break
                            continue
                        parts.append(message)
                        if not message.more:
                            yield (event := _block_event(parts))
                            epoch, after_sequence, parts = event.epoch, event.sequence, []
                    else:
                        return
                finally:
                    call.cancel()

    async def close(self) -> None:
        await self._channels.close()

    @contextlib.asynccontextmanager
    async def _calling(self) -> AsyncIterator[WorkerChannel]:
        """For one call, whose failures are turned into what they mean."""
        with self._failures():
            async with self._channels.calling() as channel:
                yield channel

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn a status into what it means."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            self._channels.failed(error.details() or "")
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise _full(self._worker_id, error) from None
            meaning = MEANS.get(error.code(), WorkerFailure)
            raise meaning(self._worker_id, error.details() or error.code().name) from None
        except grpc.aio.UsageError:
            raise WorkerDied(self._worker_id, CLOSED) from None
        except asyncio.CancelledError:
            # A channel that closes ends its calls in the way that a cancelled task ends its own.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise WorkerDied(self._worker_id, CLOSED) from None


def _full(worker_id: str, error: grpc.aio.AioRpcError) -> WorkerFailure:
    told = {str(key): str(value) for key, value in error.trailing_metadata() or ()}
    detail = error.details() or error.code().name
    try:
        retry_after_s = float(told[RETRY_AFTER])
    except (KeyError, ValueError):
        # Not by the worker's own word: a message over gRPC's limit has this status too.
        return WorkerFailure(worker_id, detail)
    reason = {str(each): each for each in RefusalReason}.get(told.get(REASON, ""), RefusalReason.UNKNOWN)
    return WorkerFull(worker_id, detail, reason, retry_after_s)


def _generate_request(request: WorkerRequest) -> pb.GenerateRequest:
    sampling = request.sampling
    message = pb.GenerateRequest(
        request_id=request.request_id,
        token_ids=request.token_ids,
        cache_salt=request.cache_salt,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        stop=sampling.stop,
        logprobs=sampling.logprobs,
        min_tokens=sampling.min_tokens,
        json_schema=sampling.json_schema,
        tenant=request.tenant,
        keep=request.store_whole_prompt,
        priority=getattr(pb, f"PRIORITY_{request.priority.name}"),
        # 0 is no wish.
        first_token_ms=0 if request.first_token_s is None else max(request.first_token_s * 1000, 0.001),
        refuse_late=request.refuse_late,
        do_not_queue=request.do_not_queue,
        expected_cached_tokens=request.cached_tokens,
    )
    for module in request.modules:
        message.modules.add(digest=module.digest, kind=module.kind, strength=module.strength)
        # For workers of 0.1.0, while they are replaced.
        if module.kind == ModuleKind.LORA:
            message.module_digest = module.digest
        elif module.kind == ModuleKind.LOGIT_EXPERT:
            message.expert_digest, message.expert_alpha = module.digest, module.strength
    return message


def _answer_part(response: pb.GenerateResponse) -> AnswerPart:
    part = AnswerPart(response.text, tuple(response.token_ids), tuple(response.logprobs))
    if not response.finish_reason:
        return part
    return replace(
        part,
        cached=_cached(response.cached_tokens),
        # A newer worker may end an answer for a reason that this gateway has no word for.
        finish_reason=_FINISH.get(response.finish_reason, FinishReason.STOP),
    )


def _cached(cached: pb.CachedTokens) -> CachedTokens:
    return CachedTokens(cached.device, cached.host, cached.redis, cached.cartridge)


def _place(place: pb.ModulePlace) -> ModulePlace:
    """ABSENT for a place that a newer worker knows and this gateway does not: nothing is counted on."""
    return _PLACES.get(place, ModulePlace.ABSENT)


def _state(state: pb.WorkerState) -> WorkerState:
    return WorkerState(
        running=state.running,
        waiting=state.waiting,
        prefill_tokens_per_s=state.prefill_tokens_per_s,
        decode_tokens_per_s=state.decode_tokens_per_s,
        pending_prefill_tokens=state.pending_prefill_tokens,
        modules={module.digest: _PLACES[module.place] for module in state.modules if module.place in _PLACES},
        used_modules=frozenset(state.used_modules),
        engine=_engine_state(state.engine) if state.HasField("engine") else None,
    )


def _engine_state(engine: pb.EngineState) -> EngineState | None:
    """None where the costs are none: nothing can be forecast with them."""
    costs = {term.name: getattr(engine.costs, term.name) for term in fields(StepCosts)}
    if not all(math.isfinite(seconds) and seconds >= 0 for seconds in costs.values()) or not (
        costs["token_s"] > 0 and costs["step_limit_s"] > 0
    ):
        return None
    return EngineState(
        costs=StepCosts(**costs),
        waiting={each.band: tuple(each.buckets) for each in engine.waiting if 0 <= each.band < BANDS_MAX},
        prefill_s=_seconds(engine.prefill_s),
        seat_s=_seconds(engine.seat_s),
        answers=max(engine.answers, 0),
        kv_tokens=max(engine.kv_tokens, 0),
        free_kv_tokens=max(engine.free_kv_tokens, 0),
        requests=max(engine.requests, 0),
        queued_tokens=max(engine.queued_tokens, 0),
        recent=frozenset(engine.recent_requests),
    )


def _seconds(seconds: float) -> float:
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def _block_event(parts: Sequence[pb.WatchResponse]) -> BlockEvent:
    """A large event comes in several messages of one number. The first of a reset resets, the others add.

    An event that only a newer worker knows has no keys for this gateway; its number counts.
    """
    first = parts[0]
    keys: list[bytes] = []
    for part in parts:
        if (event := part.WhichOneof("event")) is not None:
            keys += getattr(part, event).keys
    change = _CHANGES.get(first.WhichOneof("event"), BlockChange.STORED)
    return BlockEvent(first.epoch, first.sequence, change, keys)


def _distil_progress(value: pb.DistilProgress) -> DistilProgress:
    return DistilProgress(
        value.stage,
        value.step,
        value.steps,
        value.cpu_s,
        value.tokens,
        value.median_loss if value.HasField("median_loss") else None,
    )
