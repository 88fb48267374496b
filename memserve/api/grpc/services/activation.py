"""`ActivationService`: the KV of prompt prefixes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from memserve.api.entry import require_admin
from memserve.api.grpc.call import Context, Edge
from memserve.api.grpc.convert import activation as convert
from memserve.domain import Tenant
from memserve.domain.names import is_sha256
from memserve.errors import InvalidField
from memserve.gateway.access.callers import Inflight
from memserve.gateway.prefixes import Prefix, Prefixes
from memserve.memory.prefixes.memory import ActivationMemory
from memserve.pb.v1 import activation_pb2 as pb
from memserve.pb.v1 import activation_pb2_grpc as rpc

PIN_MAX_S = 30 * 24 * 3600


class ActivationService(rpc.ActivationServiceServicer):  # type: ignore[misc]
    """KV prefixes of the caller's tenant."""

    def __init__(
        self, edge: Edge, prefixes: Prefixes, activation: ActivationMemory, inflight: Inflight
    ) -> None:
        self._edge = edge
        self._prefixes = prefixes
        self._activation = activation
        self._inflight = inflight

    async def LookupPrefix(
        self, request: pb.LookupPrefixRequest, context: Context
    ) -> pb.LookupPrefixResponse:
        async with self._edge.call("LookupPrefix", context) as tenant:
            prefix = await self._prefix(tenant, request.prefix)
            redis_tokens, held = await asyncio.gather(
                self._prefixes.stored_tokens(tenant, prefix.main), self._prefixes.held(prefix)
            )
            return pb.LookupPrefixResponse(
                prompt_tokens=len(prefix.token_ids),
                chunk_tokens=prefix.main.layout.chunk_tokens,
                redis_tokens=redis_tokens,
                workers=[
                    pb.WorkerPrefix(
                        worker_id=prefix.worker_id,
                        device_tokens=prefix.device_tokens,
                        held_tokens=prefix.held_tokens,
                    )
                    for prefix in held
                ],
            )

    async def WarmPrefix(
        self, request: pb.WarmPrefixRequest, context: Context
    ) -> AsyncIterator[pb.WarmPrefixResponse]:
        async with self._edge.call("WarmPrefix", context) as tenant:
            if len(request.worker_id) > 64:
                raise InvalidField("worker_id", "at most 64 characters")
            if request.worker_id:
                require_admin(tenant, "worker_id")
            prefix = await self._prefix(tenant, request.prefix)
            remaining_s = context.time_remaining()
            deadline_s = None if remaining_s is None else time.monotonic() + remaining_s
            with self._inflight.one(tenant.name):
                async with contextlib.aclosing(
                    self._prefixes.warm(tenant, prefix, request.worker_id, deadline_s)
                ) as warmths:
                    sending = self._edge.sending(context)
                    async for warmth in warmths:
                        with sending:
                            yield pb.WarmPrefixResponse(
                                worker_id=warmth.worker_id,
                                prompt_tokens=warmth.prompt_tokens,
                                computed_tokens=warmth.computed_tokens,
                                stored_tokens=warmth.stored_tokens,
                                done=warmth.done,
                            )

    async def PinPrefix(self, request: pb.PinPrefixRequest, context: Context) -> pb.PinPrefixResponse:
        async with self._edge.call("PinPrefix", context) as tenant:
            if not 1 <= request.duration_s <= PIN_MAX_S:
                raise InvalidField("duration_s", f"from 1 to {PIN_MAX_S}")
            prefix = await self._prefix(tenant, request.prefix)
            pinned_tokens, pinned_bytes = await self._prefixes.pin(tenant, prefix, request.duration_s)
            return pb.PinPrefixResponse(pinned_tokens=pinned_tokens, pinned_bytes=pinned_bytes)

    async def UnpinPrefix(self, request: pb.UnpinPrefixRequest, context: Context) -> pb.UnpinPrefixResponse:
        async with self._edge.call("UnpinPrefix", context) as tenant:
            prefix = await self._prefix(tenant, request.prefix)
            return pb.UnpinPrefixResponse(unpinned_tokens=await self._prefixes.unpin(tenant, prefix))

    async def EvictPrefix(self, request: pb.EvictPrefixRequest, context: Context) -> pb.EvictPrefixResponse:
        async with self._edge.call("EvictPrefix", context) as tenant:
            prefix = await self._prefix(tenant, request.prefix)
            removed, pinned = await self._prefixes.evict(tenant, prefix)
            return pb.EvictPrefixResponse(removed_chunks=removed, pinned_chunks=pinned)

    async def EvictModule(self, request: pb.EvictModuleRequest, context: Context) -> pb.EvictModuleResponse:
        async with self._edge.call("EvictModule", context) as tenant:
            if not is_sha256(request.module_digest):
                raise InvalidField(
                    "module_digest", "must be 64 hex digits, as `memserve modules show` prints them"
                )
            removed, pinned = await self._activation.evict_module(tenant.name, request.module_digest)
            return pb.EvictModuleResponse(removed_chunks=removed, pinned_chunks=pinned)

    async def EvictTenant(self, request: pb.EvictTenantRequest, context: Context) -> pb.EvictTenantResponse:
        async with self._edge.call("EvictTenant", context) as tenant:
            removed, pinned = await self._activation.evict_tenant(tenant.name)
            return pb.EvictTenantResponse(removed_chunks=removed, pinned_chunks=pinned)

    async def GetUsage(self, request: pb.GetUsageRequest, context: Context) -> pb.GetUsageResponse:
        async with self._edge.call("GetUsage", context) as tenant:
            own, every = await self._activation.usage(tenant.name)
            tenant_quota_bytes, cache_quota_bytes = self._activation.quotas
            return pb.GetUsageResponse(
                stored_bytes=own.stored_bytes,
                chunks=own.chunks,
                pinned_bytes=own.pinned_bytes,
                tenant_quota_bytes=tenant_quota_bytes,
                # Only administrators see the bytes of all tenants together.
                cache_stored_bytes=every.stored_bytes if tenant.is_admin else 0,
                cache_quota_bytes=cache_quota_bytes if tenant.is_admin else 0,
            )

    async def _prefix(self, tenant: Tenant, prefix: pb.Prefix) -> Prefix:
        return await self._prefixes.prefix(
            tenant, convert.prefix_messages(prefix), prefix.model, prefix.module
        )
