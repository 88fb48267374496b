"""Keys and fields of the ledger in Redis, as `prelude.lua` has them. Names on disk are short."""

from __future__ import annotations

from enum import StrEnum

PREFIX = "{memserve:kv}:"
"""A hash tag: a cluster keeps the ledger on one node."""
ENTRY_PREFIX = PREFIX + "entry:"
TENANT_WORTH_PREFIX = PREFIX + "worth:"
MODULE_PREFIX = PREFIX + "module:"
WORTH = PREFIX + "worth"
DUE = PREFIX + "due"
GENERATION = PREFIX + "generation"


class Counter(StrEnum):
    """Hashes by tenant, and `ALL` for all of them."""

    BYTES = "bytes"
    CHUNKS = "chunks"
    PINNED = "pinned"

    @property
    def key(self) -> str:
        return PREFIX + self.value


class Field(StrEnum):
    """Of an entry."""

    STATE = "s"
    BYTES = "b"
    TENANT = "t"
    MODULE = "m"
    PARENT = "p"
    DEPTH = "d"
    GENERATION = "g"
    PINNED_UNTIL = "pin"
    WORTH_AFTER_PIN = "w"


class State(StrEnum):
    """Of an entry."""

    RESERVED = "r"
    COMMITTED = "c"
    CONDEMNED = "x"


def entry_key(member: str) -> str:
    return ENTRY_PREFIX + member
