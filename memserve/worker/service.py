"""`memserve.worker.v1` on gRPC: the engine's answers and modules, and the stream that gateways watch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

import grpc
from vllm.exceptions import VLLMClientError
from vllm.v1.engine.exceptions import EngineDeadError

from memserve.domain import CachedTokens, FinishReason, ModuleKind, ModulePlace, Priority, Sampling
from memserve.domain.kinds import kind_of_name
from memserve.domain.worker_calls import (
    REASON,
    RETRY_AFTER,
    AnswerPart,
    AppliedModule,
    ScoringRequest,
    WorkerRequest,
)
from memserve.errors import InvalidModule, MemserveError, ModuleNotFound, Overloaded
from memserve.logs import LOGGED_CALL, LoggedCall
from memserve.pb.worker.v1 import worker_pb2 as pb
from memserve.pb.worker.v1 import worker_pb2_grpc as rpc
from memserve.worker.engine.engine import Engine
from memserve.worker.engine.trial import try_module
from memserve.worker.kv.block_log import BlockEvent, BlockLog, Change
from memserve.worker.pace import AnswerPace
from memserve.worker.phases import Phases
from memserve.worker.training.parent import Parent
from memserve.worker.training.ray_task import compose_in_ray
from memserve.worker.training_calls import TrainingPlace, Trainings, composing
from memserve.worker.waiting_room import EngineRoom

log = logging.getLogger("memserve.worker")

# A state is sent when something has changed, and at least and at most so often.
STATE_INTERVAL_S, STATE_GAP_S = 0.25, 0.05
KEYS_IN_A_MESSAGE = 16_384

FINISH = {FinishReason.STOP: pb.FINISH_REASON_STOP, FinishReason.LENGTH: pb.FINISH_REASON_LENGTH}
PRIORITY = {getattr(pb, f"PRIORITY_{priority.name}"): priority for priority in Priority}
PLACE = {
    ModulePlace.DEVICE: pb.MODULE_PLACE_DEVICE,
    ModulePlace.HOST: pb.MODULE_PLACE_HOST,
    ModulePlace.DISK: pb.MODULE_PLACE_DISK,
    ModulePlace.ABSENT: pb.MODULE_PLACE_ABSENT,
}
Context = grpc.aio.ServicerContext[Any, Any]


class WorkerService(rpc.WorkerServiceServicer):  # type: ignore[misc]
    """The data plane of one engine."""

    def __init__(
        self,
        engine: Engine,
        room: EngineRoom,
        log: BlockLog,
        pace: AnswerPace,
        training: TrainingPlace,
        *,
        max_lora_rank: int,
    ) -> None:
        self._engine = engine
        self._room = room
        self._log = log
        self._trainings = Trainings(training)
        self._max_lora_rank = max_lora_rank
        self._pace = pace
        # It differs at every start, so that a gateway's numbers from before a restart do not count.
        self._epoch = time.time_ns()
        self._leaving = False

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        async with refusals(context, wrong_module=grpc.StatusCode.FAILED_PRECONDITION):
            asked = _worker_request(request)
            LOGGED_CALL.set(LoggedCall(asked.tenant, asked.request_id))
            with Phases(asked, dict(context.invocation_metadata() or ())) as phases:
                turn = phases.queued(self._room.turn(asked, context.time_remaining()))
                async with contextlib.aclosing(self._engine.generate(asked, turn)) as parts:
                    async for part in parts:
                        self._room.advanced(asked.request_id, len(part.token_ids))
                        phases.see(part)
                        yield _response(part)
                        if part.finish_reason is None and (window_s := self._pace.window_s(context.peer())):
                            # vLLM joins the tokens that it samples meanwhile into one output.
                            await asyncio.sleep(window_s)

    async def ScoreTokens(self, request: pb.ScoreTokensRequest, context: Context) -> pb.ScoreTokensResponse:
        async with refusals(context, wrong_module=grpc.StatusCode.FAILED_PRECONDITION):
            asked = _scoring_request(request)
            LOGGED_CALL.set(LoggedCall(asked.tenant, asked.request_id))
            scores = await self._engine.score(
                asked,
                self._room.turn(asked.answer, context.time_remaining()),
                partial(self._room.advanced, asked.request_id),
            )
            return pb.ScoreTokensResponse(logprobs=scores.logprobs, cached_tokens=_cached(scores.cached))

    async def SetPace(self, request: pb.SetPaceRequest, context: Context) -> pb.SetPaceResponse:
        async with refusals(context):
            if not 0 <= request.window_ms < math.inf:
                raise ValueError("window_ms: a number, not below 0")
            self._pace.told(context.peer(), request.window_ms / 1000)
            return pb.SetPaceResponse()

    async def LoadModule(self, request: pb.LoadModuleRequest, context: Context) -> pb.LoadModuleResponse:
        async with refusals(context):
            place = await self._engine.modules.load(
                request.digest, kind_of_name(request.kind), pin=request.pin
            )
            self._log.changed.set()
            return pb.LoadModuleResponse(place=PLACE[place])

    async def UnloadModule(
        self, request: pb.UnloadModuleRequest, context: Context
    ) -> pb.UnloadModuleResponse:
        async with refusals(context):
            place = await self._engine.modules.unload(
                request.digest, kind_of_name(request.kind), forget=request.forget
            )
            self._log.changed.set()
            return pb.UnloadModuleResponse(place=PLACE[place])

    async def GetModulePlaces(
        self, request: pb.GetModulePlacesRequest, context: Context
    ) -> pb.GetModulePlacesResponse:
        async with refusals(context):
            places = [(digest, await self._engine.modules.place(digest)) for digest in request.digests]
            return pb.GetModulePlacesResponse(
                modules=[pb.ModuleResidency(digest=digest, place=PLACE[place]) for digest, place in places]
            )

    async def TryModule(self, request: pb.TryModuleRequest, context: Context) -> pb.TryModuleResponse:
        async with refusals(context):
            return pb.TryModuleResponse(
                largest_change=await try_module(self._engine, request.digest, kind_of_name(request.kind))
            )

    async def ComposeModule(
        self, request: pb.ComposeModuleRequest, context: Context
    ) -> AsyncIterator[pb.ComposeModuleResponse]:
        async with refusals(context):
            parents = [
                Parent(each.digest, await self._engine.modules.files(each.digest), each.weight or 1.0)
                for each in request.parents
            ]
            events = compose_in_ray(
                parents,
                request.method,
                rank=request.rank,
                density=request.density,
                seed=request.seed,
                max_rank=self._max_lora_rank,
            )
            async with contextlib.aclosing(events):
                async for event in events:
                    for response in composing(event):
                        yield response

    async def DistilModule(
        self, request: pb.DistilModuleRequest, context: Context
    ) -> AsyncIterator[pb.DistilModuleResponse]:
        events = self._trainings.distil(request, self._engine.modules.files)
        async with refusals(context), contextlib.aclosing(events) as responses:
            async for response in responses:
                yield response

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        sequence = request.after_sequence if request.epoch == self._epoch else None
        while not self._engine.llm.errored and not self._leaving:
            self._log.changed.clear()
            for event in self._log.since(sequence):
                sequence = event.sequence
                for response in self._block_messages(event):
                    yield response
            yield pb.WatchResponse(epoch=self._epoch, sequence=sequence, state=self._state())
            await asyncio.sleep(STATE_GAP_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._log.changed.wait(), STATE_INTERVAL_S - STATE_GAP_S)
        await context.abort(
            grpc.StatusCode.UNAVAILABLE, "this worker leaves" if self._leaving else "the engine has died"
        )

    def leave(self) -> None:
        """End the streams that gateways watch.

        The gateways then send this worker no more requests. They wait for the answers that it has begun.
        """
        self._leaving = True
        self._room.leave()
        self._log.changed.set()

    async def LookupBlocks(
        self, request: pb.LookupBlocksRequest, context: Context
    ) -> pb.LookupBlocksResponse:
        device, held = self._log.leading(request.keys)
        return pb.LookupBlocksResponse(device_blocks=device, held_blocks=held)

    async def ForgetMemories(
        self, request: pb.ForgetMemoriesRequest, context: Context
    ) -> pb.ForgetMemoriesResponse:
        async with refusals(context):
            if not request.tenant:
                raise ValueError("tenant: must be named")
            trainings = await self._trainings.forget(request.memory_keys)
            freed = await self._engine.free_kv(request.tenant, f"free-{uuid.uuid4().hex}")
            self._log.changed.set()
            return pb.ForgetMemoriesResponse(
                blocks=freed.blocks, chunks=freed.chunks, held=freed.held, trainings=trainings
            )

    def _state(self) -> pb.WorkerState:
        now_s = time.monotonic()
        room, load, modules = self._room, self._room.load, self._engine.modules
        load.rest(now_s)
        costs, queued_tokens = load.costs, load.prompt_tokens + room.waiting_tokens
        return pb.WorkerState(
            running=load.answers,
            waiting=len(load) - load.answers + len(room),
            prefill_tokens_per_s=costs.prefill_tokens_per_s,
            decode_tokens_per_s=1 / costs.fixed_s(max(load.answers, 1), load.answers_kv_tokens),
            pending_prefill_tokens=queued_tokens,
            modules=[
                pb.ModuleResidency(digest=digest, place=PLACE[place])
                for digest, place in modules.held.items()
            ],
            used_modules=modules.used,
            engine=pb.EngineState(
                costs=pb.StepCosts(**asdict(costs)),
                waiting=[
                    pb.WaitingSeconds(band=band, buckets=buckets)
                    for band, buckets in room.waiting(now_s).by_band.items()
                ],
                prefill_s=load.prefill_s(now_s),
                seat_s=load.seat_s,
                answers=load.answers,
                kv_tokens=load.answers_kv_tokens,
                free_kv_tokens=max(load.free_kv_tokens, 0),
                requests=len(load) + len(room),
                queued_tokens=queued_tokens,
                recent_requests=room.recent(now_s),
            ),
        )

    def _block_messages(self, event: BlockEvent) -> list[pb.WatchResponse]:
        """A block event as messages for gateways.

        A large event goes out in several messages with the same number. The first message of a RESET resets,
        and the others add.
        """
        messages = []
        for start in range(0, max(len(event.keys), 1), KEYS_IN_A_MESSAGE):
            keys = event.keys[start : start + KEYS_IN_A_MESSAGE]
            more = start + KEYS_IN_A_MESSAGE < len(event.keys)
            message = pb.WatchResponse(epoch=self._epoch, sequence=event.sequence, more=more)
            if event.change is Change.REMOVED:
                message.removed.keys.extend(keys)
            elif event.change is Change.RESET and start == 0:
                message.reset.keys.extend(keys)
            else:
                message.stored.keys.extend(keys)
            messages.append(message)
        return messages


def _worker_request(request: pb.GenerateRequest) -> WorkerRequest:
    """The request as a domain value. Raises as `_modules`."""
    return WorkerRequest(
        request_id=request.request_id,
        token_ids=request.token_ids,
        tenant=request.tenant,
        cache_salt=request.cache_salt,
        sampling=Sampling(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed if request.HasField("seed") else None,
            stop=tuple(request.stop),
            logprobs=request.logprobs,
            min_tokens=request.min_tokens,
            json_schema=request.json_schema,
        ),
        modules=_modules(request),
        store_whole_prompt=request.keep,
        priority=PRIORITY.get(request.priority, Priority.NORMAL),
        first_token_s=request.first_token_ms / 1000 or None,
        refuse_late=request.refuse_late,
        do_not_queue=request.do_not_queue,
        # Of a gateway; the engine computes the last token in any case.
        cached_tokens=max(min(request.expected_cached_tokens, len(request.token_ids) - 1), 0),
    )


def _scoring_request(request: pb.ScoreTokensRequest) -> ScoringRequest:
    """The request as a domain value. Raises ValueError for a kind that this worker does not know."""
    return ScoringRequest(
        request_id=request.request_id,
        token_ids=request.token_ids,
        continuation=request.continuation,
        tenant=request.tenant,
        cache_salt=request.cache_salt,
        modules=_applied(request.modules),
        priority=PRIORITY.get(request.priority, Priority.BACKGROUND),
        cached_tokens=max(min(request.expected_cached_tokens, len(request.token_ids) - 1), 0),
    )


def _response(part: AnswerPart) -> pb.GenerateResponse:
    response = pb.GenerateResponse(text=part.text, token_ids=part.token_ids, logprobs=part.logprobs)
    if part.cached is not None:
        response.cached_tokens.CopyFrom(_cached(part.cached))
    if part.finish_reason is not None:
        response.finish_reason = FINISH[part.finish_reason]
    return response


def _cached(cached: CachedTokens) -> pb.CachedTokens:
    return pb.CachedTokens(
        device=cached.device, host=cached.host, redis=cached.redis, cartridge=cached.cartridge
    )


def _applied(modules: Iterable[pb.AppliedModule]) -> tuple[AppliedModule, ...]:
    """Raises ValueError for a kind that this worker does not know."""
    return tuple(
        AppliedModule(module.digest, kind_of_name(module.kind), module.strength) for module in modules
    )


def _modules(request: pb.GenerateRequest) -> tuple[AppliedModule, ...]:
    """The modules of a request. Raises ValueError for a kind that this worker does not know."""
    if request.modules:
        return _applied(request.modules)
    # A gateway of version 0.1.0 sends these fields.
    lora = [AppliedModule(request.module_digest, ModuleKind.LORA)] if request.module_digest else []
    expert = AppliedModule(request.expert_digest, ModuleKind.LOGIT_EXPERT, request.expert_alpha)
    return (*lora, *([expert] if request.expert_digest else []))


@contextlib.asynccontextmanager
async def refusals(
    context: Context, *, wrong_module: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT
) -> AsyncIterator[None]:
    """End the call with a status when it is refused inside.

    FAILED_PRECONDITION: this worker cannot do it, or not now. Another worker may.
    INVALID_ARGUMENT: no worker can do it.
    RESOURCE_EXHAUSTED: there is too much to do; the trailing metadata says why, and when to come again.
    UNAVAILABLE: the engine has died.

    wrong_module: the status for a module that is wrong itself. An answer gives FAILED_PRECONDITION here, so
    that its gateway tries another worker.
    """
    try:
        yield
    except Overloaded as error:
        await context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            error.detail,
            ((REASON, error.reason), (RETRY_AFTER, f"{error.retry_after_s:.3f}")),
        )
    except InvalidModule as error:
        await context.abort(wrong_module, str(error))
    except ModuleNotFound as error:
        await context.abort(
            grpc.StatusCode.FAILED_PRECONDITION, f"this worker does not have the module: {error}"
        )
    except MemserveError as error:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
    except EngineDeadError:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the engine has died")
    except OSError as error:
        # A full disk, for example. Without this status the gateway would take the worker for dead.
        log.exception("a call was refused")
        await context.abort(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"not on this worker now: {error.strerror or type(error).__name__}",
        )
    except (ValueError, VLLMClientError) as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error).partition("\n")[0])
