"""`MemoryService`: text memories, one at a time. `memory_sets.py` has the calls on many of them."""

from __future__ import annotations

from memserve.api.grpc.call import Context, Edge
from memserve.api.grpc.convert import memory as convert
from memserve.api.grpc.services.consolidating import ConsolidationCalls
from memserve.api.grpc.services.memory_sets import MemorySetCalls
from memserve.client.wire.erasures import erasure_message
from memserve.client.wire.memory_values import (
    ACTIONS,
    erased_messages,
    finding_message,
    memory_message,
    optional_number,
    remembered_message,
    scored_message,
    skipped_messages,
)
from memserve.domain import MemoryState
from memserve.errors import InvalidField, MemoryNotFound
from memserve.gateway.consolidation import Consolidations
from memserve.gateway.reindexer import Reindexer
from memserve.gateway.remembering import Remembering
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.requests import MemoryChanges, MemoryName, fault_of_options
from memserve.pb.v1 import memory_pb2 as pb
from memserve.pb.v1 import memory_pb2_grpc as rpc

SEARCH_TIMEOUT_S = 10.0
SEARCH_LIMIT = 8
SKIPPED_MAX = 64
REASON_MAX_BYTES = 1024


class MemoryService(MemorySetCalls, ConsolidationCalls, rpc.MemoryServiceServicer):  # type: ignore[misc]
    """Text memories of the caller's tenant."""

    def __init__(
        self,
        edge: Edge,
        texts: VectorMemory,
        remembering: Remembering,
        reindexer: Reindexer,
        consolidations: Consolidations,
    ) -> None:
        MemorySetCalls.__init__(self, edge, texts, remembering, reindexer)
        ConsolidationCalls.__init__(self, edge, consolidations)

    async def Remember(self, request: pb.RememberRequest, context: Context) -> pb.RememberResponse:
        async with self._edge.call("Remember", context) as tenant:
            remembered = await self._remembering.remember(
                tenant, convert.new_memory(request), convert.policy(request.policy)
            )
            return remembered_message(remembered)

    async def UpdateMemory(
        self, request: pb.UpdateMemoryRequest, context: Context
    ) -> pb.UpdateMemoryResponse:
        async with self._edge.call("UpdateMemory", context) as tenant:
            changes = MemoryChanges(
                convert.content(request.namespace, request.memory_id, request.content),
                convert.changed_fields(request.fields),
                _expected(request.expected_version),
            )
            updated = await self._remembering.update(tenant, changes, convert.policy(request.policy))
            assert updated.memory is not None
            return pb.UpdateMemoryResponse(
                memory=memory_message(updated.memory), findings=map(finding_message, updated.findings)
            )

    async def GetMemory(self, request: pb.GetMemoryRequest, context: Context) -> pb.GetMemoryResponse:
        async with self._edge.call("GetMemory", context) as tenant:
            name = (request.namespace, request.memory_id)
            if request.version < 0:
                raise InvalidField("version", "must be at least 1, or 0 for the current one")
            if not request.with_history and not request.forgotten:
                memory = await self._texts.get(
                    tenant.name,
                    *name,
                    version=request.version or None,
                    as_of_s=optional_number(request, "as_of_s"),
                )
                return pb.GetMemoryResponse(memory=memory_message(memory))
            history = await self._texts.history(tenant.name, *name)
            if not request.forgotten and history.current.state is MemoryState.FORGOTTEN:
                raise MemoryNotFound(request.memory_id)
            if request.version or request.HasField("as_of_s"):
                memory = await self._texts.get(
                    tenant.name,
                    *name,
                    version=request.version or None,
                    as_of_s=optional_number(request, "as_of_s"),
                )
            else:
                memory = history.current
            versions = history.versions if request.with_history else ()
            return pb.GetMemoryResponse(
                memory=memory_message(memory),
                history=[
                    pb.MemoryVersion(memory=memory_message(each.memory), action=ACTIONS[each.action])
                    for each in versions
                ],
                dropped_versions=history.dropped,
            )

    async def RestoreMemory(
        self, request: pb.RestoreMemoryRequest, context: Context
    ) -> pb.RestoreMemoryResponse:
        async with self._edge.call("RestoreMemory", context) as tenant:
            if request.version < 0:
                raise InvalidField("version", "must be at least 1, or 0 for the last one that was live")
            memory = await self._texts.restore(
                tenant.name,
                MemoryName(request.namespace, request.memory_id),
                tenant.principal,
                version=request.version or None,
                expected_version=_expected(request.expected_version),
            )
            return pb.RestoreMemoryResponse(memory=memory_message(memory))

    async def SupersedeMemory(
        self, request: pb.SupersedeMemoryRequest, context: Context
    ) -> pb.SupersedeMemoryResponse:
        async with self._edge.call("SupersedeMemory", context) as tenant:
            old, _ = await self._texts.supersede(
                tenant.name,
                MemoryName(request.namespace, request.memory_id),
                MemoryName(request.by_namespace or request.namespace, request.by_memory_id),
                tenant.principal,
            )
            return pb.SupersedeMemoryResponse(memory=memory_message(old))

    async def Forget(self, request: pb.ForgetRequest, context: Context) -> pb.ForgetResponse:
        async with self._edge.call("Forget", context) as tenant:
            if not await self._texts.forget(
                tenant.name, request.namespace, request.memory_id, tenant.principal
            ):
                raise MemoryNotFound(request.memory_id)
            return pb.ForgetResponse()

    async def EraseMemory(self, request: pb.EraseMemoryRequest, context: Context) -> pb.EraseMemoryResponse:
        async with self._edge.call("EraseMemory", context) as tenant:
            if len(request.reason.encode()) > REASON_MAX_BYTES:
                raise InvalidField("reason", f"must be at most {REASON_MAX_BYTES} bytes")
            name = MemoryName(request.namespace, request.memory_id)
            erasure = await self._remembering.erase(tenant, name, request.reason, dry_run=request.dry_run)
            return pb.EraseMemoryResponse(
                places=erased_messages(erasure.places), erasure=erasure_message(erasure)
            )

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        async with self._edge.call("Search", context) as tenant:
            query = convert.search_query(request, SEARCH_LIMIT)
            timeout_s = context.time_remaining() or SEARCH_TIMEOUT_S
            try:
                found = await self._texts.search(tenant.name, query, timeout_s=timeout_s)
            except InvalidField as fault:
                raise fault_of_options("options", fault) from None
            return pb.SearchResponse(
                results=map(scored_message, found.hits),
                skipped=skipped_messages(found.skipped[:SKIPPED_MAX]),
                cut=found.cut,
            )

    async def FollowLinks(self, request: pb.FollowLinksRequest, context: Context) -> pb.FollowLinksResponse:
        async with self._edge.call("FollowLinks", context) as tenant:
            found = await self._texts.follow_links(
                tenant.name,
                (request.namespace, request.memory_id),
                depth=request.depth or 1,
                kinds=frozenset(convert.link_kinds("kinds", request.kinds)),
                namespaces=list(request.namespaces),
            )
            return pb.FollowLinksResponse(results=map(scored_message, found))

    async def ReadPlaces(self, request: pb.ReadPlacesRequest, context: Context) -> pb.ReadPlacesResponse:
        async with self._edge.call("ReadPlaces", context) as tenant:
            memories = await self._texts.read_places(
                tenant.name, request.namespace, request.within, request.first, request.last
            )
            return pb.ReadPlacesResponse(memories=map(memory_message, memories))


def _expected(version: int) -> int | None:
    if version < 0:
        raise InvalidField("expected_version", "must be at least 1, or 0 for any")
    return version or None
