"""What a tenant remembers as text, with its history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from memserve.domain.open_enum import OpenEnum

MetadataValue = str | int | float | bool | tuple[str, ...]
"""Typed: 1 is no 1.0, and True is no 1."""


class MemoryKind(OpenEnum):
    """What sort of thing a memory is."""

    FACT = "fact"
    EPISODE = "episode"
    """Something that happened: a turn of a session, a case with its outcome."""
    REFLECTION = "reflection"
    """What was learned from an outcome."""
    PROCEDURE = "procedure"
    """How something is done."""
    PASSAGE = "passage"
    """A part of a document."""
    UNKNOWN = "unknown"


class LinkKind(OpenEnum):
    """How a memory stands to another one. The link is kept at the memory that says it."""

    SUPERSEDES = "supersedes"
    CAUSED_BY = "caused_by"
    PART_OF = "part_of"
    NEXT = "next"
    """The other one comes after this one. Followed backwards it is `previous`."""
    DUPLICATES = "duplicates"
    CONTRADICTS = "contradicts"
    DERIVED_FROM = "derived_from"
    UNKNOWN = "unknown"


class MemoryState(OpenEnum):
    """Whether a memory is searched."""

    LIVE = "live"
    SUPERSEDED = "superseded"
    """Another memory has taken its place. It is read by id, and by links, and never found by content."""
    FORGOTTEN = "forgotten"
    """It is in no search. Its history stays until it is erased, so that it can be restored."""
    UNKNOWN = "unknown"


class MemoryAction(OpenEnum):
    """What a version of a memory came from."""

    REMEMBERED = "remembered"
    UPDATED = "updated"
    SUPERSEDED = "superseded"
    FORGOTTEN = "forgotten"
    RESTORED = "restored"
    ERASED = "erased"
    """Only of a change: an erased memory has no versions."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Link:
    """To another memory of the tenant. The other one need not exist (any more)."""

    kind: LinkKind
    memory_id: str
    namespace: str = ""
    """The empty one: the namespace of the memory that links."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a memory stands in a document or in a session."""

    within: str
    """The id of the document or session. "": in none."""
    position: int = 0
    """From 0. Two memories of one document may not have the same."""
    title: str = ""
    headings: tuple[str, ...] = ()
    """From the outermost to the innermost."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A text memory with its provenance: one version of it."""

    memory_id: str
    namespace: str
    text: str
    source: str
    keywords: tuple[str, ...]
    created_s: float
    """When its first version was remembered, in seconds since the epoch. So are all times."""
    kind: MemoryKind = MemoryKind.FACT
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    author: str = ""
    """The name of the key or token that wrote this version."""
    valid_from_s: float | None = None
    """None: since ever."""
    valid_until_s: float | None = None
    """From then on it does not hold any more. None: until it is changed."""
    applies_when: str = ""
    """A condition over a request's context (`policy/recall/expressions.py`). "": it always applies."""
    strength: float = 1.0
    """How much it counts, as its writer says: 0 to 10. Use, outcomes and age are counted elsewhere."""
    links: tuple[Link, ...] = ()
    place: Place = Place("")
    pinned: bool = False
    """Whether it belongs to its namespace's warm prefix: always in the prompt, ahead of what is recalled."""
    version: int = 1
    updated_s: float = 0.0
    """When this version was written."""
    state: MemoryState = MemoryState.LIVE
    superseded_by: Link | None = None

    @property
    def name(self) -> tuple[str, str]:
        """Namespace and id. No two memories of a tenant have the same."""
        return self.namespace, self.memory_id


@dataclass(frozen=True, slots=True, weakref_slot=True)
class MemoryVersion:
    """One entry of a memory's history."""

    memory: Memory
    action: MemoryAction


@dataclass(frozen=True, slots=True)
class MemoryHistory:
    """A memory's versions, oldest first. The last one is what holds now."""

    versions: tuple[MemoryVersion, ...]
    dropped: int = 0
    """Older versions that have left, because a memory keeps a bounded number."""

    @property
    def current(self) -> Memory:
        return self.versions[-1].memory


@dataclass(frozen=True, slots=True)
class NewMemory:
    """What a caller says of a memory. `Memory` explains the fields."""

    namespace: str
    text: str
    source: str = ""
    keywords: tuple[str, ...] = ()
    memory_id: str = ""
    """The idempotency key. Empty: a digest of text, source and keywords."""
    kind: MemoryKind = MemoryKind.FACT
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    valid_from_s: float | None = None
    valid_until_s: float | None = None
    applies_when: str = ""
    strength: float = 1.0
    links: tuple[Link, ...] = ()
    place: Place = Place("")
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class WritePolicy:
    """What a write does with what is near it."""

    skip_relations: bool = False
    """Do not look for duplicates and contradictions."""
    supersede_updates: bool = False
    """Supersede the memories that the new one updates. Otherwise they are linked."""
    skip_duplicates: bool = False
    """Do not store what a live memory says already."""
    surprise_gate: bool = False
    """Have the served model score the text, and do not store what it already predicts, or store it weaker."""


class FindingKind(OpenEnum):
    """What the rules saw when a memory was written."""

    DUPLICATE = "duplicate"
    """It says what another memory says."""
    CONTRADICTION = "contradiction"
    """It says something else of the same subject, and both hold at the same time."""
    UPDATE = "update"
    """A contradiction where the new memory holds from a later date."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """A memory that was there before, and how the new one stands to it."""

    kind: FindingKind
    namespace: str
    memory_id: str
    score: float
    """How sure the rule is, 0 to 1."""
    reason: str
    """One line for a person."""
    superseded: bool = False
    """Whether the memory that was there has been superseded by the new one."""


@dataclass(frozen=True, slots=True)
class SurpriseScore:
    """What the served model makes of a candidate (a write policy)."""

    nats_per_token: float | None
    """The negative log-probability of the text, given nothing. None: it was not scored in time."""
    nats_per_token_recalled: float | None
    """Given what is remembered already. None: nothing near is."""
    stored: bool
    strength: float
    """Of the memory that was stored."""
    reason: str


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a write has done."""

    memory: Memory | None
    """The memory that is there now. None: the surprise gate did not let it in."""
    created: bool
    """False: the same memory was there already, or none was stored."""
    findings: tuple[Finding, ...] = ()
    surprise: SurpriseScore | None = None

    @property
    def memory_id(self) -> str:
        """Of the memory that is there now; "" for none."""
        return "" if self.memory is None else self.memory.memory_id


@dataclass(frozen=True, slots=True)
class ErasedPlace:
    """One line of an erasure's report."""

    place: str
    """Such as `index`, `history`, `journal`, `kv`, `answers`."""
    removed: int
    detail: str
    """One line for a person."""
    pending: bool = False
    """A part of it could not be reached yet. The erasure goes on by itself."""


@dataclass(frozen=True, slots=True)
class NamespaceUsage:
    """What a namespace holds."""

    namespace: str
    memories: int
    """Live ones."""
    records: int
    """All, also superseded and forgotten ones."""
    bytes: int
    """Of all records with their histories."""


@dataclass(frozen=True, slots=True)
class MemoryChange:
    """One write of a tenant, as its feed tells it."""

    sequence: int
    """Higher for a later write."""
    namespace: str
    memory_id: str
    version: int
    """0 of an erased memory."""
    action: MemoryAction
