"""Modules (adapters and experts), their versions and aliases, and what the gate measured."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class ModuleKind(str):
    """The name of a kind of modules. `domain/kinds.py` has a row for each kind.

    No enumeration: a kind is added by its row, and a newer memserve may have more of them.
    """

    __slots__ = ()

    LORA: ClassVar[ModuleKind]
    LOGIT_EXPERT: ClassVar[ModuleKind]
    UNKNOWN: ClassVar[ModuleKind]
    """A kind that this client does not know. Never sent and never stored."""


ModuleKind.LORA = ModuleKind("lora")
ModuleKind.LOGIT_EXPERT = ModuleKind("logit_expert")
ModuleKind.UNKNOWN = ModuleKind("unknown")


class ModulePlace(StrEnum):
    """Where a worker has a module's weights: in a slot of the device, in the engine's host memory, in its
    directory, or not at all.
    """

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class WeightFigures:
    """What a module's weights look like.

    delta_norm: Frobenius norm of what is added to the base's weights (of an expert, of its weights).
    sparsity: share of the entries under a thousandth of the largest of their matrix. effective_rank: exp of
    the entropy of the normalised singular values, mean over the matrices.
    """

    delta_norm: float
    sparsity: float
    effective_rank: float


@dataclass(frozen=True, slots=True)
class GateFigure:
    """One of the gate's comparisons. base, module: shares of right answers, or calibration errors. probes:
    how many were asked.
    """

    name: str
    base: float
    module: float
    rule: str
    holds: bool
    probes: int


@dataclass(frozen=True, slots=True)
class GateReport:
    """What the gate found. probes_digest: empty when the version has no probes."""

    passed: bool
    figures: tuple[GateFigure, ...]
    worker_id: str
    at_s: float
    probes_digest: str


@dataclass(frozen=True, slots=True)
class ModuleVersion:
    """One immutable version of a module. `digest`: sha256 over its canonical content, hex; `version` counts
    from 1.

    base_digest: of the model that it was checked against. parents: digests of the versions that it was
    composed from. recipe: how it was made, JSON or text. moves_logits: a worker has seen it change the canary
    prompts' logits. gate: the newest report, None before one. warning: what whoever published it should know
    of its files; "" for nothing.
    """

    module: str
    version: int
    digest: str
    kind: ModuleKind
    base_digest: str
    rank: int
    target_modules: tuple[str, ...]
    size_bytes: int
    created_s: float
    author: str
    sources: tuple[str, ...]
    parents: tuple[str, ...]
    recipe: str
    notes: str
    figures: WeightFigures
    probes_digest: str
    moves_logits: bool = False
    gate: GateReport | None = None
    warning: str = ""

    @property
    def reference(self) -> str:
        return f"{self.module}@{self.version}"


@dataclass(frozen=True, slots=True)
class TrafficShare:
    """A version's share of an alias. `weight` is relative to the others'."""

    version: int
    weight: float


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for one version, or for several that share its traffic. `revision` rises by one with every
    change.
    """

    name: str
    targets: tuple[TrafficShare, ...]
    revision: int
    changed_s: float


@dataclass(frozen=True, slots=True)
class AliasChange:
    """An entry of an alias's history. action: promote, rollback, split, canary_rollback, or drop (no
    targets).
    """

    revision: int
    targets: tuple[TrafficShare, ...]
    at_s: float
    principal: str
    action: str
    reason: str
    forced: bool


@dataclass(frozen=True, slots=True)
class Module:
    """A module: a name, a kind, versions, aliases."""

    name: str
    kind: ModuleKind
    newest_version: int
    versions: int
    aliases: tuple[Alias, ...]


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """A change: who, when, what, and what it was before and after (JSON; empty for nothing)."""

    event_id: str
    at_s: float
    tenant: str
    principal: str
    action: str
    module: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class UsedModule:
    """A module version in an answer, and why this one."""

    name: str
    version: int
    digest: str
    kind: ModuleKind
    reason: str
    alpha: float = 0.0
    """The strength of a module whose kind has one; else 0."""


@dataclass(frozen=True, slots=True)
class ModuleUse:
    """A module that a request wants to be answered with."""

    reference: str
    """`name`, `name@alias` or `name@number`."""
    strength: float = 1.0
    """Of a kind that has one: a logit expert's alpha. 0 is off."""
    kind: ModuleKind | None = None
    """The kind that it must be of; None: any."""
    field: str = "modules[0].reference"
    """The request's name for the reference."""


@dataclass(frozen=True, slots=True)
class Expert:
    """A logit expert to decode with: logits + alpha * (expert's - anti-expert's)."""

    reference: str
    alpha: float = 1.0


@dataclass(frozen=True, slots=True)
class WorkerResidency:
    """Where a worker has a version. refusal: why it could not load it."""

    worker_id: str
    place: ModulePlace
    refusal: str = ""
