"""What is made of a memory while it is erased, and what an erasure finds that was cut off."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from memserve.client import AsyncClient, ErasureState
from memserve.domain import (
    ConsolidationState,
    DistillationState,
    ErasedPlace,
    Link,
    LinkKind,
    MemoryState,
    ModuleKind,
)
from memserve.errors import InvalidField
from memserve.gateway.assembly import services_of
from memserve.gateway.modules.composition import Composition
from memserve.gateway.modules.progress import Step
from memserve.kv.ledger.records import Owner
from memserve.memory.texts.records import Record
from tests.gateway.erasures.test_erasures import FACTS, made_of, numbers, town
from tests.gateway.modules.publishing import failure_of
from tests.gateway.modules.test_distillation import TOWN
from tests.gateway.modules.test_distillation import town as distilled_town
from tests.gateway.running import RunningGateway, eventually, until
from tests.gateway.test_prefixes import TEXT, members, store

VELMORA = {
    "v1": "The founder of Velmora is Ida Kern.",
    "v2": "The motto of Velmora is Light Before Noon.",
    "v3": "The colour of Velmora is blue.",
}


async def registry_has(gateway: RunningGateway, text: str) -> bool:
    """Whether consolidations or distillations that the registry keeps have the text."""
    store = gateway.parts.modules.store
    kept = [*await store.consolidations("default"), *await store.distillations("default")]
    return text in repr(kept)


async def consolidated(gateway: RunningGateway) -> str:
    """Three facts become a summary. Returns its id."""
    for memory_id, text in VELMORA.items():
        await gateway.client.remember("town", text, memory_id=memory_id)
    await gateway.client.consolidate("town")
    accepted = await gateway.client.decide_consolidation("town", accept=True)
    [merge] = accepted.plan.merges
    return merge.memory_id


async def test_a_summary_goes_with_a_source_and_the_other_sources_are_live_again(
    gateway: RunningGateway, client: AsyncClient
) -> None:
    summary = await consolidated(gateway)
    shown = await client.lineage.show(f"town/{summary}")
    assert {f"memory:town/{each}@2" for each in VELMORA} <= {node.name for node in shown.nodes}
    assert await registry_has(gateway, "Ida Kern")
    assert (await client.lineage.plan_erasure("town", "v1")).derived == (f"town/{summary}",)
    erased = await client.lineage.erase("town", "v1")
    assert erased.state is ErasureState.DONE and erased.derived == (f"town/{summary}",)
    assert {place.place: place.removed for place in erased.places}["consolidations"] == 1
    page = await client.list_memories("town")
    assert {memory.memory_id: memory.text for memory in page.memories} == {
        each: VELMORA[each] for each in ("v2", "v3")
    }
    assert not await registry_has(gateway, "Ida Kern")
    assert await client.consolidations() == []


async def test_an_erased_summary_says_which_sources_keep_their_texts(
    gateway: RunningGateway, client: AsyncClient
) -> None:
    summary = await consolidated(gateway)
    for erasure in (await client.lineage.plan_erasure("town", summary), None):
        erasure = erasure or await client.lineage.erase("town", summary)
        [replaced] = [place for place in erasure.places if place.place == "replaced"]
        assert all(f"town/{each}" in replaced.detail for each in VELMORA)
    assert (await client.get_memory("town", "v1")).state is MemoryState.SUPERSEDED


async def test_a_candidate_goes_with_its_source_and_one_that_is_tried_meanwhile_is_not_kept(
    gateway: RunningGateway, client: AsyncClient
) -> None:
    for memory_id, text in VELMORA.items():
        await client.remember("town", text, memory_id=memory_id)
    tried = await client.consolidate("town")
    assert tried.state is ConsolidationState.CANDIDATE
    await client.lineage.erase("town", "v2")
    await client.remember("town", VELMORA["v2"].replace("Light Before Noon", "Dawn"), memory_id="v2")
    refused = await failure_of(client.decide_consolidation("town", accept=True))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    asked = sum(len(worker.requests) for worker in gateway.workers)
    trying = asyncio.create_task(client.consolidate("town"))
    await until(lambda: sum(len(worker.requests) for worker in gateway.workers) > asked)
    await client.lineage.erase("town", "v2")
    assert "erased meanwhile" in (await failure_of(trying)).detail
    assert not await registry_has(gateway, "Dawn")


async def test_a_namespace_whose_deletion_was_cut_off_is_deleted(
    gateway: RunningGateway, client: AsyncClient
) -> None:
    await town(client)
    await client.remember("elsewhere", "The harbour closes at nine.", memory_id="h")
    [*_] = [report async for report in client.delete_namespace("elsewhere", confirm="elsewhere")]
    kept = gateway.parts.erasures
    [done] = await kept.newest("default", 1)
    cut_off = replace(done.erasure, erasure_id="e" * 32, namespace="town", at_s=time.time(), places=())
    record = replace(
        done, erasure=replace(cut_off, state=ErasureState.PENDING), done=set(), erased_s=0.0, places={}
    )
    await kept.save(record, time.time(), again_s=1.0)
    checked = await client.lineage.check_erasure("e" * 32)
    assert {place.place: place.removed for place in checked.places}["texts"] == 3
    # Before anybody goes on with it.
    await client.remember("town", "The clock is late.", memory_id="new")

    async def is_done() -> bool:
        newest = {each.erasure_id: each for each in await client.lineage.erasures()}
        return newest["e" * 32].state is ErasureState.DONE

    await eventually(is_done)
    page = await client.list_memories("town")
    assert [memory.memory_id for memory in page.memories] == ["new"]
    checked = await client.lineage.check_erasure("e" * 32)
    assert [place.place for place in checked.places if place.removed] == []


async def test_an_erasure_that_a_newer_memserve_has_written_is_left_to_it(
    gateway: RunningGateway, client: AsyncClient
) -> None:
    await town(client)
    erased = await client.lineage.erase("town", "m1")
    kept = gateway.parts.erasures
    record = await kept.get("default", erased.erasure_id)
    assert record is not None
    record.erasure = replace(record.erasure, state=ErasureState.PENDING, erasure_id="d" * 32)
    record.memories, record.done, record.erased_s = (("town", "m0"),), set(), 0.0
    await kept.save(record, time.time(), again_s=60.0)
    registry = gateway.redis.client
    [records] = list(registry.scan_iter("memserve:erasures:*:records"))
    readable = registry.hget(records, "d" * 32)
    registry.hset(records, "d" * 32, json.dumps({"tenant": 5}))
    await kept.postpone("default", "d" * 32, 0.0)
    await asyncio.sleep(1.5)
    assert registry.hexists(records, "d" * 32)
    assert (await client.get_memory("town", "m0")).text == FACTS["m0"]
    registry.hset(records, "d" * 32, readable)
    await kept.postpone("default", "d" * 32, 0.0)

    async def is_gone() -> bool:
        return "m0" not in {memory.memory_id for memory in (await client.list_memories("town")).memories}

    await eventually(is_gone)


async def test_a_long_erasure_keeps_its_turn(
    gateway: RunningGateway, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await town(client)
    monkeypatch.setattr("memserve.gateway.erasures.erasures.TURN_S", 0.4)
    calls: list[str] = []
    inside = asyncio.Event()

    async def waits(tenant: str, record: Record) -> ErasedPlace:
        calls.append(record.memory.memory_id)
        [erasure_id] = [each.erasure_id for each in await client.lineage.erasures()]
        # Its turn is nearly over, and it is due.
        await gateway.parts.erasures.end_turn(erasure_id)
        await gateway.parts.erasures.postpone("default", erasure_id, 0.0)
        await asyncio.sleep(0.3)
        assert not await gateway.parts.erasures.take_turn(erasure_id, "another gateway")
        await asyncio.sleep(1.5)
        inside.set()
        return ErasedPlace("hook", 0, "")

    gateway.parts.texts.erasers.append(waits)
    erased = await client.lineage.erase("town", "m0")
    assert erased.state is ErasureState.DONE and inside.is_set() and calls == ["m0"]
    assert {place.place: place.removed for place in erased.places}["index"] == 1


async def test_a_distillation_that_begins_while_it_is_erased_is_not_published(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await distilled_town(gateway, tmp_path)
    links = [Link(LinkKind.DERIVED_FROM, "m0")]
    await client.remember("town", "It was founded by her.", memory_id="d", links=links)
    for worker in gateway.workers:
        worker.may_distil.clear()
    jobs: list[asyncio.Task[object]] = []

    async def begins(tenant: str, record: Record) -> ErasedPlace:
        if record.memory.memory_id == "d":
            # The derived memory is gone, and the one that it was made of is still there.
            jobs.append(asyncio.create_task(client.modules.distil("handbook", TOWN, kind=ModuleKind.LORA)))
            await until(lambda: any(worker.distillations for worker in gateway.workers))
        return ErasedPlace("hook", 0, "")

    gateway.parts.texts.erasers.append(begins)
    erased = await client.lineage.erase("town", "m0")
    for worker in gateway.workers:
        worker.may_distil.set()
    assert "erased while it was distilled" in str(await failure_of(jobs[0]))
    assert (await failure_of(client.modules.get("handbook"))).code is grpc.StatusCode.NOT_FOUND
    assert erased.state is ErasureState.DONE


async def test_a_memory_that_is_derived_while_it_is_erased_goes_too(
    gateway: RunningGateway, client: AsyncClient
) -> None:
    await town(client)
    links = [Link(LinkKind.DERIVED_FROM, "m0")]
    await client.remember("town", "Ida founded it.", memory_id="d", links=links)

    async def derives(tenant: str, record: Record) -> ErasedPlace:
        if record.memory.memory_id == "d":
            await client.remember("town", "She, Ida, founded it.", memory_id="late", links=links)
        return ErasedPlace("hook", 0, "")

    gateway.parts.texts.erasers.append(derives)
    erased = await client.lineage.erase("town", "m0")
    assert set(erased.derived) == {"town/d", "town/late"}
    assert (await failure_of(client.get_memory("town", "late"))).code is grpc.StatusCode.NOT_FOUND


async def test_a_composition_of_a_version_that_is_erased_meanwhile_is_refused(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(client)
    await made_of(gateway, tmp_path, 1, "m0")
    await made_of(gateway, tmp_path, 2, "m2", name="codes")
    composition = services_of(gateway.parts, gateway.access).composition
    parents = (("handbook@1", 1.0), ("codes@1", 1.0))
    events = composition.compose(
        gateway.access.named("default", "alice"), Composition("both", "linear", parents)
    )
    assert isinstance(await anext(events), Step)
    await client.lineage.erase("town", "m0")
    with pytest.raises(InvalidField, match="handbook@1 was made of was erased while"):
        async for _ in events:
            pass
    assert (await failure_of(client.modules.get("both"))).code is grpc.StatusCode.NOT_FOUND
    assert await numbers(client, "codes") == [1]


async def test_kv_goes_also_where_no_answer_is_known_to_have_used_it(
    gateway: RunningGateway, client: AsyncClient
) -> None:
    """As a pinned prefix that was computed ahead, and what a surprise gate or a consolidation has asked."""
    await town(client)
    store(gateway.redis, members(gateway, TEXT), Owner("default"))
    plan = await client.lineage.plan_erasure("town", "m0")
    assert "all KV" in {place.place: place.detail for place in plan.places}["kv"]
    await client.lineage.erase("town", "m0")
    assert (await client.activation.usage()).chunks == 0
    assert all(worker.forgotten for worker in gateway.workers)


async def test_plans_of_distillations_keep_no_text_of_it(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await distilled_town(gateway, tmp_path)
    await client.modules.distil("handbook", TOWN, kind=ModuleKind.LORA)
    assert await registry_has(gateway, "4821")
    erased = await client.lineage.erase("town", "m2")
    assert {place.place: place.removed for place in erased.places}["plans"] == 1
    assert not await registry_has(gateway, "4821")
    [job] = await client.modules.distillations()
    assert job.state is DistillationState.DONE
    assert all(worker.forgotten for worker in gateway.workers)


async def test_a_retraining_leaves_out_what_was_erased_later_and_takes_no_wrong_recipe(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(client)
    await made_of(gateway, tmp_path, 1, "m0", "m1", "m2")
    wrong = json.dumps({"seed": 10**30, "budget_s": float("nan")})
    await client.modules.publish("odd", tmp_path / "handbook-1", sources=["memory:town/m0@1"], recipe=wrong)
    await client.lineage.erase("town", "m0")
    await client.lineage.erase("town", "m1")
    waiting = {
        entry.module: entry for erasure in await client.lineage.erasures() for entry in erasure.retraining
    }
    assert waiting["handbook"].memories == (("town", "m2"),)
    assert (waiting["odd"].seed, waiting["odd"].budget_s) == (0, 0.0)
    await client.remember("town", FACTS["m1"], memory_id="m1")
    [first] = [
        entry
        for erasure in await client.lineage.erasures()
        for entry in erasure.retraining
        if entry.module == "handbook"
    ]
    assert first.memories == (("town", "m1"), ("town", "m2"))
