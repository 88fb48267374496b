"""A worker process without an engine, with faults on purpose: stalls by its clock, refusals by number.

`python -m loadtests.traffic.planted_worker '{"registry_url": …}'` registers a worker and serves until it is
ended. What it has planted it writes to a file, a JSON object a line.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from tokenizers import Tokenizer

from memserve.credentials import worker_credential
from memserve.demo import MODEL_DIR
from memserve.domain import WorkerLease
from memserve.domain.worker_calls import REASON, RETRY_AFTER
from memserve.model.files import open_model
from memserve.pb.worker.v1 import worker_pb2 as pb
from memserve.pb.worker.v1 import worker_pb2_grpc as rpc
from memserve.registry.leases import Registry
from memserve.worker.fleet.gateways_only import GatewaysOnly

STATE_EVERY_S = 0.1
LEASE_S = 600.0
REFUSED_OF, REFUSED = 20, 7
"""Every 20th question is refused by every worker: those whose number ends so."""
NUMBER = re.compile(r"(\d+)\.0 ")
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Planted:
    """What a worker process is told."""

    registry_url: str
    salt_key: str
    worker_id: str
    truth: str
    """The file that it writes."""
    stall_every_s: float = 0.0
    """0: it does not stall."""
    stall_s: float = 0.2
    token_s: float = 0.001
    """Before each token."""


class PlantedWorker(rpc.WorkerServiceServicer):  # type: ignore[misc]
    """Answers each request with tokens at an even pace, but while it stalls nothing leaves it.

    A stall begins with the first request that comes once `stall_every_s` have passed since the last one. So
    the times between the stall's begin and the requests that it holds are those of the load.
    """

    def __init__(self, planted: Planted) -> None:
        self._planted = planted
        self._epoch = time.time_ns()
        self._running = 0
        self._flows = asyncio.Event()
        self._flows.set()
        self._stalled_s = time.monotonic()
        self._stall: asyncio.Task[None] | None = None
        self._tokenizer: Any = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        came_s = time.monotonic()
        text = self._tokenizer.decode(list(request.token_ids), skip_special_tokens=False)
        number = int(NUMBER.findall(text)[-1])
        refused = number % REFUSED_OF == REFUSED
        if not refused:
            self._stall_if_due(came_s)
        self._running += 1
        try:
            held = not self._flows.is_set()
            await self._flows.wait()
            if refused:
                self._write("refused", number=number)
                trailing = ((REASON, "queue_full"), (RETRY_AFTER, "1.0"))
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "planted", trailing)
            if held:
                self._write("held", number=number, ms=1000 * (time.monotonic() - came_s))
            for token in range(request.max_tokens):
                await asyncio.sleep(self._planted.token_s)
                await self._flows.wait()
                last = token + 1 == request.max_tokens
                yield pb.GenerateResponse(
                    text=" a",
                    token_ids=[500],
                    cached_tokens=pb.CachedTokens() if last else None,
                    finish_reason=pb.FINISH_REASON_LENGTH if last else pb.FINISH_REASON_UNSPECIFIED,
                )
        finally:
            self._running -= 1

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        yield pb.WatchResponse(epoch=self._epoch, sequence=1, reset=pb.BlocksReset())
        while True:
            yield pb.WatchResponse(epoch=self._epoch, sequence=1, state=pb.WorkerState(running=self._running))
            await asyncio.sleep(STATE_EVERY_S)

    async def LookupBlocks(
        self, request: pb.LookupBlocksRequest, context: Context
    ) -> pb.LookupBlocksResponse:
        return pb.LookupBlocksResponse()

    def _stall_if_due(self, now_s: float) -> None:
        every_s = self._planted.stall_every_s
        if every_s and self._flows.is_set() and now_s - self._stalled_s >= every_s:
            self._stalled_s = now_s
            self._flows.clear()
            self._stall = asyncio.create_task(self._stalled())

    async def _stalled(self) -> None:
        await asyncio.sleep(self._planted.stall_s)
        self._flows.set()
        self._write("stall")

    def _write(self, kind: str, **fields: object) -> None:
        with Path(self._planted.truth).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"kind": kind, "worker": self._planted.worker_id, **fields}) + "\n")


async def serve(planted: Planted) -> None:
    """Until the process is ended."""
    server = grpc.aio.server(interceptors=[GatewaysOnly(worker_credential(planted.salt_key.encode()))])
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    rpc.add_WorkerServiceServicer_to_server(PlantedWorker(planted), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    model = open_model(MODEL_DIR)
    lease = WorkerLease(
        worker_id=planted.worker_id,
        address=f"127.0.0.1:{port}",
        metrics_address="127.0.0.1:0",
        pid=0,
        model=model.name,
        model_digest=model.model_digest(),
        tokenizer_digest=model.tokenizer_digest(),
        namespace="ab" * 32,
        block_tokens=32,
        blocks_per_chunk=1,
        max_context_tokens=model.max_context_tokens,
        max_concurrent=64,
        started_s=time.time(),
    )
    registry = Registry(planted.registry_url)
    await registry.renew_lease(lease, LEASE_S)
    await server.wait_for_termination()


def command(planted: Planted) -> list[str]:
    """Starts such a process."""
    return [sys.executable, "-m", "loadtests.traffic.planted_worker", json.dumps(asdict(planted))]


if __name__ == "__main__":
    asyncio.run(serve(Planted(**json.loads(sys.argv[1]))))
