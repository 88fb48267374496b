"""What a search or a recall found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from memserve.domain.memories import LinkKind, Memory, MemoryKind, MetadataValue
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
class SearchQuery:
    """A search, as a caller states it. 0, "" and None: the gateway's default, or no wish."""

    namespaces: tuple[str, ...]
    text: str
    limit: int = 0
    kinds: tuple[MemoryKind, ...] = ()
    """Empty: all."""
    filter: str = ""
    """An expression over a memory's fields (`policy/recall/expressions.py`)."""
    min_relevance: float = 0.0
    """0 to 1."""
    diversity: float = 0.0
    """0: by score alone. 1: as different from each other as they can be."""
    max_tokens: int = 0
    """Of all hits' texts, by the served model's tokenizer."""
    context: Mapping[str, MetadataValue] = field(default_factory=dict)
    """What the memories' conditions are judged by."""
    neighbours: int = 0
    """Memories before and after each hit in its document or session, on either side."""
    link_depth: int = 0
    """Steps along links from each hit."""
    link_kinds: tuple[LinkKind, ...] = ()
    """Empty: all."""
    as_of_s: float | None = None
    """Judge validity at this time. None: now."""
    rerank: bool = False
    """Have the cross-encoder order the best hits, where the gateway has one and the time suffices."""


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
