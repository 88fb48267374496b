"""Preloads in a real Redis: what workers load when they start."""

from __future__ import annotations

import json
import time

import pytest

from memserve.domain import (
    ModuleKind,
)
from memserve.errors import (
    ModuleNotFound,
    VersionInUse,
)
from memserve.memory.modules.registry.records import Preload
from memserve.memory.modules.registry.store import ModuleStore
from memserve.registry.leases import Registry
from tests.kv.redis_server import RedisServer
from tests.memory.modules.registry.module_store import (
    EXPERT,
    A,
    B,
    publish,
    start,
)


async def test_preloads_are_what_workers_load_when_they_start(store: ModuleStore, registry: Registry) -> None:
    await start(registry, "w1", "w:2")
    await publish(store, A, B)
    await store.publish("bob", "bert", EXPERT)
    for worker_id in ("w1", "", "w:2"):
        await store.preload("alice", "ann", "tone", 1, worker_id)
    await store.preload("alice", "ann", "tone", 2, "w1")
    await store.preload("bob", "bert", "tone", 1)
    lora, expert = ModuleKind.LORA, ModuleKind.LOGIT_EXPERT
    kept = [
        Preload(A, expert, ""),
        Preload(A, lora, ""),
        Preload(A, lora, "w1"),
        Preload(A, lora, "w:2"),
        Preload(B, lora, "w1"),
    ]
    assert await store.preloads() == kept
    await store.unload("alice", "ann", "tone", 1, "w1")
    await store.unload("alice", "ann", "tone", 1, "never")
    assert await store.preloads() == [kept[0], kept[1], kept[3], kept[4]]
    await store.unload("alice", "ann", "tone", 1)
    assert await store.preloads() == [kept[0], kept[4]]
    with pytest.raises(ModuleNotFound):
        await store.preload("alice", "ann", "tone", 9)
    with pytest.raises(ModuleNotFound):
        await store.unload("alice", "ann", "tone", 9)


async def test_a_preload_ends_with_its_worker(
    store: ModuleStore, registry: Registry, redis_server: RedisServer
) -> None:
    await publish(store, A, B)
    await start(registry, "w1", "w:2")
    for number, worker_id in ((1, "w1"), (1, "w:2"), (2, "w1"), (2, "")):
        await store.preload("alice", "ann", "tone", number, worker_id)
    await registry.drop_lease("w1")
    with pytest.raises(VersionInUse, match="a preload"):
        await store.delete_version("alice", "ann", "tone", 1)
    assert await store.preloads() == [Preload(A, ModuleKind.LORA, "w:2"), Preload(B, ModuleKind.LORA, "")]
    await start(registry, "w1")
    assert Preload(A, ModuleKind.LORA, "w1") in await store.preloads(), "back after an outage"
    await registry.drop_lease("w1")
    await registry.drop_lease("w:2")
    await store.hold_version("alice", "tone", 1, "mine", 60)
    await store.delete_version("alice", "ann", "tone", 1, token="mine")
    assert await store.preloads() == [Preload(B, ModuleKind.LORA, "")]
    assert sorted(redis_server.client.hkeys("memserve:module:preloads")) == [
        b"5:alice4:tone2:",
        b"5:alice4:tone2:w1",
    ]
    an_hour_ago = json.dumps({"digest": B, "kind": "lora", "worker_id": "w1", "gone": time.time() - 3601})
    redis_server.client.hset("memserve:module:preloads", "5:alice4:tone2:w1", an_hour_ago)
    await store.preloads()
    assert redis_server.client.hkeys("memserve:module:preloads") == [b"5:alice4:tone2:"]
    assert redis_server.client.smembers("memserve:module:preloaded:5:alice4:tone2") == {b""}
