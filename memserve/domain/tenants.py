"""Who calls, and what the caller may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class KeyRole(StrEnum):
    """What the holder of an API key may do, from least to most; `gateway/access/roles.py` says which RPCs."""

    READ = "read"
    ASK = "ask"
    WRITE = "write"
    ADMIN = "admin"

    def covers(self, needed: KeyRole) -> bool:
        order = tuple(KeyRole)
        return order.index(self) >= order.index(needed)


class TokenFault(StrEnum):
    """Which rule a JSON Web Token breaks."""

    LENGTH = "length"
    MALFORMED = "malformed"
    ALGORITHM = "algorithm"
    KEY = "key"
    """It names no key of the set, or none where there are several."""
    SIGNATURE = "signature"
    EXPIRED = "expired"
    NOT_YET = "not_yet"
    ISSUER = "issuer"
    AUDIENCE = "audience"
    SUBJECT = "subject"
    TENANT = "tenant"
    ROLE = "role"


class Priority(StrEnum):
    """Which requests go first. The order is that of the members."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"
    """It is refused first, and goes last but for a small share."""
    BACKGROUND = "background"
    """memserve's own questions: those of gates, of canaries, of prefixes that are warmed. Callers cannot ask
    for it."""

    @classmethod
    def of_callers(cls) -> tuple[Priority, ...]:
        """What callers may ask for."""
        return (cls.HIGH, cls.NORMAL, cls.LOW)

    @property
    def band(self) -> int:
        """0 goes first."""
        return tuple(Priority).index(self)


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who calls."""

    name: str
    cache_salt: str
    """Keeps one tenant's KV from another tenant. It is derived, never sent by a client."""
    principal: str = ""
    """Who of the tenant calls, for the audit."""
    role: KeyRole = KeyRole.ADMIN
    highest: Priority = Priority.HIGH
    """The highest priority that the caller may ask for."""

    @property
    def is_admin(self) -> bool:
        return self.role is KeyRole.ADMIN
