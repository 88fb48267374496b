"""What a recall gave, as messages. The gateway's edge uses both directions too."""

from __future__ import annotations

from collections.abc import Iterable

from memserve.client.wire.memory_values import member, memory_of, scored_of, skipped_of
from memserve.domain import (
    ModuleFit,
    RecallOutcome,
    RecallPart,
    RecallPreview,
    RecallSource,
    RecordedOutcome,
    Reinforced,
)
from memserve.pb.v1 import inference_pb2 as pb

OUTCOMES: dict[RecallOutcome, pb.RecallOutcome] = {
    outcome: getattr(pb, f"RECALL_OUTCOME_{outcome.name}") for outcome in RecallOutcome.known()
}
SOURCES: dict[RecallSource, pb.RecallSource] = {
    source: getattr(pb, f"RECALL_SOURCE_{source.name}") for source in RecallSource.known()
}


def part_messages(parts: Iterable[RecallPart]) -> list[pb.RecallPart]:
    return [
        pb.RecallPart(
            source=SOURCES[part.source],
            outcome=OUTCOMES[part.outcome],
            took_ms=part.took_ms,
            given=part.given,
            prompt_tokens=part.prompt_tokens,
            detail=part.detail,
        )
        for part in parts
    ]


def parts_of(messages: Iterable[pb.RecallPart]) -> tuple[RecallPart, ...]:
    return tuple(
        RecallPart(
            member(SOURCES, message.source, RecallSource.UNKNOWN),
            member(OUTCOMES, message.outcome, RecallOutcome.UNKNOWN),
            message.took_ms,
            message.given,
            message.prompt_tokens,
            message.detail,
        )
        for message in messages
    )


def fit_messages(fits: Iterable[ModuleFit]) -> list[pb.ModuleFit]:
    return [
        pb.ModuleFit(
            name=fit.name,
            version=fit.version,
            digest=fit.digest,
            score=fit.score,
            reason=fit.reason,
            chosen=fit.chosen,
        )
        for fit in fits
    ]


def fits_of(messages: Iterable[pb.ModuleFit]) -> tuple[ModuleFit, ...]:
    return tuple(
        ModuleFit(
            message.name, message.version, message.digest, message.score, message.reason, message.chosen
        )
        for message in messages
    )


def preview_of(response: pb.RecallResponse) -> RecallPreview:
    return RecallPreview(
        outcome=member(OUTCOMES, response.outcome, RecallOutcome.UNKNOWN),
        passages=tuple(map(scored_of, response.passages)),
        skipped=skipped_of(response.skipped),
        parts=parts_of(response.parts),
        module_fits=fits_of(response.module_fits),
        prompt_tokens=response.prompt_tokens,
        redis_tokens=response.redis_tokens if response.HasField("redis_tokens") else None,
        held_tokens=response.held_tokens,
    )


def recorded_of(response: pb.RecordOutcomeResponse) -> RecordedOutcome:
    return RecordedOutcome(
        tuple(
            Reinforced(entry.namespace, entry.memory_id, entry.strength_before, entry.strength)
            for entry in response.memories
        ),
        memory_of(response.reflection) if response.HasField("reflection") else None,
    )
