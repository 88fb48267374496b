"""What calls on text memories answer with, beside the memories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from memserve.domain.memories import (
    ErasedPlace,
    Memory,
    MetadataValue,
    NamespaceUsage,
    Remembered,
)


@dataclass(frozen=True, slots=True)
class ItemRefusal:
    """Why one item of many was not taken."""

    status: str
    """The name of the status that a single call would have ended with."""
    field: str
    """The field that a rule refuses. "": another reason."""
    message: str


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What became of one item of many. One of the two is there."""

    index: int
    """From 0, in the order of the items."""
    remembered: Remembered | None = None
    refusal: ItemRefusal | None = None


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What became of one line of an import."""

    index: int
    refusal: ItemRefusal | None = None
    skipped: bool = False
    """The same memory was there already, or the line is no memory."""


@dataclass(frozen=True, slots=True)
class NewDocument:
    """What a caller says of a document."""

    namespace: str
    document_id: str
    media_type: str = ""
    """text/plain, text/markdown, text/html or application/pdf. Empty: by the name and the bytes."""
    file_name: str = ""
    source: str = ""
    title: str = ""
    """Empty: the document's own."""
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    keywords: tuple[str, ...] = ()
    valid_from_s: float | None = None
    valid_until_s: float | None = None
    applies_when: str = ""


@dataclass(frozen=True, slots=True)
class DocumentReport:
    """What became of a document's passages."""

    passages: int
    stored: int
    unchanged: int
    updated: int
    forgotten: int
    """Passages of the document as it was before, which it has no more."""
    title: str
    done: bool = False
    refused: tuple[ItemResult, ...] = ()


@dataclass(frozen=True, slots=True)
class ForgottenWhere:
    """What a filter matched, and what was forgotten."""

    matched: int
    forgotten: int
    examples: tuple[Memory, ...] = ()
    """The first that matched."""
    dry_run_token: str = ""
    """Of a dry run: forgetting takes it."""


@dataclass(frozen=True, slots=True)
class MemoryPage:
    """A page of a list."""

    memories: tuple[Memory, ...]
    next_page_token: str
    """Empty after the last page."""


@dataclass(frozen=True, slots=True)
class NamespaceErasure:
    """How far the erasure of a namespace is."""

    erased: int
    remaining: int
    done: bool = False
    places: tuple[ErasedPlace, ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """What a tenant keeps, and what it may keep."""

    namespaces: tuple[NamespaceUsage, ...]
    max_memories: int
    max_namespaces: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class ReindexProgress:
    """How far a reindexing is."""

    memories_done: int
    memories_total: int
    embedder: str
    """The model that embeds from then on."""
    done: bool = False
