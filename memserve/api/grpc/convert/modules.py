"""Converts between the messages of `ModuleService` and domain values. Requests are checked here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from memserve.domain import (
    Alias,
    AliasChange,
    AuditEvent,
    GateReport,
    Module,
    ModuleKind,
    ModulePlace,
    ModuleVersion,
    TrafficShare,
    WorkerResidency,
)
from memserve.domain.kinds import KINDS
from memserve.errors import InvalidField
from memserve.gateway.modules.composition import Composition
from memserve.gateway.modules.progress import Step
from memserve.memory.modules.contents import FilePart
from memserve.memory.modules.kinds.table import check_module_name
from memserve.memory.modules.memory import Publication, check_text
from memserve.memory.modules.uploads import UploadFile
from memserve.pb.v1 import module_pb2 as pb
from memserve.policy.modules.recipes import SEED_MAX
from memserve.policy.modules.references import LIVE, check_alias_name, parse_reference
from memserve.policy.modules.traffic import check_targets

PARENTS_MAX = 8
RANK_MAX = 1024

PLACES = {place: getattr(pb, f"MODULE_PLACE_{place.name}") for place in ModulePlace.known()}
METHODS = {
    number: name.removeprefix("COMPOSE_METHOD_").lower()
    for name, number in pb.ComposeMethod.items()
    if number
}
FILES_MAX = 8
REASON_MAX_BYTES = 1024


def kind_of(field: str, number: int) -> ModuleKind:
    """Raises InvalidField."""
    for row in KINDS.values():
        if row.number == number:
            return row.kind
    raise InvalidField(field, f"must be one of {', '.join(f'MODULE_KIND_{kind.upper()}' for kind in KINDS)}")


def kind_number(kind: ModuleKind) -> pb.ModuleKind:
    """The kind's number in messages. The generated enumeration may have no name for it, hence the cast."""
    return cast("pb.ModuleKind", KINDS[kind].number)


def publication(header: pb.PublishModuleHeader) -> Publication:
    """Raises InvalidField."""
    if not 1 <= len(header.files) <= FILES_MAX:
        raise InvalidField(
            "header.files", f"from 1 to {FILES_MAX}: every file of the module with its size and sha256"
        )
    return Publication(
        name=header.name,
        kind=kind_of("header.kind", header.kind),
        files=tuple(UploadFile(file.file_name, file.size_bytes, file.sha256) for file in header.files),
        expected_digest=header.expected_digest,
        sources=tuple(header.sources),
        recipe=header.recipe,
        notes=header.notes,
        parents=tuple(header.parents),
    )


def alias_name(field: str, name: str) -> str:
    """Empty means `live`. Raises InvalidField."""
    if name:
        check_alias_name(field, name)
    return name or LIVE


def version_number(field: str, number: int) -> int:
    """Raises InvalidField."""
    if number < 1:
        raise InvalidField(field, "must be 1 or more")
    return number


def reason(text: str) -> str:
    """Raises InvalidField."""
    if len(text.encode()) > REASON_MAX_BYTES:
        raise InvalidField("reason", f"at most {REASON_MAX_BYTES} bytes")
    return text


def targets(shares: list[pb.TrafficShare]) -> tuple[TrafficShare, ...]:
    """Raises InvalidField."""
    found = tuple(TrafficShare(share.version, share.weight) for share in shares)
    check_targets("targets", found)
    return found


def shares(values: tuple[TrafficShare, ...]) -> list[pb.TrafficShare]:
    return [pb.TrafficShare(version=target.version, weight=target.weight) for target in values]


def gate_report(report: GateReport) -> pb.GateReport:
    return pb.GateReport(
        passed=report.passed,
        figures=[
            pb.GateFigure(
                name=figure.name,
                base=figure.base,
                module=figure.module,
                rule=figure.rule,
                holds=figure.holds,
                probes=figure.probes,
            )
            for figure in report.figures
        ],
        worker_id=report.worker_id,
        at_s=report.at_s,
        probes_digest=report.probes_digest,
    )


