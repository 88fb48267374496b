"""A memory and what belongs to it, as messages. The gateway's edge uses both directions too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from memserve.domain import (
    ErasedPlace,
    Finding,
    FindingKind,
    Link,
    LinkKind,
    Memory,
    MemoryAction,
    MemoryKind,
    MemoryState,
    MetadataValue,
    Place,
    Remembered,
    ScoredMemory,
    Skipped,
    SkipReason,
    SurpriseScore,
    Via,
)
from memserve.domain.open_enum import OpenEnum
from memserve.pb.v1 import memory_pb2 as pb

E = TypeVar("E", bound=OpenEnum)

# Every known member has a number; a number that is not here is a newer memserve's.
KINDS: dict[MemoryKind, pb.MemoryKind] = {
    kind: getattr(pb, f"MEMORY_KIND_{kind.name}") for kind in MemoryKind.known()
}
STATES: dict[MemoryState, pb.MemoryState] = {
    state: getattr(pb, f"MEMORY_STATE_{state.name}") for state in MemoryState.known()
}
ACTIONS: dict[MemoryAction, pb.MemoryAction] = {
    action: getattr(pb, f"MEMORY_ACTION_{action.name}") for action in MemoryAction.known()
}
LINKS: dict[LinkKind, pb.LinkKind] = {
    kind: getattr(pb, f"LINK_KIND_{kind.name}") for kind in LinkKind.known()
}
FINDINGS: dict[FindingKind, pb.FindingKind] = {
    kind: getattr(pb, f"FINDING_KIND_{kind.name}") for kind in FindingKind.known()
}
SKIPS: dict[SkipReason, pb.SkipReason] = {
    reason: getattr(pb, f"SKIP_REASON_{reason.name}") for reason in SkipReason.known()
}


def member(members: Mapping[E, int], number: int, unknown: E) -> E:
    """The member with this number; `unknown` for the number of a newer memserve."""
    return next((name for name, known in members.items() if known == number), unknown)


def optional_number(message: Any, field: str) -> float | None:
    """A message's number, which may be absent."""
    return float(getattr(message, field)) if message.HasField(field) else None


def metadata_message(values: Mapping[str, MetadataValue]) -> dict[str, pb.MetadataValue]:
    return {key: _value_message(value) for key, value in values.items()}


def _value_message(value: MetadataValue) -> pb.MetadataValue:
    if isinstance(value, bool):
        return pb.MetadataValue(truth=value)
    if isinstance(value, int):
        return pb.MetadataValue(whole=value)
    if isinstance(value, float):
        return pb.MetadataValue(number=value)
    if isinstance(value, str):
        return pb.MetadataValue(text=value)
    return pb.MetadataValue(texts=pb.TextList(texts=value))


def metadata_of(values: Mapping[str, pb.MetadataValue]) -> dict[str, MetadataValue]:
    """By key, in order. A value of a type that is not known here is left out."""
    known = ((key, _value_of(values[key])) for key in sorted(values))
    return {key: value for key, value in known if value is not None}


def _value_of(message: pb.MetadataValue) -> MetadataValue | None:
    match message.WhichOneof("value"):
        case "text":
            return message.text
        case "whole":
            return message.whole
        case "number":
            return message.number
        case "truth":
            return message.truth
        case "texts":
            return tuple(message.texts.texts)
    return None


def link_message(link: Link) -> pb.MemoryLink:
    return pb.MemoryLink(kind=LINKS[link.kind], memory_id=link.memory_id, namespace=link.namespace)


def link_of(message: pb.MemoryLink) -> Link:
    return Link(member(LINKS, message.kind, LinkKind.UNKNOWN), message.memory_id, message.namespace)


def place_message(place: Place) -> pb.MemoryPlace | None:
    if not place.within:
        return None
    return pb.MemoryPlace(
        within=place.within, position=place.position, title=place.title, headings=place.headings
    )


def place_of(message: pb.MemoryPlace) -> Place:
    return Place(message.within, message.position, message.title, tuple(message.headings))


def memory_message(memory: Memory) -> pb.Memory:
    by = memory.superseded_by
    return pb.Memory(
        memory_id=memory.memory_id,
        namespace=memory.namespace,
        text=memory.text,
        source=memory.source,
        keywords=memory.keywords,
        created_s=memory.created_s,
        kind=KINDS[memory.kind],
        metadata=metadata_message(memory.metadata),
        author=memory.author,
        valid_from_s=memory.valid_from_s,
        valid_until_s=memory.valid_until_s,
        applies_when=memory.applies_when,
        strength=memory.strength,
        links=map(link_message, memory.links),
        place=place_message(memory.place),
        pinned=memory.pinned,
        version=memory.version,
        updated_s=memory.updated_s,
        state=STATES[memory.state],
        superseded_by=None if by is None else link_message(by),
    )


