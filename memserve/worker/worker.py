"""A worker: one vLLM engine behind a gRPC port, and the loops that keep its lease and its modules.

This module imports vLLM and torch, which read the environment when they are imported. `WorkerReplica` sets
the environment and imports this module after that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from prometheus_client import REGISTRY

from memserve import credentials
from memserve.config import Settings, at
from memserve.domain import WorkerLease
from memserve.domain.kinds import origin_of
from memserve.domain.worker_calls import WorkerRequest
from memserve.errors import BlobStoreUnavailable, RegistryUnavailable
from memserve.kv.keys import CacheNamespace, prompt_keys
from memserve.kv.ledger.records import NO_QUOTAS
from memserve.kv.transport.check import check_cache_servers
from memserve.memory.modules.registry.store import ModuleStore
from memserve.memory.prefixes.memory import ActivationMemory
from memserve.metrics.certificates import CertificateMetrics, FollowedCertificates
from memserve.metrics.instruments import loop_failures
from memserve.metrics.port import serve_metrics, without_tenants
from memserve.model.files import ModelFiles, open_model
from memserve.pb.worker.v1 import worker_pb2_grpc as rpc
from memserve.policy.routing.engine_load import EngineLoad
from memserve.processes.supervised import repeat
from memserve.registry.leases import Registry
from memserve.tls.grpc_credentials import add_port
from memserve.tls.live import LOOK_S as CERTIFICATES_S
from memserve.tls.live import internal_tls
from memserve.tls.pem import WORKER_NAME
from memserve.trace_export import exported
from memserve.worker.addresses import bound_to_first, check_free, ports_from, reachable
from memserve.worker.engine.calibration import measured_costs
from memserve.worker.engine.engine import Engine
from memserve.worker.engine.golden import Golden, check_golden_prefix
from memserve.worker.engine.start import start_engine
from memserve.worker.fleet.gateways_only import GatewaysOnly
from memserve.worker.fleet.generations import GENERATION
from memserve.worker.fleet.leaving import LOOK_S, events_socket, leaving_file, serving_file
from memserve.worker.kv.block_log import BlockLog, follow_engine_events
from memserve.worker.kv.configure import activation_memory
from memserve.worker.kv.host_regions import sweep_orphan_regions
from memserve.worker.modules.preloads import Preloads
from memserve.worker.pace import AnswerPace
from memserve.worker.service import WorkerService
from memserve.worker.training_calls import TrainingPlace
from memserve.worker.waiting_room import EngineRoom, as_expected

log = logging.getLogger("memserve.worker")

HEARTBEATS_PER_LEASE = 3
ENGINE_CHECK_S = 0.25
EVENTS_PAUSE_S = 0.1
REFRESH_S = 1.0
PRELOADS_S = 3.0
# A worker that starts is worth waiting for until its modules are loaded, but not for long.
FIRST_PRELOADS_S = 5.0
COPIES_S = 60.0
LOOPS = (
    "certificates", "engine_events", "engine_life", "lease", "leaving", "module_copies", "module_places",
    "preloads", "pressure",
)  # fmt: skip
# The keys of a longer prompt take too long on the event loop.
LOOKED_TOKENS_MAX = 32_768
SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.so_reuseport", 0),
    # Gateways ping every 10 s. Without this the server takes their pings for abuse.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
)


@dataclass(frozen=True, slots=True)
class _Served:
    """What the worker serves."""

    model: ModelFiles
    model_digest: str
    namespace: CacheNamespace
    """Of the model's KV."""


@dataclass(frozen=True, slots=True)
class _Ports:
    """host:port, as this machine listens."""

    calls: str
    metrics: str
    """Empty where metrics are switched off."""


