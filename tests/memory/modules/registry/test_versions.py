"""Versions of modules in a real Redis: published, listed in pages, resolved, and what workers find out."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from memserve.domain import (
    Module,
    ModuleKind,
    TrafficShare,
)
from memserve.errors import (
    InvalidField,
    ModuleNotFound,
    QuotaReached,
)
from memserve.memory.modules.registry.aliases import AliasRef
from memserve.memory.modules.registry.store import ModuleStore
from tests.kv.redis_server import RedisServer
from tests.memory.modules.registry.module_store import (
    ANN,
    EXPERT,
    REPORT,
    TEXTS_LEFT_OUT,
    VERSION,
    A,
    B,
    C,
    aliases,
    audit_trail,
    pass_gate,
    promote,
    publish,
    versions,
)


async def test_a_version_comes_back_as_it_was_given_under_the_next_number(store: ModuleStore) -> None:
    first = await store.publish("alice", "ann", VERSION)
    second = await store.publish(
        "alice", "ann", replace(VERSION, version=77, digest=B, moves_logits=True, gate=REPORT)
    )
    assert first == replace(VERSION, version=1)
    assert second == replace(VERSION, version=2, digest=B, moves_logits=True, gate=REPORT)
    assert await store.version("alice", "tone", 1) == first
    assert await versions(store) == [second, first]
    assert await store.module("alice", "tone") == Module("tone", ModuleKind.LORA, 2, 2, ())
    assert await store.version("alice", "tone", 3) is await store.version("bob", "tone", 1) is None
    assert await store.module("bob", "tone") is None


async def test_the_newest_content_published_again_changes_nothing(store: ModuleStore) -> None:
    await publish(store, A, B)
    again = await store.publish("alice", "bob", replace(VERSION, digest=B, notes="other"))
    assert again == replace(VERSION, digest=B, version=2)
    assert len(await audit_trail(store)) == 2
    assert (
        await store.publish("alice", "ann", replace(VERSION, digest=B, probes_digest="e" * 64))
    ).version == 3
    assert (await store.publish("alice", "ann", VERSION)).version == 4, "older content is a new version"
    assert (await store.publish("alice", "ann", replace(VERSION, base_digest="f" * 64))).version == 5


async def test_a_module_has_one_kind(store: ModuleStore) -> None:
    await publish(store, A)
    with pytest.raises(InvalidField, match=r"header.kind: module tone is of the kind lora"):
        await store.publish("alice", "ann", replace(EXPERT, digest=B))
    assert await store.count("alice") == 1


async def test_of_many_publications_at_once_each_gets_its_own_number(store: ModuleStore) -> None:
    published = await asyncio.gather(
        *(store.publish("alice", "ann", replace(VERSION, digest=f"{n:064}")) for n in range(60))
    )
    assert sorted(version.version for version in published) == list(range(1, 61))
    assert len(await audit_trail(store)) == 60


async def test_modules_are_listed_by_name_in_pages(store: ModuleStore) -> None:
    for name in ("b", "a.2", "a.1", "ab", "c"):
        await publish(store, A, name=name)
    await store.publish("alice", "ann", replace(EXPERT, module="a.3"))
    await publish(store, A, name="theirs", tenant="bob")

    async def names(**options: object) -> list[str]:
        found, more = await store.modules("alice", **{"limit": 10, **options})  # type: ignore[arg-type]
        return [module.name for module in found] + ["..."] * bool(more)

    assert await names() == ["a.1", "a.2", "a.3", "ab", "b", "c"]
    assert await names(limit=2) == ["a.1", "a.2", "..."]
    assert await names(after="a.2", limit=2) == ["a.3", "ab", "..."]
    assert await names(after="ab", limit=2) == ["b", "c"]
    assert await names(prefix="a.") == ["a.1", "a.2", "a.3"]
    assert await names(prefix="a.", after="a.1") == ["a.2", "a.3"]
    assert await names(prefix="b", after="a.1") == ["b"]
    assert await names(prefix="a", after="b") == []
    assert await names(kind=ModuleKind.LOGIT_EXPERT) == ["a.3"]
    assert await store.count("alice") == 6


async def test_versions_are_listed_newest_first_in_pages(store: ModuleStore) -> None:
    await publish(store, A, B, C)
    third, second, first = await versions(store)
    assert [version.version for version in (third, second, first)] == [3, 2, 1]
    assert await store.versions("alice", "tone", limit=2) == ([third, second], 2)
    assert await store.versions("alice", "tone", before=3, limit=2) == ([second, first], 0)
    assert await store.versions("alice", "tone", before=2, limit=2) == ([first], 0)


@pytest.mark.damages_state
async def test_a_page_of_large_entries_is_shorter(store: ModuleStore, redis_server: RedisServer) -> None:
    for number in range(5):
        await store.publish("alice", "ann", replace(VERSION, digest=f"{number:064}", notes="x" * 800_000))
    found, more = await store.versions("alice", "tone", limit=10)
    assert ([version.version for version in found], more) == ([5, 4], 4)
    found, more = await store.versions("alice", "tone", before=2, limit=10)
    assert ([version.version for version in found], more) == ([1], 0)
    alias = {"revision": 1, "origin": 1, "targets": "[" + " " * 1_500_000 + "]", "changed_s": "1.5"}
    for name in ("tone", "tune"):
        await publish(store, A, name=name)
        redis_server.client.hset(f"memserve:module:aliases:5:alice4:{name}", "live", json.dumps(alias))
    found_modules, more = await store.modules("alice", limit=10)
    assert ([module.name for module in found_modules], more) == (["tone"], "tone")
    found_modules, more = await store.modules("alice", after="tone", limit=10)
    assert ([module.name for module in found_modules], more) == (["tune"], "")


async def test_no_name_reaches_into_anothers(store: ModuleStore) -> None:
    odd = [("a", "b:c"), ("a:b", "c"), ("a", "b"), ("1:a", "b"), ("a1:b", ""), ("a@1", "é/1")]
    for number, (tenant, name) in enumerate(odd):
        await publish(store, f"{number:064}", name=name, tenant=tenant)
        ref = AliasRef(tenant, name, "x:y")
        await store.set_alias(ref, [TrafficShare(1, 1.0)], ANN, action="promote")
    for number, (tenant, name) in enumerate(odd):
        found = await store.resolve(tenant, name, alias="x:y")
        assert found is not None
        assert found[1] == {1: replace(TEXTS_LEFT_OUT, module=name, digest=f"{number:064}", version=1)}
        assert len(await store.history(AliasRef(tenant, name, "x:y"), limit=10)) == 1
        assert not await store.history(AliasRef(tenant, name, "x"), limit=10)
        assert len(await audit_trail(store, tenant)) == 2 * sum(tenant == other for other, _ in odd)


async def test_a_reference_is_resolved(store: ModuleStore) -> None:
    await publish(store, A, B, C)
    live = await promote(store, 1, 3)
    await pass_gate(store, 1)
    await store.keep_moves_logits("alice", "tone", 2)
    light = {
        number: replace(TEXTS_LEFT_OUT, version=number, digest=digest)
        for number, digest in ((1, A), (2, B), (3, C))
    }
    assert live.targets == (TrafficShare(1, 1 / 3), TrafficShare(3, 1 / 3))
    assert await store.resolve("alice", "tone", alias="live") == (live, {1: light[1], 3: light[3]})
    assert await store.resolve("alice", "tone", number=2) == (None, {2: replace(light[2], moves_logits=True)})
    assert await store.resolve("alice", "tone", alias="canary") == (None, {})
    assert await store.resolve("alice", "tone", number=4) is None
    assert await store.resolve("alice", "other", alias="live") is None
    assert await store.resolve("bob", "tone", alias="live") is None
    assert await aliases(store) == (live,)


async def test_what_workers_find_out_is_kept_beside_the_version(store: ModuleStore) -> None:
    await publish(store, A)
    gated = await store.keep_gate("alice", "ann", "tone", 1, REPORT)
    moving = await store.keep_moves_logits("alice", "tone", 1)
    assert gated == replace(VERSION, version=1, gate=REPORT)
    assert moving == await store.version("alice", "tone", 1) == replace(gated, moves_logits=True)
    for keep in (
        store.keep_gate("alice", "ann", "tone", 2, REPORT),
        store.keep_moves_logits("alice", "other", 1),
    ):
        with pytest.raises(ModuleNotFound):
            await keep


async def test_a_tenant_has_a_quota_of_modules_and_a_module_of_versions(redis_server: RedisServer) -> None:
    store = ModuleStore(redis_server.url, modules_max=2, versions_max=2)
    for name in ("one", "two"):
        await store.publish("alice", "ann", replace(VERSION, module=name))
    with pytest.raises(
        QuotaReached,
        match=r"modules of tenant alice: the quota of 2 is reached .setting max_modules_per_tenant.; remove",
    ):
        await store.publish("alice", "ann", replace(VERSION, module="three"))
    await store.publish("bob", "bea", replace(VERSION, module="three"))
    await store.publish("alice", "ann", replace(VERSION, module="one", digest=B))
    with pytest.raises(QuotaReached, match="versions of module one: the quota of 2"):
        await store.publish("alice", "ann", replace(VERSION, module="one"))
    assert (await store.publish("alice", "ann", replace(VERSION, module="one", digest=B))).version == 2, (
        "what is there is not published"
    )
    await store.delete_version("alice", "ann", "two", 1)
    await store.publish("alice", "ann", replace(VERSION, module="three"))
    await store.close()
