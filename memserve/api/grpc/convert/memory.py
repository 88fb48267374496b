"""Reads the messages of `MemoryService` as domain values. What they may say is checked where it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from memserve.client.wire.memory_values import KINDS, LINKS, STATES, metadata_of, place_of
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
from memserve.pb.v1 import memory_pb2 as pb

E = TypeVar("E", bound=OpenEnum)


def new_memory(request: pb.RememberRequest) -> NewMemory:
    """Raises InvalidField."""
    return NewMemory(
        namespace=request.namespace,
        text=request.text,
        source=request.source,
        keywords=tuple(request.keywords),
        memory_id=request.memory_id,
        kind=member("kind", KINDS, request.kind) if request.kind else MemoryKind.FACT,
        metadata=values("metadata", request.metadata),
        valid_from_s=request.valid_from_s if request.HasField("valid_from_s") else None,
        valid_until_s=request.valid_until_s if request.HasField("valid_until_s") else None,
        applies_when=request.applies_when,
        strength=request.strength if request.HasField("strength") else 1.0,
        links=links("links", request.links),
        place=place_of(request.place),
        pinned=request.pinned,
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
        valid_from_s=header.valid_from_s if header.HasField("valid_from_s") else None,
        valid_until_s=header.valid_until_s if header.HasField("valid_until_s") else None,
        applies_when=header.applies_when,
    )


def search_query(request: pb.SearchRequest) -> SearchQuery:
    """Raises InvalidField."""
    query = search_options("options", request.options)
    return SearchQuery(
        **{
            **{name: getattr(query, name) for name in SearchQuery.__slots__},
            "namespaces": tuple(request.namespaces),
            "text": request.query,
            "limit": request.limit,
        }
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
        as_of_s=options.as_of_s if options.HasField("as_of_s") else None,
        rerank=options.rerank,
    )


def values(field: str, messages: Mapping[str, pb.MetadataValue]) -> dict[str, MetadataValue]:
    """Raises InvalidField for a value without a type, or of a type of a newer memserve."""
    for key, message in messages.items():
        if message.WhichOneof("value") is None:
            raise InvalidField(f"{field}.{key}", "must be a text, a whole number, a number, a truth or texts")
    return metadata_of(messages)


def links(field: str, messages: Sequence[pb.MemoryLink]) -> tuple[Link, ...]:
    """Raises InvalidField."""
    return tuple(
        Link(member(f"{field}[{number}].kind", LINKS, message.kind), message.memory_id, message.namespace)
        for number, message in enumerate(messages)
    )


def kinds(field: str, numbers: Sequence[int]) -> tuple[MemoryKind, ...]:
    """Raises InvalidField."""
    return members(field, KINDS, numbers)


def link_kinds(field: str, numbers: Sequence[int]) -> tuple[LinkKind, ...]:
    """Raises InvalidField."""
    return members(field, LINKS, numbers)


def states(field: str, numbers: Sequence[int]) -> tuple[MemoryState, ...]:
    """Raises InvalidField."""
    return members(field, STATES, numbers)


def members(field: str, known: Mapping[E, int], numbers: Sequence[int]) -> tuple[E, ...]:
    """Each once, in order. Raises InvalidField."""
    return tuple(dict.fromkeys(member(field, known, number) for number in numbers))


def member(field: str, known: Mapping[E, int], number: int) -> E:
    """Raises InvalidField for a number that is none of the known members."""
    for name, value in known.items():
        if value == number:
            return name
    raise InvalidField(field, f"must be one of {', '.join(known)}")
