"""A namespace that is put in order: what becomes of its memories, and whether nothing is lost by it."""

from __future__ import annotations

from dataclasses import dataclass

from memserve.domain.open_enum import OpenEnum


class MergeKind(OpenEnum):
    """How memories become one."""

    DUPLICATES = "duplicates"
    """They say the same. One of them stays."""
    SUMMARY = "summary"
    """They are about one thing. A new memory says what all of them say."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class MergedMemory:
    """A memory that another one takes the place of, as it was when that was planned."""

    memory_id: str
    version: int


@dataclass(frozen=True, slots=True)
class Merge:
    """Memories that become one."""

    kind: MergeKind
    memory_id: str
    """Of the memory that stays, or of the new one."""
    text: str
    """Of the same."""
    sources: tuple[MergedMemory, ...]
    """What it takes the place of."""
    reason: str
    """One line for a person."""
    version: int = 0
    """Of the memory that stays, when that was planned. 0: the memory is new."""


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """A memory that stays as it is although it is near others, or that changed meanwhile."""

    memory_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class ConsolidationPlan:
    """What would become of a namespace."""

    namespace: str
    memories: int
    """Live ones that were looked at."""
    merges: tuple[Merge, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()
    not_looked_at: int = 0
    """Memories beyond those that one consolidation looks at."""

    @property
    def fewer(self) -> int:
        """How many live memories fewer there would be."""
        return sum(len(each.sources) - (each.version == 0) for each in self.merges)

    @property
    def memory_ids(self) -> frozenset[str]:
        """Of the memories whose texts are in it."""
        named = (source.memory_id for merge in self.merges for source in merge.sources)
        return frozenset((*named, *(merge.memory_id for merge in self.merges)))


@dataclass(frozen=True, slots=True)
class ConsolidationProbes:
    """The same questions, over the sources and over the candidate."""

    questions: int = 0
    found_before: int = 0
    """Of the questions: the value is in what recall finds among the sources."""
    found_after: int = 0
    """The same with the candidate in their place."""
    asked: int = 0
    """Questions that the served model was asked, both ways. 0: no worker answered, and recall alone was
    looked at."""
    right_before: int = 0
    right_after: int = 0

    @property
    def hold(self) -> bool:
        """Whether nothing is lost."""
        return self.found_after >= self.found_before and self.right_after >= self.right_before


class ConsolidationState(OpenEnum):
    """What has become of a consolidation."""

    CANDIDATE = "candidate"
    """It has passed its probes, and waits to be accepted. Nothing has changed."""
    ACCEPTING = "accepting"
    """Its memories are being put in place. Where that was cut off, it is accepted again."""
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    FAILED = "failed"
    """It has not passed. Nothing has changed."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Consolidation:
    """The newest one of a namespace."""

    consolidation_id: str
    state: ConsolidationState
    principal: str
    """Who began it."""
    at_s: float
    """When it came to this state, in seconds since the epoch."""
    plan: ConsolidationPlan
    """As it was tried; of an accepted one, what was done."""
    probes: ConsolidationProbes
    reason: str = ""
    """Why it failed, or was rejected."""
