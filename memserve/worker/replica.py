"""A worker as a Ray Serve replica: starts the engine and its gRPC port, keeps its lease, ends when the engine
ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
import uuid
from functools import partial
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from ray import serve

from memserve import credentials
from memserve.config import SETTINGS_FILE, Settings, at, load_settings
from memserve.domain import WorkerLease
from memserve.errors import BlobStoreUnavailable, RegistryUnavailable
from memserve.plain import log_to_stderr
from memserve.private_files import private_umask
from memserve.processes.supervised import repeat
from memserve.worker.fleet.generations import GENERATION
from memserve.worker.fleet.leaving import LOOK_S, events_socket, leaving_file, serving_file
from memserve.worker.fleet.local_ray import serve_log_kept, serve_on_loopback

log = logging.getLogger("memserve.worker")

HEARTBEATS_PER_LEASE = 3
ENGINE_CHECK_S = 0.25
EVENTS_PAUSE_S = 0.1
REFRESH_S = 1.0
PRELOADS_S = 3.0
# A worker that starts is worth waiting for until it is warm, but not for long.
FIRST_PRELOADS_S = 5.0
COPIES_S = 60.0
SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.so_reuseport", 0),
    # Gateways ping every 10 s; without this the server takes that for abuse.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
)


def engine_environment(settings: Settings) -> dict[str, str]:
    """The environment that the engine's processes need; it must be set before vLLM is imported."""
    return {
        "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(settings.omp_threads),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # The other runner, which vLLM may choose on CUDA, takes no logits processors of this interface.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TOKENIZERS_PARALLELISM": "false",
    }


