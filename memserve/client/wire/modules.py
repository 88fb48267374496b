"""The client's half of `ModuleService` on the wire: uploads, and messages from and to domain values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from memserve.client.arguments import strings
from memserve.domain import (
    Alias,
    AliasChange,
    AuditEvent,
    GateFigure,
    GateReport,
    Module,
    ModuleKind,
    ModulePlace,
    ModuleVersion,
    TrafficShare,
    WeightFigures,
    WorkerResidency,
)
from memserve.pb.v1 import module_pb2 as pb

UPLOAD_CHUNK_BYTES = 256 * 1024
# What makes a folder a module of a kind, and the files that go with it.
FILES: dict[ModuleKind, tuple[str, ...]] = {
    ModuleKind.LORA: ("adapter_config.json", "adapter_model.safetensors"),
    ModuleKind.LOGIT_EXPERT: ("expert_config.json", "config.json", "model.safetensors"),
}
OPTIONAL_FILES = ("anti_model.safetensors", "probes.json")

Told = Callable[[int, int], None]
"""Called with what is done and what there is to do in all."""


def silent(done: int, total: int) -> None:
    """No progress is told."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A folder that is to become a version."""

    folder: Path
    header: pb.PublishModuleHeader

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.header.files)

    def parts(self, received: Sequence[int], told: Told) -> Iterator[pb.PublishModuleRequest]:
        """The messages of an upload that goes on where `received` (bytes of each file) ended."""
        yield pb.PublishModuleRequest(header=self.header)
        done = sum(received)
        told(done, self.total_bytes)
        for file, offset in zip(self.header.files, received, strict=True):
            with (self.folder / file.file_name).open("rb") as stream:
                stream.seek(offset)
                while content := stream.read(UPLOAD_CHUNK_BYTES):
                    yield pb.PublishModuleRequest(
                        chunk=pb.FileChunk(file_name=file.file_name, content=content, offset=offset)
                    )
                    offset += len(content)
                    done += len(content)
                    told(done, self.total_bytes)


# Run in the folder, where torch and safetensors are installed.
CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    "s.save_file({k: v.contiguous() for k, v in torch.load('adapter_model.bin', "
    "weights_only=True).items()}, 'adapter_model.safetensors')\""
)


def kind_of_folder(folder: Path) -> ModuleKind:
    """By the file that every module of a kind has. Raises FileNotFoundError."""
    for kind, names in FILES.items():
        if (folder / names[0]).is_file():
            return kind
    wanted = " or ".join(names[0] for names in FILES.values())
    raise FileNotFoundError(2, f"has no {wanted}: it is no module", str(folder))


def upload_of(
    name: str, folder: str | Path, expected_digest: str, sources: str | Sequence[str], recipe: str, notes: str
) -> Upload:
    """Raises FileNotFoundError when a file is missing."""
    folder = Path(folder) if isinstance(folder, str) else folder
    kind = kind_of_folder(folder)
    names = [*FILES[kind], *(name for name in OPTIONAL_FILES if (folder / name).is_file())]
    files = []
    for file_name in names:
        if (
            not (folder / file_name).is_file()
            and (folder / (pickled := file_name.replace(".safetensors", ".bin"))).is_file()
        ):
            raise FileNotFoundError(
                2,
                f"is a pickle, which memserve does not load; convert it with: {CONVERT}",
                str(folder / pickled),
            )
        with (folder / file_name).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files.append(
            pb.UploadFile(file_name=file_name, size_bytes=(folder / file_name).stat().st_size, sha256=digest)
        )
    header = pb.PublishModuleHeader(
        name=name,
        kind=getattr(pb, f"MODULE_KIND_{kind.upper()}"),
        expected_digest=expected_digest,
        files=files,
        sources=strings("sources", sources),
        recipe=recipe,
        notes=notes,
    )
    return Upload(folder, header)


def kind_of(number: int) -> ModuleKind:
    return ModuleKind(pb.ModuleKind.Name(number).removeprefix("MODULE_KIND_").lower())


def place_of(number: int) -> ModulePlace:
    return ModulePlace(pb.ModulePlace.Name(number).removeprefix("MODULE_PLACE_").lower())


def module_of(value: pb.Module) -> Module:
    aliases = tuple(alias_of(alias) for alias in value.aliases)
    return Module(value.name, kind_of(value.kind), value.newest_version, value.versions, aliases)


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
    )


def gate_report_of(value: pb.GateReport) -> GateReport:
    figures = tuple(GateFigure(f.name, f.base, f.module, f.rule, f.holds, f.probes) for f in value.figures)
    return GateReport(value.passed, figures, value.worker_id, value.at_s, value.probes_digest)


def alias_of(value: pb.Alias) -> Alias:
    return Alias(value.name, _targets(value.targets), value.revision, value.changed_s)


def alias_change_of(value: pb.AliasChange) -> AliasChange:
    return AliasChange(
        value.revision,
        _targets(value.targets),
        value.at_s,
        value.principal,
        value.action,
        value.reason,
        value.forced,
    )


def audit_event_of(value: pb.AuditEvent) -> AuditEvent:
    return AuditEvent(
        value.event_id,
        value.at_s,
        value.tenant,
        value.principal,
        value.action,
        value.module,
        value.before,
        value.after,
    )


def residency_of(value: pb.WorkerResidency) -> WorkerResidency:
    return WorkerResidency(value.worker_id, place_of(value.place), value.refusal)


def _targets(shares: Sequence[pb.TrafficShare]) -> tuple[TrafficShare, ...]:
    return tuple(TrafficShare(share.version, share.weight) for share in shares)
