"""Messages of `ModuleService`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import cast

from memserve.domain import (
    Alias,
    AliasChange,
    AuditEvent,
    DistilChoice,
    DistillationJob,
    DistillationState,
    DistilPlan,
    DistilProgress,
    GateFigure,
    GateReport,
    MemoryLeftOut,
    Module,
    ModuleKind,
    ModulePlace,
    ModuleVersion,
    Recipe,
    TrafficShare,
    WeightFigures,
    WorkerResidency,
)
from memserve.domain.kinds import KINDS
from memserve.errors import UsageError
from memserve.pb.v1 import module_pb2 as pb

DISTILLATION_STATES: dict[int, DistillationState] = {
    getattr(pb, f"DISTILLATION_STATE_{state.name}"): state for state in DistillationState.known()
}
PLACES: dict[int, ModulePlace] = {
    getattr(pb, f"MODULE_PLACE_{place.name}"): place for place in ModulePlace.known()
}


def kind_of(number: int) -> ModuleKind:
    return next((row.kind for row in KINDS.values() if row.number == number), ModuleKind.UNKNOWN)


def place_of(number: int) -> ModulePlace:
    return PLACES.get(number, ModulePlace.UNKNOWN)


def kind_number(kind: ModuleKind | None) -> pb.ModuleKind:
    """The wire's number of a kind. None is every kind. Raises UsageError."""
    if kind is None:
        return pb.MODULE_KIND_UNSPECIFIED
    if kind not in KINDS:
        raise UsageError("kind", f"must be one of {', '.join(KINDS)}, not {kind!s}")
    # A kind is a row of the table. The generated enumeration may have no name for its number.
    return cast("pb.ModuleKind", KINDS[kind].number)


def compose_request(
    name: str,
    method: str,
    parents: Mapping[str, float],
    *,
    rank: int,
    density: float,
    seed: int,
    notes: str,
) -> pb.ComposeModuleRequest:
    return pb.ComposeModuleRequest(
        name=name,
        # For an unknown method the gateway's refusal has the list of methods.
        method=getattr(pb, f"COMPOSE_METHOD_{method.upper()}", pb.COMPOSE_METHOD_UNSPECIFIED),
        parents=[
            pb.ComposeParent(reference=reference, weight=weight) for reference, weight in parents.items()
        ],
        rank=rank,
        density=density,
        seed=seed,
        notes=notes,
    )


def distil_request(
    name: str,
    kind: ModuleKind | None,
    choice: DistilChoice,
    recipe: Recipe,
    *,
    budget_s: float = 0.0,
    seed: int = 0,
    notes: str = "",
    dry_run: bool = False,
    cancel: bool = False,
    from_reference: str = "",
) -> pb.DistilModuleRequest:
    return pb.DistilModuleRequest(
        name=name,
        kind=kind_number(kind),
        namespaces=choice.namespaces,
        filter=choice.filter,
        document_ids=choice.document_ids,
        memories=[
            pb.DistilMemory(namespace=namespace, memory_id=memory_id)
            for namespace, memory_id in choice.memories
        ],
        recipe=pb.DistilRecipe(**asdict(recipe)),
        budget_s=budget_s,
        seed=seed,
        notes=notes,
        dry_run=dry_run,
        cancel=cancel,
        from_reference=from_reference,
    )


def distil_plan_of(value: pb.DistilPlan) -> DistilPlan:
    return DistilPlan(
        memories=value.memories,
        facts=value.facts,
        questions=value.questions,
        left_out=tuple(MemoryLeftOut(each.namespace, each.memory_id, each.reason) for each in value.left_out),
        examples=tuple(value.examples),
        probes=value.probes,
    )


def distil_progress_of(value: pb.DistilProgress) -> DistilProgress:
    return DistilProgress(
        value.stage,
        value.done,
        value.total,
        value.cpu_s,
        value.tokens,
        value.median_loss if value.HasField("median_loss") else None,
    )


def distillation_of(value: pb.Distillation) -> DistillationJob:
    return DistillationJob(
        job_id=value.job_id,
        module=value.module,
        kind=kind_of(value.kind),
        state=DISTILLATION_STATES.get(value.state, DistillationState.UNKNOWN),
        principal=value.principal,
        begun_s=value.begun_s,
        ended_s=value.ended_s,
        progress=distil_progress_of(value.progress),
        taken_up=value.taken_up,
        version=value.version,
        passed=value.passed if value.HasField("passed") else None,
        promoted_to=value.promoted_to,
        reason=value.reason,
        from_reference=value.from_reference,
    )


def module_of(value: pb.Module) -> Module:
    return Module(
        name=value.name,
        kind=kind_of(value.kind),
        newest_version=value.newest_version,
        versions=value.versions,
        aliases=tuple(alias_of(alias) for alias in value.aliases),
    )


def version_of(value: pb.ModuleVersion) -> ModuleVersion:
    figures = value.figures
    return ModuleVersion(
        module=value.module,
        version=value.version,
        digest=value.digest,
        kind=kind_of(value.kind),
        base_digest=value.base_digest,
        rank=value.rank,
        target_modules=tuple(value.target_modules),
        size_bytes=value.size_bytes,
        created_s=value.created_s,
        author=value.author,
        sources=tuple(value.sources),
        parents=tuple(value.parents),
        recipe=value.recipe,
        notes=value.notes,
        figures=WeightFigures(figures.delta_norm, figures.sparsity, figures.effective_rank),
        probes_digest=value.probes_digest,
        moves_logits=value.moves_logits,
        gate=gate_report_of(value.gate) if value.HasField("gate") else None,
        warning=value.warning,
        prefix_tokens=value.prefix_tokens,
    )


def gate_report_of(value: pb.GateReport) -> GateReport:
    figures = tuple(
        GateFigure(figure.name, figure.base, figure.module, figure.rule, figure.holds, figure.probes)
        for figure in value.figures
    )
    return GateReport(value.passed, figures, value.worker_id, value.at_s, value.probes_digest)


def alias_of(value: pb.Alias) -> Alias:
    return Alias(value.name, _targets(value.targets), value.revision, value.changed_s)


def alias_change_of(value: pb.AliasChange) -> AliasChange:
    return AliasChange(
        revision=value.revision,
        targets=_targets(value.targets),
        at_s=value.at_s,
        principal=value.principal,
        action=value.action,
        reason=value.reason,
        forced=value.forced,
    )


def audit_event_of(value: pb.AuditEvent) -> AuditEvent:
    return AuditEvent(
        event_id=value.event_id,
        at_s=value.at_s,
        tenant=value.tenant,
        principal=value.principal,
        action=value.action,
        module=value.module,
        before=value.before,
        after=value.after,
    )


def residency_of(value: pb.WorkerResidency) -> WorkerResidency:
    return WorkerResidency(value.worker_id, place_of(value.place), value.refusal)


def shares_of(weights: Mapping[int, float]) -> list[pb.TrafficShare]:
    """weights: version to weight."""
    return [pb.TrafficShare(version=version, weight=weight) for version, weight in weights.items()]


def _targets(shares: Sequence[pb.TrafficShare]) -> tuple[TrafficShare, ...]:
    return tuple(TrafficShare(share.version, share.weight) for share in shares)
