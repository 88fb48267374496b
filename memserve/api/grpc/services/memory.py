"""`MemoryService`: text memories."""

from __future__ import annotations

from memserve.api.grpc.call import Context, Edge
from memserve.api.grpc.convert import memory as convert
from memserve.domain import NewMemory, SearchQuery
from memserve.errors import InvalidField, MemoryNotFound
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.memory.texts.memory import VectorMemory
from memserve.pb.v1 import memory_pb2 as pb
from memserve.pb.v1 import memory_pb2_grpc as rpc

SEARCH_TIMEOUT_S = 10.0
SEARCH_LIMIT = 8


class MemoryService(rpc.MemoryServiceServicer):  # type: ignore[misc]
    """Text memories of the caller's tenant."""

    def __init__(self, edge: Edge, texts: VectorMemory, tokenizer: ChatTokenizer) -> None:
        self._edge = edge
        self._texts = texts
        self._tokenizer = tokenizer

    async def Remember(self, request: pb.RememberRequest, context: Context) -> pb.RememberResponse:
        async with self._edge.call("Remember", context) as tenant:
            token = self._tokenizer.special_token_in(request.text)
            if token:
                raise InvalidField("text", f"must not contain the model's control token {token!r}")
            new = NewMemory(
                request.namespace,
                request.text,
                source=request.source,
                keywords=tuple(request.keywords),
                memory_id=request.memory_id,
            )
            stored = await self._texts.remember(tenant.name, new)
            assert stored.memory is not None
            return pb.RememberResponse(memory=convert.memory(stored.memory))

    async def GetMemory(self, request: pb.GetMemoryRequest, context: Context) -> pb.GetMemoryResponse:
        async with self._edge.call("GetMemory", context) as tenant:
            found = await self._texts.get(tenant.name, request.namespace, request.memory_id)
            return pb.GetMemoryResponse(memory=convert.memory(found))

    async def Forget(self, request: pb.ForgetRequest, context: Context) -> pb.ForgetResponse:
        async with self._edge.call("Forget", context) as tenant:
            if not await self._texts.forget(tenant.name, request.namespace, request.memory_id):
                raise MemoryNotFound(request.memory_id)
            return pb.ForgetResponse()

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        async with self._edge.call("Search", context) as tenant:
            limit = request.limit or SEARCH_LIMIT
            query = SearchQuery(tuple(request.namespaces), request.query, limit, rerank=True)
            found = await self._texts.search(tenant.name, query, context.time_remaining() or SEARCH_TIMEOUT_S)
            return pb.SearchResponse(results=[convert.scored_memory(hit) for hit in found.hits])

    async def ListNamespaces(
        self, request: pb.ListNamespacesRequest, context: Context
    ) -> pb.ListNamespacesResponse:
        async with self._edge.call("ListNamespaces", context) as tenant:
            counts = await self._texts.counts(tenant.name)
            return pb.ListNamespacesResponse(
                namespaces=[
                    pb.NamespaceSummary(namespace=name, memories=memories)
                    for name, memories in counts.items()
                ]
            )
