"""Modules (adapters and experts), their versions and aliases, and what the gate measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from memserve.domain.open_enum import OpenEnum


class ModuleKind(str):
    """The name of a kind of modules. `domain/kinds.py` has a row for each kind.

    No enumeration: a kind is added by its row, and a newer memserve may have more of them.
    """

    __slots__ = ()

    LORA: ClassVar[ModuleKind]
    LOGIT_EXPERT: ClassVar[ModuleKind]
    CARTRIDGE: ClassVar[ModuleKind]
    SOFT_PROMPT: ClassVar[ModuleKind]
    UNKNOWN: ClassVar[ModuleKind]
    """A kind that this client does not know. Never sent and never stored."""


ModuleKind.LORA = ModuleKind("lora")
ModuleKind.LOGIT_EXPERT = ModuleKind("logit_expert")
ModuleKind.CARTRIDGE = ModuleKind("cartridge")
ModuleKind.SOFT_PROMPT = ModuleKind("soft_prompt")
ModuleKind.UNKNOWN = ModuleKind("unknown")


class ModulePlace(OpenEnum):
    """Where a worker has a module's weights."""

    DEVICE = "device"
    """In a slot of the device."""
    HOST = "host"
    """In the engine's host memory."""
    DISK = "disk"
    """In the worker's directory."""
    ABSENT = "absent"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class WeightFigures:
    """What a module's weights look like."""

    delta_norm: float
    """Frobenius norm of what the module adds to the base's weights. For an expert: of the expert's
    weights."""
    sparsity: float
    """Share of the entries under a thousandth of the largest entry of their matrix."""
    effective_rank: float
    """exp of the entropy of the normalised singular values, mean over the matrices."""


@dataclass(frozen=True, slots=True)
class GateFigure:
    """One of the gate's comparisons of a module with its base model."""

    name: str
    base: float
    """The base's share of right answers, or its calibration error."""
    module: float
    """The same of the module."""
    rule: str
    """The bar, for people."""
    holds: bool
    probes: int
    """How many probes were asked."""


@dataclass(frozen=True, slots=True)
class GateReport:
    """The result of one run of the gate."""

    passed: bool
    figures: tuple[GateFigure, ...]
    worker_id: str
    at_s: float
    """Seconds since the epoch."""
    probes_digest: str
    """Empty when the version has no probes."""


@dataclass(frozen=True, slots=True)
class ModuleVersion:
    """One immutable version of a module."""

    module: str
    version: int
    """Counts from 1."""
    digest: str
    """sha256 over the version's canonical content, in hexadecimal."""
    kind: ModuleKind
    base_digest: str
    """Of the model that the version was checked against."""
    rank: int
    target_modules: tuple[str, ...]
    size_bytes: int
    created_s: float
    """Seconds since the epoch."""
    author: str
    sources: tuple[str, ...]
    parents: tuple[str, ...]
    """Digests of the versions that this version was composed from."""
    recipe: str
    """How the version was produced, as JSON or text."""
    notes: str
    figures: WeightFigures
    probes_digest: str
    """Empty when the version has no probes."""
    moves_logits: bool = False
    """A worker has seen the version change the canary prompts' logits."""
    gate: GateReport | None = None
    """The newest report. None: the gate has not run."""
    warning: str = ""
    """What the publisher should know about the files; "" for nothing."""
    prefix_tokens: int = 0
    """Of a cartridge or a soft prompt: how many positions it takes at the beginning of a prompt. 0 for other
    kinds."""

    @property
    def reference(self) -> str:
        return f"{self.module}@{self.version}"


@dataclass(frozen=True, slots=True)
class KvOrigin:
    """What the KV of a prompt depends on beside its tokens and its tenant."""

    adapter: str = ""
    """Digest of the LoRA that computes it; empty for the base model."""
    prefix: str = ""
    """Digest of the cartridge or the soft prompt that it begins with; empty for none."""
    prefix_tokens: int = 0
    """Leading positions that the prefix takes."""
    is_embedded: bool = False
    """Whether the prefix is a soft prompt."""

    @property
    def supplied_tokens(self) -> int:
        """Leading positions that no engine computes: those of a cartridge."""
        return 0 if self.is_embedded else self.prefix_tokens


@dataclass(frozen=True, slots=True)
class EmbeddedRows:
    """The embeddings that a prompt with a soft prompt begins with, as an engine gets them."""

    content: bytes
    """[tokens, hidden width], little-endian, in the dtype that the model is served in."""
    row_bytes: int

    @property
    def tokens(self) -> int:
        return len(self.content) // self.row_bytes

    def block(self, first: int, tokens: int) -> bytes:
        """The rows of the positions from `first` on. The row of a token is zero."""
        rows = self.content[first * self.row_bytes : (first + tokens) * self.row_bytes]
        return rows.ljust(tokens * self.row_bytes, b"\0")


@dataclass(frozen=True, slots=True)
class TrafficShare:
    """A version's share of an alias's traffic."""

    version: int
    weight: float
    """Relative to the weights of the alias's other versions."""


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for one version, or for several versions that share the alias's traffic."""

    name: str
    targets: tuple[TrafficShare, ...]
    revision: int
    """Rises by one with every change."""
    changed_s: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class AliasChange:
    """An entry of an alias's history."""

    revision: int
    targets: tuple[TrafficShare, ...]
    """Empty after a drop."""
    at_s: float
    """Seconds since the epoch."""
    principal: str
    action: str
    """promote, rollback, split, canary_rollback, erase or drop."""
    reason: str
    forced: bool
    """The change was made although the gate refused it."""


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
    """A change: who, when and what."""

    event_id: str
    at_s: float
    """Seconds since the epoch."""
    tenant: str
    principal: str
    action: str
    module: str
    before: str
    """The state before the change, as JSON; empty where nothing existed."""
    after: str
    """The state after the change, as JSON; empty where nothing is left."""


@dataclass(frozen=True, slots=True)
class UsedModule:
    """A module version that answers a request."""

    name: str
    version: int
    digest: str
    kind: ModuleKind
    reason: str
    """Why this version, for people."""
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
    """Where a worker has a version."""

    worker_id: str
    place: ModulePlace
    refusal: str = ""
    """Why the worker could not load the version; "" for no failure."""
