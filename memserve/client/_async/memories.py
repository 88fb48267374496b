"""The client's calls of `MemoryService`."""

from __future__ import annotations

from collections.abc import Sequence

from memserve.client._async.connection import Connection
from memserve.client.arguments import strings
from memserve.client.wire.memories import memory_of, remember_request, scored_of
from memserve.domain import Memory, ScoredMemory
from memserve.pb.v1 import memory_pb2 as pb


class AsyncMemoryCalls:
    """Memories: texts that are remembered, searched and forgotten."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def remember(
        self,
        namespace: str,
        text: str,
        *,
        source: str = "",
        keywords: str | Sequence[str] = (),
        memory_id: str = "",
    ) -> Memory:
        """Keep a text. It is durable when this returns.

        source: where the text comes from.
        keywords: words that a search finds the text by, as well as its own words.
        memory_id: makes a repeated call harmless. Empty: a digest of the content.
        """
        stub = self._connection.stubs.memories
        request = remember_request(namespace, text, source, keywords, memory_id)
        return memory_of((await self._connection.call(stub.Remember, request)).memory)

    async def get_memory(self, namespace: str, memory_id: str) -> Memory:
        stub = self._connection.stubs.memories
        request = pb.GetMemoryRequest(namespace=namespace, memory_id=memory_id)
        return memory_of((await self._connection.call(stub.GetMemory, request)).memory)

    async def forget(self, namespace: str, memory_id: str) -> None:
        stub = self._connection.stubs.memories
        await self._connection.call(stub.Forget, pb.ForgetRequest(namespace=namespace, memory_id=memory_id))

    async def search(self, namespaces: str | Sequence[str], query: str, limit: int = 8) -> list[ScoredMemory]:
        """Memories by meaning and by words, best first."""
        stub = self._connection.stubs.memories
        request = pb.SearchRequest(namespaces=strings("namespaces", namespaces), query=query, limit=limit)
        return [scored_of(hit) for hit in (await self._connection.call(stub.Search, request)).results]

    async def namespaces(self) -> dict[str, int]:
        """Namespace to number of memories."""
        stub = self._connection.stubs.memories
        response = await self._connection.call(stub.ListNamespaces, pb.ListNamespacesRequest())
        return {entry.namespace: entry.memories for entry in response.namespaces}
