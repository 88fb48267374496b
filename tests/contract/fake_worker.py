"""A worker without an engine: a real gRPC port, a real lease, real block keys, scripted answers."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from memserve.credentials import worker_credential
from memserve.domain import WorkerLease
from memserve.domain.worker_calls import REASON, RETRY_AFTER, BlockEvent, WorkerState
from memserve.model.files import ModelFiles
from memserve.pb.worker.v1 import worker_pb2 as pb
from memserve.pb.worker.v1 import worker_pb2_grpc as rpc
from memserve.registry.leases import Registry
from memserve.tls.grpc_credentials import add_port
from memserve.tls.live import LiveTls
from memserve.worker.fleet.gateways_only import GatewaysOnly
from tests.contract.messages import (
    PLACES,
    answer_message,
    block_messages,
    compose_message,
    composition_request,
    distil_message,
    distillation_request,
    score_message,
    scoring_request,
    state_message,
    worker_request,
)
from tests.contract.scripted_worker import BLOCK_TOKENS, PLAIN, Refused, Script, ScriptedWorker

LEASE_S = 60.0
NAMESPACE = "ab" * 32
SALT_KEY = "cd" * 32
"""Of the gateways and workers of these tests."""
CREDENTIAL = worker_credential(SALT_KEY.encode())
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class FakeWorker(ScriptedWorker, rpc.WorkerServiceServicer):  # type: ignore[misc]
    """A scripted worker behind a port. Start it with `async with`.

    What gateways sent stays in `requests`, `scorings`, `deadlines_s`, `loads` and `watches`.
    """

    registry_url: str
    model: ModelFiles
    modules_root: Path
    worker_id: str = ""
    script: Script = PLAIN
    tokenizer_digest: str = ""
    model_name: str = ""
    model_digest: str = ""
    """Of these three, empty is what `model` is."""
    max_context_tokens: int = 0
    """0: as of `model`."""
    namespace: str = NAMESPACE
    block_tokens: int = BLOCK_TOKENS
    keys_in_a_message: int = 16_384
    state: pb.WorkerState = field(default_factory=pb.WorkerState)
    """What it says of itself, beside what it does. Any protobuf may be said, also what has no word here."""
    silent: bool = False
    tls: LiveTls | None = None
    """What gateways see of it, which then need certificates themselves."""

    def __post_init__(self) -> None:
        ScriptedWorker.__init__(self, self.modules_root, self.script, self.block_tokens)
        self.worker_id = self.worker_id or f"w-{uuid.uuid4().hex[:8]}"
        self.requests: list[pb.GenerateRequest] = []
        self.scorings: list[pb.ScoreTokensRequest] = []
        self.deadlines_s: dict[str, float | None] = {}
        """Seconds that a request was given, by request id. None: it had no deadline."""
        self.loads: list[pb.LoadModuleRequest] = []
        self.watches: list[pb.WatchRequest] = []
        self.breaks_between_messages = 0
        """How often a Watch still breaks after the first message of an event that has several."""
        self._address = "127.0.0.1:0"
        self.model_digest = self.model_digest or self.model.model_digest()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            self._registry = Registry(self.registry_url)
            stack.push_async_callback(self._registry.close)
            await self.listen()
            stack.push_async_callback(self.die)
            await self._registry.renew_lease(self.lease, LEASE_S)
            self._open = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    @property
    def address(self) -> str:
        return self._address

    @property
    def lease(self) -> WorkerLease:
        return WorkerLease(
            worker_id=self.worker_id,
            address=self._address,
            metrics_address="127.0.0.1:0",
            pid=0,
            model=self.model_name or self.model.name,
            model_digest=self.model_digest,
            tokenizer_digest=self.tokenizer_digest or self.model.tokenizer_digest(),
            namespace=self.namespace,
            block_tokens=self.block_tokens,
            blocks_per_chunk=1,
            max_context_tokens=self.max_context_tokens or self.model.max_context_tokens,
            max_concurrent=32,
            started_s=time.time(),
        )

    async def listen(self, *, same_epoch: bool = False) -> None:
        """Start the port: the first time a free one, later the same again.

        same_epoch: as after a broken connection; without it, as a new worker.
        """
        if not same_epoch:
            self.epoch = time.time_ns()
        self._server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0)],
            interceptors=[GatewaysOnly(CREDENTIAL, by_certificate=self.tls is not None)],
        )
        health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), self._server)
        rpc.add_WorkerServiceServicer_to_server(self, self._server)
        self._address = f"127.0.0.1:{add_port(self._server, self._address, self.tls)}"
        await self._server.start()

    async def die(self) -> None:
        """Its port closes at once; its lease is left as it is, as after a kill."""
        await self._server.stop(0)

    async def leave(self) -> None:
        """As a worker whose place others have taken: it has no lease, gateways get no stream, and the answers
        under way go on.
        """
        await self.drop_lease()
        self.leaving = True
        self.log.changed.set()

    async def drop_lease(self) -> None:
        await self._registry.drop_lease(self.worker_id)

    def now(self, *, silent: bool = False, **state: Any) -> None:
        """Say this of itself from now on, at once."""
        self.state = pb.WorkerState(**state)
        self.silent = silent
        self.log.changed.set()

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.requests.append(request)
        self.deadlines_s[request.request_id] = context.time_remaining()
        async with (
            _statuses(context),
            contextlib.aclosing(self.generate(worker_request(request))) as parts,
        ):
            async for part in parts:
                yield answer_message(part)

    async def ScoreTokens(self, request: pb.ScoreTokensRequest, context: Context) -> pb.ScoreTokensResponse:
        self.scorings.append(request)
        async with _statuses(context):
            return score_message(await self.score_tokens(scoring_request(request)))

    async def LookupBlocks(
        self, request: pb.LookupBlocksRequest, context: Context
    ) -> pb.LookupBlocksResponse:
        blocks = self.lookup_blocks(request.keys)
        return pb.LookupBlocksResponse(device_blocks=blocks.device, held_blocks=blocks.held)

    async def ForgetMemories(
        self, request: pb.ForgetMemoriesRequest, context: Context
    ) -> pb.ForgetMemoriesResponse:
        async with _statuses(context):
            freed = self.forget_memories(request.tenant, request.memory_keys)
        return pb.ForgetMemoriesResponse(blocks=freed.blocks, chunks=freed.chunks, held=freed.held)

    async def LoadModule(self, request: pb.LoadModuleRequest, context: Context) -> pb.LoadModuleResponse:
        self.loads.append(request)
        async with _statuses(context):
            place = await self.load_module(request.digest, request.kind, pin=request.pin)
        return pb.LoadModuleResponse(place=PLACES[place])

    async def UnloadModule(
        self, request: pb.UnloadModuleRequest, context: Context
    ) -> pb.UnloadModuleResponse:
        async with _statuses(context):
            place = self.unload_module(request.digest, request.kind)
        return pb.UnloadModuleResponse(place=PLACES[place])

    async def GetModulePlaces(
        self, request: pb.GetModulePlacesRequest, context: Context
    ) -> pb.GetModulePlacesResponse:
        async with _statuses(context):
            places = self.module_places(request.digests)
        return pb.GetModulePlacesResponse(
            modules=[
                pb.ModuleResidency(digest=digest, place=PLACES[place])
                for digest, place in zip(request.digests, places, strict=True)
            ]
        )

    async def TryModule(self, request: pb.TryModuleRequest, context: Context) -> pb.TryModuleResponse:
        async with _statuses(context):
            largest_change = self.try_module(request.digest, request.kind)
        return pb.TryModuleResponse(largest_change=largest_change)

    async def SetPace(self, request: pb.SetPaceRequest, context: Context) -> pb.SetPaceResponse:
        async with _statuses(context):
            self.set_pace(request.window_ms / 1000)
        return pb.SetPaceResponse()

    async def ComposeModule(
        self, request: pb.ComposeModuleRequest, context: Context
    ) -> AsyncIterator[pb.ComposeModuleResponse]:
        async with (
            _statuses(context),
            contextlib.aclosing(self.compose(composition_request(request))) as events,
        ):
            async for event in events:
                yield compose_message(event)

    async def DistilModule(
        self, request: pb.DistilModuleRequest, context: Context
    ) -> AsyncIterator[pb.DistilModuleResponse]:
        async with (
            _statuses(context),
            contextlib.aclosing(self.distil(distillation_request(request))) as events,
        ):
            async for event in events:
                yield distil_message(event)

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        self.watches.append(request)
        epoch, sequence = self.epoch, request.after_sequence
        async with (
            _statuses(context),
            contextlib.aclosing(self.watch(request.epoch, request.after_sequence)) as events,
        ):
            async for event in events:
                if isinstance(event, WorkerState):
                    yield pb.WatchResponse(epoch=epoch, sequence=sequence, state=self._said(event))
                    continue
                sequence = event.sequence
                for message in self._block_messages(event):
                    yield message

    def _block_messages(self, event: BlockEvent) -> Iterator[pb.WatchResponse]:
        for message in block_messages(event, self.keys_in_a_message):
            yield message
            if message.more and self.breaks_between_messages:
                self.breaks_between_messages -= 1
                raise Refused(grpc.StatusCode.UNAVAILABLE, "as scripted")

    def _said(self, state: WorkerState) -> pb.WorkerState:
        """What it does, and what it is to say. Of two words about one module, the last one counts."""
        message = state_message(state)
        message.MergeFrom(self.state)
        message.running = state.running + self.state.running
        return message


@contextlib.asynccontextmanager
async def _statuses(context: Context) -> AsyncIterator[None]:
    try:
        yield
    except Refused as refusal:
        trailing = ((REASON, refusal.reason), (RETRY_AFTER, str(refusal.retry_after_s)))
        await context.abort(refusal.status, refusal.detail, trailing if refusal.reason else ())
