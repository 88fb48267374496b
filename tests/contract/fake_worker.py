"""A worker without an engine: a real gRPC port, a real lease, real block keys, scripted answers. It keeps
`worker_contract.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from memserve.credentials import worker_credential
from memserve.domain import ModuleKind, WorkerLease
from memserve.kv.keys import block_keys
from memserve.model.files import ModelFiles
from memserve.pb.worker.v1 import worker_pb2 as pb
from memserve.pb.worker.v1 import worker_pb2_grpc as rpc
from memserve.registry.leases import Registry
from memserve.worker.fleet.gateways_only import GatewaysOnly

BLOCK_TOKENS = 32
STATE_INTERVAL_S = 0.1
LEASE_S = 60.0
NAMESPACE = "ab" * 32
# Of the gateways and workers of these tests.
SALT_KEY = "cd" * 32
CREDENTIAL = worker_credential(SALT_KEY.encode())
CHUNK_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Script:
    """How an answer goes: `token_ids` again and again until `max_tokens`, one a message.

    fails_with: the status it ends with, after `fails_after` tokens. hangs_after: tokens after which nothing
    comes any more. stops_after: tokens after which it is complete. ends_early_after: tokens after which the
    stream just ends. pause_s: before every token.
    """

    token_ids: tuple[int, ...] = (501, 502, 503)
    fails_with: grpc.StatusCode | None = None
    fails_after: int = 0
    hangs_after: int | None = None
    stops_after: int | None = None
    ends_early_after: int | None = None
    pause_s: float = 0.0


class FakeBlockLog:
    """Held keys and their numbered changes, as `memserve.worker.kv.block_log.BlockLog` without the import of
    vLLM.
    """

    def __init__(self) -> None:
        self.sequence = 0
        self.changed = asyncio.Event()
        self.held: dict[bytes, set[str]] = {}
        self._events: list[tuple[int, str, tuple[bytes, ...]]] = []

    def store(self, keys: Iterable[bytes], medium: str) -> None:
        keys = list(keys)
        new = [key for key in dict.fromkeys(keys) if key not in self.held]
        for key in keys:
            self.held.setdefault(key, set()).add(medium)
        if new:
            self._append("stored", new)

    def remove(self, keys: Iterable[bytes], medium: str) -> None:
        gone = []
        for key in keys:
            if medium in self.held.get(key, ()):
                self.held[key].discard(medium)
                if not self.held[key]:
                    del self.held[key]
                    gone.append(key)
        if gone:
            self._append("removed", gone)

    def clear(self) -> None:
        self.held.clear()
        self._append("reset", [])

    def leading(self, keys: Iterable[bytes]) -> tuple[int, int]:
        held = list(itertools.takewhile(self.held.__contains__, keys))
        return len(list(itertools.takewhile(lambda key: "GPU" in self.held[key], held))), len(held)

    def since(self, sequence: int | None) -> list[tuple[int, str, tuple[bytes, ...]]]:
        if sequence is None or sequence > self.sequence:
            return [(self.sequence, "reset", tuple(self.held))]
        return [event for event in self._events if event[0] > sequence]

    def _append(self, change: str, keys: Sequence[bytes]) -> None:
        self.sequence += 1
        self._events.append((self.sequence, change, tuple(keys)))
        self.changed.set()


@dataclass
class FakeWorker(rpc.WorkerServiceServicer):  # type: ignore[misc]
    """Start it with `async with`. What it saw: `requests`, `deadlines_s` (None without one) and `cancelled`,
    by request id.

    Modules are found in modules_root/modules/<digest>. `refuses`: digest to why it cannot be loaded here.
    `wrong`: digest to why it cannot be loaded anywhere. `changes`: digest to what TryModule measures, 0.5 for
    others. `pinned`: what it was told to keep. A composition is refused by its method in `refuses` or
    `wrong`. `may_load`: while it is not set, LoadModule waits. `breaks_between_messages`: how often a Watch
    still breaks after the first message of an event that has several. `watch_faults`: how many Watches still
    fail at once.
    """

    registry_url: str
    model: ModelFiles
    modules_root: Path
    worker_id: str = ""
    script: Script = Script()
    tokenizer_digest: str = ""
    namespace: str = NAMESPACE
    block_tokens: int = BLOCK_TOKENS
    keys_in_a_message: int = 16_384
    state: pb.WorkerState = field(default_factory=pb.WorkerState)
    silent: bool = False

    def __post_init__(self) -> None:
        self.worker_id = self.worker_id or f"w-{uuid.uuid4().hex[:8]}"
        self.log = FakeBlockLog()
        self.requests: list[pb.GenerateRequest] = []
        self.deadlines_s: dict[str, float | None] = {}
        self.cancelled: set[str] = set()
        self.watches: list[pb.WatchRequest] = []
        self.loads: list[pb.LoadModuleRequest] = []
        self.refuses: dict[str, str] = {}
        self.wrong: dict[str, str] = {}
        self.changes: dict[str, float] = {}
        self.pinned: set[str] = set()
        self.breaks_between_messages = 0
        self.watch_faults = 0
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.leaving = False
        self._running: dict[str, list[str]] = {}
        self._places: dict[str, pb.ModulePlace] = {}
        self._address = "127.0.0.1:0"
        self._model_digest = self.model.model_digest()

    async def __aenter__(self) -> Self:
        self._registry = Registry(self.registry_url)
        await self.listen()
        await self._registry.renew_lease(self.lease, LEASE_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)
        await self._registry.close()

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
            model=self.model.name,
            model_digest=self._model_digest,
            tokenizer_digest=self.tokenizer_digest or self.model.tokenizer_digest(),
            namespace=self.namespace,
            block_tokens=self.block_tokens,
            blocks_per_chunk=1,
            max_context_tokens=self.model.max_context_tokens,
            max_concurrent=32,
            started_s=time.time(),
        )

    async def listen(self, *, same_epoch: bool = False) -> None:
        """Start the port: the first time a free one, then the same again, as a new worker or (same_epoch)
        after a broken connection.
        """
        if not same_epoch:
            self.epoch = time.time_ns()
        self._server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0)], interceptors=[GatewaysOnly(CREDENTIAL)]
        )
        health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), self._server)
        rpc.add_WorkerServiceServicer_to_server(self, self._server)
        self._address = f"127.0.0.1:{self._server.add_insecure_port(self._address)}"
        await self._server.start()

    async def die(self) -> None:
        """Its port closes at once; its lease is left as it is, as after a kill."""
        await self._server.stop(0)

    async def leave(self) -> None:
        """As a worker does whose place others have taken: no lease, no stream for gateways, and the answers
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

    def hold(self, keys: Iterable[bytes]) -> None:
        self.log.store(keys, "GPU")

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.requests.append(request)
        self.deadlines_s[request.request_id] = context.time_remaining()
        # Alpha 0 is no expert.
        wanted = {
            request.module_digest: ModuleKind.LORA,
            request.expert_digest if request.expert_alpha else "": ModuleKind.LOGIT_EXPERT,
        }
        used = [digest for digest in wanted if digest]
        for digest in used:
            await self._load(digest, wanted[digest], context, wrong=grpc.StatusCode.FAILED_PRECONDITION)
        self._running[request.request_id] = used
        self.log.changed.set()
        ended = False
        try:
            async for response in self._answer(request, context):
                yield response
            ended = True
        except grpc.aio.AbortError:
            ended = True
            raise
        finally:
            # Cancelled while it waits, or closed while a message is on its way: both are the caller's doing.
            if not ended:
                self.cancelled.add(request.request_id)
            del self._running[request.request_id]
            self.log.changed.set()

    async def _answer(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        script = self.script
        lora = (request.module_digest, f"modules/{request.module_digest}") if request.module_digest else None
        keys = block_keys(
            list(request.token_ids), self.block_tokens, lora=lora, cache_salt=request.cache_salt
        )
        usable = keys[: (len(request.token_ids) - 1) // self.block_tokens]
        cached_blocks = len(list(itertools.takewhile(self.log.held.__contains__, usable)))
        for number in itertools.count():
            if script.fails_with is not None and number == script.fails_after:
                await context.abort(script.fails_with, "as scripted")
            if number == script.ends_early_after:
                return
            if number == script.hangs_after:
                await asyncio.Event().wait()
            await asyncio.sleep(script.pause_s)
            if number == 0:
                self.log.store(keys, "GPU")
            token = script.token_ids[number % len(script.token_ids)]
            response = pb.GenerateResponse(
                text=f" t{token}", token_ids=[token], logprobs=[-0.5] if request.logprobs else []
            )
            if number + 1 in (request.max_tokens, script.stops_after):
                response.cached_tokens.device = cached_blocks * self.block_tokens
                response.finish_reason = (
                    pb.FINISH_REASON_LENGTH if number + 1 == request.max_tokens else pb.FINISH_REASON_STOP
                )
                yield response
                return
            yield response

    async def LoadModule(self, request: pb.LoadModuleRequest, context: Context) -> pb.LoadModuleResponse:
        self.loads.append(request)
        await self.may_load.wait()
        await self._load(request.digest, request.kind, context)
        if request.pin:
            self.pinned.add(request.digest)
        return pb.LoadModuleResponse(place=self._places[request.digest])

    async def UnloadModule(
        self, request: pb.UnloadModuleRequest, context: Context
    ) -> pb.UnloadModuleResponse:
        await _check_kind(request.kind, context)
        if request.digest in self._used():
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, f"module {request.digest}: requests use it"
            )
        self._places.pop(request.digest, None)
        self.pinned.discard(request.digest)
        self.log.changed.set()
        # Its directory is the module store itself, so there is no copy to forget.
        return pb.UnloadModuleResponse(place=self._place(request.digest))

    async def GetModulePlaces(
        self, request: pb.GetModulePlacesRequest, context: Context
    ) -> pb.GetModulePlacesResponse:
        for digest in request.digests:
            if not _DIGEST.fullmatch(digest):
                await context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT, "digest: must be 64 lower-case hex digits"
                )
        found = [pb.ModuleResidency(digest=digest, place=self._place(digest)) for digest in request.digests]
        return pb.GetModulePlacesResponse(modules=found)

    async def TryModule(self, request: pb.TryModuleRequest, context: Context) -> pb.TryModuleResponse:
        await self._load(request.digest, request.kind, context)
        return pb.TryModuleResponse(largest_change=self.changes.get(request.digest, 0.5))

    async def ComposeModule(
        self, request: pb.ComposeModuleRequest, context: Context
    ) -> AsyncIterator[pb.ComposeModuleResponse]:
        """The first parent's files, and a recipe that names the request."""
        folders = [self.modules_root / "modules" / parent.digest for parent in request.parents]
        for folder in folders:
            if not (folder / "adapter_model.safetensors").is_file():
                await context.abort(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"this worker does not have the module: {folder.name}",
                )
        if refusal := self.refuses.get(request.method):
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, refusal)
        if refusal := self.wrong.get(request.method):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, refusal)
        for done in range(len(folders) + 1):
            yield pb.ComposeModuleResponse(progress=pb.ComposeProgress(done=done, total=len(folders)))
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            content = (folders[0] / name).read_bytes()
            for start in range(0, len(content), CHUNK_BYTES):
                chunk = content[start : start + CHUNK_BYTES]
                yield pb.ComposeModuleResponse(file=pb.ComposedFile(file_name=name, content=chunk))
        recipe = {
            "method": request.method,
            "parents": [folder.name for folder in folders],
            "rank": request.rank,
        }
        yield pb.ComposeModuleResponse(recipe=json.dumps(recipe))

    async def _load(
        self,
        digest: str,
        kind: str,
        context: Context,
        *,
        wrong: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT,
    ) -> None:
        await _check_kind(kind, context)
        folder = self.modules_root / "modules" / digest
        if not folder.is_dir():
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, f"this worker does not have the module: {digest}"
            )
        if not (
            folder / ("adapter_model.safetensors" if kind == ModuleKind.LORA else "model.safetensors")
        ).is_file():
            await context.abort(wrong, f"module: the engine refuses it: no {kind}")
        if refusal := self.refuses.get(digest):
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, refusal)
        if refusal := self.wrong.get(digest):
            await context.abort(wrong, refusal)
        self._places[digest] = pb.MODULE_PLACE_DEVICE
        self.log.changed.set()

    def _place(self, digest: str) -> pb.ModulePlace:
        here = (self.modules_root / "modules" / digest).is_dir()
        return self._places.get(digest, pb.MODULE_PLACE_DISK if here else pb.MODULE_PLACE_ABSENT)

    def _used(self) -> set[str]:
        return {digest for used in self._running.values() for digest in used}

    async def LookupBlocks(
        self, request: pb.LookupBlocksRequest, context: Context
    ) -> pb.LookupBlocksResponse:
        device, held = self.log.leading(request.keys)
        return pb.LookupBlocksResponse(device_blocks=device, held_blocks=held)

    def _messages(
        self, epoch: int, number: int, change: str, keys: Sequence[bytes]
    ) -> Iterator[pb.WatchResponse]:
        for start in range(0, max(len(keys), 1), self.keys_in_a_message):
            message = pb.WatchResponse(
                epoch=epoch, sequence=number, more=start + self.keys_in_a_message < len(keys)
            )
            part = getattr(message, "stored" if change == "reset" and start else change)
            part.SetInParent()  # an empty reset is one too
            part.keys.extend(keys[start : start + self.keys_in_a_message])
            yield message

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        self.watches.append(request)
        if self.watch_faults:
            self.watch_faults -= 1
            raise RuntimeError("a fault of the worker's own")
        epoch = self.epoch
        sequence = request.after_sequence if request.epoch == epoch else None
        while True:
            if self.leaving:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "this worker leaves")
            self.log.changed.clear()
            if not self.silent:
                for number, change, keys in self.log.since(sequence):
                    sequence = number
                    for message in self._messages(epoch, number, change, keys):
                        yield message
                        if message.more and self.breaks_between_messages:
                            self.breaks_between_messages -= 1
                            await context.abort(grpc.StatusCode.UNAVAILABLE, "as scripted")
                state = pb.WorkerState()
                state.CopyFrom(self.state)
                state.running += len(self._running)
                told = {each.digest for each in state.modules}
                state.modules.extend(
                    pb.ModuleResidency(digest=digest, place=place)
                    for digest, place in sorted(self._places.items())
                    if digest not in told
                )
                state.used_modules.extend(sorted(self._used() - set(state.used_modules)))
                yield pb.WatchResponse(epoch=epoch, sequence=sequence, state=state)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.log.changed.wait(), STATE_INTERVAL_S)


async def _check_kind(kind: str, context: Context) -> None:
    if kind not in ModuleKind.known():
        await context.abort(
            grpc.StatusCode.INVALID_ARGUMENT, f"kind: {kind!r} is none of {', '.join(ModuleKind.known())}"
        )
