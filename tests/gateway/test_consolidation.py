"""A namespace becomes fewer memories: as a candidate that is tried, then accepted or not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest_asyncio

from memserve.client import AsyncClient
from memserve.domain import (
    ConsolidationState,
    Link,
    LinkKind,
    MemoryState,
    Merge,
    MergedMemory,
    MergeKind,
)
from memserve.gateway.consolidation import _Compared, _losing
from memserve.policy.consolidation import OF_OTHERS, Question
from tests.contract.scripted_worker import Script
from tests.gateway.modules.publishing import failure_of
from tests.gateway.running import RunningGateway, open_gateway

TEXTS = {
    "g1": "The code of the gate is 4071.",
    "g2": "The gate's code is 4071.",
    "v1": "The founder of Velmora is Ida Kern.",
    "v2": "The motto of Velmora is Light Before Noon.",
    "v3": "The colour of Velmora is blue.",
    "near": "The code of the mill is 4071.",
}
# A fake worker gives one answer to everything, so most of these tests look at recall alone.


@pytest_asyncio.fixture
async def gateway(tmp_path: Path, model_dir: Path) -> AsyncIterator[RunningGateway]:
    async with open_gateway(tmp_path, model_dir) as running:
        for memory_id, text in TEXTS.items():
            await running.client.remember("town", text, memory_id=memory_id)
        yield running


async def live(client: AsyncClient) -> dict[str, tuple[str, int]]:
    page = await client.list_memories("town")
    return {memory.memory_id: (memory.text, memory.version) for memory in page.memories}


async def states(client: AsyncClient) -> list[str]:
    """Of consolidations, as the audit has them."""
    events = [event async for event in client.modules.audit()]
    return [json.loads(event.after)["state"] for event in events if event.action == "consolidate"]


async def test_a_candidate_changes_nothing_and_takes_its_sources_place_when_it_is_accepted(
    gateway: RunningGateway,
) -> None:
    client = gateway.client
    plan = await client.plan_consolidation("town")
    assert ({merge.kind for merge in plan.merges}, plan.fewer) == (
        {MergeKind.DUPLICATES, MergeKind.SUMMARY}, 3,
    )  # fmt: skip
    before = await live(client)
    tried = await client.consolidate("town")
    assert (tried.state, tried.plan) == (ConsolidationState.CANDIDATE, plan)
    assert tried.probes.questions == tried.probes.found_before == tried.probes.found_after == 15
    assert tried.probes.asked == 15
    assert await live(client) == before
    accepted = await client.decide_consolidation("town", accept=True)
    assert (accepted.state, accepted.plan.merges) == (ConsolidationState.ACCEPTED, plan.merges)
    after = await live(client)
    [summary] = after.keys() - before.keys()
    assert set(after) == {"g1", "near", summary}
    assert after[summary][0] == " ".join(TEXTS[each] for each in ("v1", "v2", "v3"))
    found = await client.search(["town"], "What is the motto of Velmora?")
    assert found[0].memory.memory_id == summary
    source = await client.get_memory("town", "v2")
    assert source.state is MemoryState.SUPERSEDED
    assert source.superseded_by is not None and source.superseded_by.memory_id == summary
    assert (await client.restore_memory("town", "v2")).text == TEXTS["v2"]
    assert await states(client) == ["candidate", "accepting", "accepted"]
    [newest] = await client.consolidations()
    assert newest.consolidation_id == tried.consolidation_id


async def test_a_rejected_candidate_and_a_failed_one_change_nothing_and_the_audit_has_them(
    gateway: RunningGateway,
) -> None:
    client = gateway.client
    before = await live(client)
    tried = await client.consolidate("town", summaries=False)
    rejected = await client.decide_consolidation(
        "town", accept=False, consolidation_id=tried.consolidation_id
    )
    assert rejected.state is ConsolidationState.REJECTED
    refused = await failure_of(client.decide_consolidation("town", accept=True))
    assert (refused.code, "no candidate" in refused.detail) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    gateway.workers[0].script = Script(pause_s=30.0)
    failed = await client.consolidate("town", budget_s=1.0)
    assert failed.state is ConsolidationState.FAILED and "budget" in failed.reason
    assert failed.plan.merges == ()
    assert await live(client) == before
    assert await states(client) == ["candidate", "rejected", "failed"]


async def test_memories_that_were_written_meanwhile_are_left_alone(gateway: RunningGateway) -> None:
    client = gateway.client
    await client.consolidate("town")
    await client.update_memory("town", "v2", text="The motto of Velmora is Dawn.")
    accepted = await client.decide_consolidation("town", accept=True)
    assert [merge.kind for merge in accepted.plan.merges] == [MergeKind.DUPLICATES]
    assert [each.memory_id for each in accepted.plan.left_alone] == ["v2"]
    after = await live(client)
    assert after["v1"] == (TEXTS["v1"], 1) and after["v2"][0] == "The motto of Velmora is Dawn."
    await client.consolidate("town")
    for memory_id in ("v1", "v2"):
        await client.forget("town", memory_id)
    nothing = await client.decide_consolidation("town", accept=True)
    assert nothing.state is ConsolidationState.FAILED


async def test_a_merge_whose_memories_were_derived_from_more_than_fits_is_left_alone(
    gateway: RunningGateway,
) -> None:
    """An erasure follows these links, so that none of them may be lost."""
    client = gateway.client
    for memory_id in ("g1", "g2"):
        links = [Link(LinkKind.DERIVED_FROM, f"{memory_id}-{number}") for number in range(20)]
        await client.update_memory("town", memory_id, links=links)
    await client.consolidate("town", summaries=False)
    refused = await client.decide_consolidation("town", accept=True)
    assert refused.state is ConsolidationState.FAILED and "has no room for the links" in refused.reason
    await client.update_memory("town", "g2", links=links[:12])
    await client.consolidate("town", summaries=False)
    assert (await client.decide_consolidation("town", accept=True)).state is ConsolidationState.ACCEPTED
    kept = {link.memory_id for link in (await client.get_memory("town", "g1")).links}
    assert kept == {f"g1-{number}" for number in range(20)} | {link.memory_id for link in links[:12]}


async def test_an_acceptance_that_was_cut_off_goes_on(gateway: RunningGateway) -> None:
    client, store = gateway.client, gateway.parts.modules.store
    tried = await client.consolidate("town")
    # Its gateway was killed when the memories were changed, and before the registry had that.
    await gateway.parts.texts.consolidate("default", "town", tried.plan.merges)
    changed = await live(client)
    accepted = await client.decide_consolidation("town", accept=True)
    assert (accepted.state, accepted.plan.merges) == (ConsolidationState.ACCEPTED, tried.plan.merges)
    assert await live(client) == changed
    assert [each.state for each in await store.consolidations("default")] == [ConsolidationState.ACCEPTED]


async def test_an_empty_namespace_and_one_with_nothing_to_do_are_refused(gateway: RunningGateway) -> None:
    client = gateway.client
    assert (await failure_of(client.consolidate("nowhere"))).code is grpc.StatusCode.NOT_FOUND
    await client.remember("empty", "The code of the mill is 4071.", memory_id="m")
    refused = await failure_of(client.consolidate("empty"))
    assert "nothing to do" in refused.detail
    await client.forget("empty", "m")
    assert "has no memories" in (await failure_of(client.consolidate("empty"))).detail
    assert "budget_s" in (await failure_of(client.consolidate("town", budget_s=9e9))).detail
    assert await states(client) == []


def test_a_merge_that_loses_an_answer_is_dropped() -> None:
    merges = [
        Merge(MergeKind.SUMMARY, f"summary-{place}", "", (MergedMemory("m", 1),), "") for place in range(4)
    ]
    asked = [Question("?", "v", place) for place in range(3)]
    compared = [
        _Compared(asked[0], (True, False), (True, True)),
        _Compared(asked[1], (True, True), (True, False)),
        _Compared(asked[2], (False, True), (False, True)),
    ]
    beside = _Compared(Question("?", "v", OF_OTHERS), (True, True), (True, False), frozenset(("summary-2",)))
    assert 2 in _losing(merges, [*compared, beside], is_asked=True)
    dropped = _losing(merges, compared, is_asked=True)
    assert set(dropped) == {0, 1, 3}
    assert "recall finds 0 of 1" in dropped[0] and "the served model gives 0 of 1" in dropped[1]
