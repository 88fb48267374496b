"""The workers that this gateway knows: found in the registry, watched over their own streams, one channel
each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import grpc

from memserve.channels import NO_PROXY
from memserve.domain import CacheLayout, ModulePlace, WorkerLease
from memserve.errors import PicklableError, RegistryUnavailable
from memserve.kv.index import BlockIndex
from memserve.pb.worker.v1 import worker_pb2 as pb
from memserve.pb.worker.v1 import worker_pb2_grpc as rpc
from memserve.policy.sharing.fairness import engine_share, worker_to_leave
from memserve.processes.supervised import Failed, repeat, uncounted
from memserve.registry.leases import Registry
from memserve.turns import Turns

log = logging.getLogger("memserve.gateway.workers.pool")

DISCOVERY_S = 0.25
# A worker speaks four times a second; one that is silent for longer than this is chosen only when no other is
# left.
SILENT_S = 1.0
RECONNECT_S = 0.2
# What a Watch ends with when its worker, or the way to it, is gone.
GONE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
# Answers of a tenant that wait for a place. Their callers are limited before; this is for gates and warm-ups.
PLACES_WAITING = 1024
PLACES = {getattr(pb, f"MODULE_PLACE_{place.name}"): place for place in ModulePlace.known()}
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    *NO_PROXY,
)


def place_of(said: pb.ModulePlace) -> ModulePlace:
    """ABSENT for a place that a newer worker knows and this gateway does not: nothing is counted on."""
    return PLACES.get(said, ModulePlace.ABSENT)


class StrangeWorker(PicklableError):
    """A worker that takes this gateway for a stranger."""

    def __init__(self, worker_id: str) -> None:
        super().__init__(
            f"worker {worker_id} refuses this gateway: their salt_key differs; give all gateways and "
            "workers the same"
        )


class AuthorizedStub(rpc.WorkerServiceStub):  # type: ignore[misc]
    """Every call carries what a worker knows a gateway by."""

    def __init__(self, channel: grpc.aio.Channel, credential: str) -> None:
        super().__init__(channel)  # type: ignore[no-untyped-call]
        metadata = (("authorization", f"Bearer {credential}"),)
        for method in pb.DESCRIPTOR.services_by_name["WorkerService"].methods:
            setattr(self, method.name, partial(getattr(self, method.name), metadata=metadata))


@dataclass(slots=True)
class PooledWorker:
    """A worker as this gateway sees it.

    epoch, sequence: of the last block event that has arrived whole. sent: prompt tokens of its requests that
    have no first token yet, by request id. adapters: LoRA digests of its requests, counted. tenants: whose
    its requests are, counted.
    """

    lease: WorkerLease
    channel: grpc.aio.Channel
    stub: AuthorizedStub
    connected: bool = False
    heard_s: float = 0.0
    state: pb.WorkerState = field(default_factory=pb.WorkerState)
    sent: dict[str, int] = field(default_factory=dict)
    running: int = 0
    adapters: Counter[str] = field(default_factory=Counter)
    tenants: Counter[str] = field(default_factory=Counter)
    watch: asyncio.Task[None] | None = None
    epoch: int = 0
    sequence: int = 0

    @contextlib.contextmanager
    def serving(
        self, tenant: str, request_id: str, uncached_tokens: int, adapter: str = ""
    ) -> Iterator[None]:
        """Count a request from the moment of its routing, so that the next one is routed knowing of it.
        adapter: its LoRA's digest.
        """
        self.sent[request_id] = uncached_tokens
        self.running += 1
        self.adapters += Counter([adapter] if adapter else [])
        self.tenants += Counter([tenant])
        try:
            yield
        finally:
            self.running -= 1
            self.adapters -= Counter([adapter])  # one that is at 0 leaves
            self.tenants -= Counter([tenant])
            self.sent.pop(request_id, None)

    def place_of(self, digest: str) -> ModulePlace:
        """Where the worker said last that it has a module."""
        return place_of(
            next(
                (module.place for module in self.state.modules if module.digest == digest),
                pb.MODULE_PLACE_UNSPECIFIED,
            )
        )

    @property
    def prefill_tokens_per_s(self) -> float:
        """0: not measured, or what was said is no speed."""
        speed = self.state.prefill_tokens_per_s
        return speed if math.isfinite(speed) and speed > 0 else 0.0

    @property
    def pending_prefill_tokens(self) -> int:
        """The larger of what this gateway sent and what the worker (that other gateways use too) last
        said.
        """
        return max(sum(self.sent.values()), self.state.pending_prefill_tokens)


class WorkerPool:
    """Follows the registry and every worker's stream. When the registry does not answer, the workers known so
    far stay.
    """

    def __init__(
        self,
        registry: Registry,
        index: BlockIndex,
        tokenizer_digest: str,
        credential: str,
        failed: Failed = uncounted,
    ) -> None:
        """credential: what the workers know a gateway by, `credentials.worker_credential`."""
        self.workers: dict[str, PooledWorker] = {}
        self.index = index
        self.registry_ok = False
        self._registry = registry
        self._tokenizer_digest = tokenizer_digest
        self._credential = credential
        self._failed = failed
        # No longer chosen, their channels not yet closed.
        self._left: list[PooledWorker] = []
        # Of the leases that there are: why a worker is not used.
        self._refused: dict[str, str] = {}
        self._discovery: asyncio.Task[None] | None = None
        self._places = Turns("answers", 1, share=engine_share, waiting_per_tenant=PLACES_WAITING)

    async def start(self) -> None:
        self._discovery = asyncio.create_task(repeat("discovery", self._discover, DISCOVERY_S, self._failed))

    async def close(self) -> None:
        tasks = [
            task for task in [self._discovery, *(w.watch for w in self.workers.values())] if task is not None
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in [*self.workers.values(), *self._left]:
            await worker.channel.close()

    def ready(self, now_s: float) -> list[PooledWorker]:
        """Workers with a living stream; those that were heard within the last second where there is one."""
        connected = [worker for worker in self.workers.values() if worker.connected]
        fresh = [worker for worker in connected if now_s - worker.heard_s <= SILENT_S]
        return fresh or connected

    def layouts(self, *, sharing: bool = False) -> list[CacheLayout]:
        """How the workers lay KV out, that of most workers first; empty while none is known. sharing: of
        those that share KV only.
        """
        counted = Counter(
            worker.lease.layout for worker in self.workers.values() if worker.lease.shares_kv or not sharing
        )
        return sorted(counted, key=lambda layout: (-counted[layout], layout.namespace))

    def model_digest(self) -> str:
        """Of the model that most workers serve; empty while none is known."""
        counted = Counter(worker.lease.model_digest for worker in self.workers.values())
        return min(counted, key=lambda digest: (-counted[digest], digest), default="")

    @contextlib.asynccontextmanager
    async def place(self, tenant: str) -> AsyncIterator[None]:
        """Hold a place in the engines, for one answer; tenants take turns for a free one. Raises
        QuotaExceeded.

        As many places as the engines decode at the same time: what would wait in an engine waits here, where
        its turn is fair.
        """
        self._places.places = max(
            1, sum(worker.lease.max_concurrent for worker in self.ready(time.monotonic()))
        )
        self._places.hand_out()
        async with self._places.of(tenant):
            yield

    def open_to(self, tenant: str, now_s: float) -> list[PooledWorker]:
        """The ready workers that a request of this tenant may go to.

        While other tenants ask too, each leaves them the worker where it has the fewest requests itself: what
        one of them does to an engine, the others need not wait for.
        """
        ready = self.ready(now_s)
        if len(ready) < 2 or not self._places.others_ask(tenant):
            return ready
        load = {worker.lease.worker_id: (worker.tenants[tenant], worker.running) for worker in ready}
        left = worker_to_leave(load)
        return [worker for worker in ready if worker.lease.worker_id != left]

    def lost(self, worker: PooledWorker) -> None:
        """A call found the worker dead: choose it no more until its stream is back."""
        worker.connected = False

    async def _discover(self) -> None:
        try:
            leases = {lease.worker_id: lease for lease in await self._registry.live_workers()}
        except RegistryUnavailable as error:
            if self.registry_ok:
                log.warning("%s; keeping the workers known so far", error)
            self.registry_ok = False
            return
        self.registry_ok = True
        await self._follow(leases)

    async def _follow(self, leases: Mapping[str, WorkerLease]) -> None:
        self._refused = {worker_id: why for worker_id, why in self._refused.items() if worker_id in leases}
        for worker_id, lease in leases.items():
            if worker_id not in self.workers and worker_id not in self._refused:
                self._meet(lease)
        for worker_id, worker in list(self.workers.items()):
            # A lease may run out while Redis restarts: a worker that still talks stays.
            if worker_id not in leases and not worker.connected:
                del self.workers[worker_id]
                self.index.forget(worker_id)
                if worker.watch is not None:
                    worker.watch.cancel()
                self._left.append(worker)
        # One that leaves finishes the answers that it is at.
        for worker in [worker for worker in self._left if not worker.running]:
            self._left.remove(worker)
            await worker.channel.close()

    def _meet(self, lease: WorkerLease) -> None:
        """Begin to watch a worker, or refuse it and say so once. One that cannot be met keeps no other from
        being.
        """
        why = (
            ""
            if lease.tokenizer_digest == self._tokenizer_digest
            else "it serves another tokenizer than this gateway"
        )
        if not why:
            try:
                channel = grpc.aio.insecure_channel(lease.address, options=CHANNEL_OPTIONS)
            except (TypeError, ValueError) as error:
                why = f"its address is no address: {error}"
        if why:
            log.error("worker %s is not used: %s", lease.worker_id, why)
            self._refused[lease.worker_id] = why
            return
        worker = PooledWorker(lease, channel, AuthorizedStub(channel, self._credential))
        worker.watch = asyncio.create_task(
            repeat("watch", lambda: self._watch(worker), RECONNECT_S, self._failed)
        )
        self.workers[lease.worker_id] = worker

    async def _watch(self, worker: PooledWorker) -> None:
        """Follow one stream of the worker's to its end. What cannot be followed makes the next one begin with
        a snapshot.
        """
        try:
            await self._follow_stream(worker)
        except grpc.aio.AioRpcError as error:
            # Gone, or not there yet: the next stream says. Anything else is a fault, of the worker's code or
            # of its address.
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise StrangeWorker(worker.lease.worker_id) from None
            if error.code() not in GONE:
                raise
        except Exception:
            worker.epoch = worker.sequence = 0
            raise
        finally:
            if worker.connected:
                log.warning("worker %s at %s is gone", worker.lease.worker_id, worker.lease.address)
            worker.connected = False

    async def _follow_stream(self, worker: PooledWorker) -> None:
        """An event is applied, and its number taken, when all of its messages are here: a stream that breaks
        between has told nothing.
        """
        parts: list[pb.WatchResponse] = []
        call = worker.stub.Watch(pb.WatchRequest(epoch=worker.epoch, after_sequence=worker.sequence))
        try:
            async for message in call:
                worker.heard_s = time.monotonic()
                if message.WhichOneof("event") == "state":
                    worker.state = message.state
                    worker.connected = True
                    continue
                parts.append(message)
                if not message.more:
                    if not self._is_next(worker, parts[0]):
                        log.warning(
                            "worker %s has left block events out; beginning anew with it",
                            worker.lease.worker_id,
                        )
                        worker.epoch = worker.sequence = 0
                        return
                    self._apply(worker.lease.worker_id, parts)
                    worker.epoch, worker.sequence = message.epoch, message.sequence
                    parts = []
        finally:
            call.cancel()

    @staticmethod
    def _is_next(worker: PooledWorker, first: pb.WatchResponse) -> bool:
        """A large event of a worker that does not know `more` comes as several of the same number."""
        known = first.epoch == worker.epoch and worker.sequence <= first.sequence <= worker.sequence + 1
        return known or first.WhichOneof("event") == "reset"

    def _apply(self, worker_id: str, parts: Sequence[pb.WatchResponse]) -> None:
        for part in parts:
            match part.WhichOneof("event"):
                case "reset":
                    self.index.reset(worker_id, part.reset.keys)
                case "stored":
                    self.index.add(worker_id, part.stored.keys)
                case "removed":
                    self.index.remove(worker_id, part.removed.keys)