class WorkerReplica:
    """One engine behind one gRPC port. Ray Serve restarts the process when it ends; the lease in Redis tells
    the gateways.
    """

    async def __init__(self, settings_file: str) -> None:  # type: ignore[misc]  # Serve awaits it
        """settings_file: as `MEMSERVE_SETTINGS_FILE` names one. Secrets come that way, not through Ray's
        store.
        """
        private_umask()
        serve_on_loopback()
        self._settings = load_settings({SETTINGS_FILE: settings_file})
        self._tasks: list[asyncio.Task[None]] = []
        self._swept = False
        self._closing = contextlib.ExitStack()
        self._loaded_ahead = asyncio.Event()
        log_to_stderr()
        # vLLM reads these at import. Ray may set PYTHONHASHSEED, which would change every block key.
        os.environ.pop("PYTHONHASHSEED", None)
        os.environ.update(engine_environment(self._settings))
        # Module paths are relative to here, so that block keys, which contain them, are equal on every
        # machine.
        os.chdir(self._settings.modules_root)
        with serve_log_kept():
            await self._start()

    async def _start(self) -> None:
        from prometheus_client import REGISTRY

        from memserve.kv.ledger.records import NO_QUOTAS
        from memserve.kv.transport.check import check_cache_servers
        from memserve.memory.modules.registry.store import ModuleStore
        from memserve.memory.prefixes.memory import ActivationMemory
        from memserve.metrics.instruments import loop_failures
        from memserve.metrics.port import serve_metrics, without_tenants
        from memserve.model.files import open_model
        from memserve.pb.worker.v1 import worker_pb2_grpc as rpc
        from memserve.registry.leases import Registry
        from memserve.worker.engine.engine import start_engine
        from memserve.worker.engine.golden import Golden, check_golden_prefix
        from memserve.worker.fleet.gateways_only import GatewaysOnly
        from memserve.worker.kv.block_log import BlockLog, follow_engine_events
        from memserve.worker.kv.configure import activation_memory
        from memserve.worker.kv.offload import sweep_orphan_regions
        from memserve.worker.modules.preloads import Preloads
        from memserve.worker.service import WorkerService

        settings = self._settings
        stand_back(settings.worker_nice)
        failures = loop_failures(REGISTRY)

        def failed(loop: str) -> None:
            failures.labels(loop).inc()

        model = open_model(Path(settings.model), settings.max_context_tokens)
        model_digest = await asyncio.to_thread(model.model_digest)
        await asyncio.to_thread(check_cache_servers, settings.cache_redis)
        sweep_orphan_regions()
        namespace, kv_transfer = activation_memory(settings, model, model_digest)
        run_dir = settings.data / "run"
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._events_socket = events_socket(settings, os.getpid())
        endpoint = f"ipc://{self._events_socket}"
        self._log = BlockLog()
        self._tasks.append(
            asyncio.create_task(
                repeat(
                    "engine_events",
                    partial(follow_engine_events, endpoint, self._log),
                    EVENTS_PAUSE_S,
                    failed,
                )
            )
        )
        self._engine = start_engine(settings, model, kv_transfer, endpoint)
        await self._engine.warm_up()
        memory = ActivationMemory(settings.cache_redis, ttl_s=settings.kv_ttl_s, quotas=NO_QUOTAS)
        golden = await check_golden_prefix(
            self._engine, memory, namespace, model, exact=settings.kv_codec != "int8"
        )
        await memory.close()
        if golden is Golden.DIFFERENT:
            log.error(
                "KV that was stored in Redis gives other answers when it is read back: this worker "
                "serves without sharing KV"
            )
            self._engine.shutdown()
            self._log.clear()
            self._engine = start_engine(settings, model, None, endpoint)
            await self._engine.warm_up()
        elif golden is Golden.UNTESTED:
            log.warning(
                "nothing that was stored in Redis came back; KV is shared as soon as Redis answers, untested"
            )
        elif golden is Golden.TOO_LONG:
            log.warning(
                "no KV can be shared: a chunk of it has %d tokens, the context %d",
                namespace.chunk_tokens,
                model.max_context_tokens,
            )
        worker_id = f"w-{uuid.uuid4().hex[:8]}"
        self._store = ModuleStore(settings.redis)
        self._preloads = Preloads(self._store, self._engine.modules, worker_id)
        self._tasks.append(asyncio.create_task(repeat("preloads", self._load_ahead, PRELOADS_S, failed)))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._loaded_ahead.wait(), FIRST_PRELOADS_S)

        credential = credentials.worker_credential(credentials.salt_key(settings))
        self._server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=[GatewaysOnly(credential)])
        self._service = WorkerService(self._engine, self._log, max_lora_rank=settings.max_lora_rank)
        rpc.add_WorkerServiceServicer_to_server(self._service, self._server)
        healthy = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(healthy, self._server)
        port = self._server.add_insecure_port(at(settings.worker_host, 0))
        await self._server.start()
        metrics_address = self._closing.enter_context(serve_metrics(settings, without_tenants(REGISTRY), 0))
        self._lease = WorkerLease(
            worker_id=worker_id,
            address=_reachable(at(settings.worker_host, port)),
            metrics_address=_reachable(metrics_address),
            pid=os.getpid(),
            model=model.name,
            model_digest=model_digest,
            tokenizer_digest=model.tokenizer_digest(),
            namespace=namespace.digest,
            block_tokens=namespace.block_size_tokens,
            blocks_per_chunk=namespace.blocks_per_chunk,
            max_context_tokens=model.max_context_tokens,
            max_concurrent=settings.max_concurrent,
            started_s=time.time(),
            shares_kv=golden is not Golden.DIFFERENT,
            limits="; ".join(
                f"no modules of kind {kind.value}: {why}" for kind, why in self._engine.modules.absent.items()
            ),
        )
        self._registry = Registry(settings.redis)
        self._tasks += [
            asyncio.create_task(
                repeat("lease", self._renew_lease, settings.lease_s / HEARTBEATS_PER_LEASE, failed)
            ),
            asyncio.create_task(repeat("module_places", self._refresh_modules, REFRESH_S, failed)),
            asyncio.create_task(repeat("module_copies", self._tidy_copies, COPIES_S, failed)),
            asyncio.create_task(repeat("engine_life", self._end_with_engine, ENGINE_CHECK_S, failed)),
        ]
        serving_file(settings, os.getpid()).touch(mode=0o600)
        self._leaving_file = leaving_file(settings, os.environ.get(GENERATION, ""))
        self._leaving = asyncio.create_task(repeat("leaving", self._leave_with_generation, LOOK_S, failed))
        self._tasks.append(self._leaving)

    async def _end_with_engine(self) -> None:
        """End this process when the engine has died: its streams break at once, and Serve starts a fresh
        replica.

        vLLM leaves the streams of a killed engine waiting, and a health check that fails would take Serve
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

    async def _load_ahead(self) -> None:
        await self._preloads.reconcile()
        self._loaded_ahead.set()

    async def _refresh_modules(self) -> None:
        # Asked only after use: every question interrupts the engine, which has tokens to make.
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

    async def check_health(self) -> None:
        """Called by Ray Serve; raises when the engine is dead."""
        await self._engine.llm.check_health()

    async def _leave_with_generation(self) -> None:
        """Finish the answers under way and end, when other workers have taken the place of these and Ray is
        too damaged to say so.
        """
        if not await asyncio.to_thread(self._leaving_file.exists):
            return
        log.warning("other workers have taken this one's place")
        self._tasks.remove(self._leaving)
        await self.__del__()
        os._exit(0)

    async def __del__(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self, "_registry"):
            with contextlib.suppress(RegistryUnavailable):
                await self._registry.drop_lease(self._lease.worker_id)
            await self._registry.close()
            self._service.leave()
            serving_file(self._settings, os.getpid()).unlink(missing_ok=True)
            await self._server.stop(self._settings.shutdown_grace_s / 2)
        await asyncio.to_thread(self._closing.close)
        if hasattr(self, "_store"):
            await self._store.close()
        if hasattr(self, "_engine"):
            self._engine.shutdown()
            self._events_socket.unlink(missing_ok=True)


def stand_back(nice: int) -> None:
    """Let the gateway and Redis, which all tenants share, go first on the processor: on few cores an engine
    in full work makes calls late.

    With Linux's autogroups a process's nice counts only within its session; the session, which is Ray's and
    the workers' own, has one too.
    """
    os.nice(nice)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(nice), encoding="ascii")


def _reachable(address: str) -> str:
    """host:port for others: a worker that listens on every address is reached by this machine's name."""
    host, _, port = address.rpartition(":")
    return f"{socket.gethostbyname(socket.gethostname())}:{port}" if host in ("0.0.0.0", "[::]") else address


def worker_application(settings: Settings, settings_file: Path) -> serve.Application:
    """The Ray Serve application of `settings.workers` workers, which read all of their settings from the
    file.
    """
    deployment = serve.deployment(
        WorkerReplica,
        name="worker",
        num_replicas=settings.workers,
        max_ongoing_requests=1000,
        max_constructor_retry_count=1,
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=settings.shutdown_grace_s + 10,
        ray_actor_options={"num_cpus": 1},
    )
    return deployment.bind(str(settings_file))
