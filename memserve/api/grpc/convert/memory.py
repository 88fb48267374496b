"""Reads the messages of `MemoryService` as domain values. What they may say is checked where it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from memserve.client.wire.memory_values import (
    KINDS,
    LINKS,
    STATES,
    metadata_of,
    optional_number,
    place_of,
)
from memserve.domain import (
    Link,
    LinkKind,
    MemoryKind,
    MemoryState,
    MetadataValue,
    NewDocument,
    NewMemory,
    SearchQuery,
    WritePolicy,
)
from memserve.domain.open_enum import OpenEnum
from memserve.errors import InvalidField
from memserve.memory.texts.requests import CHANGEABLE, ListQuery
from memserve.memory.texts.store import ListOrder
from memserve.pb.v1 import memory_pb2 as pb

E = TypeVar("E", bound=OpenEnum)
ORDERS = {
    pb.MEMORY_ORDER_UNSPECIFIED: ListOrder.CREATED,
    pb.MEMORY_ORDER_CREATED: ListOrder.CREATED,
    pb.MEMORY_ORDER_UPDATED: ListOrder.UPDATED,
    pb.MEMORY_ORDER_ID: ListOrder.MEMORY_ID,
    pb.MEMORY_ORDER_PLACE: ListOrder.PLACE,
}


def new_memory(request: pb.RememberRequest) -> NewMemory:
    """Raises InvalidField."""
    return _memory("", request.namespace, request.memory_id, request)


def content(namespace: str, memory_id: str, message: pb.MemoryContent) -> NewMemory:
    """Raises InvalidField."""
    return _memory("content.", namespace, memory_id, message)


def _memory(
    field: str, namespace: str, memory_id: str, message: pb.RememberRequest | pb.MemoryContent
) -> NewMemory:
    """field: before the names of fields, in errors."""
    return NewMemory(
        namespace=namespace,
        text=message.text,
        source=message.source,
        keywords=tuple(message.keywords),
        memory_id=memory_id,
        kind=member(f"{field}kind", KINDS, message.kind) if message.kind else MemoryKind.FACT,
        metadata=values(f"{field}metadata", message.metadata),
        valid_from_s=optional_number(message, "valid_from_s"),
        valid_until_s=optional_number(message, "valid_until_s"),
        applies_when=message.applies_when,
        strength=message.strength if message.HasField("strength") else 1.0,
        links=links(f"{field}links", message.links),
        place=place_of(message.place),
        pinned=message.pinned,
    )


def policy(message: pb.WritePolicy) -> WritePolicy:
    return WritePolicy(
        message.skip_relations,
        message.supersede_updates,
        message.skip_duplicates,
        message.surprise_gate,
    )


def new_document(header: pb.DocumentHeader) -> NewDocument:
    return NewDocument(
        namespace=header.namespace,
        document_id=header.document_id,
        media_type=header.media_type,
        file_name=header.file_name,
        source=header.source,
        title=header.title,
        metadata=values("header.metadata", header.metadata),
        keywords=tuple(header.keywords),
        valid_from_s=optional_number(header, "valid_from_s"),
        valid_until_s=optional_number(header, "valid_until_s"),
        applies_when=header.applies_when,
    )


def changed_fields(names: Sequence[str]) -> frozenset[str]:
    """Raises InvalidField for a field that a memory's version does not have."""
    if not names:
        raise InvalidField("fields", f"must name what changes, of {', '.join(sorted(CHANGEABLE))}")
    for name in names:
        if name not in CHANGEABLE:
            raise InvalidField("fields", f"must be of {', '.join(sorted(CHANGEABLE))}")
    return frozenset(names)


def list_query(request: pb.ListMemoriesRequest, limit: int) -> ListQuery:
    """Raises InvalidField."""
    if request.order not in ORDERS:
        raise InvalidField("order", f"must be one of {', '.join(ListOrder.known())}, or unspecified")
    return ListQuery(
        tuple(request.namespaces),
        order=ORDERS[request.order],
        descending=request.descending,
        limit=limit,
        page_token=request.page_token,
        filter=request.filter,
        kinds=members("kinds", KINDS, request.kinds),
        states=members("states", STATES, request.states) or (MemoryState.LIVE,),
    )


def search_query(request: pb.SearchRequest, limit: int) -> SearchQuery:
    """limit: where the request has none. Raises InvalidField."""
    return replace(
        search_options("options", request.options),
        namespaces=tuple(request.namespaces),
        text=request.query,
        limit=request.limit or limit,
    )


def search_options(field: str, options: pb.SearchOptions) -> SearchQuery:
    """A query without namespaces and text. field: as the request names the options. Raises InvalidField."""
    return SearchQuery(
        (),
        "",
        kinds=members(f"{field}.kinds", KINDS, options.kinds),
        filter=options.filter,
        min_relevance=options.min_relevance,
        diversity=options.diversity,
        max_tokens=options.max_tokens,
        context=values(f"{field}.context", options.context),
        neighbours=options.neighbours,
        link_depth=options.link_depth,
        link_kinds=members(f"{field}.link_kinds", LINKS, options.link_kinds),
        as_of_s=optional_number(options, "as_of_s"),
        rerank=options.rerank,
    )


def values(field: str, messages: Mapping[str, pb.MetadataValue]) -> dict[str, MetadataValue]:
    """Raises InvalidField for a value without a type, or of a type of a newer memserve."""
    for key, message in messages.items():
        if message.WhichOneof("value") is None:
            rule = f"key {ascii(key)[:80]} must have a text, a whole number, a number, a truth or texts"
            raise InvalidField(field, rule)
    return metadata_of(messages)


def links(field: str, messages: Sequence[pb.MemoryLink]) -> tuple[Link, ...]:
    """Raises InvalidField."""
    return tuple(
        Link(member(f"{field}[{number}].kind", LINKS, message.kind), message.memory_id, message.namespace)
        for number, message in enumerate(messages)
    )


def link_kinds(field: str, numbers: Sequence[int]) -> tuple[LinkKind, ...]:
    """Raises InvalidField."""
    return members(field, LINKS, numbers)


def members(field: str, known: Mapping[E, int], numbers: Sequence[int]) -> tuple[E, ...]:
    """Each once, in order. Raises InvalidField."""
    return tuple(dict.fromkeys(member(field, known, number) for number in numbers))


def member(field: str, known: Mapping[E, int], number: int) -> E:
    """Raises InvalidField for a number that is none of the known members."""
    for name, value in known.items():
        if value == number:
            return name
    raise InvalidField(field, f"must be one of {', '.join(known)}")
