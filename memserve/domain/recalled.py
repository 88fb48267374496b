"""What a search or a recall found."""

from __future__ import annotations

from dataclasses import dataclass

from memserve.domain.memories import LinkKind, Memory
from memserve.domain.open_enum import OpenEnum


@dataclass(frozen=True, slots=True)
class Via:
    """How a memory was found that the search did not find by its content."""

    memory_id: str
    """The hit that led to it."""
    namespace: str
    kind: LinkKind | None
    """None: it is a neighbour in the same document or session."""
    depth: int
    """How many steps from the hit, from 1."""
    backwards: bool = False
    """Whether the link is kept at the memory that was led to."""


@dataclass(frozen=True, slots=True)
class ScoredMemory:
    """A hit of a search."""

    memory: Memory
    score: float
    """Fused from both halves of the search, and weighted by strength. The order of hits."""
    dense_score: float | None
    """None: the search by meaning did not find the memory."""
    bm25_score: float | None
    """None: the search by word did not find the memory."""
    relevance: float = 0.0
    """The calibrated probability that the memory answers the query, 0 to 1."""
    strength: float = 1.0
    """By its writer, age, use and outcomes, when it was found."""
    rerank_score: float | None = None
    """Of the cross-encoder. None: none was asked."""
    via: Via | None = None
    """None: it was found by its content."""


class SkipReason(OpenEnum):
    """Why a memory that was found is not used."""

    CONDITION = "condition"
    """Its `applies_when` does not hold."""
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    SCORE = "score"
    """Below the least relevance."""
    DIVERSITY = "diversity"
    """It says what a better hit says."""
    TOKENS = "tokens"
    """No room within the budget of tokens."""
    UNQUOTABLE = "unquotable"
    """The model's tokenizer cannot show it."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A memory that was found and is not used."""

    namespace: str
    memory_id: str
    version: int
    reason: SkipReason
    detail: str
    """One line for a person."""


@dataclass(frozen=True, slots=True)
class FoundMemories:
    """What a search gives."""

    hits: tuple[ScoredMemory, ...]
    skipped: tuple[Skipped, ...] = ()
    cut: bool = False
    """Whether the search ended before it had looked at all that a filter might let through."""


class RecallOutcome(OpenEnum):
    """What became of a request's recall."""

    NOT_ASKED = "not_asked"
    FOUND = "found"
    EMPTY = "empty"
    LATE = "late"
    UNAVAILABLE = "unavailable"
    SKIPPED = "skipped"
    """Left out, because with the passages the answer would have been refused."""
    UNKNOWN = "unknown"
