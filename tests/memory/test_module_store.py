"""The module store in a real Redis: versions, aliases and their histories, deletion, preloads, the audit, and a Redis that goes away."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from memserve.domain import Alias, GateFigure, GateReport, Module, ModuleKind, ModuleVersion, TrafficShare, WeightFigures
from memserve.errors import AliasConflict, InvalidField, ModuleNotFound, NothingToRollBack, RegistryUnavailable, VersionInUse
from memserve.memory.module_store import CONNECTIONS, DigestCondemned, ModuleStore, Preload
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
EXPERT = replace(VERSION, kind=ModuleKind.LOGIT_EXPERT)
REPORT = GateReport(False, (GateFigure("recall", 0.1, 1 / 3, "at least 0.9", False, 12),), "w0", 1790000001.7654321, "d" * 64)


@pytest_asyncio.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[ModuleStore]:
    store = ModuleStore(redis_server.url)
    yield store
    await store.close()


async def publish(store: ModuleStore, *digests: str, name: str = "tone", tenant: str = "alice") -> None:
    for digest in digests:
        await store.publish(tenant, "ann", replace(VERSION, module=name, digest=digest))


async def promote(store: ModuleStore, *numbers: int, alias: str = "live", expected: int | None = None) -> Alias:
    shares = tuple(TrafficShare(number, 1 / 3) for number in numbers)
    return await store.set_alias("alice", "ann", "tone", alias, shares, action="promote", expected_revision=expected)


def numbers(alias: Alias) -> list[int]:
    return [share.version for share in alias.targets]


async def told(store: ModuleStore, tenant: str = "alice") -> list[tuple[str, str, str]]:
    """Action, before and after of every event."""
    return [(event.action, event.before, event.after) for event in await store.events(tenant, limit=100)]


async def test_a_version_comes_back_as_it_was_given_under_the_next_number(store: ModuleStore) -> None:
    first = await store.publish("alice", "ann", VERSION)
    second = await store.publish("alice", "ann", replace(VERSION, version=77, digest=B, moves_logits=True, gate=REPORT))
    assert first == replace(VERSION, version=1)
    assert second == replace(VERSION, version=2, digest=B, moves_logits=True, gate=REPORT)
    assert await store.version("alice", "tone", 1) == first
    assert await store.versions("alice", "tone", limit=10) == [second, first]
    assert await store.module("alice", "tone") == Module("tone", ModuleKind.LORA, 2, 2, ())
    assert await store.version("alice", "tone", 3) is await store.version("bob", "tone", 1) is None
    assert await store.module("bob", "tone") is None


async def test_the_newest_content_published_again_changes_nothing(store: ModuleStore) -> None:
    await publish(store, A, B)
    again = await store.publish("alice", "bob", replace(VERSION, digest=B, notes="other"))
    assert again == replace(VERSION, digest=B, version=2)
    assert len(await told(store)) == 2
    assert (await store.publish("alice", "ann", replace(VERSION, digest=B, probes_digest="e" * 64))).version == 3
    assert (await store.publish("alice", "ann", VERSION)).version == 4, "older content is a new version"


async def test_a_module_has_one_kind(store: ModuleStore) -> None:
    await publish(store, A)
    with pytest.raises(InvalidField, match=r"header.kind: module tone is of the kind lora"):
        await store.publish("alice", "ann", replace(EXPERT, digest=B))
    assert await store.count("alice") == 1


async def test_of_many_publications_at_once_each_gets_its_own_number(store: ModuleStore) -> None:
    published = await asyncio.gather(*(store.publish("alice", "ann", replace(VERSION, digest=f"{n:064}")) for n in range(60)))
    assert sorted(version.version for version in published) == list(range(1, 61))
    assert len(await told(store)) == 60


async def test_modules_are_listed_by_name_in_pages(store: ModuleStore) -> None:
    for name in ("b", "a.2", "a.1", "ab", "c"):
        await publish(store, A, name=name)
    await store.publish("alice", "ann", replace(EXPERT, module="a.3"))
    await publish(store, A, name="theirs", tenant="bob")

    async def names(**options: object) -> list[str]:
        return [module.name for module in await store.modules("alice", **{"limit": 10, **options})]  # type: ignore[arg-type]

    assert await names() == ["a.1", "a.2", "a.3", "ab", "b", "c"]
    assert await names(limit=2) == ["a.1", "a.2"]
    assert await names(after="a.2", limit=2) == ["a.3", "ab"]
    assert await names(prefix="a.") == ["a.1", "a.2", "a.3"]
    assert await names(prefix="a.", after="a.1") == ["a.2", "a.3"]
    assert await names(prefix="b", after="a.1") == ["b"]
    assert await names(prefix="a", after="b") == []
    assert await names(kind=ModuleKind.LOGIT_EXPERT) == ["a.3"]
    assert await store.count("alice") == 6


async def test_versions_are_listed_newest_first_in_pages(store: ModuleStore) -> None:
    await publish(store, A, B, C)
    assert [version.version for version in await store.versions("alice", "tone", limit=2)] == [3, 2]
    assert [version.version for version in await store.versions("alice", "tone", before=2, limit=2)] == [1]


async def test_no_name_reaches_into_anothers(store: ModuleStore) -> None:
    odd = [("a", "b:c"), ("a:b", "c"), ("a", "b"), ("1:a", "b"), ("a1:b", ""), ("a@1", "é/1")]
    for number, (tenant, name) in enumerate(odd):
        await publish(store, f"{number:064}", name=name, tenant=tenant)
        await store.set_alias(tenant, "ann", name, "x:y", [TrafficShare(1, 1.0)], action="promote")
    for number, (tenant, name) in enumerate(odd):
        found = await store.resolve(tenant, name, alias="x:y")
        assert found is not None
        assert found[1] == {1: replace(VERSION, module=name, digest=f"{number:064}", version=1)}
        assert len(await store.history(tenant, name, "x:y")) == 1
        assert not await store.history(tenant, name, "x")
        assert len(await told(store, tenant)) == 2 * sum(tenant == other for other, _ in odd)


async def test_a_reference_is_resolved(store: ModuleStore) -> None:
    await publish(store, A, B, C)
    live = await promote(store, 1, 3)
    versions = {version.version: version for version in await store.versions("alice", "tone", limit=10)}
    assert live.targets == (TrafficShare(1, 1 / 3), TrafficShare(3, 1 / 3))
    assert await store.resolve("alice", "tone", alias="live") == (live, {1: versions[1], 3: versions[3]})
    assert await store.resolve("alice", "tone", number=2) == (None, {2: versions[2]})
    assert await store.resolve("alice", "tone", alias="canary") == (None, {})
    assert await store.resolve("alice", "tone", number=4) is None
    assert await store.resolve("alice", "other", alias="live") is None
    assert await store.resolve("bob", "tone", alias="live") is None
    assert (await store.modules("alice", limit=1))[0].aliases == (live,)


async def test_an_alias_is_set_only_at_the_revision_that_was_expected(store: ModuleStore) -> None:
    await publish(store, A, B)
    assert (await promote(store, 1, expected=0)).revision == 1
    with pytest.raises(AliasConflict, match="is at revision 1, not 0"):
        await promote(store, 2, expected=0)
    assert (await promote(store, 2, expected=1)).revision == 2
    assert (await promote(store, 1)).revision == 3
    with pytest.raises(AliasConflict):
        await store.rollback("alice", "ann", "tone", "live", expected_revision=2)


async def test_of_two_promotions_at_once_one_wins(store: ModuleStore) -> None:
    await publish(store, A, B)
    results = await asyncio.gather(promote(store, 1, expected=0), promote(store, 2, expected=0), return_exceptions=True)
    [won] = [result for result in results if isinstance(result, Alias)]
    assert sum(isinstance(result, AliasConflict) for result in results) == 1
    assert (await store.modules("alice", limit=1))[0].aliases == (won,)
    assert len(await store.history("alice", "tone", "live")) == 1


async def test_an_alias_needs_targets_that_exist(store: ModuleStore) -> None:
    await publish(store, A)
    with pytest.raises(ModuleNotFound, match="tone@2"):
        await promote(store, 1, 2)
    with pytest.raises(InvalidField):
        await promote(store)
    with pytest.raises(ModuleNotFound, match="other"):
        await store.rollback("alice", "ann", "other", "live")
    with pytest.raises(NothingToRollBack, match="never been set"):
        await store.rollback("alice", "ann", "tone", "live")
    assert await store.resolve("alice", "tone", alias="live") == (None, {})


async def test_two_rollbacks_go_two_steps_back(store: ModuleStore) -> None:
    await publish(store, A, B, C)
    for number in (1, 2, 3, 3):
        await promote(store, number)
    back = await store.rollback("alice", "ann", "tone", "live", reason="slow")
    assert (numbers(back), back.revision, back.targets[0].weight) == ([2], 5, 1 / 3)
    assert numbers(await store.rollback("alice", "ann", "tone", "live")) == [1]
    with pytest.raises(NothingToRollBack, match="no other targets before"):
        await store.rollback("alice", "ann", "tone", "live")
    await promote(store, 3)
    assert numbers(await store.rollback("alice", "ann", "tone", "live")) == [1], "not 2, which had been left"
    changes = await store.history("alice", "tone", "live")
    assert [change.revision for change in changes] == list(range(1, 9))
    assert [change.targets[0].version for change in changes] == [1, 2, 3, 3, 2, 1, 3, 1]
    assert (changes[4].action, changes[4].reason, changes[4].principal, changes[4].forced) == ("rollback", "slow", "ann", False)
    assert (changes[4].targets, changes[4].at_s) == (back.targets, back.changed_s)


async def test_a_rollback_that_leaves_a_version_skips_every_split_with_it(store: ModuleStore) -> None:
    await publish(store, A, B, C)
    await promote(store, 1)
    await promote(store, 1, 2)
    await promote(store, 2, 3)
    with pytest.raises(NothingToRollBack, match="version 1 is not among its targets"):
        await store.rollback("alice", "ann", "tone", "live", leaving=1)
    left = await store.rollback("alice", "watch", "tone", "live", action="canary_rollback", leaving=2)
    assert numbers(left) == [1]
    with pytest.raises(NothingToRollBack):
        await store.rollback("alice", "ann", "tone", "live", leaving=1)


async def test_deleted_targets_cannot_be_gone_back_to(store: ModuleStore) -> None:
    await publish(store, A, B)
    await promote(store, 1)
    await promote(store, 2)
    await store.delete_version("alice", "ann", "tone", 1)
    with pytest.raises(NothingToRollBack, match="version 1, which it had before, has been deleted"):
        await store.rollback("alice", "ann", "tone", "live")


async def test_the_history_of_an_unknown_module_is_refused(store: ModuleStore) -> None:
    with pytest.raises(ModuleNotFound):
        await store.history("alice", "tone", "live")


async def test_what_workers_find_out_is_kept_beside_the_version(store: ModuleStore) -> None:
    await publish(store, A)
    gated = await store.keep_gate("alice", "ann", "tone", 1, REPORT)
    moving = await store.keep_moves_logits("alice", "tone", 1)
    assert gated == replace(VERSION, version=1, gate=REPORT)
    assert moving == await store.version("alice", "tone", 1) == replace(gated, moves_logits=True)
    for keep in (store.keep_gate("alice", "ann", "tone", 2, REPORT), store.keep_moves_logits("alice", "other", 1)):
        with pytest.raises(ModuleNotFound):
            await keep


async def test_a_version_in_use_is_not_deleted(store: ModuleStore) -> None:
    await publish(store, A, B)
    await promote(store, 1, alias="canary")
    await store.preload("alice", "ann", "tone", 2, "w0")
    for number, user in ((1, "alias canary"), (2, "a preload")):
        with pytest.raises(VersionInUse, match=f"tone@{number} is in use by {user}"):
            await store.delete_version("alice", "ann", "tone", number)
        with pytest.raises(VersionInUse, match=user):
            await store.hold_version("alice", "tone", number, "t", 10)
    assert len(await store.versions("alice", "tone", limit=10)) == 2
    await store.unload("alice", "ann", "tone", 2)
    await store.delete_version("alice", "ann", "tone", 2)
    with pytest.raises(ModuleNotFound):
        await store.delete_version("alice", "ann", "tone", 2)


async def test_deleting_tells_when_nobody_references_the_digest_any_more(store: ModuleStore) -> None:
    await publish(store, A, B, A)
    await publish(store, A, tenant="bob")
    assert await store.delete_version("alice", "ann", "tone", 1) == (replace(VERSION, version=1), False)
    assert (await store.delete_version("alice", "ann", "tone", 3))[1] is False
    assert await store.referenced(A)
    assert (await store.delete_version("bob", "ann", "tone", 1))[1] is True
    assert not await store.referenced(A)


async def test_a_module_without_versions_is_not_listed_and_its_numbers_go_on(store: ModuleStore) -> None:
    await publish(store, A)
    await store.delete_version("alice", "ann", "tone", 1)
    assert (await store.modules("alice", limit=10), await store.count("alice")) == ([], 0)
    assert await store.modules("alice", limit=10, kind=ModuleKind.LORA) == []
    assert await store.module("alice", "tone") is None
    assert await store.resolve("alice", "tone", alias="live") is None
    assert await store.history("alice", "tone", "live") == []
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


async def test_preloads_are_what_workers_load_when_they_start(store: ModuleStore) -> None:
    await publish(store, A, B)
    await store.publish("bob", "bert", EXPERT)
    for worker_id in ("w1", "", "w:2"):
        await store.preload("alice", "ann", "tone", 1, worker_id)
    await store.preload("alice", "ann", "tone", 2, "w1")
    await store.preload("bob", "bert", "tone", 1)
    lora, expert = ModuleKind.LORA, ModuleKind.LOGIT_EXPERT
    kept = [Preload(A, expert, ""), Preload(A, lora, ""), Preload(A, lora, "w1"), Preload(A, lora, "w:2"), Preload(B, lora, "w1")]
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


async def test_nothing_is_published_under_a_condemned_digest(store: ModuleStore) -> None:
    await publish(store, A)
    assert not await store.condemn(A, "mine", 60)
    assert await store.condemn(B, "mine", 60)
    assert not await store.condemn(B, "theirs", 60)
    with pytest.raises(DigestCondemned):
        await publish(store, B)
    await store.absolve(B, "theirs")
    with pytest.raises(DigestCondemned):
        await publish(store, B)
    await store.absolve(B, "mine")
    await publish(store, B)
    assert await store.condemn(C, "died", 0.02)
    await asyncio.sleep(0.1)
    await publish(store, C)
    assert len(await told(store)) == 3


async def test_what_a_publisher_has_claimed_is_not_condemned(store: ModuleStore) -> None:
    with_probes = replace(VERSION, probes_digest=C)
    await store.claim([A, C], "mine", 60)
    await store.claim([A], "theirs", 30)
    assert not await store.condemn(A, "sweep", 60)
    assert not await store.condemn(C, "sweep", 60)
    published = await store.publish("alice", "ann", with_probes, claim="mine")
    with pytest.raises(DigestCondemned):
        await store.publish("alice", "ann", replace(with_probes, digest=B), claim="mine")
    await store.delete_version("alice", "ann", "tone", published.version)
    assert not await store.condemn(A, "sweep", 60), "the other's claim stands"
    await store.unclaim([A], "theirs")
    assert await store.condemn(A, "sweep", 60)
    with pytest.raises(DigestCondemned):
        await store.claim([B, A], "mine", 60)
    assert await store.condemn(B, "sweep", 60), "a claim is on all of them or on none"


async def test_probe_sets_are_referenced_as_weights_are(store: ModuleStore) -> None:
    await store.publish("alice", "ann", replace(VERSION, probes_digest=C))
    assert await store.referenced(C)
    assert not await store.condemn(C, "sweep", 60)
    assert (await store.delete_version("alice", "ann", "tone", 1))[1]
    assert not await store.referenced(C)
    assert await store.condemn(C, "sweep", 60)
    with pytest.raises(DigestCondemned):
        await store.publish("alice", "ann", replace(VERSION, probes_digest=C))


async def test_every_change_is_in_the_audit(store: ModuleStore) -> None:
    await publish(store, A, B)
    await store.set_alias("alice", "ann", "tone", "live", [TrafficShare(1, 0.5)], action="promote", reason='a "b"', forced=True)
    await promote(store, 2)
    await store.rollback("alice", "bert", "tone", "live")
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
    assert (events[2].before, first["targets"], first["reason"]) == ("", [{"version": 1, "weight": 0.5}], 'a "b"')
    assert (first["name"], first["revision"], first["forced"]) == ("live", 1, True)
    assert json.loads(events[3].before) == {field: first[field] for field in ("name", "targets", "revision", "changed_s")}
    assert json.loads(events[5].after)["gate"]["figures"][0]["module"] == 1 / 3
    assert json.loads(events[6].after) == {"version": 1, "worker_id": "w0", "preloaded_on": ["w0"]}
    assert json.loads(events[7].before)["preloaded_on"] == ["w0"]
    assert json.loads(events[7].after)["preloaded_on"] == []
    assert json.loads(events[8].before)["digest"] == B
    assert events[8].after == ""


async def test_events_are_read_in_order_from_any_one_on(store: ModuleStore) -> None:
    assert await store.last_event_id("alice") == "0-0"
    recorded = [await store.record("alice", "ann", "compose", "tone", before, '{"é": "/"}') for before in ("1", "2", "3")]
    assert await store.events("alice", limit=10) == recorded
    assert await store.events("alice", limit=2) == recorded[:2]
    assert await store.events("alice", after=recorded[1].event_id, limit=10) == recorded[2:]
    assert await store.last_event_id("alice") == recorded[2].event_id
    assert await store.events("alice", after=recorded[2].event_id, limit=10, block_s=0.01) == []
    for malformed in ("x", "1", "$", "1-", "1-99999999999999999999", "-1-1", "1-1\n"):
        with pytest.raises(InvalidField, match="after_event_id"):
            await store.events("alice", after=malformed, limit=1)


async def test_whoever_waits_for_events_gets_the_next_one_and_keeps_nobody_waiting(store: ModuleStore) -> None:
    after = await store.last_event_id("alice")
    waiting = [asyncio.create_task(store.events("alice", after=after, limit=10, block_s=30)) for _ in range(3 * CONNECTIONS)]
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
    await promote(store, 1)
    await store.keep_gate("alice", "ann", "tone", 1, REPORT)
    await store.preload("alice", "ann", "tone", 1)

    async def everything() -> Sequence[object]:
        looks = store.modules("alice", limit=10), store.versions("alice", "tone", limit=10), store.history("alice", "tone", "live")
        return await asyncio.gather(*looks, store.preloads(), store.events("alice", limit=100))

    before = await everything()
    own_redis_server.stop()
    own_redis_server.start(*options)
    assert await everything() == before
    await publish(store, C)
    assert (await store.versions("alice", "tone", limit=1))[0].version == 3
    await store.close()


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
        store.rollback("alice", "ann", "tone", "live"),
        store.history("alice", "tone", "live"),
        store.hold_version("alice", "tone", 1, "t", 1),
        store.delete_version("alice", "ann", "tone", 1),
        store.preloads(),
        store.condemn(A, "t", 1),
        store.events("alice", limit=1),
        store.events("alice", limit=1, block_s=0.1),
    ]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [RegistryUnavailable] * len(calls)
    if gone == "paused":
        own_redis_server.resume()
    await store.close()


async def test_a_change_whose_answer_was_lost_is_made_once(store: ModuleStore, redis_server: RedisServer, tmp_path: Path) -> None:
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
        redis_reader, redis_writer = await asyncio.open_unix_connection(redis_server.url.removeprefix("unix://"))
        await asyncio.gather(pump(reader, redis_writer, answers=False), pump(redis_reader, writer, answers=True))

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
    assert len(await store.history("alice", "tone", "live")) == 2
