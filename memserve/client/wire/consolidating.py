"""Consolidations between messages and values, both ways."""

from __future__ import annotations

from memserve.client.wire.memory_values import member
from memserve.domain import (
    Consolidation,
    ConsolidationPlan,
    ConsolidationProbes,
    ConsolidationState,
    LeftAlone,
    Merge,
    MergedMemory,
    MergeKind,
)
from memserve.pb.v1 import memory_pb2 as pb

MERGE_KINDS: dict[MergeKind, pb.MergeKind] = {
    kind: getattr(pb, f"MERGE_KIND_{kind.name}") for kind in MergeKind.known()
}
STATES: dict[ConsolidationState, pb.ConsolidationState] = {
    state: getattr(pb, f"CONSOLIDATION_STATE_{state.name}") for state in ConsolidationState.known()
}


def plan_of(message: pb.ConsolidationPlan) -> ConsolidationPlan:
    return ConsolidationPlan(
        message.namespace,
        message.memories,
        tuple(
            Merge(
                member(MERGE_KINDS, merge.kind, MergeKind.UNKNOWN),
                merge.memory_id,
                merge.text,
                tuple(MergedMemory(source.memory_id, source.version) for source in merge.sources),
                merge.reason,
                merge.version,
            )
            for merge in message.merges
        ),
        tuple(LeftAlone(each.memory_id, each.reason) for each in message.left_alone),
        message.not_looked_at,
    )


def plan_message(plan: ConsolidationPlan) -> pb.ConsolidationPlan:
    return pb.ConsolidationPlan(
        namespace=plan.namespace,
        memories=plan.memories,
        merges=[
            pb.Merge(
                kind=MERGE_KINDS.get(merge.kind, pb.MERGE_KIND_UNSPECIFIED),
                memory_id=merge.memory_id,
                text=merge.text,
                sources=[
                    pb.MergedMemory(memory_id=source.memory_id, version=source.version)
                    for source in merge.sources
                ],
                reason=merge.reason,
                version=merge.version,
            )
            for merge in plan.merges
        ],
        left_alone=[pb.LeftAlone(memory_id=each.memory_id, reason=each.reason) for each in plan.left_alone],
        not_looked_at=plan.not_looked_at,
    )


def consolidation_of(message: pb.Consolidation) -> Consolidation:
    probes = message.probes
    return Consolidation(
        message.consolidation_id,
        member(STATES, message.state, ConsolidationState.UNKNOWN),
        message.principal,
        message.at_s,
        plan_of(message.plan),
        ConsolidationProbes(
            probes.questions,
            probes.found_before,
            probes.found_after,
            probes.asked,
            probes.right_before,
            probes.right_after,
        ),
        message.reason,
    )


def consolidation_message(value: Consolidation) -> pb.Consolidation:
    probes = value.probes
    return pb.Consolidation(
        consolidation_id=value.consolidation_id,
        state=STATES.get(value.state, pb.CONSOLIDATION_STATE_UNSPECIFIED),
        principal=value.principal,
        at_s=value.at_s,
        plan=plan_message(value.plan),
        probes=pb.ConsolidationProbes(
            questions=probes.questions,
            found_before=probes.found_before,
            found_after=probes.found_after,
            asked=probes.asked,
            right_before=probes.right_before,
            right_after=probes.right_after,
        ),
        reason=value.reason,
    )
