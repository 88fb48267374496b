"""What a tenant remembers as text."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Memory:
    """A text memory with its provenance. `created_s` is seconds since the epoch."""

    memory_id: str
    namespace: str
    text: str
    source: str
    keywords: tuple[str, ...]
    created_s: float


@dataclass(frozen=True, slots=True)
class ScoredMemory:
    """A search hit: the fused score, and each half's own (None where that half did not find it)."""

    memory: Memory
    score: float
    dense_score: float | None
    bm25_score: float | None


class RecallOutcome(StrEnum):
    """What became of the vector recall of a request."""

    NOT_ASKED = "not_asked"
    FOUND = "found"
    EMPTY = "empty"
    LATE = "late"
    UNAVAILABLE = "unavailable"
