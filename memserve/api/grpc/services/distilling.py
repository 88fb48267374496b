"""The calls of `ModuleService` that distil memories."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from memserve.api.grpc.call import Context, Edge
from memserve.api.grpc.convert import distilling
from memserve.gateway.modules.distillation import DistillationStopped, ModuleDistillation
from memserve.pb.v1 import module_pb2 as pb


class DistillationCalls:
    """Part of `ModuleService`."""

    def __init__(self, edge: Edge, distillation: ModuleDistillation) -> None:
        self._edge = edge
        self._long = edge.entry.limits.long
        self._distillation = distillation

    async def DistilModule(
        self, request: pb.DistilModuleRequest, context: Context
    ) -> AsyncIterator[pb.DistilModuleResponse]:
        async with self._edge.call("DistilModule", context) as tenant, self._long.of(tenant.name):
            asked = distilling.distillation(request)
            if request.cancel:
                await self._distillation.stop(tenant, asked.name)
                yield distilling.response(DistillationStopped())
                return
            if not request.kind:
                asked = await self._distillation.of_usual_kind(tenant, asked)
            if request.dry_run:
                yield distilling.response(await self._distillation.plan(tenant, asked))
                return
            async with aclosing(self._distillation.distil(tenant, asked)) as events:
                sending = self._edge.sending(context)
                async for event in events:
                    with sending:
                        yield distilling.response(event)

    async def ListDistillations(
        self, request: pb.ListDistillationsRequest, context: Context
    ) -> pb.ListDistillationsResponse:
        async with self._edge.call("ListDistillations", context) as tenant:
            jobs = await self._distillation.jobs(tenant)
            return pb.ListDistillationsResponse(distillations=[distilling.job(each) for each in jobs])
