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


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who calls."""

    name: str
    cache_salt: str
    """Keeps one tenant's KV from another tenant. It is derived, never sent by a client."""
    principal: str = ""
    """Who of the tenant calls, for the audit."""
    role: KeyRole = KeyRole.ADMIN

    @property
    def is_admin(self) -> bool:
        return self.role is KeyRole.ADMIN
