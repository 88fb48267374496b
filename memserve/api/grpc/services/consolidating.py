"""The calls of `MemoryService` that put namespaces in order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from memserve.api.grpc.call import Context, Edge
from memserve.client.wire.consolidating import consolidation_message, plan_message
from memserve.domain import Consolidation, ConsolidationPlan
from memserve.errors import InvalidField
from memserve.gateway.consolidation import BUDGET_S, ConsolidationOptions, Consolidations
from memserve.memory.texts.rules import check_namespace
from memserve.pb.v1 import memory_pb2 as pb

ID_MAX = 64


class ConsolidationCalls:
    """Part of `MemoryService`."""

    def __init__(self, edge: Edge, consolidations: Consolidations) -> None:
        self._edge = edge
        self._consolidations = consolidations

    async def ConsolidateNamespace(
        self, request: pb.ConsolidateNamespaceRequest, context: Context
    ) -> AsyncIterator[pb.ConsolidateNamespaceResponse]:
        async with (
            self._edge.call("ConsolidateNamespace", context) as tenant,
            self._edge.entry.limits.long.of(tenant.name),
        ):
            check_namespace("namespace", request.namespace)
            options = ConsolidationOptions(
                summaries=not request.no_summaries,
                model_writes=request.model_writes,
                budget_s=request.budget_s or BUDGET_S,
            )
            if request.dry_run:
                plan = await self._consolidations.plan(tenant, request.namespace, options)
                yield pb.ConsolidateNamespaceResponse(plan=plan_message(plan))
                return
            sending = self._edge.sending(context)
            async with aclosing(self._consolidations.prepare(tenant, request.namespace, options)) as events:
                async for event in events:
                    if isinstance(event, ConsolidationPlan):
                        response = pb.ConsolidateNamespaceResponse(plan=plan_message(event))
                    elif isinstance(event, Consolidation):
                        message = consolidation_message(event)
                        response = pb.ConsolidateNamespaceResponse(consolidation=message)
                    else:
                        progress = pb.ConsolidationProgress(done=event.done, total=event.total)
                        response = pb.ConsolidateNamespaceResponse(progress=progress)
                    with sending:
                        yield response

    async def DecideConsolidation(
        self, request: pb.DecideConsolidationRequest, context: Context
    ) -> pb.DecideConsolidationResponse:
        async with self._edge.call("DecideConsolidation", context) as tenant:
            check_namespace("namespace", request.namespace)
            if len(request.consolidation_id) > ID_MAX:
                raise InvalidField("consolidation_id", f"at most {ID_MAX} characters")
            decide = self._consolidations.accept if request.accept else self._consolidations.reject
            decided = await decide(tenant, request.namespace, request.consolidation_id)
            return pb.DecideConsolidationResponse(consolidation=consolidation_message(decided))

    async def ListConsolidations(
        self, request: pb.ListConsolidationsRequest, context: Context
    ) -> pb.ListConsolidationsResponse:
        async with self._edge.call("ListConsolidations", context) as tenant:
            newest = await self._consolidations.newest(tenant)
            return pb.ListConsolidationsResponse(consolidations=map(consolidation_message, newest))
