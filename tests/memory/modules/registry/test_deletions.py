"""Deletion of versions in a real Redis: nothing that is used goes, and marks end by themselves."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from memserve.domain import (
    ModuleKind,
)
from memserve.errors import (
    ModuleNotFound,
    VersionInUse,
)
from memserve.memory.modules.registry.store import ModuleStore
from memserve.registry.leases import Registry
from tests.memory.modules.registry.module_store import (
    VERSION,
    A,
    B,
    changes,
    promote,
    publish,
    start,
    versions,
)


async def test_a_version_in_use_is_not_deleted(store: ModuleStore, registry: Registry) -> None:
    await publish(store, A, B)
    await start(registry, "w0")
    await promote(store, 1, alias="canary")
    await store.preload("alice", "ann", "tone", 2, "w0")
    for number, user in ((1, "alias canary"), (2, "a preload")):
        with pytest.raises(VersionInUse, match=f"tone@{number} is in use by {user}"):
            await store.delete_version("alice", "ann", "tone", number)
        with pytest.raises(VersionInUse, match=user):
            await store.hold_version("alice", "tone", number, "t", 10)
    assert len(await versions(store)) == 2
    await store.unload("alice", "ann", "tone", 2)
    await store.delete_version("alice", "ann", "tone", 2)
    with pytest.raises(ModuleNotFound):
        await store.delete_version("alice", "ann", "tone", 2)


async def test_deleting_tells_when_nobody_references_the_digest_any_more(store: ModuleStore) -> None:
    await publish(store, A, B, A)
    await publish(store, A, tenant="bob")
    assert await store.delete_version("alice", "ann", "tone", 1) == (
        replace(VERSION, version=1),
        False,
        False,
    )
    assert (await store.delete_version("alice", "ann", "tone", 3))[1:] == (False, True)
    assert await store.referenced(A)
    assert (await store.delete_version("bob", "ann", "tone", 1))[1:] == (True, True)
    assert not await store.referenced(A)


async def test_a_version_knows_whether_another_keeps_its_digest(store: ModuleStore) -> None:
    await publish(store, A, B, A)
    await publish(store, B, tenant="a:b", name="ü:1")
    for name, number, others in (("tone", 1, True), ("tone", 2, True), ("tone", 3, True)):
        assert await store.other_references("alice", name, number) is others
    await store.hold_version("a:b", "ü:1", 1, "theirs", 60)
    assert not await store.other_references("alice", "tone", 2), "the other may be gone in a moment"
    await store.delete_version("alice", "ann", "tone", 3)
    assert not await store.other_references("alice", "tone", 1)
    with pytest.raises(ModuleNotFound, match="tone@3"):
        await store.other_references("alice", "tone", 3)


async def test_a_module_without_versions_is_not_listed_and_its_numbers_go_on(store: ModuleStore) -> None:
    await publish(store, A)
    await store.delete_version("alice", "ann", "tone", 1)
    assert (await store.modules("alice", limit=10), await store.count("alice")) == (([], ""), 0)
    assert await store.modules("alice", limit=10, kind=ModuleKind.LORA) == ([], "")
    assert await store.module("alice", "tone") is None
    assert await store.resolve("alice", "tone", alias="live") is None
    assert await changes(store) == []
    assert (await store.publish("alice", "ann", VERSION)).version == 2


async def test_a_held_version_is_given_to_nobody_until_it_is_released(store: ModuleStore) -> None:
    await publish(store, A)
    await store.hold_version("alice", "tone", 1, "mine", 60)
    assert await store.resolve("alice", "tone", number=1) is None
    with pytest.raises(ModuleNotFound):
        await promote(store, 1)
    with pytest.raises(ModuleNotFound):
        await store.preload("alice", "ann", "tone", 1)
    with pytest.raises(VersionInUse, match="another deletion"):
        await store.hold_version("alice", "tone", 1, "theirs", 60)
    assert (await store.publish("alice", "ann", VERSION)).version == 2, "the held one may be gone in a moment"
    await store.release_version("alice", "tone", 1, "theirs")
    assert await store.resolve("alice", "tone", number=1) is None
    await store.release_version("alice", "tone", 1, "mine")
    assert await store.resolve("alice", "tone", number=1) is not None
    with pytest.raises(VersionInUse, match="ran out"):
        await store.delete_version("alice", "ann", "tone", 1, token="mine")
    await store.hold_version("alice", "tone", 1, "mine", 60)
    await store.delete_version("alice", "ann", "tone", 1, token="mine")
    with pytest.raises(ModuleNotFound):
        await store.hold_version("alice", "tone", 1, "mine", 60)


async def test_a_mark_runs_out_by_itself(store: ModuleStore) -> None:
    await publish(store, A)
    await store.hold_version("alice", "tone", 1, "died", 0.05)
    deadline_s = time.monotonic() + 10
    while await store.resolve("alice", "tone", number=1) is None:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)
    await promote(store, 1)
