"""How the KV of prompts is named, and how far a prefix is computed or stored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """How a worker's KV is named. Workers of different layouts cannot use each other's KV."""

    namespace: str
    """The digest under which the KV lives in Redis."""
    block_tokens: int
    """Tokens in a block."""
    blocks_per_chunk: int
    """Blocks in one Redis value."""

    @property
    def chunk_tokens(self) -> int:
        return self.block_tokens * self.blocks_per_chunk


@dataclass(frozen=True, slots=True)
class CachedTokens:
    """Prompt tokens whose KV was not computed again, by the memory that had it."""

    device: int = 0
    host: int = 0
    redis: int = 0
    cartridge: int = 0
    """Positions of a cartridge: they were never a text. The other figures leave them out."""

    @property
    def total(self) -> int:
        return self.device + self.host + self.redis + self.cartridge


@dataclass(frozen=True, slots=True)
class HeldPrefix:
    """How many of a prefix's leading tokens are in a worker's own memory."""

    worker_id: str
    device_tokens: int
    """In the device's memory."""
    held_tokens: int
    """In the device's or the host's memory."""


@dataclass(frozen=True, slots=True)
class Warmth:
    """How far a warm-up is."""

    worker_id: str
    prompt_tokens: int
    computed_tokens: int
    stored_tokens: int
    """In Redis. Only full chunks are stored."""
    done: bool = False


@dataclass(frozen=True, slots=True)
class FreedMemory:
    """What a worker has removed of erased memories."""

    blocks: int
    """KV of the device's memory."""
    chunks: int
    """Of the host's memory."""
    held: int
    """What could not be freed yet, because it is on its way to or from Redis. It is freed by a later call."""
    trainings: int = 0
    """Checkpoints of trainings that have not ended."""
