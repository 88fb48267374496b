"""The module store in a real Redis: versions, aliases and their histories, deletion, preloads, the audit, and
a Redis that goes away.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from memserve.domain import (
    Alias,
    AliasChange,
    GateFigure,
    GateReport,
    Module,
    ModuleKind,
    ModuleVersion,
    TrafficShare,
    WeightFigures,
    WorkerLease,
)
from memserve.errors import (
    AliasConflict,
    InvalidField,
    ModuleNotFound,
    NothingToRollBack,
    QuotaReached,
    RegistryUnavailable,
    VersionInUse,
)
from memserve.memory.modules.registry.aliases import AliasRef, Change
from memserve.memory.modules.registry.records import CanaryAlias, Preload
from memserve.memory.modules.registry.scripts import CONNECTIONS, DigestCondemned
from memserve.memory.modules.registry.store import ModuleStore
from memserve.registry.leases import Registry
from tests.kv.redis_server import RedisServer

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
VERSION = ModuleVersion(
    module="tone",
    version=0,
    digest=A,
    kind=ModuleKind.LORA,
    base_digest="ba" * 32,
    rank=4,
    target_modules=("q_proj", "v_proj"),
    size_bytes=2**53 - 1,
    created_s=1790000000.1234567,
    author="ann",
    sources=("a/b", 'été "x"\n'),
    parents=(B,),
    recipe='{"method": "svd", "weights": [0.1]}',
    notes="",
    figures=WeightFigures(1 / 3, 0.1, 3.9999999999999996),
    probes_digest="",
)
TEXTS_LEFT_OUT = replace(VERSION, recipe="", notes="", sources=())
EXPERT = replace(VERSION, kind=ModuleKind.LOGIT_EXPERT)
LIVE = AliasRef("alice", "tone", "live")
ANN, BERT = Change("ann"), Change("bert")
REPORT = GateReport(
    False, (GateFigure("recall", 0.1, 1 / 3, "at least 0.9", False, 12),), "w0", 1790000001.7654321, "d" * 64
)


@pytest_asyncio.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[ModuleStore]:
    store = ModuleStore(redis_server.url)
    yield store
    await store.close()


@pytest_asyncio.fixture
async def registry(redis_server: RedisServer) -> AsyncIterator[Registry]:
    registry = Registry(redis_server.url)
    yield registry
    await registry.close()


async def publish(store: ModuleStore, *digests: str, name: str = "tone", tenant: str = "alice") -> None:
    for digest in digests:
        await store.publish(tenant, "ann", replace(VERSION, module=name, digest=digest))


async def split(
    store: ModuleStore, *shares: tuple[int, float], alias: str = "live", ungated: float | None = None
) -> Alias:
    targets = tuple(TrafficShare(*share) for share in shares)
    ref = AliasRef("alice", "tone", alias)
    return await store.set_alias(ref, targets, ANN, action="split", ungated_share_max=ungated)


async def changes(store: ModuleStore, alias: str = "live") -> list[AliasChange]:
    return await store.history(AliasRef("alice", "tone", alias), limit=100)


async def versions(store: ModuleStore) -> list[ModuleVersion]:
    found, more = await store.versions("alice", "tone", limit=100)
    assert not more
    return found


async def aliases(store: ModuleStore) -> tuple[Alias, ...]:
    module = await store.module("alice", "tone")
    assert module is not None
    return module.aliases


async def start(registry: Registry, *worker_ids: str, lease_s: float = 60) -> None:
    for worker_id in worker_ids:
        await registry.renew_lease(
            WorkerLease(worker_id, "a:1", "a:2", 1, "m", "", "", "", 16, 16, 1024, 8, 0.0), lease_s
        )


async def take_out(store: ModuleStore, number: int, expected: int | None = None) -> Alias:
    return await store.take_out(LIVE, number, Change("watch", "slow", expected_revision=expected))


async def pass_gate(store: ModuleStore, *numbers: int) -> None:
    for number in numbers:
        await store.keep_gate("alice", "ann", "tone", number, replace(REPORT, passed=True))


async def promote(
    store: ModuleStore, *numbers: int, alias: str = "live", expected: int | None = None
) -> Alias:
    shares = tuple(TrafficShare(number, 1 / 3) for number in numbers)
    ref, change = AliasRef("alice", "tone", alias), replace(ANN, expected_revision=expected)
    return await store.set_alias(ref, shares, change, action="promote")


def numbers(alias: Alias) -> list[int]:
    return [share.version for share in alias.targets]


async def told(store: ModuleStore, tenant: str = "alice") -> list[tuple[str, str, str]]:
    """Action, before and after of every event."""
    return [(event.action, event.before, event.after) for event in await store.events(tenant, limit=100)]


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
    assert len(await told(store)) == 2
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
    assert len(await told(store)) == 60


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
        assert len(await told(store, tenant)) == 2 * sum(tenant == other for other, _ in odd)


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


async def test_an_alias_is_set_only_at_the_revision_that_was_expected(store: ModuleStore) -> None:
    await publish(store, A, B)
    assert (await promote(store, 1, expected=0)).revision == 1
    with pytest.raises(AliasConflict, match="is at revision 1, not 0"):
        await promote(store, 2, expected=0)
    assert (await promote(store, 2, expected=1)).revision == 2
    assert (await promote(store, 1)).revision == 3
    with pytest.raises(AliasConflict):
        await store.rollback(LIVE, replace(ANN, expected_revision=2))


async def test_of_two_promotions_at_once_one_wins(store: ModuleStore) -> None:
    await publish(store, A, B)
    results = await asyncio.gather(
        promote(store, 1, expected=0), promote(store, 2, expected=0), return_exceptions=True
    )
    [won] = [result for result in results if isinstance(result, Alias)]
    assert sum(isinstance(result, AliasConflict) for result in results) == 1
    assert await aliases(store) == (won,)
    assert len(await changes(store)) == 1


async def test_an_alias_needs_targets_that_exist(store: ModuleStore) -> None:
    await publish(store, A)
    with pytest.raises(ModuleNotFound, match="tone@2"):
        await promote(store, 1, 2)
    with pytest.raises(InvalidField):
        await promote(store)
    with pytest.raises(ModuleNotFound, match="other"):
        await store.rollback(AliasRef("alice", "other", "live"), ANN)
    with pytest.raises(NothingToRollBack, match="does not exist"):
        await store.rollback(LIVE, ANN)
    assert await store.resolve("alice", "tone", alias="live") == (None, {})


async def test_two_rollbacks_go_two_steps_back(store: ModuleStore) -> None:
    await publish(store, A, B, C)
    for number in (1, 2, 3, 3):
        await promote(store, number)
    back = await store.rollback(LIVE, replace(ANN, reason="slow"))
    assert (numbers(back), back.revision, back.targets[0].weight) == ([2], 5, 1 / 3)
    assert numbers(await store.rollback(LIVE, ANN)) == [1]
    with pytest.raises(NothingToRollBack, match="no other targets before"):
        await store.rollback(LIVE, ANN)
    await promote(store, 3)
    assert numbers(await store.rollback(LIVE, ANN)) == [1], "not 2, which had been left"
    made = await changes(store)
    assert [change.revision for change in made] == list(range(1, 9))
    assert [change.targets[0].version for change in made] == [1, 2, 3, 3, 2, 1, 3, 1]
    assert (made[4].action, made[4].reason, made[4].principal, made[4].forced) == (
        "rollback",
        "slow",
        "ann",
        False,
    )
    assert (made[4].targets, made[4].at_s) == (back.targets, back.changed_s)
    assert await store.history(LIVE, after=2, limit=3) == made[2:5]
    assert await store.history(LIVE, after=7, limit=3) == made[7:]


async def test_a_rollback_that_leaves_a_version_skips_every_split_with_it(store: ModuleStore) -> None:
    await publish(store, A, B, C)
    await promote(store, 1)
    await promote(store, 1, 2)
    await promote(store, 2, 3)
    with pytest.raises(NothingToRollBack, match="version 1 is not among its targets"):
        await store.rollback(LIVE, ANN, leaving=1)
    left = await store.rollback(LIVE, Change("watch"), action="canary_rollback", leaving=2)
    assert numbers(left) == [1]
    with pytest.raises(NothingToRollBack):
        await store.rollback(LIVE, ANN, leaving=1)


async def test_what_shares_an_alias_without_having_passed_the_gate_is_a_canary_of_it(
    store: ModuleStore,
) -> None:
    await publish(store, A, B, C)
    await pass_gate(store, 1)
    await store.keep_gate("alice", "ann", "tone", 3, REPORT)
    await split(store, (2, 1))
    assert await store.canaries() == [], "alone, it can be promoted by force only"
    await split(store, (1, 8), (2, 1), (3, 1))
    await split(store, (1, 1), (2, 1), alias="a")
    live = CanaryAlias("alice", "tone", "live", (2, 3), 2)
    assert await store.canaries() == [CanaryAlias("alice", "tone", "a", (2,), 1), live]
    assert await store.take_turn(live, 60)
    assert not await store.take_turn(live, 60)
    await pass_gate(store, 2, 3)
    await split(store, (1, 8), (2, 1))
    await promote(store, 1, alias="a")
    assert await store.canaries() == [replace(live, versions=(2,), revision=3)], (
        "watched as long as it shares it"
    )
    await promote(store, 1)
    assert await store.canaries() == []
    await split(store, (1, 1), (2, 1))
    assert await store.canaries() == [], "it had passed before"


async def test_a_rollback_to_a_split_has_its_canaries_watched_again(store: ModuleStore) -> None:
    await publish(store, A, B)
    await split(store, (1, 9), (2, 1))
    await promote(store, 1)
    assert await store.canaries() == []
    await store.rollback(LIVE, ANN)
    assert await store.canaries() == [CanaryAlias("alice", "tone", "live", (1, 2), 3)]


async def test_a_version_that_is_taken_out_leaves_the_others_as_they_are(store: ModuleStore) -> None:
    await publish(store, A, B, C)
    await promote(store, 1)
    await promote(store, 3)
    await split(store, (1, 1 / 3), (3, 1), (2, 0.1))
    with pytest.raises(AliasConflict):
        await take_out(store, 2, expected=2)
    left = await take_out(store, 2, expected=3)
    assert left == Alias("live", (TrafficShare(1, 1 / 3), TrafficShare(3, 1.0)), 4, left.changed_s)
    assert await store.canaries() == [CanaryAlias("alice", "tone", "live", (1, 3), 4)]
    assert numbers(await take_out(store, 1)) == [3]
    assert await store.canaries() == []
    last = (await changes(store))[-1]
    assert (last.action, last.reason, last.principal, last.targets) == (
        "canary_rollback",
        "slow",
        "watch",
        (TrafficShare(3, 1.0),),
    )
    assert [action for action, _, _ in await told(store)][-2:] == ["canary_rollback"] * 2
    with pytest.raises(NothingToRollBack, match="version 2 is not among its targets"):
        await take_out(store, 2)
    assert numbers(await store.rollback(LIVE, ANN)) == [1], "neither what was taken out nor 3 once more"


async def test_what_is_taken_out_alone_is_rolled_back(store: ModuleStore) -> None:
    await publish(store, A, B)
    await split(store, (1, 1), (2, 1))
    await promote(store, 2)
    with pytest.raises(NothingToRollBack, match="no other targets before"):
        await take_out(store, 2)
    await promote(store, 1)
    await promote(store, 2)
    assert numbers(await take_out(store, 2)) == [1]


async def test_what_has_not_passed_the_gate_gets_no_more_of_an_alias_than_is_allowed(
    store: ModuleStore,
) -> None:
    await publish(store, A, B, C)
    await pass_gate(store, 1)
    await store.keep_gate("alice", "ann", "tone", 3, REPORT)
    for shares in ([(2, 1)], [(1, 1), (2, 1.1)], [(1, 1), (2, 0.6), (3, 0.6)], [(2, 1), (3, 1)]):
        with pytest.raises(
            InvalidField,
            match=r"targets: versions .* at most half of an alias together: promote tone@[23, ]+ or give",
        ):
            await split(store, *shares, ungated=0.5)
    assert await store.resolve("alice", "tone", alias="live") == (None, {})
    await split(store, (1, 1), (2, 0.7), (3, 0.3), ungated=0.5)
    await split(store, (1, 1), ungated=0.5)
    assert (await split(store, (2, 1))).revision == 3, "by force"


async def test_deleted_targets_cannot_be_gone_back_to(store: ModuleStore) -> None:
    await publish(store, A, B)
    await promote(store, 1)
    await promote(store, 2)
    await store.delete_version("alice", "ann", "tone", 1)
    with pytest.raises(NothingToRollBack, match="version 1, which it had before, has been deleted"):
        await store.rollback(LIVE, ANN)


async def test_a_dropped_alias_is_gone_and_its_revisions_go_on(store: ModuleStore) -> None:
    await publish(store, A, B)
    await promote(store, 1)
    was = await split(store, (1, 1), (2, 1))
    with pytest.raises(AliasConflict):
        await store.drop_alias(LIVE, replace(ANN, expected_revision=1))
    assert await store.drop_alias(LIVE, replace(BERT, expected_revision=2)) == was
    assert (await store.resolve("alice", "tone", alias="live"), await store.canaries()) == ((None, {}), [])
    last = (await changes(store))[-1]
    assert (last.revision, last.targets, last.action, last.principal) == (3, (), "drop", "bert")
    [action, before, after] = (await told(store))[-1]
    assert (action, json.loads(before)["revision"], after) == ("drop", 2, "")
    with pytest.raises(ModuleNotFound, match="tone@live"):
        await store.drop_alias(LIVE, ANN)
    with pytest.raises(NothingToRollBack, match="does not exist"):
        await store.rollback(LIVE, ANN)
    await store.delete_version("alice", "ann", "tone", 1)
    with pytest.raises(AliasConflict):
        await promote(store, 2, expected=3)
    assert (await promote(store, 2, expected=0)).revision == 4
    with pytest.raises(NothingToRollBack, match="did not exist before"):
        await store.rollback(LIVE, ANN)


async def test_the_history_of_an_unknown_module_is_refused(store: ModuleStore) -> None:
    with pytest.raises(ModuleNotFound):
        await store.history(LIVE, limit=1)


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
    assert len(await told(store)) == 3


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


async def test_every_change_is_in_the_audit(store: ModuleStore) -> None:
    await publish(store, A, B)
    forced = Change("ann", 'a "b"', forced=True)
    await store.set_alias(LIVE, [TrafficShare(1, 0.5)], forced, action="promote")
    await promote(store, 2)
    await store.rollback(LIVE, BERT)
    await store.keep_gate("alice", "ann", "tone", 1, REPORT)
    await store.preload("alice", "ann", "tone", 1, "w0")
    await store.unload("alice", "ann", "tone", 1, "")
    await store.delete_version("alice", "ann", "tone", 2)
    events = await store.events("alice", limit=100)
    actions = ["publish", "publish", "promote", "promote", "rollback", "gate", "preload", "unload", "delete"]
    assert [event.action for event in events] == actions
    assert {(event.tenant, event.module) for event in events} == {("alice", "tone")}
    assert [event.principal for event in events] == ["ann"] * 4 + ["bert"] + ["ann"] * 4
    assert all(abs(event.at_s - time.time()) < 60 for event in events)
    assert json.loads(events[0].after) == {"version": 1, "digest": A, "kind": "lora", "probes_digest": ""}
    first = json.loads(events[2].after)
    assert (events[2].before, first["targets"], first["reason"]) == (
        "",
        [{"version": 1, "weight": 0.5}],
        'a "b"',
    )
    assert (first["name"], first["revision"], first["forced"]) == ("live", 1, True)
    assert json.loads(events[3].before) == {
        field: first[field] for field in ("name", "targets", "revision", "changed_s")
    }
    assert json.loads(events[5].after)["gate"]["figures"][0]["module"] == 1 / 3
    assert json.loads(events[6].after) == {"version": 1, "worker_id": "w0", "preloaded_on": ["w0"]}
    assert json.loads(events[7].before)["preloaded_on"] == ["w0"]
    assert json.loads(events[7].after)["preloaded_on"] == []
    assert json.loads(events[8].before)["digest"] == B
    assert events[8].after == ""


async def test_events_are_read_in_order_from_any_one_on(store: ModuleStore) -> None:
    assert await store.last_event_id("alice") == "0-0"
    recorded = [
        await store.record("alice", "ann", "compose", "tone", before, '{"é": "/"}')
        for before in ("1", "2", "3")
    ]
    assert await store.events("alice", limit=10) == recorded
    assert await store.events("alice", limit=2) == recorded[:2]
    assert await store.events("alice", after=recorded[1].event_id, limit=10) == recorded[2:]
    assert await store.last_event_id("alice") == recorded[2].event_id
    assert await store.events("alice", after=recorded[2].event_id, limit=10, block_s=0.01) == []
    for malformed in ("x", "1", "$", "1-", "1-99999999999999999999", "-1-1", "1-1\n"):
        with pytest.raises(InvalidField, match="after_event_id"):
            await store.events("alice", after=malformed, limit=1)


async def test_whoever_waits_for_events_gets_the_next_one_and_keeps_nobody_waiting(
    store: ModuleStore,
) -> None:
    after = await store.last_event_id("alice")
    waiting = [
        asyncio.create_task(store.events("alice", after=after, limit=10, block_s=30))
        for _ in range(CONNECTIONS + 4)
    ]
    await asyncio.sleep(0.1)
    await publish(store, A)
    got = await asyncio.gather(*waiting)
    assert {tuple(event.action for event in events) for events in got} == {("publish",)}


async def test_whoever_waits_for_events_can_be_cancelled(store: ModuleStore) -> None:
    for pause_s in (0.0, 0.001, 0.05):
        waiting = asyncio.create_task(store.events("alice", limit=10, block_s=30))
        await asyncio.sleep(pause_s)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert await store.count("alice") == 0


async def test_more_calls_at_once_than_connections_are_all_answered(store: ModuleStore) -> None:
    await publish(store, A)
    found = await asyncio.gather(*(store.resolve("alice", "tone", number=1) for _ in range(10 * CONNECTIONS)))
    assert all(found)


async def test_everything_outlives_a_killed_redis(own_redis_server: RedisServer) -> None:
    options = ("--appendonly", "yes", "--appendfsync", "always")
    own_redis_server.stop()
    own_redis_server.start(*options)
    store = ModuleStore(own_redis_server.url)
    await publish(store, A, B)
    await promote(store, 1, 2)
    await store.keep_gate("alice", "ann", "tone", 1, REPORT)
    await store.preload("alice", "ann", "tone", 1)

    async def everything() -> Sequence[object]:
        looks = store.modules("alice", limit=10), versions(store), changes(store)
        return await asyncio.gather(
            *looks, store.preloads(), store.canaries(), store.events("alice", limit=100)
        )

    before = await everything()
    own_redis_server.stop()
    own_redis_server.start(*options)
    assert await everything() == before
    await publish(store, C)
    assert (await versions(store))[0].version == 3
    await store.close()


@pytest.mark.damages_state
@pytest.mark.parametrize("gone", ["stopped", "paused"])
async def test_a_redis_that_does_not_answer_is_said_so(own_redis_server: RedisServer, gone: str) -> None:
    store = ModuleStore(own_redis_server.url)
    await publish(store, A)
    own_redis_server.stop() if gone == "stopped" else own_redis_server.pause()
    calls = [
        store.publish("alice", "ann", VERSION),
        store.module("alice", "tone"),
        store.modules("alice", limit=1),
        store.count("alice"),
        store.resolve("alice", "tone", alias="live"),
        promote(store, 1),
        store.rollback(LIVE, ANN),
        store.history(LIVE, limit=1),
        store.canaries(),
        store.take_turn(CanaryAlias("alice", "tone", "live", (1,), 1), 1),
        store.hold_version("alice", "tone", 1, "t", 1),
        store.delete_version("alice", "ann", "tone", 1),
        store.preloads(),
        store.block_publishing(A, "t", 1),
        store.events("alice", limit=1),
        store.events("alice", limit=1, block_s=0.1),
    ]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [RegistryUnavailable] * len(calls)
    if gone == "paused":
        own_redis_server.resume()
    await store.close()


async def test_a_change_whose_answer_was_lost_is_made_once(
    store: ModuleStore, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Between the store and Redis stands a relay that drops a connection with the answer on it."""
    drop = asyncio.Event()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        while content := await source.read(65536):
            if answers and drop.is_set():
                drop.clear()
                break
            sink.write(content)
        sink.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_unix_connection(
            redis_server.url.removeprefix("unix://")
        )
        await asyncio.gather(
            pump(reader, redis_writer, answers=False), pump(redis_reader, writer, answers=True)
        )

    await publish(store, A, B)
    await promote(store, 1)
    socket_file = tmp_path / "relay.sock"
    async with await asyncio.start_unix_server(relay, socket_file):
        relayed = ModuleStore(f"unix://{socket_file}")
        assert await relayed.count("alice") == 1
        drop.set()
        assert (await promote(relayed, 2)).revision == 2
        assert not drop.is_set()
        await relayed.close()
    assert len(await changes(store)) == 2


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
