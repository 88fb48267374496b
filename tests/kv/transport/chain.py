"""A chain of 60 chunks, stored and loaded as a worker does."""

from __future__ import annotations

from memserve.kv.keys import redis_key
from memserve.kv.store import RedisChunkStore
from memserve.kv.transport.limits import CacheLimits

NAMESPACE = "ab" * 32
KEYS = [number.to_bytes(36, "big") for number in range(60)]
NAMES = [redis_key(NAMESPACE, key) for key in KEYS]
PAYLOADS = [bytes([number]) * 3000 for number in range(60)]


def store_on(url: str, lookup_timeout_s: float = 0.2) -> RedisChunkStore:
    return RedisChunkStore(
        url,
        NAMESPACE,
        limits=CacheLimits(io_s=0.5, lookup_s=lookup_timeout_s, connect_s=2.0, pause_s=0.2),
    )


def load(store: RedisChunkStore) -> list[bool]:
    """Load every key; what came is what was stored."""
    destinations = [bytearray(3000) for _ in KEYS]
    loaded = store.load(KEYS, [memoryview(chunk) for chunk in destinations], budget_s=10)
    assert all(
        got == payload for got, payload, good in zip(destinations, PAYLOADS, loaded, strict=True) if good
    )
    return loaded
