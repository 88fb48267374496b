"""`memserve.worker.v1` on gRPC: the engine's answers and the stream that gateways watch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
from vllm.v1.engine.exceptions import EngineDeadError

from memserve.domain import CachedTokens, FinishReason, Sampling
from memserve.errors import InvalidModule, ModuleNotFound
from memserve.pb.worker.v1 import worker_pb2 as pb
from memserve.pb.worker.v1 import worker_pb2_grpc as rpc
from memserve.worker.block_log import BlockEvent, BlockLog, Change
from memserve.worker.engine import Engine

STATE_INTERVAL_S = 0.25
KEYS_IN_A_MESSAGE = 16_384

FINISH = {FinishReason.STOP: pb.FINISH_REASON_STOP, FinishReason.LENGTH: pb.FINISH_REASON_LENGTH}


class WorkerService(rpc.WorkerServiceServicer):  # type: ignore[misc]
    """The data plane of one engine."""

    def __init__(self, engine: Engine, log: BlockLog) -> None:
        self._engine = engine
        self._log = log
        self._epoch = time.time_ns()

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]
    ) -> AsyncIterator[pb.GenerateResponse]:
        sampling = Sampling(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed if request.HasField("seed") else None,
            stop=tuple(request.stop),
            logprobs=request.logprobs,
            min_tokens=request.min_tokens,
        )
        stream = self._engine.generate(
            request.request_id,
            list(request.token_ids),
            request.cache_salt,
            request.module_digest,
            sampling,
            tenant=request.tenant,
            keep=request.keep,
        )
        try:
            async for delta in stream:
                response = pb.GenerateResponse(text=delta.text, token_ids=delta.token_ids, logprobs=delta.logprobs)
                if delta.cached is not None:
                    response.cached_tokens.CopyFrom(_cached(delta.cached))
                if delta.finish_reason is not None:
                    response.finish_reason = FINISH[delta.finish_reason]
                yield response
        except ModuleNotFound as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"this worker does not have the module: {error}")
        except InvalidModule as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except EngineDeadError:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the engine has died")
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error).splitlines()[0])

    async def Watch(
        self, request: pb.WatchRequest, context: grpc.aio.ServicerContext[pb.WatchRequest, pb.WatchResponse]
    ) -> AsyncIterator[pb.WatchResponse]:
        sequence = request.after_sequence if request.epoch == self._epoch else None
        while not self._engine.llm.errored:
            self._log.changed.clear()
            for event in self._log.since(sequence):
                sequence = event.sequence
                for response in self._block_messages(event):
                    yield response
            yield pb.WatchResponse(epoch=self._epoch, sequence=sequence, state=self._state())
            try:
                await asyncio.wait_for(self._log.changed.wait(), STATE_INTERVAL_S)
            except TimeoutError:
                pass
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the engine has died")

    async def LookupBlocks(
        self, request: pb.LookupBlocksRequest, context: grpc.aio.ServicerContext[pb.LookupBlocksRequest, pb.LookupBlocksResponse]
    ) -> pb.LookupBlocksResponse:
        device, held = self._log.leading(request.keys)
        return pb.LookupBlocksResponse(device_blocks=device, held_blocks=held)

    def _state(self) -> pb.WorkerState:
        engine = self._engine
        return pb.WorkerState(
            running=engine.running - len(engine.waiting_tokens),
            waiting=len(engine.waiting_tokens),
            prefill_tokens_per_s=engine.prefill.tokens_per_s,
            decode_tokens_per_s=engine.decode.tokens_per_s,
            pending_prefill_tokens=sum(engine.waiting_tokens.values()),
            resident_modules=engine.resident,
        )

    def _block_messages(self, event: BlockEvent) -> list[pb.WatchResponse]:
        """A large event goes out in several messages with the same number; the first of a RESET resets, the others add."""
        messages = []
        for start in range(0, max(len(event.keys), 1), KEYS_IN_A_MESSAGE):
            keys = event.keys[start : start + KEYS_IN_A_MESSAGE]
            message = pb.WatchResponse(epoch=self._epoch, sequence=event.sequence)
            if event.change is Change.REMOVED:
                message.removed.keys.extend(keys)
            elif event.change is Change.RESET and start == 0:
                message.reset.keys.extend(keys)
            else:
                message.stored.keys.extend(keys)
            messages.append(message)
        return messages


def _cached(cached: CachedTokens) -> pb.CachedTokens:
    return pb.CachedTokens(device=cached.device, host=cached.host, redis=cached.redis)
