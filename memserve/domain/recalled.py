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


class RecallSource(OpenEnum):
    """Where recalled knowledge comes from."""

    TEXTS = "texts"
    """Text memories that the question finds."""
    PINNED = "pinned"
    """Text memories that their namespace always has in the prompt."""
    MODULES = "modules"
    PREFIX = "prefix"
    """Computed state of the prompt."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class RecallPart:
    """What one memory gave to a request, and at what cost."""

    source: RecallSource
    outcome: RecallOutcome
    took_ms: float
    given: int
    """Passages, modules, or cached prompt tokens."""
    prompt_tokens: int = 0
    """Of the passages in the prompt."""
    detail: str = ""
    """One line for a person."""


@dataclass(frozen=True, slots=True)
class ModuleFit:
    """A module whose knowledge may fit a question."""

    name: str
    version: int
    digest: str
    score: float
    """Cosine of the question to the nearest of the module's description, sources and training questions."""
    reason: str
    """One line for a person."""
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class OutdatedFact:
    """A fact that a module was made of, and that a passage in the prompt corrects. The text wins."""

    module: str
    """`name@number`."""
    namespace: str
    memory_id: str
    known_version: int
    """Of the memory: the one that the module was made of."""
    text_namespace: str
    text_memory_id: str
    text_version: int
    """The passage: another version of that memory, or another memory."""
    why: str
    """One line for a person."""


@dataclass(frozen=True, slots=True)
class RungCost:
    """One way in which knowledge took part in an answer, and its cost. 0 is what is not known, or nothing."""

    kind: str
    """passages, prefix, or a kind of modules."""
    name: str
    """Of a module: `name@number`."""
    tokens: int = 0
    """Of the prompt: passages, cached tokens, or the positions of a cartridge."""
    bytes: int = 0
    """Of a module's files."""
    ms: float = 0.0
    """Recall, look-up, or a module's predicted loading."""


@dataclass(frozen=True, slots=True)
class RecallPreview:
    """What an answer would be made with."""

    outcome: RecallOutcome
    passages: tuple[ScoredMemory, ...]
    """In the prompt's order."""
    skipped: tuple[Skipped, ...]
    parts: tuple[RecallPart, ...]
    module_fits: tuple[ModuleFit, ...]
    prompt_tokens: int
    redis_tokens: int | None
    """Leading tokens that Redis has. None: it does not answer."""
    held_tokens: int
    """Leading tokens that the worker that has most of them holds."""


@dataclass(frozen=True, slots=True)
class Reinforced:
    """How strongly a memory counts after an outcome."""

    namespace: str
    memory_id: str
    strength_before: float
    strength: float


@dataclass(frozen=True, slots=True)
class RecordedOutcome:
    """What an outcome has changed."""

    memories: tuple[Reinforced, ...]
    reflection: Memory | None = None
