"""The gateway process: puts the services on gRPC, with health, reflection and metrics, and stops
gracefully.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from grpc_health.v1 import health

from memserve import credentials
from memserve.api.grpc.call import Edge
from memserve.api.grpc.front import NOT_SERVING, SERVING, Front, open_front
from memserve.api.grpc.services.inference import (
    ActivationService,
    InferenceService,
    MemoryService,
    StatusService,
)
from memserve.api.grpc.services.modules import ModuleService
from memserve.config import Settings
from memserve.disk import DATA_DISK, DiskWatch
from memserve.errors import (
    EmbedderChanged,
    MemserveError,
    StartupError,
    VectorStoreDamaged,
    VectorStoreHeld,
    VectorStoreUnavailable,
)
from memserve.gateway.access.callers import Access, Inflight, KeyFile, load_access
from memserve.gateway.modules.canary import LOOK_S as CANARY_LOOK_S
from memserve.gateway.modules.canary import CanaryWatch
from memserve.gateway.pipeline import Pipeline
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.gateway.workers.pool import WorkerPool
from memserve.kv.index import BlockIndex
from memserve.kv.ledger.ledger import Quotas
from memserve.kv.lookup import PrefixLookup
from memserve.kv.transport.check import check_cache_servers
from memserve.memory.modules.blobs.store import BlobStore, sweep
from memserve.memory.modules.kinds.table import BaseModel
from memserve.memory.modules.memory import ParametricMemory
from memserve.memory.modules.registry.store import ModuleStore
from memserve.memory.modules.uploads import Uploads, sweep_uploads
from memserve.memory.prefixes.memory import ActivationMemory
from memserve.memory.texts.embedder_files import configured_embedder
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.journal import Quotas as MemoryQuotas
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.milvus import is_local_uri
from memserve.metrics.instruments import GatewayMetrics
from memserve.metrics.port import serve_metrics
from memserve.model.files import open_model
from memserve.pb.v1 import (
    activation_pb2,
    activation_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    memory_pb2,
    memory_pb2_grpc,
    module_pb2,
    module_pb2_grpc,
    status_pb2,
    status_pb2_grpc,
)
from memserve.private_files import open_data_dir
from memserve.processes.ports import held_ports
from memserve.processes.supervised import Background, repeat
from memserve.registry.leases import Registry
from memserve.turns import FairThreads, leave_one, on_own_thread

log = logging.getLogger("memserve.gateway")

HEALTH_CHECK_S = 0.25
# A revoked key is refused so much later at most.
KEYS_LOOK_S = 1.0
SWEEP_S = 600.0
TOKENIZER_THREADS = 2
# An embedding is a hundred steps of numpy, each of which may wait so long for the interpreter while the event
# loop is busy.
SWITCH_INTERVAL_S = 0.0005
# A blob is put before its version is registered; publishing takes less than this.
BLOB_MIN_AGE_S = 3600.0
UPLOAD_MAX_AGE_S = 24 * 3600.0
SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    activation_pb2.DESCRIPTOR.services_by_name["ActivationService"].full_name,
    memory_pb2.DESCRIPTOR.services_by_name["MemoryService"].full_name,
    module_pb2.DESCRIPTOR.services_by_name["ModuleService"].full_name,
    status_pb2.DESCRIPTOR.services_by_name["StatusService"].full_name,
)


@contextlib.asynccontextmanager
async def open_pipeline(settings: Settings) -> AsyncIterator[Pipeline]:
    """Everything behind the services, started; closed in the reverse order. Raises StartupError."""
    if not settings.redis:
        raise StartupError(
            "a gateway needs the registry: set redis_url (`memserve up` starts one of its own)"
        )
    model = open_model(Path(settings.model), settings.max_context_tokens)
    open_data_dir(settings.data)
    run_folder = settings.data / "run"
    run_folder.mkdir(mode=0o700, exist_ok=True)
    tokenizer = await on_own_thread(partial(ChatTokenizer, model, run_folder))
    metrics = GatewayMetrics()
    embedder = await on_own_thread(lambda: BertEmbedder(configured_embedder(settings)))
    disk = disk_watch(settings)
    async with contextlib.AsyncExitStack() as stack:
        registry = Registry(settings.redis)
        stack.push_async_callback(registry.close)
        try:
            kept = MemoryQuotas(settings.max_memories_per_tenant, settings.max_namespaces_per_tenant)
            vector = await VectorMemory.open(
                settings.vector_uri, embedder, settings.redis, quotas=kept, may_flush=disk.has_room
            )
        except (EmbedderChanged, VectorStoreDamaged, VectorStoreHeld, VectorStoreUnavailable) as error:
            raise StartupError(str(error)) from error
        stack.push_async_callback(vector.close)
        tokenizing = FairThreads("tokenizer", TOKENIZER_THREADS, share=leave_one)
        stack.callback(tokenizing.close)
        await on_own_thread(partial(check_cache_servers, settings.cache_redis))
        lookup = PrefixLookup(settings.cache_redis, budget_s=settings.lookup_timeout_ms / 1000)
        stack.push_async_callback(lookup.close)
        quotas = Quotas(settings.kv_quota_bytes, settings.kv_tenant_quota_bytes)
        activation = ActivationMemory(settings.cache_redis, ttl_s=settings.kv_ttl_s, quotas=quotas)
        stack.push_async_callback(activation.close)
        store = ModuleStore(
            settings.redis,
            modules_max=settings.max_modules_per_tenant,
            versions_max=settings.max_versions_per_module,
            audit_days=settings.audit_retention_days,
            audit_max_bytes=settings.audit_max_bytes,
        )
        stack.push_async_callback(store.close)
        shapes = model.tensor_shapes()
        modules = ParametricMemory(
            store,
            BlobStore(settings.module_store_url, settings.modules_root / "modules"),
            Uploads(
                settings.data / "staging", settings.max_module_bytes, settings.max_staging_bytes_per_tenant
            ),
            BaseModel(shapes=shapes, vocab_size=model.vocab_size, max_rank=settings.max_lora_rank),
            # Without its weights a gateway cannot tell which model it is; the workers still refuse what does
            # not fit.
            await on_own_thread(model.model_digest) if shapes else "",
        )
        stack.callback(modules.files.close)
        credential = credentials.worker_credential(credentials.salt_key(settings))
        pool = WorkerPool(registry, BlockIndex(), model.tokenizer_digest(), credential, metrics.loop_failed)
        await pool.start()
        stack.push_async_callback(pool.close)
        background = Background()
        stack.push_async_callback(background.close)
        yield Pipeline(
            settings=settings,
            background=background,
            model=model,
            tokenizer=tokenizer,
            tokenizing=tokenizing,
            inflight=Inflight(settings.max_inflight, settings.max_inflight_per_tenant),
            modules=modules,
            vector=vector,
            activation=activation,
            pool=pool,
            lookup=lookup,
            metrics=metrics,
            disk=disk,
        )


def disk_watch(settings: Settings) -> DiskWatch:
    """The disks that this gateway writes to."""
    places = {DATA_DISK: settings.data}
    if settings.module_store_url and "://" not in settings.module_store_url:
        places["the disk of the module store"] = Path(settings.module_store_url)
    if is_local_uri(settings.vector_uri):
        places["the disk of the vector store"] = Path(settings.vector_uri).parent
    return DiskWatch(places, settings.disk_reserve_bytes)


async def serve_gateway(settings: Settings, *, ports_held: bool = False) -> None:
    """Serve until SIGINT or SIGTERM; answers under way get `shutdown_grace_s` to finish.

    The ports are taken first. ports_held: the parent process keeps them already.
    Raises StartupError when a port is taken or something is missing.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    access = load_access(settings)
    key_file = KeyFile(access, settings)
    with contextlib.nullcontext(settings) if ports_held else held_ports(settings) as settings:
        async with (
            open_front(settings, SERVICES) as front,
            open_pipeline(settings) as pipeline,
            served(front, pipeline, access),
        ):
            with serve_metrics(settings, pipeline.metrics.registry, settings.metrics_port) as metrics_address:
                stop = asyncio.Event()
                loop = asyncio.get_running_loop()
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.add_signal_handler(number, stop.set)
                loop.add_signal_handler(signal.SIGHUP, partial(key_file.look, even_unchanged=True))
                keys = asyncio.create_task(
                    repeat("keys", key_file.follow, KEYS_LOOK_S, pipeline.metrics.loop_failed)
                )
                log.info(
                    "serving on %s:%s, metrics on %s", settings.host, front.port, metrics_address or "no port"
                )
                try:
                    await stop.wait()
                finally:
                    keys.cancel()
                    await asyncio.gather(keys, return_exceptions=True)


