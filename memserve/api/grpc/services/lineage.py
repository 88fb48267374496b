"""`LineageService`: what was made of what, and erasures."""

from __future__ import annotations

from memserve.api.grpc.call import Context, Edge
from memserve.client.wire.erasures import erasure_message
from memserve.client.wire.lineage import lineage_message
from memserve.client.wire.memory_values import erased_messages
from memserve.errors import ErasureNotFound, InvalidField
from memserve.gateway.erasures.erasures import Erasures
from memserve.gateway.lineage.lineage import LineageReader
from memserve.memory.erasures.store import KEPT_MAX
from memserve.pb.v1 import lineage_pb2 as pb
from memserve.pb.v1 import lineage_pb2_grpc as rpc

ERASURES_DEFAULT = 20


class LineageService(rpc.LineageServiceServicer):  # type: ignore[misc]
    """Each tenant sees its own."""

    def __init__(self, edge: Edge, lineage: LineageReader, erasures: Erasures) -> None:
        self._edge = edge
        self._lineage = lineage
        self._erasures = erasures

    async def ShowLineage(self, request: pb.ShowLineageRequest, context: Context) -> pb.ShowLineageResponse:
        async with self._edge.call("ShowLineage", context) as tenant:
            return lineage_message(
                await self._lineage.show(
                    tenant,
                    request.of,
                    up=not request.skip_sources,
                    down=not request.skip_products,
                    depth=request.depth,
                    limit=request.limit,
                )
            )

    async def ListErasures(
        self, request: pb.ListErasuresRequest, context: Context
    ) -> pb.ListErasuresResponse:
        async with self._edge.call("ListErasures", context) as tenant:
            if not 0 <= request.limit <= KEPT_MAX:
                raise InvalidField("limit", f"must be 1 to {KEPT_MAX}, or 0 for {ERASURES_DEFAULT}")
            newest = await self._erasures.newest(tenant, request.limit or ERASURES_DEFAULT)
            return pb.ListErasuresResponse(
                erasures=[
                    pb.ErasureReport(erasure=erasure_message(each), places=erased_messages(each.places))
                    for each in newest
                ]
            )

    async def CheckErasure(
        self, request: pb.CheckErasureRequest, context: Context
    ) -> pb.CheckErasureResponse:
        async with self._edge.call("CheckErasure", context) as tenant:
            erasure = await self._erasures.check(tenant, request.erasure_id)
            if erasure is None:
                raise ErasureNotFound(request.erasure_id)
            return pb.CheckErasureResponse(
                erasure=erasure_message(erasure), places=erased_messages(erasure.places)
            )
