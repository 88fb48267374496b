"""The client's calls of `LineageService`, and erasures: `AsyncClient.lineage`."""

from __future__ import annotations

from memserve.client._async.connection import Connection
from memserve.client.wire.erasures import erasure_of
from memserve.client.wire.lineage import lineage_of
from memserve.domain.lineage import Erasure, Lineage
from memserve.pb.v1 import lineage_pb2 as pb
from memserve.pb.v1 import memory_pb2


class AsyncLineageCalls:
    """What was made of what, and erasures with everything that was made of a memory."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def show(
        self, of: str, *, sources: bool = True, products: bool = True, depth: int = 0, limit: int = 0
    ) -> Lineage:
        """What something was made of, and what was made of it.

        of: `namespace/memory`, `namespace/memory@version`, `module@version`, `module@alias`, or an answer's
        request id. sources: what it was made of. products: what was made of it.
        depth: steps in each direction. limit: nodes at most. 0: the gateway's default.
        """
        stub = self._connection.stubs.lineage
        request = pb.ShowLineageRequest(
            of=of, skip_sources=not sources, skip_products=not products, depth=depth, limit=limit
        )
        return lineage_of(await self._connection.call(stub.ShowLineage, request))

    async def plan_erasure(self, namespace: str, memory_id: str) -> Erasure:
        """What an erasure of this memory would remove. Nothing changes."""
        stub = self._connection.stubs.memories
        request = memory_pb2.EraseMemoryRequest(namespace=namespace, memory_id=memory_id, dry_run=True)
        response = await self._connection.call(stub.EraseMemory, request)
        return erasure_of(response.erasure, response.places)

    async def erase(self, namespace: str, memory_id: str, *, reason: str = "") -> Erasure:
        """Remove a memory with its history and everything that was made of it, for good.

        Returns what was removed, and what could not be reached yet.
        """
        stub = self._connection.stubs.memories
        request = memory_pb2.EraseMemoryRequest(namespace=namespace, memory_id=memory_id, reason=reason)
        response = await self._connection.call(stub.EraseMemory, request)
        return erasure_of(response.erasure, response.places)

    async def erasures(self, limit: int = 0) -> list[Erasure]:
        """The newest first. limit: 0 for the gateway's default."""
        stub = self._connection.stubs.lineage
        response = await self._connection.call(stub.ListErasures, pb.ListErasuresRequest(limit=limit))
        return [erasure_of(report.erasure, report.places) for report in response.erasures]

    async def check_erasure(self, erasure_id: str) -> Erasure:
        """Look again for everything that an erasure has removed. Its places count what is still there."""
        stub = self._connection.stubs.lineage
        request = pb.CheckErasureRequest(erasure_id=erasure_id)
        response = await self._connection.call(stub.CheckErasure, request)
        return erasure_of(response.erasure, response.places)
