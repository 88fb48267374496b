"""Aliases of modules in a real Redis: set, rolled back, split, watched and dropped."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from memserve.domain import (
    Alias,
    TrafficShare,
)
from memserve.errors import (
    AliasConflict,
    InvalidField,
    ModuleNotFound,
    NothingToRollBack,
)
from memserve.memory.modules.registry.aliases import AliasRef, Change
from memserve.memory.modules.registry.records import CanaryAlias
from memserve.memory.modules.registry.store import ModuleStore
from tests.memory.modules.registry.module_store import (
    ANN,
    BERT,
    LIVE,
    REPORT,
    A,
    B,
    C,
    aliases,
    audit_trail,
    changes,
    numbers,
    pass_gate,
    promote,
    publish,
    split,
    take_out,
)


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
    history = await changes(store)
    assert [change.revision for change in history] == list(range(1, 9))
    assert [change.targets[0].version for change in history] == [1, 2, 3, 3, 2, 1, 3, 1]
    assert (history[4].action, history[4].reason, history[4].principal, history[4].forced) == (
        "rollback",
        "slow",
        "ann",
        False,
    )
    assert (history[4].targets, history[4].at_s) == (back.targets, back.changed_s)
    assert await store.history(LIVE, after=2, limit=3) == history[2:5]
    assert await store.history(LIVE, after=7, limit=3) == history[7:]


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
    assert [action for action, _, _ in await audit_trail(store)][-2:] == ["canary_rollback"] * 2
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
    [action, before, after] = (await audit_trail(store))[-1]
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
