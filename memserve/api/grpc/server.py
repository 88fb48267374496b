"""The gRPC services of a gateway behind its port, with health, reflection and the loops of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial

from grpc_health.v1 import health

from memserve.api.entry import Entry, entry_of
from memserve.api.grpc.call import Edge
from memserve.api.grpc.front import NOT_SERVING, SERVING, Front, open_front
from memserve.api.grpc.services.activation import ActivationService
from memserve.api.grpc.services.inference import InferenceService
from memserve.api.grpc.services.lineage import LineageService
from memserve.api.grpc.services.memory import MemoryService
from memserve.api.grpc.services.modules import ModuleService
from memserve.api.grpc.services.status import StatusService
from memserve.domain import ModulePlace
from memserve.errors import MemserveError
from memserve.gateway.access.callers import Access
from memserve.gateway.assembly import GatewayParts, GatewayServices, services_of
from memserve.gateway.erasures.erasures import LOOK_S as ERASURES_LOOK_S
from memserve.gateway.ladder.controller import LOOK_S as LADDER_LOOK_S
from memserve.gateway.modules.canary import LOOK_S as CANARY_LOOK_S
from memserve.gateway.modules.distillation import LOOK_S as DISTILLATIONS_LOOK_S
from memserve.gateway.steps.route import backlog_s
from memserve.gateway.workers.pacing import LOOK_S as PACING_LOOK_S
from memserve.gateway.workers.pacing import Pacing
from memserve.memory.modules.blobs.store import sweep
from memserve.memory.modules.uploads import sweep_uploads
from memserve.pb.v1 import (
    activation_pb2,
    activation_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    lineage_pb2,
    lineage_pb2_grpc,
    memory_pb2,
    memory_pb2_grpc,
    module_pb2,
    module_pb2_grpc,
    status_pb2,
    status_pb2_grpc,
)
from memserve.processes.supervised import repeat

log = logging.getLogger("memserve.gateway")

HEALTH_CHECK_S = 0.25
SWEEP_S = 600.0
GATEWAYS_RETRY_S = 0.25
EMBEDDER_LOOK_S = 5.0
# A younger blob is not swept. A blob is put before its version is registered, and publishing takes less time
# than this.
BLOB_MIN_AGE_S = 3600.0
# An unfinished upload is removed when it has been idle for this long.
UPLOAD_MAX_AGE_S = 24 * 3600.0
SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    activation_pb2.DESCRIPTOR.services_by_name["ActivationService"].full_name,
    memory_pb2.DESCRIPTOR.services_by_name["MemoryService"].full_name,
    module_pb2.DESCRIPTOR.services_by_name["ModuleService"].full_name,
    lineage_pb2.DESCRIPTOR.services_by_name["LineageService"].full_name,
    status_pb2.DESCRIPTOR.services_by_name["StatusService"].full_name,
)


@contextlib.asynccontextmanager
async def listen(parts: GatewayParts, access: Access) -> AsyncIterator[int]:
    """Serve the services, health and reflection on the settings' host and port, while inside.

    Yields the number of the gRPC port.
    """
    entry, services = entry_of(parts, access), services_of(parts, access)
    async with open_front(parts.settings, SERVICES) as front, served(front, parts, entry, services):
        yield front.port


@contextlib.asynccontextmanager
async def served(
    front: Front, parts: GatewayParts, entry: Entry, services: GatewayServices
) -> AsyncIterator[None]:
    """Put the services behind the open port while inside, and run the gateway's loops.

    On leaving, answers under way get `shutdown_grace_s` to finish.
    """
    edge = Edge(entry, parts.settings.write_timeout_s, front.connections)
    port = front.services
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceService(edge, services), port)
    memory_pb2_grpc.add_MemoryServiceServicer_to_server(
        MemoryService(edge, parts.texts, services.remembering, services.reindexer, services.consolidations),
        port,
    )
    activation_pb2_grpc.add_ActivationServiceServicer_to_server(
        ActivationService(edge, services.prefixes, parts.activation, parts.inflight), port
    )
    module_pb2_grpc.add_ModuleServiceServicer_to_server(ModuleService(edge, parts.modules, services), port)
    lineage_pb2_grpc.add_LineageServiceServicer_to_server(
        LineageService(edge, services.lineage, services.erasures), port
    )
    status_pb2_grpc.add_StatusServiceServicer_to_server(StatusService(edge, parts, services.ladder), port)
    port.opened = True
    failed = parts.metrics.loop_failed
    tasks = [
        asyncio.create_task(
            repeat("health", partial(_report_health, front.health, parts), HEALTH_CHECK_S, failed)
        ),
        asyncio.create_task(repeat("pressure", parts.pressure.look, 0.0, failed)),
        asyncio.create_task(repeat("pacing", Pacing(parts.pool, parts.pressure).tell, PACING_LOOK_S, failed)),
        asyncio.create_task(repeat("canaries", services.canaries.look, CANARY_LOOK_S, failed)),
        asyncio.create_task(
            repeat("distillations", services.distillation.look, DISTILLATIONS_LOOK_S, failed)
        ),
        asyncio.create_task(repeat("gateways", parts.gateways.listen, GATEWAYS_RETRY_S, failed)),
        asyncio.create_task(repeat("answers", parts.answers.write, 0.0, failed)),
        asyncio.create_task(repeat("uses", parts.ledger.write, 0.0, failed)),
        asyncio.create_task(repeat("pinned", services.warm_pinned.step, 0.0, failed)),
        asyncio.create_task(repeat("erasures", services.erasures.step, ERASURES_LOOK_S, failed)),
        asyncio.create_task(repeat("sweep", partial(_sweep, parts), SWEEP_S, failed)),
    ]
    if services.ladder.order.mode != "off":
        tasks.append(asyncio.create_task(repeat("ladder", services.ladder.look, LADDER_LOOK_S, failed)))
    if (watched := parts.watched_embedder) is not None:
        tasks.append(asyncio.create_task(repeat("embedder", watched.look, EMBEDDER_LOOK_S, failed)))
    try:
        yield
    finally:
        await front.health.enter_graceful_shutdown()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await front.leave(parts.settings.shutdown_grace_s)


async def _report_health(servicer: health.aio.HealthServicer, parts: GatewayParts) -> None:
    """Set the health of every service, and the gauges that are read from the gateway's parts.

    The whole server ("") and InferenceService are SERVING while a worker is connected. The other services
    need no worker, and are always SERVING.
    """
    ready = len([worker for worker in parts.pool.workers.values() if worker.connected])
    parts.metrics.ready_workers.set(ready)
    parts.metrics.token_window.set(parts.pressure.window_s)
    parts.metrics.queued_seconds.set(sum(backlog_s(worker.report) for worker in parts.pool.workers.values()))
    places = Counter(
        place for worker in parts.pool.workers.values() for place in worker.state.modules.values()
    )
    for place in (ModulePlace.DEVICE, ModulePlace.HOST):
        parts.metrics.held_modules.labels(place).set(places[place])
    for what, value in (
        ("mape", parts.residuals.mape),
        ("bias", parts.residuals.bias),
        ("coverage", parts.residuals.coverage),
    ):
        parts.metrics.forecasts.labels(what).set(value)
    figures = parts.texts.settling.figures
    parts.metrics.lost_memories.set(sum(figures.lost.values()))
    parts.metrics.journal_failures.set(figures.failures)
    parts.metrics.journal_replayed.set(figures.replayed)
    parts.metrics.unapplied_writes.set(len(parts.texts.settling.unapplied))
    parts.metrics.disk_is_short.set(not parts.disk.has_room())
    for name in SERVICES[1:]:
        await servicer.set(name, SERVING)
    for name in ("", SERVICES[0]):
        await servicer.set(name, SERVING if ready else NOT_SERVING)


async def _sweep(parts: GatewayParts) -> None:
    """Remove module content that no version references, and old uploads.

    A crash or a refused upload leaves such content.
    """
    modules = parts.modules
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
            partial(sweep_uploads, parts.settings.data / "staging", UPLOAD_MAX_AGE_S, time.time())
        )
    except MemserveError as error:
        log.warning("the sweep of modules goes on later: %s", error)
