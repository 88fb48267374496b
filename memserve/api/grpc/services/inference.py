"""The `memserve.v1` services: authenticate, convert, call, convert back. What a request goes through is in
`pipeline.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import memserve
from memserve.api.grpc.call import Context, Edge, require_admin
from memserve.api.grpc.convert import inference as convert
from memserve.api.grpc.convert.modules import PLACES
from memserve.domain import Tenant
from memserve.domain.names import is_sha256
from memserve.errors import InvalidField, MemoryNotFound, MemserveError
from memserve.gateway.backups import Backups
from memserve.gateway.prefixes import Prefix, Prefixes
from memserve.gateway.workers.pool import PLACES as WORKER_PLACES
from memserve.pb.v1 import (
    activation_pb2,
    activation_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    memory_pb2,
    memory_pb2_grpc,
    status_pb2,
    status_pb2_grpc,
)

SEARCH_TIMEOUT_S = 10.0
STATUS_TIMEOUT_S = 0.5
SEARCH_LIMIT = 8
# Of each worker, in a status: with 64 workers it stays far below the least message that a client takes, 4
# MiB.
MODULES_TOLD_MAX = 256
PIN_MAX_S = 30 * 24 * 3600


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):  # type: ignore[misc]
    """Answers."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        async with self._edge.call("Generate", context) as tenant:
            remaining_s = context.time_remaining()
            deadline_s = None if remaining_s is None else time.monotonic() + remaining_s
            if request.worker_id:
                require_admin(tenant, "worker_id")
            events = self._edge.pipeline.generate(convert.generation_request(request), tenant, deadline_s)
            async with contextlib.aclosing(events):
                async for event in events:
                    with self._edge.sending(context):
                        yield convert.generate_response(event)


