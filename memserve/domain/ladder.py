"""The ladder of knowledge: text, warm prefix, cartridge, LoRA. Who stands where, and what each rung costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memserve.domain.open_enum import OpenEnum


class Rung(OpenEnum):
    """A form in which knowledge answers, from the quickest to change to the dearest to make."""

    TEXT = "text"
    """Recalled into the prompt, and computed there."""
    PREFIX = "prefix"
    """Pinned at the beginning of prompts, with its KV kept warm."""
    CARTRIDGE = "cartridge"
    LORA = "lora"
    UNKNOWN = "unknown"

    @property
    def height(self) -> int:
        """0 for text."""
        return RUNGS.index(self)


RUNGS = (Rung.TEXT, Rung.PREFIX, Rung.CARTRIDGE, Rung.LORA)
"""From below."""
WEIGHTS = (Rung.CARTRIDGE, Rung.LORA)
"""Rungs that are trained: a change of the text does not reach them."""


class LadderAction(OpenEnum):
    """What is decided."""

    PROMOTE = "promote"
    DEMOTE = "demote"
    KEEP = "keep"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class RungCost:
    """What a rung costs a subject."""

    computed_tokens: int
    """Prompt tokens that an answer computes for the subject's sake."""
    ttft_s: float
    """Time to the first token of an answer."""
    resident_bytes: int
    """What it takes of the budget: KV in Redis, or memory of a worker. 0 for text."""
    make_s: float
    """Processor seconds to bring it there: training, or loading where the files are kept. 0 for text."""
    right: float | None = None
    """The share of questions that are answered right. None: not measured."""
    depends_on: tuple[str, ...] = ()
    """Names of subjects without whose present rung this one is worth nothing: the adapter that a prefix's KV
    was computed with, the parent of a composed version."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What stands on the ladder: a memory, or the memories of a namespace that are distilled together."""

    name: str
    rung: Rung
    since_s: float
    """When it came there, in seconds since the epoch."""
    uses_per_day: float
    """Lately: answers that it took part in."""
    costs: Mapping[Rung, RungCost]
    """Of the rungs that it can have, with text always."""
    changes: int = 0
    """How often its facts have changed: of the fact that changed most."""
    changed_s: float | None = None
    """When a fact last changed. None: never."""
    outdated: bool = False
    """A fact has changed since its rung was made of it."""


@dataclass(frozen=True, slots=True)
class LadderBudget:
    """What all subjects together may take."""

    resident_bytes: int
    """Of KV, cartridges and adapters together."""
    make_s: float
    """Processor seconds for making rungs, in the period that `spent_s` is counted in."""


@dataclass(frozen=True, slots=True)
class LadderUse:
    """What of the budget is used."""

    resident_bytes: int
    make_s: float


@dataclass(frozen=True, slots=True)
class LadderDecision:
    """What becomes of a subject, and why."""

    subject: str
    action: LadderAction
    from_rung: Rung
    to_rung: Rung
    reason: str
    """A sentence with the figures."""
    before: LadderUse
    after: LadderUse
    makes_room_for: str = ""
    """The subject that climbs with what this one gives back."""


@dataclass(frozen=True, slots=True)
class LadderStep:
    """A decision, and what was done about it."""

    decision: LadderDecision
    outcome: str = ""
    """For a person. Empty: nothing was done, because it is kept, or only advised."""


@dataclass(frozen=True, slots=True)
class LadderReport:
    """What was last decided for a tenant."""

    mode: str
    """off, advise or act."""
    at_s: float
    """Seconds since the epoch. 0: nothing has been decided yet."""
    budget: LadderBudget
    use: LadderUse
    steps: tuple[LadderStep, ...]