@contextlib.asynccontextmanager
async def listen(pipeline: Pipeline, access: Access) -> AsyncIterator[int]:
    """The services, health and reflection on the settings' host and port, while inside. Yields the gRPC
    port.
    """
    async with open_front(pipeline.settings, SERVICES) as front, served(front, pipeline, access):
        yield front.port


@contextlib.asynccontextmanager
async def served(front: Front, pipeline: Pipeline, access: Access) -> AsyncIterator[None]:
    """Put the services behind the open port while inside. On leaving, answers under way get
    `shutdown_grace_s` to finish.
    """
    edge, services = Edge(pipeline, access), front.services
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceService(edge), services)
    memory_pb2_grpc.add_MemoryServiceServicer_to_server(MemoryService(edge), services)
    activation_pb2_grpc.add_ActivationServiceServicer_to_server(ActivationService(edge), services)
    module_pb2_grpc.add_ModuleServiceServicer_to_server(ModuleService(edge), services)
    status_pb2_grpc.add_StatusServiceServicer_to_server(StatusService(edge), services)
    services.opened = True
    failed = pipeline.metrics.loop_failed
    tasks = [
        asyncio.create_task(
            repeat("health", partial(_report_health, front.health, pipeline), HEALTH_CHECK_S, failed)
        ),
        asyncio.create_task(repeat("canaries", CanaryWatch(pipeline, access).look, CANARY_LOOK_S, failed)),
        asyncio.create_task(repeat("sweep", partial(_sweep, pipeline), SWEEP_S, failed)),
    ]
    try:
        yield
    finally:
        await front.health.enter_graceful_shutdown()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await front.server.stop(pipeline.settings.shutdown_grace_s)


