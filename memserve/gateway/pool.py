"""The workers that this gateway knows: found in the registry, watched over their own streams, one channel each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import grpc

from memserve.domain import ModulePlace, WorkerLease
from memserve.errors import RegistryUnavailable
from memserve.kv.index import BlockIndex
from memserve.pb.worker.v1 import worker_pb2 as pb
from memserve.pb.worker.v1 import worker_pb2_grpc as rpc
from memserve.registry import Registry

log = logging.getLogger("memserve.gateway.pool")

DISCOVERY_S = 0.25
# A worker speaks four times a second; one that is silent for longer than this is chosen only when no other is left.
SILENT_S = 1.0
RECONNECT_S = 0.2
PLACES = {getattr(pb, f"MODULE_PLACE_{place.name}"): place for place in ModulePlace}
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


@dataclass(slots=True)
class PooledWorker:
    """A worker as this gateway sees it.

    sent: prompt tokens of its requests that have no first token yet, by request id. adapters: LoRA digests of its requests, counted.
    """

    lease: WorkerLease
    channel: grpc.aio.Channel
    stub: rpc.WorkerServiceStub
    connected: bool = False
    heard_s: float = 0.0
    state: pb.WorkerState = field(default_factory=pb.WorkerState)
    sent: dict[str, int] = field(default_factory=dict)
    running: int = 0
    adapters: Counter[str] = field(default_factory=Counter)
    watch: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def serving(self, request_id: str, uncached_tokens: int, adapter: str = "") -> Iterator[None]:
        """Count a request from the moment of its routing, so that the next one is routed knowing of it. adapter: its LoRA's digest."""
        self.sent[request_id] = uncached_tokens
        self.running += 1
        self.adapters += Counter([adapter] if adapter else [])
        try:
            yield
        finally:
            self.running -= 1
            self.adapters -= Counter([adapter])  # one that is at 0 leaves
            self.sent.pop(request_id, None)

    def place_of(self, digest: str) -> ModulePlace:
        """Where the worker said last that it has a module."""
        place = next((module.place for module in self.state.modules if module.digest == digest), pb.MODULE_PLACE_UNSPECIFIED)
        return PLACES.get(place, ModulePlace.ABSENT)

    @property
    def pending_prefill_tokens(self) -> int:
        """The larger of what this gateway sent and what the worker (that other gateways use too) last said."""
        return max(sum(self.sent.values()), self.state.pending_prefill_tokens)


class WorkerPool:
    """Follows the registry and every worker's stream. When the registry does not answer, the workers known so far stay."""

    def __init__(self, registry: Registry, index: BlockIndex, tokenizer_digest: str) -> None:
        self.workers: dict[str, PooledWorker] = {}
        self.index = index
        self.registry_ok = False
        self._registry = registry
        self._tokenizer_digest = tokenizer_digest
        self._refused: set[str] = set()
        self._discovery: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._discovery = asyncio.create_task(self._discover_forever())

    async def close(self) -> None:
        tasks = [task for task in [self._discovery, *(w.watch for w in self.workers.values())] if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in self.workers.values():
            await worker.channel.close()

    def ready(self, now_s: float) -> list[PooledWorker]:
        """Workers with a living stream; those that were heard within the last second where there is one."""
        connected = [worker for worker in self.workers.values() if worker.connected]
        fresh = [worker for worker in connected if now_s - worker.heard_s <= SILENT_S]
        return fresh or connected

    def lost(self, worker: PooledWorker) -> None:
        """A call found the worker dead: choose it no more until its stream is back."""
        worker.connected = False

    async def _discover_forever(self) -> None:
        while True:
            try:
                leases = {lease.worker_id: lease for lease in await self._registry.live_workers()}
                self.registry_ok = True
                await self._follow(leases)
            except RegistryUnavailable as error:
                if self.registry_ok:
                    log.warning("%s; keeping the workers known so far", error)
                self.registry_ok = False
            await asyncio.sleep(DISCOVERY_S)

    async def _follow(self, leases: Mapping[str, WorkerLease]) -> None:
        for worker_id, lease in leases.items():
            if worker_id in self.workers or worker_id in self._refused:
                continue
            if lease.tokenizer_digest != self._tokenizer_digest:
                log.error("worker %s serves another tokenizer than this gateway; not using it", worker_id)
                self._refused.add(worker_id)
                continue
            channel = grpc.aio.insecure_channel(lease.address, options=CHANNEL_OPTIONS)
            worker = PooledWorker(lease, channel, rpc.WorkerServiceStub(channel))
            worker.watch = asyncio.create_task(self._watch_forever(worker))
            self.workers[worker_id] = worker
        for worker_id, worker in list(self.workers.items()):
            # A lease may run out while Redis restarts: a worker that still talks stays.
            if worker_id not in leases and not worker.connected:
                del self.workers[worker_id]
                self.index.forget(worker_id)
                if worker.watch is not None:
                    worker.watch.cancel()
                await worker.channel.close()

    async def _watch_forever(self, worker: PooledWorker) -> None:
        worker_id = worker.lease.worker_id
        epoch = sequence = 0
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for event in worker.stub.Watch(pb.WatchRequest(epoch=epoch, after_sequence=sequence)):
                    epoch, sequence = event.epoch, event.sequence
                    worker.heard_s = time.monotonic()
                    match event.WhichOneof("event"):
                        case "state":
                            worker.state = event.state
                            worker.connected = True
                        case "reset":
                            self.index.reset(worker_id, event.reset.keys)
                        case "stored":
                            self.index.add(worker_id, event.stored.keys)
                        case "removed":
                            self.index.remove(worker_id, event.removed.keys)
            if worker.connected:
                log.warning("worker %s at %s is gone", worker_id, worker.lease.address)
            worker.connected = False
            await asyncio.sleep(RECONNECT_S)