class Worker:
    """Starts in stages: open, prove, load modules, serve, register. Gateways see it after the last stage.

    Everything runs on one event loop.
    """

    def __init__(self, settings: Settings, node: str = "127.0.0.1") -> None:
        """node: this machine's address in Ray's cluster."""
        self._settings = settings
        self._node = node
        self._closing: asyncio.Task[None] | None = None
        self._worker_id = f"w-{uuid.uuid4().hex[:8]}"
        self._failures = loop_failures(REGISTRY, LOOPS)
        self._certificates = CertificateMetrics(REGISTRY)
        self._block_log = BlockLog()
        self._events_socket = events_socket(settings, os.getpid())
        self._loaded_ahead = asyncio.Event()
        self._room: EngineRoom | None = None
        self._swept = False
        self._tasks: list[asyncio.Task[None]] = []
        self._tls = internal_tls(settings, WORKER_NAME)
        # Closes what the stages have opened, in reverse order.
        self._opened = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Raises StartupError, and whatever vLLM raises, when the engine cannot start."""
        self._opened.enter_context(exported(self._settings, "memserve-worker", self._worker_id))
        served = await self._open()
        shares_kv = await self._prove(served)
        await self._load_first_modules()
        ports = await self._serve(served)
        await self._register(self._lease_of(served, ports, shares_kv=shares_kv))

    async def check_health(self) -> None:
        """Raises when the engine has died."""
        await self._engine.llm.check_health()

    def demand(self) -> float:
        """What is asked of this worker, in workers. 0 before it serves."""
        return self._room.demand(time.monotonic()) if self._room is not None else 0.0

    async def close(self) -> None:
        """Finish the answers under way and end. A worker whose start has failed can be closed too.

        Ray Serve may call this while the worker leaves by itself: both wait for the same end.
        """
        self._closing = self._closing or asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._opened.aclose()

    async def _open(self) -> _Served:
        """Read the model, check Redis, and start the engine."""
        settings = self._settings
        model = open_model(Path(settings.model), settings.max_context_tokens)
        model_digest = await asyncio.to_thread(model.model_digest)
        await asyncio.to_thread(check_cache_servers, settings.cache_redis)
        sweep_orphan_regions()
        namespace, kv_transfer = activation_memory(settings, model, model_digest)
        self._events_socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        follow = partial(follow_engine_events, self._events_endpoint, self._block_log)
        self._tasks.append(asyncio.create_task(repeat("engine_events", follow, EVENTS_PAUSE_S, self._failed)))
        self._engine: Engine = start_engine(settings, model, kv_transfer, self._events_endpoint)
        self._opened.callback(self._events_socket.unlink, missing_ok=True)
        # `_prove` may replace the engine.
        self._opened.callback(lambda: self._engine.shutdown())
        await self._engine.warm_up()
        return _Served(model, model_digest, namespace)

    async def _prove(self, served: _Served) -> bool:
        """Read KV back from Redis, and measure the engine. Returns whether this worker may share KV."""
        settings = self._settings
        memory = ActivationMemory(settings.cache_redis, ttl_s=settings.kv_ttl_s, quotas=NO_QUOTAS)
        golden = await check_golden_prefix(
            self._engine, memory, served.namespace, served.model, exact=settings.kv_codec != "int8"
        )
        await memory.close()
        if golden is Golden.DIFFERENT:
            log.error(
                "KV that was stored in Redis gives other answers when it is read back: this worker "
                "serves without sharing KV"
            )
            self._engine.shutdown()
            self._block_log.clear()
            self._engine = start_engine(settings, served.model, None, self._events_endpoint)
            await self._engine.warm_up()
        elif golden is Golden.UNTESTED:
            log.warning(
                "nothing that was stored in Redis came back; KV is shared as soon as Redis answers, untested"
            )
        elif golden is Golden.TOO_LONG:
            log.warning(
                "no KV can be shared: a chunk of it has %d tokens, the context %d",
                served.namespace.chunk_tokens,
                served.model.max_context_tokens,
            )
        self._costs = await measured_costs(self._engine)
        log.info("this engine, measured: %s", self._costs)
        return golden is not Golden.DIFFERENT

    async def _load_first_modules(self) -> None:
        """Load the modules that are to be there from the start."""
        store = ModuleStore(self._settings.redis)
        self._opened.push_async_callback(store.close)
        self._preloads = Preloads(store, self._engine.modules, self._worker_id)
        self._tasks.append(
            asyncio.create_task(repeat("preloads", self._load_ahead, PRELOADS_S, self._failed))
        )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._loaded_ahead.wait(), FIRST_PRELOADS_S)

    async def _serve(self, served: _Served) -> _Ports:
        """Open the ports."""
        settings = self._settings
        credential = credentials.worker_credential(credentials.salt_key(settings))
        only = GatewaysOnly(credential, by_certificate=self._tls is not None)
        server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=[only])
        cache = self._engine.llm.vllm_config.cache_config
        self._block_tokens = cache.block_size
        kv_tokens = cache.kv_cache_size_tokens or (cache.num_gpu_blocks or 0) * cache.block_size
        load = EngineLoad(self._costs, settings.max_concurrent, kv_tokens)
        self._room = EngineRoom(
            load,
            ttft_s=settings.default_ttft_ms / 1000,
            wait_s=settings.max_wait_s,
            cached_of=self._cached_of,
            changed=self._block_log.changed.set,
        )
        pace = AnswerPace()
        self._tasks.append(asyncio.create_task(repeat("pressure", pace.own.look, 0.0, self._failed)))
        self._service = WorkerService(
            self._engine,
            self._room,
            self._block_log,
            pace,
            TrainingPlace(
                served.model.path,
                served.model_digest,
                settings.data / "distil",
                settings.chat_template,
                cache.block_size,
            ),
            max_lora_rank=settings.max_lora_rank,
        )
        rpc.add_WorkerServiceServicer_to_server(self._service, server)
        health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
        port = bound_to_first(
            ports_from(settings.worker_port, without=settings.worker_health_port),
            lambda port: add_port(server, at(settings.worker_host, port), self._tls),
            "worker_port",
        )
        await server.start()
        metrics = contextlib.ExitStack()
        registry = without_tenants(REGISTRY)
        metrics_address = bound_to_first(
            ports_from(settings.worker_metrics_port),
            lambda port: metrics.enter_context(
                serve_metrics(settings, registry, check_free(settings.metrics_host, port), self._tls)
            ),
            "worker_metrics_port",
        )
        self._opened.push_async_callback(asyncio.to_thread, metrics.close)
        self._opened.push_async_callback(server.stop, settings.shutdown_grace_s / 2)
        return _Ports(at(settings.worker_host, port), metrics_address)

    def _cached_of(self, request: WorkerRequest) -> Callable[[], int]:
        """What this engine holds of a prompt by now, or what the gateway expected to come from Redis."""
        if len(request.token_ids) > LOOKED_TOKENS_MAX:
            return as_expected(request)
        block_tokens = self._block_tokens
        origin = origin_of((module.digest, module.kind) for module in request.modules)
        embedded = self._engine.embedded_rows(origin.prefix) if origin.is_embedded else None
        if origin.is_embedded and embedded is None:
            return as_expected(request)
        keys = prompt_keys(request.token_ids[:-1], block_tokens, origin, request.cache_salt, embedded)
        return lambda: max(self._block_log.leading(keys)[1] * block_tokens, request.cached_tokens)

    def _lease_of(self, served: _Served, ports: _Ports, *, shares_kv: bool) -> WorkerLease:
        """What gateways learn of this worker."""
        absent = self._engine.modules.absent
        return WorkerLease(
            worker_id=self._worker_id,
            address=reachable(ports.calls, self._settings, self._node),
            metrics_address=reachable(ports.metrics, self._settings, self._node),
            pid=os.getpid(),
            model=served.model.name,
            model_digest=served.model_digest,
            tokenizer_digest=served.model.tokenizer_digest(),
            namespace=served.namespace.digest,
            block_tokens=served.namespace.block_size_tokens,
            blocks_per_chunk=served.namespace.blocks_per_chunk,
            max_context_tokens=served.model.max_context_tokens,
            max_concurrent=self._settings.max_concurrent,
            started_s=time.time(),
            shares_kv=shares_kv,
            limits="; ".join(f"no modules of kind {kind}: {why}" for kind, why in absent.items()),
        )

    async def _register(self, lease: WorkerLease) -> None:
        """Begin the loops: the first of them renews the lease, by which gateways find this worker."""
        settings = self._settings
        self._lease = lease
        self._registry = Registry(settings.redis)
        serving = serving_file(settings, os.getpid())
        self._opened.callback(serving.unlink, missing_ok=True)
        self._opened.callback(self._service.leave)
        self._opened.push_async_callback(self._registry.close)
        self._opened.push_async_callback(self._drop_lease)
        certificates = FollowedCertificates([self._tls], self._certificates)
        heartbeat_s = settings.lease_s / HEARTBEATS_PER_LEASE
        self._tasks += [
            asyncio.create_task(repeat("lease", self._renew_lease, heartbeat_s, self._failed)),
            asyncio.create_task(repeat("module_places", self._refresh_modules, REFRESH_S, self._failed)),
            asyncio.create_task(repeat("certificates", certificates.look, CERTIFICATES_S, self._failed)),
            asyncio.create_task(repeat("module_copies", self._tidy_copies, COPIES_S, self._failed)),
            asyncio.create_task(repeat("engine_life", self._end_with_engine, ENGINE_CHECK_S, self._failed)),
        ]
        serving.touch(mode=0o600)
        self._leaving_file = leaving_file(settings, os.environ.get(GENERATION, ""))
        self._leaving = asyncio.create_task(
            repeat("leaving", self._leave_with_generation, LOOK_S, self._failed)
        )
        self._tasks.append(self._leaving)

    @property
    def _events_endpoint(self) -> str:
        return f"ipc://{self._events_socket}"

    def _failed(self, loop: str) -> None:
        self._failures.labels(loop).inc()

    async def _end_with_engine(self) -> None:
        """End this process when the engine has died: its streams break at once, and Serve starts another.

        vLLM would leave the streams of a killed engine waiting. A health check that fails would take Serve
        seconds.
        """
        if not self._engine.llm.errored:
            return
        log.error("the engine has died; ending this worker so that it is started again")
        os._exit(1)

    async def _renew_lease(self) -> None:
        try:
            await self._registry.renew_lease(self._lease, self._settings.lease_s)
        except RegistryUnavailable as error:
            log.warning("%s", error)

    async def _drop_lease(self) -> None:
        with contextlib.suppress(RegistryUnavailable):
            await self._registry.drop_lease(self._lease.worker_id)

    async def _load_ahead(self) -> None:
        await self._preloads.reconcile()
        self._loaded_ahead.set()

    async def _refresh_modules(self) -> None:
        # Only after a use: every question interrupts the engine.
        if self._engine.modules.stale:
            await self._engine.modules.refresh()

    async def _tidy_copies(self) -> None:
        modules = self._engine.modules
        try:
            if not self._swept:
                await asyncio.to_thread(modules.copies.sweep_leftovers, time.time())
                self._swept = True
            await asyncio.to_thread(modules.copies.drop_unused, [*modules.held, *modules.used], time.time())
        except BlobStoreUnavailable as error:
            log.warning("copies of modules are tidied later: %s", error)

    async def _leave_with_generation(self) -> None:
        """Finish the answers under way and end, once other workers have taken the place of this generation.

        For the case that Ray is too damaged to end this process.
        """
        if not await asyncio.to_thread(self._leaving_file.exists):
            return
        log.warning("other workers have taken this one's place")
        # `close` cancels every task and waits for it, which this task cannot do for itself.
        self._tasks.remove(self._leaving)
        await self.close()
        os._exit(0)