def version(value: ModuleVersion) -> pb.ModuleVersion:
    return pb.ModuleVersion(
        module=value.module,
        version=value.version,
        digest=value.digest,
        kind=kind_number(value.kind),
        base_digest=value.base_digest,
        rank=value.rank,
        target_modules=value.target_modules,
        size_bytes=value.size_bytes,
        created_s=value.created_s,
        author=value.author,
        sources=value.sources,
        parents=value.parents,
        recipe=value.recipe,
        notes=value.notes,
        figures=pb.WeightFigures(
            delta_norm=value.figures.delta_norm,
            sparsity=value.figures.sparsity,
            effective_rank=value.figures.effective_rank,
        ),
        probes_digest=value.probes_digest,
        gate=gate_report(value.gate) if value.gate is not None else None,
        moves_logits=value.moves_logits,
        warning=value.warning,
        prefix_tokens=value.prefix_tokens,
    )


def content(value: ModuleVersion, files: Sequence[UploadFile]) -> pb.VersionContent:
    return pb.VersionContent(
        version=version(value),
        files=[
            pb.UploadFile(file_name=file.file_name, size_bytes=file.size_bytes, sha256=file.sha256)
            for file in files
        ],
    )


def chunk(part: FilePart) -> pb.FileChunk:
    return pb.FileChunk(file_name=part.file_name, content=part.content, offset=part.offset)


def alias(value: Alias) -> pb.Alias:
    return pb.Alias(
        name=value.name, targets=shares(value.targets), revision=value.revision, changed_s=value.changed_s
    )


def alias_change(value: AliasChange) -> pb.AliasChange:
    return pb.AliasChange(
        revision=value.revision,
        targets=shares(value.targets),
        at_s=value.at_s,
        principal=value.principal,
        action=value.action,
        reason=value.reason,
        forced=value.forced,
    )


def module(value: Module) -> pb.Module:
    return pb.Module(
        name=value.name,
        kind=kind_number(value.kind),
        newest_version=value.newest_version,
        versions=value.versions,
        aliases=[alias(entry) for entry in value.aliases],
    )


def audit_event(event: AuditEvent) -> pb.AuditEvent:
    return pb.AuditEvent(
        event_id=event.event_id,
        at_s=event.at_s,
        principal=event.principal,
        action=event.action,
        module=event.module,
        before=event.before,
        after=event.after,
        tenant=event.tenant,
    )


def residency(value: WorkerResidency) -> pb.WorkerResidency:
    return pb.WorkerResidency(worker_id=value.worker_id, place=PLACES[value.place], refusal=value.refusal)


def composition(request: pb.ComposeModuleRequest) -> Composition:
    """Raises InvalidField."""
    check_module_name("name", request.name)
    method = METHODS.get(request.method)
    if method is None:
        raise InvalidField("method", f"must be one of {', '.join(METHODS.values())}")
    if not 1 <= len(request.parents) <= PARENTS_MAX or (method == "compress") != (len(request.parents) == 1):
        raise InvalidField("parents", f"from 2 to {PARENTS_MAX}, or exactly 1 to compress")
    parents = []
    for number, parent in enumerate(request.parents):
        parse_reference(f"parents[{number}].reference", parent.reference)
        if not (math.isfinite(parent.weight) and 0 <= parent.weight <= 100):
            raise InvalidField(f"parents[{number}].weight", "from 0 (which means 1) to 100")
        parents.append((parent.reference, parent.weight or 1.0))
    if not 0 <= request.rank <= RANK_MAX:
        raise InvalidField("rank", f"from 1 to {RANK_MAX}, or 0 for the method's own")
    if not 0 <= request.density <= 1:  # NaN fails too
        raise InvalidField("density", "above 0 and at most 1, or 0 for the method's own")
    if not 0 <= request.seed <= SEED_MAX:
        raise InvalidField("seed", f"from 0 to {SEED_MAX}")
    check_text("notes", request.notes)
    return Composition(
        request.name, method, tuple(parents), request.rank, request.density, request.seed, request.notes
    )


def expected_revision(
    request: pb.PromoteModuleRequest | pb.RollbackModuleRequest | pb.SetTrafficRequest | pb.DropAliasRequest,
) -> int | None:
    """Raises InvalidField."""
    if not request.HasField("expected_revision"):
        return None
    if request.expected_revision < 0:
        raise InvalidField("expected_revision", "must not be negative")
    return int(request.expected_revision)


def progress(step: Step) -> pb.GateProgress:
    return pb.GateProgress(done=step.done, total=step.total)
