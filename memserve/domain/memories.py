"""What a tenant remembers as text."""

from __future__ import annotations

from dataclasses import dataclass

from memserve.domain.open_enum import OpenEnum


@dataclass(frozen=True, slots=True)
class Memory:
    """A text memory with its provenance."""

    memory_id: str
    namespace: str
    text: str
    source: str
    keywords: tuple[str, ...]
    created_s: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class ScoredMemory:
    """A hit of a search."""

    memory: Memory
    score: float
    """Fused from both halves of the search."""
    dense_score: float | None
    """None: the search by meaning did not find the memory."""
    bm25_score: float | None
    """None: the search by word did not find the memory."""


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
