"""What the ledger is asked and what it answers, as values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

ALL = "*"
"""Stands for every tenant, or for every module."""


class Admission(StrEnum):
    """What becomes of a chunk that a worker would store."""

    STORE = "store"
    PRESENT = "present"
    BUSY = "busy"
    """Another worker stores it, or it is being removed."""
    NOT_YET = "not_yet"
    """Its first use, where admission waits for the second."""
    NO_ROOM = "no_room"
    """All that could go for it is pinned, under way, or its own beginning."""


class Removal(StrEnum):
    """Why a chunk goes."""

    TENANT_QUOTA = "tenant_quota"
    CACHE_QUOTA = "cache_quota"
    EXPIRED = "expired"
    ABANDONED = "abandoned"
    """Its writer died."""
    AGAIN = "again"
    """It was condemned before, and nobody has confirmed that its value is gone."""
    REFUSED = "refused"
    """Its value did not verify."""
    VANISHED = "vanished"
    """Redis has evicted its value itself."""


class Settled(StrEnum):
    """What became of a value."""

    STORED = "stored"
    FAILED = "failed"
    """It is certain that the value was not written."""
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose chunks they are."""

    tenant: str = "default"
    module: str = ""
    """Digest of the adapter version, "" for the base model."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chunk that is to be stored."""

    member: str
    stored_bytes: int
    """Of the value, header included."""
    parent: str
    """The member before it in its chain, "" for the first."""
    depth_tokens: int
    """Where it ends in its prompt."""
    present: bool = False
    """Its value is in Redis."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A member of the ledger at one moment."""

    member: str
    generation: int
    """A member that is counted anew has another generation."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What the ledger says of candidates."""

    admissions: tuple[Admission, ...]
    """[candidates]."""
    entries: dict[str, Entry]
    """Of the candidates that are to be stored, by member."""
    victims: tuple[tuple[Entry, Removal], ...]
    """To be removed before anything is written, and why."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """Bytes of stored values, headers included. 0: no limit."""

    cache_bytes: int = 0
    tenant_bytes: int = 0


NO_QUOTAS = Quotas()


@dataclass(frozen=True, slots=True)
class Usage:
    """What is counted."""

    stored_bytes: int
    """Of the values, headers included."""
    chunks: int
    pinned_bytes: int
