"""A chunk at a time, for tests that say something about one."""

from __future__ import annotations

from memserve.kv.outcomes import Put
from memserve.kv.store import RedisChunkStore
from memserve.kv.values.envelope import Buffer


def put(store: RedisChunkStore, key: bytes, payload: Buffer) -> Put:
    [outcome] = store.store([key], [payload], budget_s=10)
    return outcome


def get(store: RedisChunkStore, key: bytes, length: int) -> bytes | None:
    destination = bytearray(length)
    [loaded] = store.load([key], [memoryview(destination)], budget_s=10)
    return bytes(destination) if loaded else None