def memory_of(message: pb.Memory) -> Memory:
    return Memory(
        memory_id=message.memory_id,
        namespace=message.namespace,
        text=message.text,
        source=message.source,
        keywords=tuple(message.keywords),
        created_s=message.created_s,
        kind=member(KINDS, message.kind, MemoryKind.UNKNOWN),
        metadata=metadata_of(message.metadata),
        author=message.author,
        valid_from_s=optional_number(message, "valid_from_s"),
        valid_until_s=optional_number(message, "valid_until_s"),
        applies_when=message.applies_when,
        strength=message.strength,
        links=tuple(map(link_of, message.links)),
        place=place_of(message.place),
        pinned=message.pinned,
        version=message.version,
        updated_s=message.updated_s,
        state=member(STATES, message.state, MemoryState.UNKNOWN),
        superseded_by=link_of(message.superseded_by) if message.HasField("superseded_by") else None,
    )


def scored_message(hit: ScoredMemory) -> pb.ScoredMemory:
    via = hit.via
    return pb.ScoredMemory(
        memory=memory_message(hit.memory),
        score=hit.score,
        dense_score=hit.dense_score,
        bm25_score=hit.bm25_score,
        relevance=hit.relevance,
        strength=hit.strength,
        rerank_score=hit.rerank_score,
        via=None
        if via is None
        else pb.Via(
            memory_id=via.memory_id,
            namespace=via.namespace,
            kind=pb.LINK_KIND_UNSPECIFIED if via.kind is None else LINKS[via.kind],
            depth=via.depth,
            backwards=via.backwards,
        ),
    )


def scored_of(message: pb.ScoredMemory) -> ScoredMemory:
    return ScoredMemory(
        memory=memory_of(message.memory),
        score=message.score,
        dense_score=optional_number(message, "dense_score"),
        bm25_score=optional_number(message, "bm25_score"),
        relevance=message.relevance,
        strength=message.strength,
        rerank_score=optional_number(message, "rerank_score"),
        via=_via_of(message.via) if message.HasField("via") else None,
    )


def _via_of(message: pb.Via) -> Via:
    kind = member(LINKS, message.kind, LinkKind.UNKNOWN) if message.kind else None
    return Via(message.memory_id, message.namespace, kind, message.depth, message.backwards)


def skipped_messages(skipped: Iterable[Skipped]) -> list[pb.SkippedMemory]:
    return [
        pb.SkippedMemory(
            namespace=memory.namespace,
            memory_id=memory.memory_id,
            version=memory.version,
            reason=SKIPS[memory.reason],
            detail=memory.detail,
        )
        for memory in skipped
    ]


def skipped_of(messages: Iterable[pb.SkippedMemory]) -> tuple[Skipped, ...]:
    return tuple(
        Skipped(
            message.namespace,
            message.memory_id,
            message.version,
            member(SKIPS, message.reason, SkipReason.UNKNOWN),
            message.detail,
        )
        for message in messages
    )


def finding_message(finding: Finding) -> pb.Finding:
    return pb.Finding(
        kind=FINDINGS[finding.kind],
        namespace=finding.namespace,
        memory_id=finding.memory_id,
        score=finding.score,
        reason=finding.reason,
        superseded=finding.superseded,
    )


def finding_of(message: pb.Finding) -> Finding:
    return Finding(
        member(FINDINGS, message.kind, FindingKind.UNKNOWN),
        message.namespace,
        message.memory_id,
        message.score,
        message.reason,
        message.superseded,
    )


def surprise_message(score: SurpriseScore) -> pb.SurpriseScore:
    return pb.SurpriseScore(
        nats_per_token=score.nats_per_token,
        nats_per_token_recalled=score.nats_per_token_recalled,
        stored=score.stored,
        strength=score.strength,
        reason=score.reason,
    )


def surprise_of(message: pb.SurpriseScore) -> SurpriseScore:
    recalled = message.HasField("nats_per_token_recalled")
    return SurpriseScore(
        message.nats_per_token,
        message.nats_per_token_recalled if recalled else None,
        message.stored,
        message.strength,
        message.reason,
    )


def remembered_message(remembered: Remembered) -> pb.RememberResponse:
    surprise = remembered.surprise
    return pb.RememberResponse(
        memory=None if remembered.memory is None else memory_message(remembered.memory),
        created=remembered.created,
        findings=map(finding_message, remembered.findings),
        surprise=None if surprise is None else surprise_message(surprise),
    )


def erased_messages(places: Iterable[ErasedPlace]) -> list[pb.ErasedPlace]:
    return [
        pb.ErasedPlace(place=place.place, removed=place.removed, detail=place.detail, pending=place.pending)
        for place in places
    ]
