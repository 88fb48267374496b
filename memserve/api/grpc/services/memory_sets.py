"""The calls of `MemoryService` on many memories: batches, documents, lists, exchange and whole namespaces."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import TypeVar

from memserve.api.entry import require_admin
from memserve.api.facts import detail_of
from memserve.api.grpc.call import Context, Edge
from memserve.api.grpc.convert import memory as convert
from memserve.api.grpc.convert.paging import page_size
from memserve.api.grpc.errors import status_of
from memserve.client.wire.memory_values import (
    ACTIONS,
    erased_messages,
    memory_message,
    remembered_message,
)
from memserve.domain import NewMemory, Tenant, WritePolicy
from memserve.errors import InvalidField, MemserveError
from memserve.gateway.reindexer import EmbedderChoice, Reindexer
from memserve.gateway.remembering import Remembering
from memserve.memory.texts.embedder_files import Prompts
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.requests import ItemOutcome, ListQuery
from memserve.pb.v1 import memory_pb2 as pb

P = TypeVar("P", pb.BatchRememberRequest, pb.RememberDocumentRequest)
DOCUMENT_MAX_BYTES = 16 << 20


class MemorySetCalls:
    """`memory.py` makes the service of it."""

    def __init__(
        self, edge: Edge, texts: VectorMemory, remembering: Remembering, reindexer: Reindexer
    ) -> None:
        self._edge = edge
        self._texts = texts
        self._remembering = remembering
        self._reindexer = reindexer

    async def BatchRemember(
        self, request_iterator: AsyncIterator[pb.BatchRememberRequest], context: Context
    ) -> AsyncIterator[pb.BatchRememberResponse]:
        async with self._edge.call("BatchRemember", context) as tenant:
            parts = aiter(request_iterator)
            header = (await _with_header(parts)).header
            policy = WritePolicy(skip_relations=not header.relate)
            sending = self._edge.sending(context)
            outcomes = self._remembering.remember_many(tenant, self._items(tenant, parts), policy)
            async with contextlib.aclosing(outcomes):
                async for outcome in outcomes:
                    with sending:
                        yield item_message(outcome)

    async def _items(
        self, tenant: Tenant, parts: AsyncIterator[pb.BatchRememberRequest]
    ) -> AsyncIterator[NewMemory | MemserveError]:
        """Each item, or why it is none."""
        async for part in parts:
            if part.WhichOneof("part") != "item":
                raise InvalidField("part", "only the first message may carry a header")
            await self._edge.entry.limits.received(tenant.name, part.ByteSize())
            try:
                if part.item.HasField("policy") and part.item.policy != pb.WritePolicy():
                    raise InvalidField("item.policy", "is the header's in a batch")
                yield convert.new_memory(part.item)
            except MemserveError as error:
                yield error

    async def RememberDocument(
        self, request_iterator: AsyncIterator[pb.RememberDocumentRequest], context: Context
    ) -> AsyncIterator[pb.RememberDocumentResponse]:
        async with self._edge.call("RememberDocument", context) as tenant:
            parts = aiter(request_iterator)
            document = convert.new_document((await _with_header(parts)).header)
            content = bytearray()
            async for part in parts:
                if part.WhichOneof("part") != "content":
                    raise InvalidField("part", "only the first message may carry a header")
                if len(content) + len(part.content) > DOCUMENT_MAX_BYTES:
                    raise InvalidField("content", f"must be at most {DOCUMENT_MAX_BYTES} bytes together")
                await self._edge.entry.limits.received(tenant.name, len(part.content))
                content += part.content
            sending = self._edge.sending(context)
            async with self._edge.entry.limits.long.of(tenant.name):
                reports = self._remembering.remember_document(tenant, document, bytes(content))
                async with contextlib.aclosing(reports):
                    async for report in reports:
                        with sending:
                            yield pb.RememberDocumentResponse(
                                passages=report.passages,
                                stored=report.stored,
                                unchanged=report.unchanged,
                                updated=report.updated,
                                forgotten=report.forgotten,
                                refused=map(item_message, report.refused),
                                done=report.done,
                                title=report.title,
                            )

    async def ForgetWhere(self, request: pb.ForgetWhereRequest, context: Context) -> pb.ForgetWhereResponse:
        async with self._edge.call("ForgetWhere", context) as tenant:
            if not request.filter.strip():
                raise InvalidField("filter", "must not be blank; DeleteNamespace erases a whole namespace")
            result = await self._texts.forget_where(
                tenant.name,
                ListQuery(tuple(request.namespaces), filter=request.filter),
                tenant.principal,
                dry_run_token=request.dry_run_token,
            )
            return pb.ForgetWhereResponse(
                matched=result.matched,
                forgotten=result.forgotten,
                examples=map(memory_message, result.examples),
                dry_run_token=result.dry_run_token,
            )

    async def DeleteNamespace(
        self, request: pb.DeleteNamespaceRequest, context: Context
    ) -> AsyncIterator[pb.DeleteNamespaceResponse]:
        async with self._edge.call("DeleteNamespace", context) as tenant:
            if request.confirm != request.namespace:
                raise InvalidField("confirm", "must be the namespace's name again")
            sending = self._edge.sending(context)
            async with self._edge.entry.limits.long.of(tenant.name):
                erasures = self._remembering.delete_namespace(tenant, request.namespace)
                async with contextlib.aclosing(erasures):
                    async for erasure in erasures:
                        with sending:
                            yield pb.DeleteNamespaceResponse(
                                erased=erasure.erased,
                                remaining=erasure.remaining,
                                done=erasure.done,
                                places=erased_messages(erasure.places),
                            )

    async def ListMemories(
        self, request: pb.ListMemoriesRequest, context: Context
    ) -> pb.ListMemoriesResponse:
        async with self._edge.call("ListMemories", context) as tenant:
            page = await self._texts.list_memories(
                tenant.name, convert.list_query(request, page_size(request.page_size))
            )
            return pb.ListMemoriesResponse(
                memories=map(memory_message, page.memories), next_page_token=page.next_page_token
            )

    async def ExportMemories(
        self, request: pb.ExportMemoriesRequest, context: Context
    ) -> AsyncIterator[pb.ExportMemoriesResponse]:
        async with self._edge.call("ExportMemories", context) as tenant:
            namespaces = list(request.namespaces) or await self._texts.list_namespaces(tenant.name)
            sending = self._edge.sending(context)
            lines = self._texts.export(tenant.name, namespaces)
            async with contextlib.aclosing(lines):
                async for line in lines:
                    with sending:
                        yield pb.ExportMemoriesResponse(
                            line=json.dumps(line, ensure_ascii=False, separators=(",", ":"))
                        )

    async def ImportMemories(
        self, request_iterator: AsyncIterator[pb.ImportMemoriesRequest], context: Context
    ) -> AsyncIterator[pb.ImportMemoriesResponse]:
        async with self._edge.call("ImportMemories", context) as tenant:
            sending = self._edge.sending(context)
            outcomes = self._remembering.import_lines(tenant, self._lines(tenant, request_iterator))
            async with contextlib.aclosing(outcomes):
                async for outcome in outcomes:
                    refusal = None if outcome.error is None else refusal_message(outcome.error)
                    with sending:
                        yield pb.ImportMemoriesResponse(
                            index=outcome.index,
                            refusal=refusal,
                            skipped=refusal is None and not outcome.created,
                        )

    async def _lines(
        self, tenant: Tenant, requests: AsyncIterator[pb.ImportMemoriesRequest]
    ) -> AsyncIterator[str]:
        async for request in requests:
            await self._edge.entry.limits.received(tenant.name, request.ByteSize())
            yield request.line

    async def WatchMemories(
        self, request: pb.WatchMemoriesRequest, context: Context
    ) -> AsyncIterator[pb.WatchMemoriesResponse]:
        async with self._edge.call("WatchMemories", context) as tenant:
            wanted = set(request.namespaces)
            if wanted:
                for namespace in wanted:
                    await self._texts.namespace_usage(tenant.name, namespace)
            if request.after_sequence < 0:
                raise InvalidField("after_sequence", "must not be negative")
            sending = self._edge.sending(context)
            changes = self._texts.watch(tenant.name, request.after_sequence or None)
            async with contextlib.aclosing(changes):
                async for change in changes:
                    if wanted and change.namespace not in wanted:
                        continue
                    with sending:
                        yield pb.WatchMemoriesResponse(
                            change=pb.MemoryChange(
                                sequence=change.sequence,
                                namespace=change.namespace,
                                memory_id=change.memory_id,
                                version=change.version,
                                action=ACTIONS[change.action],
                            )
                        )

    async def GetMemoryUsage(
        self, request: pb.GetMemoryUsageRequest, context: Context
    ) -> pb.GetMemoryUsageResponse:
        async with self._edge.call("GetMemoryUsage", context) as tenant:
            usage = await self._texts.usage(tenant.name)
            return pb.GetMemoryUsageResponse(
                namespaces=[
                    pb.NamespaceUsage(
                        namespace=each.namespace,
                        memories=each.memories,
                        records=each.records,
                        bytes=each.bytes,
                    )
                    for each in usage.namespaces
                ],
                max_memories=usage.max_memories,
                max_namespaces=usage.max_namespaces,
                max_bytes=usage.max_bytes,
            )

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

    async def ReindexMemories(
        self, request: pb.ReindexMemoriesRequest, context: Context
    ) -> AsyncIterator[pb.ReindexMemoriesResponse]:
        async with self._edge.call("ReindexMemories", context) as tenant:
            require_admin(tenant, "ReindexMemories")
            sending = self._edge.sending(context)
            prompts = Prompts(request.query_prompt, request.passage_prompt)
            steps = self._reindexer.reindex(EmbedderChoice(request.embedder, prompts), cancel=request.cancel)
            async with contextlib.aclosing(steps):
                async for step in steps:
                    with sending:
                        yield pb.ReindexMemoriesResponse(
                            memories_done=step.memories_done,
                            memories_total=step.memories_total,
                            embedder=step.embedder,
                            done=step.done,
                        )


async def _with_header(parts: AsyncIterator[P]) -> P:
    """The first message. Raises InvalidField when it does not carry the header."""
    first = await anext(parts, None)
    if first is None or first.WhichOneof("part") != "header":
        raise InvalidField("part", "the first message must carry the header")
    return first


def item_message(outcome: ItemOutcome) -> pb.BatchRememberResponse:
    if outcome.error is not None:
        return pb.BatchRememberResponse(index=outcome.index, refusal=refusal_message(outcome.error))
    assert outcome.remembered is not None
    return pb.BatchRememberResponse(index=outcome.index, remembered=remembered_message(outcome.remembered))


def refusal_message(error: MemserveError) -> pb.ItemRefusal:
    """As a single call would have ended."""
    field = error.field if isinstance(error, InvalidField) else ""
    return pb.ItemRefusal(status=status_of(error).name, field=field, message=detail_of(error))
