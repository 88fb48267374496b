"""A fake worker in a process of its own: tokens at a set pace, in messages that are made once.

It paces tokens as a real worker does: `memserve.worker.pace`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

import grpc

from memserve.domain import WorkerLease
from memserve.model.files import ModelFiles, open_model
from memserve.pb.worker.v1 import worker_pb2 as pb
from memserve.processes.supervised import repeat
from memserve.registry.leases import Registry
from memserve.worker.pace import AnswerPace

SERVICE = "memserve.worker.v1.WorkerService"
LEASE_S = 3600.0
STATE_S = 0.25
TOKEN, TEXT = 300, " word"


@cache
def tokens_message(count: int, last: bool) -> bytes:
    """So many tokens, on the wire."""
    message = pb.GenerateResponse(text=TEXT * count, token_ids=[TOKEN] * count)
    if last:
        message.finish_reason = pb.FINISH_REASON_LENGTH
        message.cached_tokens.CopyFrom(pb.CachedTokens(device=0))
    return message.SerializeToString()


class Worker(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers with `max_tokens` tokens; the request's seed is the milliseconds between them."""

    def __init__(self) -> None:
        self.pace = AnswerPace()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        name = details.method.rpartition("/")[2]
        if name == "Generate":
            return grpc.unary_stream_rpc_method_handler(
                self._generate, request_deserializer=pb.GenerateRequest.FromString
            )
        if name == "Watch":
            return grpc.unary_stream_rpc_method_handler(self._watch)
        if name == "SetPace":
            return grpc.unary_unary_rpc_method_handler(
                self._set_pace, request_deserializer=pb.SetPaceRequest.FromString
            )
        return None

    async def _generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[bytes]:
        step_s, left, start_s = request.seed / 1000, request.max_tokens, time.monotonic()
        sent = 0
        while left:
            # The tokens that have come until now, at least the next one.
            due_s = start_s + sent * step_s
            await asyncio.sleep(max(due_s - time.monotonic(), 0))
            count = 1 + int((time.monotonic() - due_s) / step_s) if step_s else 1
            count = min(count, left)
            left -= count
            sent += count
            yield tokens_message(count, left == 0)
            if left and (window_s := self.pace.window_s(context.peer())):
                await asyncio.sleep(window_s)

    async def _watch(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        state = pb.WorkerState(prefill_tokens_per_s=20_000)
        state.engine.costs.CopyFrom(pb.StepCosts(step_s=1e-3, token_s=5e-5))
        message = pb.WatchResponse(epoch=1, sequence=0, state=state).SerializeToString()
        while True:
            yield message
            await asyncio.sleep(STATE_S)

    async def _set_pace(self, request: pb.SetPaceRequest, context: Any) -> bytes:
        self.pace.told(context.peer(), request.window_ms / 1000)
        return b""


def lease_of(model: ModelFiles, worker_id: str, address: str, metrics_address: str) -> WorkerLease:
    """The lease of such a worker. Addresses are host:port."""
    return WorkerLease(
        worker_id=worker_id,
        address=address,
        metrics_address=metrics_address,
        pid=0,
        model=model.name,
        model_digest=model.model_digest(),
        tokenizer_digest=model.tokenizer_digest(),
        namespace="overhead",
        block_tokens=32,
        blocks_per_chunk=1,
        max_context_tokens=model.max_context_tokens,
        max_concurrent=1024,
        started_s=time.time(),
    )


async def main(registry_url: str, worker_id: str, model_dir: str) -> None:
    model = open_model(Path(model_dir), 4096)
    worker = Worker()
    measuring = asyncio.create_task(repeat("pressure", worker.pace.own.look, 0.0))
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((worker,))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    lease = lease_of(model, worker_id, address, "127.0.0.1:0")
    await Registry(registry_url).renew_lease(lease, LEASE_S)
    print(address, flush=True)
    await asyncio.gather(server.wait_for_termination(), measuring)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
