"""Memories that are distilled into a module: how, what of, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass

from memserve.domain.modules import ModuleKind
from memserve.domain.open_enum import OpenEnum


@dataclass(frozen=True, slots=True)
class Recipe:
    """0: what suits the served model's size."""

    steps: int = 0
    """At most so many. The stop rule and the budget end training earlier."""
    rows: int = 0
    """Questions of one step."""
    rank: int = 16
    """Of a LoRA."""
    rate: float = 0.0
    """The learning rate."""
    fact_share: float = 0.0
    """The share of the questions that ask for the memories. The others keep what the base can do. Once the
    values are nearly learned, a part of it is asked."""
    fresh: float = 0.0
    """Replayed lessons that are drawn anew, for each one that is trained on."""
    stop_loss: float = 0.02
    """Training ends soon after both stay under this: the median loss of the values' tokens, and how far the
    replayed answers are from the base's. In nats. 0: it does not."""
    least_teacher: float = 0.2
    """The share that the teacher must answer, with the memory before it."""
    phrasings: int = 0
    """In how many ways a fact is asked, at most."""
    tokens: int = 0
    """Positions of a cartridge. It gets fewer where the memories have fewer tokens."""
    old_share: float = 0.5
    """Where an earlier version is trained on: the share of the facts' questions that ask for what it was made
    of. 0: none is asked, and what it knew is forgotten."""


DEFAULT_RECIPE = Recipe()


@dataclass(frozen=True, slots=True)
class DistilChoice:
    """Which memories to distil: those of namespaces, and single ones."""

    namespaces: tuple[str, ...] = ()
    filter: str = ""
    """An expression that a memory of the namespaces must fulfil."""
    document_ids: tuple[str, ...] = ()
    """Only memories of these documents. Empty: all of the namespaces'."""
    memories: tuple[tuple[str, str], ...] = ()
    """Namespaces and ids."""


@dataclass(frozen=True, slots=True)
class Distillation:
    """What is distilled into what."""

    name: str
    choice: DistilChoice
    kind: ModuleKind = ModuleKind.LORA
    recipe: Recipe = DEFAULT_RECIPE
    budget_s: float = 0.0
    seed: int = 0
    notes: str = ""
    from_reference: str = ""
    """The version that is trained on. Empty: a new module is trained."""


@dataclass(frozen=True, slots=True)
class MemoryLeftOut:
    """A memory that is not distilled."""

    namespace: str
    memory_id: str
    reason: str
    """What the memory is or does, such as "is forgotten"."""


@dataclass(frozen=True, slots=True)
class DistilPlan:
    """What is trained on."""

    memories: int
    facts: int
    """That the memories state."""
    questions: int
    """Different ones for the facts."""
    left_out: tuple[MemoryLeftOut, ...] = ()
    examples: tuple[str, ...] = ()
    """Some of the questions, each with its answer behind it."""
    probes: int = 0
    """Questions that the gate asks."""


@dataclass(frozen=True, slots=True)
class DistilProgress:
    """How far it is."""

    stage: str
    """`waiting`, for a worker; `reading`, `teaching`, `training`, `writing` or `gate`."""
    done: int
    """Steps; of the gate: questions."""
    total: int
    cpu_s: float = 0.0
    """Processor seconds so far."""
    tokens: int = 0
    """That were trained on."""
    median_loss: float | None = None
    """Of the values' tokens in the last steps, in nats."""


class DistillationState(OpenEnum):
    """What has become of a distillation."""

    RUNNING = "running"
    DONE = "done"
    """It has a version."""
    FAILED = "failed"
    """Nothing is left of it but its reason."""
    STOPPED = "stopped"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class DistillationJob:
    """A distillation as anybody of its tenant sees it: the newest of its module."""

    job_id: str
    module: str
    kind: ModuleKind
    state: DistillationState
    principal: str
    """Who began it."""
    begun_s: float
    """Seconds since the epoch."""
    ended_s: float
    """0: it has not ended."""
    progress: DistilProgress
    """The last that was said of it."""
    taken_up: int = 0
    """How often another gateway, or the same one after a restart, has taken it up."""
    version: int = 0
    """0: none yet."""
    passed: bool | None = None
    """Whether the version passed the gate. None: it was not judged yet."""
    promoted_to: str = ""
    """The alias that the tenant's policy has promoted it to. Empty: none."""
    reason: str = ""
    """Why it failed or was stopped, or was not promoted."""
    from_reference: str = ""