class MemoryService(memory_pb2_grpc.MemoryServiceServicer):  # type: ignore[misc]
    """Vector memory."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._vector = edge.pipeline.vector

    async def Remember(
        self, request: memory_pb2.RememberRequest, context: Context
    ) -> memory_pb2.RememberResponse:
        async with self._edge.call("Remember", context) as tenant:
            token = self._edge.pipeline.tokenizer.special_token_in(request.text)
            if token:
                raise InvalidField("text", f"must not contain the model's control token {token!r}")
            stored = await self._vector.remember(
                tenant.name,
                request.namespace,
                request.text,
                source=request.source,
                keywords=list(request.keywords),
                memory_id=request.memory_id or None,
                now_s=time.time(),
            )
            return memory_pb2.RememberResponse(memory=convert.memory(stored))

    async def GetMemory(
        self, request: memory_pb2.GetMemoryRequest, context: Context
    ) -> memory_pb2.GetMemoryResponse:
        async with self._edge.call("GetMemory", context) as tenant:
            found = await self._vector.get(tenant.name, request.namespace, request.memory_id)
            return memory_pb2.GetMemoryResponse(memory=convert.memory(found))

    async def Forget(self, request: memory_pb2.ForgetRequest, context: Context) -> memory_pb2.ForgetResponse:
        async with self._edge.call("Forget", context) as tenant:
            if not await self._vector.forget(tenant.name, request.namespace, request.memory_id):
                raise MemoryNotFound(request.memory_id)
            return memory_pb2.ForgetResponse()

    async def Search(self, request: memory_pb2.SearchRequest, context: Context) -> memory_pb2.SearchResponse:
        async with self._edge.call("Search", context) as tenant:
            limit = request.limit or SEARCH_LIMIT
            found = await self._vector.search(
                tenant.name,
                list(request.namespaces),
                request.query,
                limit,
                timeout_s=context.time_remaining() or SEARCH_TIMEOUT_S,
            )
            return memory_pb2.SearchResponse(results=[convert.scored_memory(hit) for hit in found])

    async def ListNamespaces(
        self, request: memory_pb2.ListNamespacesRequest, context: Context
    ) -> memory_pb2.ListNamespacesResponse:
        async with self._edge.call("ListNamespaces", context) as tenant:
            counts = await self._vector.counts(tenant.name)
            return memory_pb2.ListNamespacesResponse(
                namespaces=[
                    memory_pb2.NamespaceSummary(namespace=name, memories=memories)
                    for name, memories in counts.items()
                ]
            )


class ActivationService(activation_pb2_grpc.ActivationServiceServicer):  # type: ignore[misc]
    """Activation memory."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._prefixes = Prefixes(edge.pipeline)
        self._activation = edge.pipeline.activation

    async def LookupPrefix(
        self, request: activation_pb2.LookupPrefixRequest, context: Context
    ) -> activation_pb2.LookupPrefixResponse:
        async with self._edge.call("LookupPrefix", context) as tenant:
            prefix = await self._prefix(tenant, request.prefix)
            redis_tokens, held = await asyncio.gather(
                self._prefixes.stored_tokens(tenant, prefix.main), self._prefixes.held(prefix)
            )
            return activation_pb2.LookupPrefixResponse(
                prompt_tokens=len(prefix.token_ids),
                chunk_tokens=prefix.main.layout.chunk_tokens,
                redis_tokens=redis_tokens,
                workers=[
                    activation_pb2.WorkerPrefix(
                        worker_id=w.worker_id, device_tokens=w.device_tokens, held_tokens=w.held_tokens
                    )
                    for w in held
                ],
            )

    async def WarmPrefix(
        self, request: activation_pb2.WarmPrefixRequest, context: Context
    ) -> AsyncIterator[activation_pb2.WarmPrefixResponse]:
        async with self._edge.call("WarmPrefix", context) as tenant:
            if len(request.worker_id) > 64:
                raise InvalidField("worker_id", "at most 64 characters")
            if request.worker_id:
                require_admin(tenant, "worker_id")
            prefix = await self._prefix(tenant, request.prefix)
            remaining_s = context.time_remaining()
            deadline_s = None if remaining_s is None else time.monotonic() + remaining_s
            with self._edge.pipeline.inflight.one(tenant.name):
                async with contextlib.aclosing(
                    self._prefixes.warm(tenant, prefix, request.worker_id, deadline_s)
                ) as warmths:
                    async for warmth in warmths:
                        with self._edge.sending(context):
                            yield activation_pb2.WarmPrefixResponse(
                                worker_id=warmth.worker_id,
                                prompt_tokens=warmth.prompt_tokens,
                                computed_tokens=warmth.computed_tokens,
                                stored_tokens=warmth.stored_tokens,
                                done=warmth.done,
                            )

    async def PinPrefix(
        self, request: activation_pb2.PinPrefixRequest, context: Context
    ) -> activation_pb2.PinPrefixResponse:
        async with self._edge.call("PinPrefix", context) as tenant:
            if not 1 <= request.duration_s <= PIN_MAX_S:
                raise InvalidField("duration_s", f"from 1 to {PIN_MAX_S}")
            prefix = await self._prefix(tenant, request.prefix)
            pinned_tokens, pinned_bytes = await self._prefixes.pin(tenant, prefix, request.duration_s)
            return activation_pb2.PinPrefixResponse(pinned_tokens=pinned_tokens, pinned_bytes=pinned_bytes)

    async def UnpinPrefix(
        self, request: activation_pb2.UnpinPrefixRequest, context: Context
    ) -> activation_pb2.UnpinPrefixResponse:
        async with self._edge.call("UnpinPrefix", context) as tenant:
            prefix = await self._prefix(tenant, request.prefix)
            return activation_pb2.UnpinPrefixResponse(
                unpinned_tokens=await self._prefixes.unpin(tenant, prefix)
            )

    async def EvictPrefix(
        self, request: activation_pb2.EvictPrefixRequest, context: Context
    ) -> activation_pb2.EvictPrefixResponse:
        async with self._edge.call("EvictPrefix", context) as tenant:
            prefix = await self._prefix(tenant, request.prefix)
            removed, pinned = await self._prefixes.evict(tenant, prefix)
            return activation_pb2.EvictPrefixResponse(removed_chunks=removed, pinned_chunks=pinned)

    async def EvictModule(
        self, request: activation_pb2.EvictModuleRequest, context: Context
    ) -> activation_pb2.EvictModuleResponse:
        async with self._edge.call("EvictModule", context) as tenant:
            if not is_sha256(request.module_digest):
                raise InvalidField(
                    "module_digest", "must be 64 hex digits, as `memserve modules show` prints them"
                )
            removed, pinned = await self._activation.evict_module(tenant.name, request.module_digest)
            return activation_pb2.EvictModuleResponse(removed_chunks=removed, pinned_chunks=pinned)

    async def EvictTenant(
        self, request: activation_pb2.EvictTenantRequest, context: Context
    ) -> activation_pb2.EvictTenantResponse:
        async with self._edge.call("EvictTenant", context) as tenant:
            removed, pinned = await self._activation.evict_tenant(tenant.name)
            return activation_pb2.EvictTenantResponse(removed_chunks=removed, pinned_chunks=pinned)

    async def GetUsage(
        self, request: activation_pb2.GetUsageRequest, context: Context
    ) -> activation_pb2.GetUsageResponse:
        async with self._edge.call("GetUsage", context) as tenant:
            own, every = await self._activation.usage(tenant.name)
            tenant_quota_bytes, cache_quota_bytes = self._activation.quotas
            return activation_pb2.GetUsageResponse(
                stored_bytes=own.stored_bytes,
                chunks=own.chunks,
                pinned_bytes=own.pinned_bytes,
                tenant_quota_bytes=tenant_quota_bytes,
                # What all tenants together have is for administrators.
                cache_stored_bytes=every.stored_bytes if tenant.is_admin else 0,
                cache_quota_bytes=cache_quota_bytes if tenant.is_admin else 0,
            )

    async def _prefix(self, tenant: Tenant, prefix: activation_pb2.Prefix) -> Prefix:
        return await self._prefixes.prefix(
            tenant, convert.prefix_messages(prefix), prefix.model, prefix.module
        )