async def _report_health(servicer: health.aio.HealthServicer, pipeline: Pipeline) -> None:
    """SERVING while a worker is ready: for the whole server ("") and for InferenceService. The memories need
    no worker.
    """
    ready = len([worker for worker in pipeline.pool.workers.values() if worker.connected])
    pipeline.metrics.ready_workers.set(ready)
    figures = pipeline.vector.settling.figures
    pipeline.metrics.lost_memories.set(sum(figures.lost.values()))
    pipeline.metrics.journal_failures.set(figures.failures)
    pipeline.metrics.journal_replayed.set(figures.replayed)
    pipeline.metrics.unapplied_writes.set(len(pipeline.vector.settling.unapplied))
    pipeline.metrics.disk_is_short.set(not pipeline.disk.has_room())
    for name in SERVICES[1:]:
        await servicer.set(name, SERVING)
    for name in ("", SERVICES[0]):
        await servicer.set(name, SERVING if ready else NOT_SERVING)


async def _sweep(pipeline: Pipeline) -> None:
    """Remove module content that no version references: what a crash, or a refused upload, left behind."""
    modules = pipeline.modules
    try:
        removed = await sweep(
            modules.blobs, modules.store, BLOB_MIN_AGE_S, time.time(), modules.files.run_own
        )
        if removed.modules or removed.probes:
            log.info(
                "swept %d modules and %d probe sets that no version references",
                len(removed.modules),
                len(removed.probes),
            )
        await modules.files.run_own(
            partial(sweep_uploads, pipeline.settings.data / "staging", UPLOAD_MAX_AGE_S, time.time())
        )
    except MemserveError as error:
        log.warning("the sweep of modules goes on later: %s", error)
