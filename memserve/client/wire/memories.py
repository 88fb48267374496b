"""Messages of `MemoryService`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from memserve.client.arguments import strings
from memserve.client.wire.memory_values import (
    ACTIONS,
    KINDS,
    LINKS,
    STATES,
    finding_of,
    link_message,
    member,
    memory_of,
    metadata_message,
    place_message,
    scored_of,
    skipped_of,
    surprise_of,
)
from memserve.domain import (
    DocumentReport,
    ErasedPlace,
    FoundMemories,
    ImportResult,
    ItemRefusal,
    ItemResult,
    Link,
    MemoryAction,
    MemoryChange,
    MemoryHistory,
    MemoryKind,
    MemoryState,
    MemoryUsage,
    MemoryVersion,
    MetadataValue,
    NamespaceErasure,
    NamespaceUsage,
    NewDocument,
    NewMemory,
    ReindexProgress,
    Remembered,
    SearchQuery,
    WritePolicy,
)
from memserve.errors import UsageError
from memserve.pb.v1 import memory_pb2 as pb

ORDERS: dict[str, pb.MemoryOrder] = {
    name: getattr(pb, f"MEMORY_ORDER_{name.upper()}") for name in ("created", "updated", "id", "place")
}
CHUNK_BYTES = 256 << 10
"""Of a document, in one message."""


def policy_message(policy: WritePolicy) -> pb.WritePolicy:
    return pb.WritePolicy(
        skip_relations=policy.skip_relations,
        supersede_updates=policy.supersede_updates,
        skip_duplicates=policy.skip_duplicates,
        surprise_gate=policy.surprise_gate,
    )


def remember_request(memory: NewMemory, policy: WritePolicy = WritePolicy()) -> pb.RememberRequest:  # noqa: B008
    """Raises UsageError."""
    return pb.RememberRequest(
        namespace=memory.namespace,
        text=memory.text,
        source=memory.source,
        keywords=strings("keywords", memory.keywords),
        memory_id=memory.memory_id,
        kind=_kind_number(memory.kind),
        metadata=_metadata("metadata", memory.metadata),
        valid_from_s=memory.valid_from_s,
        valid_until_s=memory.valid_until_s,
        applies_when=memory.applies_when,
        strength=memory.strength,
        links=_links(memory.links),
        place=place_message(memory.place),
        pinned=memory.pinned,
        policy=policy_message(policy),
    )


CONTENT: dict[str, Callable[[Any], Any]] = {
    "text": str,
    "source": str,
    "keywords": lambda value: strings("keywords", value),
    "kind": lambda value: _kind_number(value),
    "metadata": lambda value: _metadata("metadata", value),
    "valid_from_s": lambda value: value,
    "valid_until_s": lambda value: value,
    "applies_when": str,
    "strength": float,
    "links": lambda value: _links(value),
    "place": place_message,
    "pinned": bool,
}
"""The fields that an update may change, and how they are sent."""


def update_request(
    namespace: str,
    memory_id: str,
    changes: Mapping[str, Any],
    expected_version: int,
    policy: WritePolicy,
) -> pb.UpdateMemoryRequest:
    """changes: new values by field. Raises UsageError for a field that a memory's version does not have."""
    for name in changes:
        if name not in CONTENT:
            raise UsageError(name, f"must be one of {', '.join(CONTENT)}")
    if not changes:
        raise UsageError("changes", "must name at least one field")
    content = pb.MemoryContent(**{name: CONTENT[name](value) for name, value in changes.items()})
    return pb.UpdateMemoryRequest(
        namespace=namespace,
        memory_id=memory_id,
        expected_version=expected_version,
        fields=sorted(changes),
        content=content,
        policy=policy_message(policy),
    )


def options_message(query: SearchQuery) -> pb.SearchOptions:
    """Raises UsageError."""
    return pb.SearchOptions(
        kinds=[_kind_number(kind) for kind in query.kinds],
        filter=query.filter,
        min_relevance=query.min_relevance,
        diversity=query.diversity,
        max_tokens=query.max_tokens,
        context=_metadata("context", query.context),
        neighbours=query.neighbours,
        link_depth=query.link_depth,
        link_kinds=[LINKS[kind] for kind in query.link_kinds],
        as_of_s=query.as_of_s,
        rerank=query.rerank,
    )


def search_query(
    namespaces: str | Sequence[str], text: str, limit: int, options: Mapping[str, Any]
) -> SearchQuery:
    """The query for the keyword arguments of `Client.find`. Raises UsageError."""
    known = {entry.name for entry in fields(SearchQuery)} - {"namespaces", "text", "limit"}
    for name in options:
        if name not in known:
            raise UsageError(name, f"must be one of {', '.join(sorted(known))}")
    query = SearchQuery(tuple(strings("namespaces", namespaces)), text, limit)
    return replace(query, **options)


def search_request(query: SearchQuery) -> pb.SearchRequest:
    """Raises UsageError."""
    return pb.SearchRequest(
        namespaces=query.namespaces, query=query.text, limit=query.limit, options=options_message(query)
    )


def found_of(response: pb.SearchResponse) -> FoundMemories:
    return FoundMemories(tuple(map(scored_of, response.results)), skipped_of(response.skipped), response.cut)


def remembered_of(response: pb.RememberResponse) -> Remembered:
    return Remembered(
        memory_of(response.memory) if response.HasField("memory") else None,
        response.created,
        tuple(map(finding_of, response.findings)),
        surprise_of(response.surprise) if response.HasField("surprise") else None,
    )


def batch_messages(items: Iterable[NewMemory], relate: bool) -> Iterator[pb.BatchRememberRequest]:
    """Raises UsageError for an item that cannot be sent."""
    yield pb.BatchRememberRequest(header=pb.BatchRememberHeader(relate=relate))
    for item in items:
        yield pb.BatchRememberRequest(item=remember_request(item))


