"""How the KV of prompts is named, and how far a prefix is computed or stored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """How a worker's KV is named. Workers of different layouts have nothing for each other.

    namespace: digest under which the KV lives in Redis. block_tokens: tokens in a block. blocks_per_chunk:
    blocks in one Redis value.
    """

    namespace: str
    block_tokens: int
    blocks_per_chunk: int

    @property
    def chunk_tokens(self) -> int:
        return self.block_tokens * self.blocks_per_chunk


@dataclass(frozen=True, slots=True)
class CachedTokens:
    """Prompt tokens whose KV was not computed again, by where it was found."""

    device: int = 0
    host: int = 0
    redis: int = 0

    @property
    def total(self) -> int:
        return self.device + self.host + self.redis


@dataclass(frozen=True, slots=True)
class HeldPrefix:
    """A prefix's leading tokens in a worker's own memory: the device's, and the device's or the host's."""

    worker_id: str
    device_tokens: int
    held_tokens: int


@dataclass(frozen=True, slots=True)
class Warmth:
    """How far a warm-up is. stored_tokens: in Redis, full chunks only."""

    worker_id: str
    prompt_tokens: int
    computed_tokens: int
    stored_tokens: int
    done: bool = False
