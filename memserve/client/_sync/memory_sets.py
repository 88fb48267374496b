# Generated from ../_async/memory_sets.py by `make client`; do not edit.
"""The client's calls of `MemoryService` on many memories at once."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Sequence

from memserve.client._sync import _io
from memserve.client._sync.connection import Connection
from memserve.client.arguments import strings
from memserve.client.values import Progress, silent
from memserve.client.wire.consolidating import consolidation_of, plan_of
from memserve.client.wire.memories import (
    batch_messages,
    change_of,
    document_messages,
    document_report_of,
    import_messages,
    import_result_of,
    item_of,
    kind_numbers,
    namespace_erasure_of,
    order_number,
    reindex_progress_of,
    state_numbers,
    usage_of,
)
from memserve.client.wire.memory_values import memory_of
from memserve.domain import (
    Consolidation,
    ConsolidationPlan,
    DocumentReport,
    ForgottenWhere,
    ImportResult,
    ItemResult,
    MemoryChange,
    MemoryKind,
    MemoryPage,
    MemoryState,
    MemoryUsage,
    NamespaceErasure,
    NewDocument,
    NewMemory,
    ReindexProgress,
)
from memserve.pb.v1 import memory_pb2 as pb


class MemorySetCalls:
    """Batches, documents, lists, exports and whole namespaces."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def remember_many(
        self, memories: Iterable[NewMemory], *, relate: bool = False
    ) -> Generator[ItemResult, None, None]:
        """Keep many texts. Each has a result, in order; one that is refused does not stop the others.

        Texts of which no result came within the client's `timeout_s` are not stored, or are stored untold:
        the same call again changes nothing that is there.
        relate: look for duplicates and contradictions of each. It costs a search for each.
        """
        stub = self._connection.stubs.memories
        parts = _io.iterate(batch_messages(memories, relate))
        with contextlib.closing(self._connection.converse(stub.BatchRemember, parts)) as responses:
            for response in responses:
                yield item_of(response)

    def remember_document(
        self, document: NewDocument, content: bytes
    ) -> Generator[DocumentReport, None, None]:
        """Cut a document into passages, and keep them. Yields progress; the last report is `done`.

        A document that is sent again under its id is brought up to date.
        """
        stub = self._connection.stubs.memories
        parts = _io.iterate(document_messages(document, content))
        with contextlib.closing(self._connection.converse(stub.RememberDocument, parts)) as responses:
            for response in responses:
                yield document_report_of(response)

    def forget_where(
        self, namespaces: str | Sequence[str], filter: str, *, dry_run_token: str = ""
    ) -> ForgottenWhere:
        """Forget what a filter matches.

        dry_run_token: of the answer to the same call without it, which forgets nothing.
        """
        stub = self._connection.stubs.memories
        request = pb.ForgetWhereRequest(
            namespaces=strings("namespaces", namespaces), filter=filter, dry_run_token=dry_run_token
        )
        response = self._connection.call(stub.ForgetWhere, request)
        return ForgottenWhere(
            response.matched,
            response.forgotten,
            tuple(map(memory_of, response.examples)),
            response.dry_run_token,
        )

    def delete_namespace(self, namespace: str, *, confirm: str) -> Generator[NamespaceErasure, None, None]:
        """Erase a namespace with all its memories. Yields progress; the last one is `done`.

        confirm: the namespace's name again.
        """
        stub = self._connection.stubs.memories
        request = pb.DeleteNamespaceRequest(namespace=namespace, confirm=confirm)
        with contextlib.closing(self._connection.stream(stub.DeleteNamespace, request)) as responses:
            for response in responses:
                yield namespace_erasure_of(response)

    def plan_consolidation(self, namespace: str, *, summaries: bool = True) -> ConsolidationPlan:
        """Which memories of the namespace would become one, and why. Nothing is tried."""
        request = pb.ConsolidateNamespaceRequest(
            namespace=namespace, dry_run=True, no_summaries=not summaries
        )
        stub = self._connection.stubs.memories
        responses = self._connection.stream(stub.ConsolidateNamespace, request)
        with contextlib.closing(responses):
            for response in responses:
                return plan_of(response.plan)
        raise RuntimeError("the stream ended without a result")

    def consolidate(
        self,
        namespace: str,
        *,
        summaries: bool = True,
        model_writes: bool = False,
        budget_s: float = 0.0,
        progress: Progress = silent,
    ) -> Consolidation:
        """Try what would become of the namespace. Returns a candidate, or one that has failed, and why.

        No memory changes before `decide_consolidation`. model_writes: the served model writes the summaries.
        budget_s: seconds of its answers; 0 for the default. progress: of the questions.
        """
        request = pb.ConsolidateNamespaceRequest(
            namespace=namespace,
            no_summaries=not summaries,
            model_writes=model_writes,
            budget_s=budget_s,
        )
        stub = self._connection.stubs.memories
        responses = self._connection.stream(stub.ConsolidateNamespace, request)
        with contextlib.closing(responses):
            for response in responses:
                match response.WhichOneof("event"):
                    case "consolidation":
                        return consolidation_of(response.consolidation)
                    case "progress":
                        progress(response.progress.done, response.progress.total)
        raise RuntimeError("the stream ended without a result")

    def decide_consolidation(
        self, namespace: str, *, accept: bool, consolidation_id: str = ""
    ) -> Consolidation:
        """Let the namespace's candidate take the place of its sources, or take it away.

        consolidation_id: that it must have. Empty: any.
        """
        request = pb.DecideConsolidationRequest(
            namespace=namespace, consolidation_id=consolidation_id, accept=accept
        )
        stub = self._connection.stubs.memories
        response = self._connection.call(stub.DecideConsolidation, request)
        return consolidation_of(response.consolidation)

    def consolidations(self) -> list[Consolidation]:
        """The newest of each namespace, of the last seven days."""
        stub = self._connection.stubs.memories
        response = self._connection.call(stub.ListConsolidations, pb.ListConsolidationsRequest())
        return list(map(consolidation_of, response.consolidations))

    def list_memories(
        self,
        namespaces: str | Sequence[str],
        *,
        filter: str = "",
        kinds: Sequence[MemoryKind] = (),
        states: Sequence[MemoryState] = (),
        order: str = "created",
        descending: bool = False,
        page_size: int = 0,
        page_token: str = "",
    ) -> MemoryPage:
        """A page of memories in order.

        filter: an expression over their fields, such as `metadata.city == "Oslo"`.
        kinds: empty for all. states: empty for live ones.
        order: created, updated, id or place.
        """
        stub = self._connection.stubs.memories
        request = pb.ListMemoriesRequest(
            namespaces=strings("namespaces", namespaces),
            filter=filter,
            kinds=kind_numbers(kinds),
            states=state_numbers(states),
            order=order_number(order),
            descending=descending,
            page_size=page_size,
            page_token=page_token,
        )
        response = self._connection.call(stub.ListMemories, request)
        return MemoryPage(tuple(map(memory_of, response.memories)), response.next_page_token)

    def export_memories(self, namespaces: str | Sequence[str] = ()) -> Generator[str, None, None]:
        """The lines of an export, each of JSON, without line breaks. `import_memories` reads them.

        namespaces: none for all of the tenant's.
        """
        stub = self._connection.stubs.memories
        request = pb.ExportMemoriesRequest(namespaces=strings("namespaces", namespaces))
        with contextlib.closing(self._connection.stream(stub.ExportMemories, request)) as responses:
            for response in responses:
                yield response.line

    def import_memories(self, lines: Iterable[str]) -> Generator[ImportResult, None, None]:
        """Bring in the lines of an export. Each has a result, in order."""
        stub = self._connection.stubs.memories
        parts = _io.iterate(import_messages(lines))
        with contextlib.closing(self._connection.converse(stub.ImportMemories, parts)) as responses:
            for response in responses:
                yield import_result_of(response)

    def watch_memories(
        self, namespaces: str | Sequence[str] = (), *, after_sequence: int = 0
    ) -> Generator[MemoryChange, None, None]:
        """The tenant's changes as they happen, until the client's timeout or the generator is closed.

        after_sequence: of the last change that was seen. 0: from now on.
        """
        stub = self._connection.stubs.memories
        request = pb.WatchMemoriesRequest(
            after_sequence=after_sequence, namespaces=strings("namespaces", namespaces)
        )
        with contextlib.closing(self._connection.stream(stub.WatchMemories, request)) as responses:
            for response in responses:
                yield change_of(response.change)

    def memory_usage(self) -> MemoryUsage:
        """What each namespace holds, and what the tenant may keep."""
        stub = self._connection.stubs.memories
        return usage_of(self._connection.call(stub.GetMemoryUsage, pb.GetMemoryUsageRequest()))

    def namespaces(self) -> dict[str, int]:
        """Namespace to number of memories."""
        stub = self._connection.stubs.memories
        response = self._connection.call(stub.ListNamespaces, pb.ListNamespacesRequest())
        return {entry.namespace: entry.memories for entry in response.namespaces}

    def reindex_memories(
        self, embedder: str = "", *, query_prompt: str = "", passage_prompt: str = "", cancel: bool = False
    ) -> Generator[ReindexProgress, None, None]:
        """Embed all memories of all tenants again, by another model, while the gateway serves.

        Needs an admin's key. Yields progress; the last one is `done`. It goes on when this call ends. A
        reindexing that was stopped goes on where it stopped.

        embedder: named as the gateway's setting `embedder` is, or `bundled`. "": watch the one under way.
        query_prompt, passage_prompt: what the model wants before a text. "": what its files name.
        """
        stub = self._connection.stubs.memories
        request = pb.ReindexMemoriesRequest(
            cancel=cancel, embedder=embedder, query_prompt=query_prompt, passage_prompt=passage_prompt
        )
        with contextlib.closing(self._connection.stream(stub.ReindexMemories, request)) as responses:
            for response in responses:
                yield reindex_progress_of(response)