def item_of(response: pb.BatchRememberResponse) -> ItemResult:
    if response.WhichOneof("outcome") == "refusal":
        return ItemResult(response.index, refusal=refusal_of(response.refusal))
    return ItemResult(response.index, remembered_of(response.remembered))


def refusal_of(message: pb.ItemRefusal) -> ItemRefusal:
    return ItemRefusal(message.status, message.field, message.message)


def document_messages(document: NewDocument, content: bytes) -> Iterator[pb.RememberDocumentRequest]:
    """Raises UsageError."""
    yield pb.RememberDocumentRequest(
        header=pb.DocumentHeader(
            namespace=document.namespace,
            document_id=document.document_id,
            media_type=document.media_type,
            file_name=document.file_name,
            source=document.source,
            title=document.title,
            metadata=_metadata("metadata", document.metadata),
            keywords=strings("keywords", document.keywords),
            valid_from_s=document.valid_from_s,
            valid_until_s=document.valid_until_s,
            applies_when=document.applies_when,
        )
    )
    for start in range(0, len(content), CHUNK_BYTES):
        yield pb.RememberDocumentRequest(content=content[start : start + CHUNK_BYTES])


def document_report_of(response: pb.RememberDocumentResponse) -> DocumentReport:
    return DocumentReport(
        passages=response.passages,
        stored=response.stored,
        unchanged=response.unchanged,
        updated=response.updated,
        forgotten=response.forgotten,
        title=response.title,
        done=response.done,
        refused=tuple(map(item_of, response.refused)),
    )


def history_of(response: pb.GetMemoryResponse) -> MemoryHistory:
    return MemoryHistory(
        tuple(
            MemoryVersion(memory_of(entry.memory), member(ACTIONS, entry.action, MemoryAction.UNKNOWN))
            for entry in response.history
        ),
        response.dropped_versions,
    )


def places_of(messages: Iterable[pb.ErasedPlace]) -> tuple[ErasedPlace, ...]:
    return tuple(
        ErasedPlace(message.place, message.removed, message.detail, message.pending) for message in messages
    )


def namespace_erasure_of(response: pb.DeleteNamespaceResponse) -> NamespaceErasure:
    return NamespaceErasure(response.erased, response.remaining, response.done, places_of(response.places))


def import_messages(lines: Iterable[str]) -> Iterator[pb.ImportMemoriesRequest]:
    for line in lines:
        yield pb.ImportMemoriesRequest(line=line.rstrip("\n"))


def import_result_of(response: pb.ImportMemoriesResponse) -> ImportResult:
    refused = response.HasField("refusal")
    return ImportResult(response.index, refusal_of(response.refusal) if refused else None, response.skipped)


def change_of(message: pb.MemoryChange) -> MemoryChange:
    return MemoryChange(
        message.sequence,
        message.namespace,
        message.memory_id,
        message.version,
        member(ACTIONS, message.action, MemoryAction.UNKNOWN),
    )


def usage_of(response: pb.GetMemoryUsageResponse) -> MemoryUsage:
    return MemoryUsage(
        tuple(
            NamespaceUsage(entry.namespace, entry.memories, entry.records, entry.bytes)
            for entry in response.namespaces
        ),
        response.max_memories,
        response.max_namespaces,
        response.max_bytes,
    )


def reindex_progress_of(response: pb.ReindexMemoriesResponse) -> ReindexProgress:
    return ReindexProgress(response.memories_done, response.memories_total, response.embedder, response.done)


def kind_numbers(kinds: Iterable[MemoryKind | str]) -> list[pb.MemoryKind]:
    """Raises UsageError."""
    return [_kind_number(kind) for kind in kinds]


def state_numbers(states: Iterable[MemoryState | str]) -> list[pb.MemoryState]:
    """Raises UsageError."""
    for state in states:
        if state not in STATES:
            raise UsageError("states", f"must be of {', '.join(STATES)}, not {state!r}")
    return [STATES[MemoryState(state)] for state in states]


def order_number(order: str) -> pb.MemoryOrder:
    """Raises UsageError."""
    if order not in ORDERS:
        raise UsageError("order", f"must be one of {', '.join(ORDERS)}, not {order!r}")
    return ORDERS[order]


def _kind_number(kind: MemoryKind | str) -> pb.MemoryKind:
    if kind not in KINDS:
        raise UsageError("kind", f"must be one of {', '.join(KINDS)}, not {kind!r}")
    return KINDS[MemoryKind(kind)]


def _metadata(field: str, values: Mapping[str, MetadataValue]) -> dict[str, pb.MetadataValue]:
    if not isinstance(values, Mapping):
        raise UsageError(field, f"must be a mapping, not {type(values).__name__}")
    for key, value in values.items():
        if not isinstance(key, str):
            raise UsageError(field, f"must have strings as keys, not {type(key).__name__}")
        if isinstance(value, list | tuple):
            strings(f"{field}.{key}", value)
        elif not isinstance(value, str | int | float | bool):
            raise UsageError(
                f"{field}.{key}",
                f"must be a string, a number, a truth value or a list of strings, not {type(value).__name__}",
            )
        elif type(value) is int and not -(2**63) <= value < 2**63:
            raise UsageError(f"{field}.{key}", "must be a number of 64 bits")
    return metadata_message(values)


def _links(links: Iterable[Link]) -> list[pb.MemoryLink]:
    for link in links:
        if not isinstance(link, Link) or link.kind not in LINKS:
            raise UsageError("links", f"must be Links of a kind that is one of {', '.join(LINKS)}")
    return [link_message(link) for link in links]
