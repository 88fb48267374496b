"""What is asked of the vector memory where a call takes more than a few names."""

from __future__ import annotations

from dataclasses import dataclass, fields

from memserve.domain import MemoryKind, MemoryState, NewMemory, Remembered, SearchQuery
from memserve.errors import InvalidField, MemserveError
from memserve.memory.texts.store import ListOrder

CHANGEABLE = frozenset(field.name for field in fields(NewMemory)) - {"namespace", "memory_id"}


_OPTIONS = frozenset(field.name for field in fields(SearchQuery)) - {"namespaces", "text", "limit"}


def fault_of_options(options: str, fault: InvalidField) -> InvalidField:
    """A search's refusal by the field's name in a request.

    options: what the request calls the part that has a SearchQuery's wishes.
    """
    if fault.field.partition(".")[0] not in _OPTIONS:
        return fault
    return InvalidField(f"{options}.{fault.field}", fault.rule)


@dataclass(frozen=True, slots=True)
class MemoryName:
    """Which memory of a tenant."""

    namespace: str
    memory_id: str


@dataclass(frozen=True, slots=True)
class MemoryChanges:
    """What an update changes."""

    content: NewMemory
    """Its namespace and id name the memory."""
    fields: frozenset[str] = CHANGEABLE
    """Those of `content` that change; the others stay."""
    expected_version: int | None = None
    """The version that the caller has seen. None: whatever is current."""


@dataclass(frozen=True, slots=True)
class ListQuery:
    """Which memories to list."""

    namespaces: tuple[str, ...]
    order: ListOrder = ListOrder.CREATED
    descending: bool = False
    limit: int = 64
    """1 to PAGE_MAX."""
    page_token: str = ""
    """Of the page before. "": the first."""
    filter: str = ""
    """An expression over a memory's fields. "": all."""
    kinds: tuple[MemoryKind, ...] = ()
    """Empty: all."""
    states: tuple[MemoryState, ...] = (MemoryState.LIVE,)
    created_from_s: float | None = None
    """Inclusive."""
    created_until_s: float | None = None
    """Exclusive."""


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """What became of one item of many. One of the two is there."""

    index: int
    """From 0, in the order of the items."""
    remembered: Remembered | None = None
    error: MemserveError | None = None


@dataclass(frozen=True, slots=True)
class LineOutcome:
    """What became of one line of an import."""

    index: int
    """From 0."""
    created: bool = False
    """False without an error: the same memory was there, or the line is no memory."""
    error: MemserveError | None = None