class StatusService(status_pb2_grpc.StatusServiceServicer):  # type: ignore[misc]
    """What runs now."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._backups = Backups(edge.pipeline.settings, edge.pipeline.vector)

    async def Backup(
        self, request: status_pb2.BackupRequest, context: Context
    ) -> AsyncIterator[status_pb2.BackupProgress]:
        async with (
            self._edge.call("Backup", context),
            contextlib.aclosing(self._backups.make(request.name)) as lines,
        ):
            async for line in lines:
                yield status_pb2.BackupProgress(line=line)

    async def GetStatus(
        self, request: status_pb2.GetStatusRequest, context: Context
    ) -> status_pb2.GetStatusResponse:
        async with self._edge.call("GetStatus", context) as tenant:
            pipeline = self._edge.pipeline
            pool = pipeline.pool
            response = status_pb2.GetStatusResponse(
                version=memserve.__version__,
                model=pipeline.model.name,
                model_digest=pipeline.modules.base_digest or pool.model_digest(),
                max_context_tokens=pipeline.model.max_context_tokens,
                redis_ok=pool.registry_ok,
                embedder=pipeline.vector.embedder,
            )
            ready = {worker.lease.worker_id for worker in pool.ready(time.monotonic())}
            held = {module.digest for worker in pool.workers.values() for module in worker.state.modules}
            own: set[str] = set()
            if not request.workers_only:
                with contextlib.suppress(MemserveError):
                    own = await pipeline.modules.store.of_tenant(tenant.name, sorted(held))
            for name, worker in sorted(pool.workers.items()):
                modules = [
                    module
                    for module in worker.state.modules
                    if module.place in WORKER_PLACES and module.digest in own
                ]
                response.workers.add(
                    worker_id=name,
                    address=worker.lease.address if tenant.is_admin else "",
                    metrics_address=worker.lease.metrics_address if tenant.is_admin else "",
                    pid=worker.lease.pid if tenant.is_admin else 0,
                    shares_kv=worker.lease.shares_kv,
                    limits=worker.lease.limits,
                    ready=name in ready,
                    running=worker.state.running,
                    waiting=worker.state.waiting,
                    known_blocks=pool.index.held_blocks(name),
                    prefill_tokens_per_s=worker.prefill_tokens_per_s,
                    modules=[
                        status_pb2.WorkerModule(
                            digest=module.digest, place=PLACES[WORKER_PLACES[module.place]]
                        )
                        for module in modules[:MODULES_TOLD_MAX]
                    ],
                    modules_left_out=max(0, len(modules) - MODULES_TOLD_MAX),
                )
            if request.workers_only:
                return response
            with contextlib.suppress(MemserveError):
                response.memories = sum((await pipeline.vector.counts(tenant.name)).values())
            response.vector_store_ok = await pipeline.vector.answers(tenant.name, STATUS_TIMEOUT_S)
            response.lost_memories = pipeline.vector.lost(tenant.name)
            response.short_disk = pipeline.disk.short() or ""
            response.waiting_writes = -1
            with contextlib.suppress(MemserveError):
                response.waiting_writes = await pipeline.vector.waiting_writes()
            with contextlib.suppress(MemserveError):
                response.modules = await pipeline.modules.store.count(tenant.name)
            return response
