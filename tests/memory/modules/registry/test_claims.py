"""Claims and blocks of digests in a real Redis."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from memserve.memory.modules.registry.scripts import DigestCondemned
from memserve.memory.modules.registry.store import ModuleStore
from tests.memory.modules.registry.module_store import (
    VERSION,
    A,
    B,
    C,
    audit_trail,
    publish,
)


async def test_nothing_is_published_under_a_condemned_digest(store: ModuleStore) -> None:
    await publish(store, A)
    assert not await store.block_publishing(A, "mine", 60)
    assert await store.block_publishing(B, "mine", 60)
    assert not await store.block_publishing(B, "theirs", 60)
    with pytest.raises(DigestCondemned):
        await publish(store, B)
    await store.allow_publishing(B, "theirs")
    with pytest.raises(DigestCondemned):
        await publish(store, B)
    await store.allow_publishing(B, "mine")
    await publish(store, B)
    assert await store.block_publishing(C, "died", 0.02)
    await asyncio.sleep(0.1)
    await publish(store, C)
    assert len(await audit_trail(store)) == 3


async def test_what_a_publisher_has_claimed_is_not_condemned(store: ModuleStore) -> None:
    with_probes = replace(VERSION, probes_digest=C)
    await store.claim([A, C], "mine", 60)
    await store.claim([A], "theirs", 30)
    assert not await store.block_publishing(A, "sweep", 60)
    assert not await store.block_publishing(C, "sweep", 60)
    published = await store.publish("alice", "ann", with_probes, claim="mine")
    with pytest.raises(DigestCondemned):
        await store.publish("alice", "ann", replace(with_probes, digest=B), claim="mine")
    await store.delete_version("alice", "ann", "tone", published.version)
    assert not await store.block_publishing(A, "sweep", 60), "the other's claim stands"
    await store.unclaim([A], "theirs")
    assert await store.block_publishing(A, "sweep", 60)
    with pytest.raises(DigestCondemned):
        await store.claim([B, A], "mine", 60)
    assert await store.block_publishing(B, "sweep", 60), "a claim is on all of them or on none"


async def test_probe_sets_are_referenced_as_weights_are(store: ModuleStore) -> None:
    await store.publish("alice", "ann", replace(VERSION, probes_digest=C))
    assert await store.referenced(C)
    assert not await store.block_publishing(C, "sweep", 60)
    assert (await store.delete_version("alice", "ann", "tone", 1))[1]
    assert not await store.referenced(C)
    assert await store.block_publishing(C, "sweep", 60)
    with pytest.raises(DigestCondemned):
        await store.publish("alice", "ann", replace(VERSION, probes_digest=C))
