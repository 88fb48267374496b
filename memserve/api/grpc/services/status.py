"""`StatusService`: the state of the gateway and its workers, and backups."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Collection

import memserve
from memserve.api.grpc.call import Context, Edge
from memserve.api.grpc.convert.ladder import ladder_response
from memserve.api.grpc.convert.modules import PLACES
from memserve.domain import Tenant
from memserve.errors import MemserveError
from memserve.gateway.assembly import GatewayParts
from memserve.gateway.backups import Backups
from memserve.gateway.ladder.controller import LadderController
from memserve.gateway.workers.pooled_worker import PooledWorker
from memserve.pb.v1 import status_pb2 as pb
from memserve.pb.v1 import status_pb2_grpc as rpc

STATUS_TIMEOUT_S = 0.5
# The most modules of each worker in a status. With 64 workers the status stays far below 4 MiB, which every
# client accepts.
MODULES_TOLD_MAX = 256


class StatusService(rpc.StatusServiceServicer):  # type: ignore[misc]
    """Reports on every part of the gateway without changing it, and makes backups."""

    def __init__(self, edge: Edge, parts: GatewayParts, ladder: LadderController) -> None:
        self._edge = edge
        self._ladder = ladder
        self._parts = parts
        self._backups = Backups(parts.settings, parts.texts)

    async def Backup(self, request: pb.BackupRequest, context: Context) -> AsyncIterator[pb.BackupProgress]:
        async with (
            self._edge.call("Backup", context),
            contextlib.aclosing(self._backups.make(request.name)) as lines,
        ):
            sending = self._edge.sending(context)
            async for line in lines:
                with sending:
                    yield pb.BackupProgress(line=line)

    async def GetLadder(self, request: pb.GetLadderRequest, context: Context) -> pb.GetLadderResponse:
        async with self._edge.call("GetLadder", context) as tenant:
            return ladder_response(await self._ladder.report(tenant.name))

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        async with self._edge.call("GetStatus", context) as tenant:
            parts, pool = self._parts, self._parts.pool
            response = pb.GetStatusResponse(
                version=memserve.__version__,
                model=parts.model.name,
                model_digest=parts.modules.base_digest or pool.model_digest(),
                max_context_tokens=parts.model.max_context_tokens,
                redis_ok=pool.registry_ok,
                embedder=parts.texts.embedder.name,
                forecasts=pb.ForecastErrors(
                    mape=parts.residuals.mape,
                    bias=parts.residuals.bias,
                    coverage=parts.residuals.coverage,
                ),
                prompts=pb.PromptLayout(
                    recall_template=parts.layout.recall.origin,
                    recall_template_digest=parts.layout.recall.digest,
                    changes=parts.layout.changes,
                ),
                reranker="" if parts.texts.reranking is None else parts.texts.reranking.name,
            )
            ready = {worker.lease.worker_id for worker in pool.ready(time.monotonic())}
            held = {digest for worker in pool.workers.values() for digest in worker.state.modules}
            own: Collection[str] = ()
            if not request.workers_only:
                with contextlib.suppress(MemserveError):
                    own = await parts.modules.store.of_tenant(tenant.name, sorted(held))
            for name, worker in sorted(pool.workers.items()):
                response.workers.append(self._worker(worker, tenant, own, ready=name in ready))
            for name, why in sorted(pool.refused.items()):
                response.workers.append(pb.WorkerStatus(worker_id=name, limits=f"not used: {why}"))
            if not request.workers_only:
                await self._add_memories(response, tenant)
            return response

    def _worker(
        self, worker: PooledWorker, tenant: Tenant, own: Collection[str], *, ready: bool
    ) -> pb.WorkerStatus:
        """One worker in a status. Only administrators see addresses and process ids.

        own: digests of the tenant's modules. Other modules are left out.
        """
        lease, state = worker.lease, worker.state
        modules = [(digest, place) for digest, place in state.modules.items() if digest in own]
        return pb.WorkerStatus(
            worker_id=lease.worker_id,
            address=lease.address if tenant.is_admin else "",
            metrics_address=lease.metrics_address if tenant.is_admin else "",
            pid=lease.pid if tenant.is_admin else 0,
            shares_kv=lease.shares_kv,
            limits=self._parts.pool.told_of(worker),
            ready=ready,
            running=state.running,
            waiting=state.waiting,
            known_blocks=self._parts.pool.index.held_blocks(lease.worker_id),
            prefill_tokens_per_s=worker.prefill_tokens_per_s,
            modules=[
                pb.WorkerModule(digest=digest, place=PLACES[place])
                for digest, place in modules[:MODULES_TOLD_MAX]
            ],
            modules_left_out=max(0, len(modules) - MODULES_TOLD_MAX),
        )

    async def _add_memories(self, response: pb.GetStatusResponse, tenant: Tenant) -> None:
        """Add what the status says of the stores.

        The counts of a store that does not answer are left out. `waiting_writes` is -1 when it is unknown.
        """
        texts = self._parts.texts
        with contextlib.suppress(MemserveError):
            response.memories = sum((await texts.counts(tenant.name)).values())
        response.vector_store_ok = await texts.answers(tenant.name, STATUS_TIMEOUT_S)
        if (step := texts.reindexing) is not None:
            response.reindexing.CopyFrom(
                pb.Reindexing(
                    memories_done=step.memories_done,
                    memories_total=step.memories_total,
                    embedder=step.embedder,
                )
            )
        response.lost_memories = texts.lost(tenant.name)
        response.short_disk = self._parts.disk.short() or ""
        response.waiting_writes = -1
        with contextlib.suppress(MemserveError):
            response.waiting_writes = await texts.waiting_writes()
        with contextlib.suppress(MemserveError):
            response.modules = await self._parts.modules.store.count(tenant.name)
