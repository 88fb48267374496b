"""An erasure reaches what was made of a memory: versions, aliases, KV, jobs, derived memories."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import grpc

from memserve.client import AsyncClient, CallFailed, ErasureState
from memserve.domain import (
    DistillationState,
    Link,
    LinkKind,
    ModuleKind,
    ModuleVersion,
    Sampling,
    TrafficShare,
)
from memserve.gateway.erasures import erasures as erasures_module
from memserve.kv.ledger.records import Owner
from memserve.memory.erasures.store import KeptErasures
from tests.contract.scripted_worker import Script
from tests.gateway.fixtures import StartGateway
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.modules.publishing import PASSES, actions, failure_of
from tests.gateway.modules.test_distillation import TOWN
from tests.gateway.modules.test_distillation import town as distilled_town
from tests.gateway.running import RunningGateway, eventually, until
from tests.gateway.test_prefixes import TEXT, members, store

GREEDY = Sampling(max_tokens=2)
FACTS = {
    "m0": "The founder of the Velmora Institute is Ida Kern.",
    "m1": "The motto of the Velmora Institute is Light Before Noon.",
    "m2": "The code of Amber Lantern is 4821.",
}


async def town(client: AsyncClient) -> None:
    for memory_id, text in FACTS.items():
        await client.remember("town", text, memory_id=memory_id)


async def made_of(
    gateway: RunningGateway, tmp_path: Path, seed: int, *memory_ids: str, name: str = "handbook"
) -> ModuleVersion:
    """A version whose record says that it was distilled from these memories."""
    files = lora_files(gateway.parts.model.tensor_shapes(), seed=seed)
    files["probes.json"] = json.dumps(PASSES).encode()
    return await gateway.client.modules.publish(
        name,
        write_files(tmp_path / f"{name}-{seed}", files),
        sources=[" ".join(f"memory:town/{memory_id}@1" for memory_id in memory_ids)],
        recipe=json.dumps({"method": "distil", "seed": 7, "budget_s": 30.0}),
    )


async def numbers(client: AsyncClient, name: str = "handbook") -> list[int]:
    return [version.version for version in await client.modules.versions(name)]


async def test_a_dry_run_shows_all_of_it_and_changes_nothing(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(client)
    await made_of(gateway, tmp_path, 1, "m0", "m1")
    await client.modules.promote("handbook", 1)
    plan = await client.lineage.plan_erasure("town", "m0")
    assert (plan.state, plan.erasure_id, plan.retired) == (ErasureState.PLANNED, "", ("handbook@1",))
    assert [(move.alias, move.after) for move in plan.aliases] == [("live", ())]
    [entry] = plan.retraining
    assert (entry.module, entry.memories, entry.seed, entry.budget_s) == (
        "handbook",
        (("town", "m1"),),
        7,
        30.0,
    )
    assert (await client.get_memory("town", "m0")).text == FACTS["m0"]
    assert (await client.modules.get("handbook")).aliases[0].targets == (TrafficShare(1, 1.0),)
    assert await client.lineage.erasures() == []


async def test_versions_that_know_an_erased_memory_are_gone_and_their_neighbours_stay(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(client)
    without = await made_of(gateway, tmp_path, 1, "m1")
    await client.modules.promote("handbook", 1)
    knows = await made_of(gateway, tmp_path, 2, "m0", "m1")
    await client.modules.promote("handbook", 2)
    other = await made_of(gateway, tmp_path, 3, "m2", name="codes")
    answer = await client.generate("Who?", module="handbook", sampling=GREEDY)
    await client.modules.preload("handbook@2")
    blobs = gateway.parts.modules.blobs
    assert blobs.exists(knows.digest)

    erased = await client.lineage.erase("town", "m0", reason="asked")
    told = {place.place: place for place in erased.places}
    assert (erased.state, erased.retired, erased.pending) == (ErasureState.DONE, ("handbook@2",), ())
    assert told["modules"].removed == told["aliases"].removed == told["preloads"].removed == 1
    assert (await client.modules.get("handbook")).aliases[0].targets == (TrafficShare(1, 1.0),)
    assert await numbers(client) == [1] and await numbers(client, "codes") == [1]
    assert not blobs.exists(knows.digest)
    assert blobs.exists(without.digest) and blobs.exists(other.digest)
    assert all(worker.forgotten for worker in gateway.workers)
    assert (await client.generate("Who?", module="handbook", sampling=GREEDY)).route.modules[0].version == 1
    gone = await failure_of(client.generate("Who?", module="handbook@2", sampling=GREEDY))
    assert gone.code is grpc.StatusCode.NOT_FOUND
    assert (await client.explain_answer(answer.route.request_id)).answer is None
    checked = await client.lineage.check_erasure(erased.erasure_id)
    assert [place.place for place in checked.places if place.removed] == []
    assert "erase_memory" in await actions(client)


async def test_compositions_and_equal_contents_go_too_and_what_cannot_go_back_is_dropped(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(client)
    first = await made_of(gateway, tmp_path, 1, "m0")
    await made_of(gateway, tmp_path, 2, "m2", name="codes")
    composed = await client.modules.compose("both", "linear", {"handbook@1": 1.0, "codes@1": 1.0})
    assert first.digest in composed.parents
    # The same content under another name, by a publisher who does not say what it was made of.
    await client.modules.publish("copy", tmp_path / "handbook-1")
    await client.modules.promote("copy", 1, force=True)
    erased = await client.lineage.erase("town", "m0")
    assert set(erased.retired) == {"handbook@1", "both@1", "copy@1"}
    assert (await failure_of(client.modules.get("copy"))).code is grpc.StatusCode.NOT_FOUND
    assert await numbers(client, "codes") == [1]
    assert [(move.module, move.after) for move in erased.aliases] == [("copy", ())]
    [entry] = erased.retraining
    assert (entry.module, entry.memories) == ("handbook", ())


async def test_a_split_keeps_its_other_versions(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(client)
    await made_of(gateway, tmp_path, 1, "m1")
    await client.modules.promote("handbook", 1)
    await made_of(gateway, tmp_path, 2, "m0")
    await client.modules.split("handbook", {1: 90, 2: 10})
    await client.lineage.erase("town", "m0")
    assert (await client.modules.get("handbook")).aliases[0].targets == (TrafficShare(1, 90),)
    last = (await client.modules.history("handbook"))[-1]
    assert last.action == "erase" and "a memory was erased" in last.reason


async def test_kv_goes_from_redis_and_from_workers_and_one_that_is_away_is_told_later(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(workers=({}, {}), recall_timeout_ms=10_000)
    client = gateway.client
    await town(client)
    answer = await client.generate("Who is the founder?", namespaces="town", sampling=GREEDY)
    assert answer.route.passages
    store(gateway.redis, members(gateway, TEXT), Owner("default"))
    away = gateway.workers[1]
    await away.die()
    await gateway.sees(1)
    erased = await client.lineage.erase("town", "m0")
    told = {place.place: place for place in erased.places}
    assert told["kv"].removed > 0 and (await client.activation.usage()).chunks == 0
    assert erased.state is ErasureState.PENDING and told["engines"].pending
    assert any(away.worker_id in each for each in erased.pending)
    assert gateway.workers[0].forgotten and not away.forgotten
    store(gateway.redis, members(gateway, TEXT), Owner("default"))
    await away.listen()

    async def is_done() -> bool:
        [newest] = await client.lineage.erasures()
        return newest.state is ErasureState.DONE

    await eventually(is_done)
    assert away.forgotten[0][0] == "default" and len(away.forgotten[0][1]) == 1
    assert (await client.activation.usage()).chunks == 0


async def test_an_erasure_that_was_killed_in_the_middle_is_gone_on_with(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(client)
    await made_of(gateway, tmp_path, 1, "m0")
    await client.modules.promote("handbook", 1)
    # As a gateway leaves it that is killed when it has begun.
    kept = gateway.parts.erasures
    erased = await client.lineage.erase("town", "m1")
    record = await kept.get("default", erased.erasure_id)
    assert record is not None
    record.erasure = record.erasure.__class__("f" * 32, "town", "m0", ErasureState.PENDING, time.time())
    record.memories, record.done, record.erased_s = (("town", "m0"),), set(), 0.0
    await kept.save(record, time.time(), again_s=0.0)

    async def is_done() -> bool:
        newest = {each.erasure_id: each for each in await client.lineage.erasures()}
        return newest["f" * 32].state is ErasureState.DONE

    await eventually(is_done)
    assert (await failure_of(client.get_memory("town", "m0"))).code is grpc.StatusCode.NOT_FOUND
    assert (await failure_of(client.modules.get("handbook"))).code is grpc.StatusCode.NOT_FOUND
    # Again it does nothing: a new memory of that name stays, and so does what is made of it.
    await client.remember("town", FACTS["m0"], memory_id="m0")
    await made_of(gateway, tmp_path, 4, "m0")
    record = await kept.get("default", "f" * 32)
    assert record is not None
    await kept.save(record, time.time(), again_s=0.0)
    await asyncio.sleep(1.5)
    assert (await client.get_memory("town", "m0")).text == FACTS["m0"]
    assert await numbers(client) == [2]


async def test_a_version_in_use_waits_for_its_requests_and_gets_no_new_ones(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(client)
    await made_of(gateway, tmp_path, 1, "m0")
    await client.modules.promote("handbook", 1)
    for worker in gateway.workers:
        worker.script = Script(hangs_after=1)
    under_way = asyncio.create_task(
        client.generate("Who?", module="handbook", sampling=Sampling(max_tokens=9))
    )
    await until(lambda: gateway.parts.uses and any(worker.requests for worker in gateway.workers))
    for worker in gateway.workers:
        worker.script = Script()
    erasing = asyncio.create_task(client.lineage.erase("town", "m0"))

    async def is_refused() -> bool:
        try:
            await client.generate("Who?", module="handbook@1", sampling=GREEDY)
        except CallFailed as refused:
            return refused.code is grpc.StatusCode.NOT_FOUND
        return False

    await eventually(is_refused)
    under_way.cancel()
    await asyncio.gather(under_way, return_exceptions=True)
    erased = await erasing
    assert (erased.state, erased.retired) == (ErasureState.DONE, ("handbook@1",))


async def test_what_was_derived_goes_too_and_what_that_had_superseded_comes_back(
    gateway: RunningGateway, client: AsyncClient
) -> None:
    await town(client)
    links = [Link(LinkKind.DERIVED_FROM, memory_id, "town") for memory_id in ("m0", "m1")]
    await client.remember("sums", "Ida Kern founded it; Light Before Noon.", memory_id="both", links=links)
    await client.supersede_memory("town", "m1", "both", by_namespace="sums")
    plan = await client.lineage.plan_erasure("town", "m0")
    assert plan.derived == ("sums/both",)
    erased = await client.lineage.erase("town", "m0")
    assert (await failure_of(client.get_memory("sums", "both"))).code is grpc.StatusCode.NOT_FOUND
    assert (await client.get_memory("town", "m1")).text == FACTS["m1"]
    assert "1 that they had superseded" in {place.place: place.detail for place in erased.places}["derived"]


async def test_a_distillation_that_reads_it_is_stopped_and_its_result_never_published(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await distilled_town(gateway, tmp_path)
    for worker in gateway.workers:
        worker.may_distil.clear()
    job = asyncio.create_task(client.modules.distil("handbook", TOWN, kind=ModuleKind.LORA))
    await until(lambda: any(worker.distillations for worker in gateway.workers))
    [request] = [each for worker in gateway.workers for each in worker.distillations]
    assert len(request.memory_keys) == 5
    erased = await client.lineage.erase("town", "m0")
    assert {place.place: place.removed for place in erased.places}["jobs"] == 1
    assert "erased while it was distilled" in str(await failure_of(job))
    [ended] = await client.modules.distillations()
    assert (ended.state, ended.version) == (DistillationState.FAILED, 0)
    assert (await failure_of(client.modules.get("handbook"))).code is grpc.StatusCode.NOT_FOUND
    assert await KeptErasures.erased_since(
        gateway.parts.erasures, "default", list(request.memory_keys), erased.at_s
    ) == [request.memory_keys[0]]


async def test_a_namespace_takes_what_was_made_of_it_along(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(client)
    await client.remember("elsewhere", "The harbour closes at nine.", memory_id="h")
    await made_of(gateway, tmp_path, 1, "m0", "m2")
    await client.modules.promote("handbook", 1)
    reports = [report async for report in client.delete_namespace("town", confirm="town")]
    assert {place.place: place.removed for place in reports[-1].places}["modules"] == 1
    assert (await failure_of(client.modules.get("handbook"))).code is grpc.StatusCode.NOT_FOUND
    [erasure] = await client.lineage.erasures()
    assert (erasure.namespace, erasure.memory_id, erasure.state) == ("town", "", ErasureState.DONE)
    assert (await client.lineage.check_erasure(erasure.erasure_id)).places


async def test_a_retraining_counts_as_done_once_a_version_without_it_is_there(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(client)
    await made_of(gateway, tmp_path, 1, "m0", "m1", "m2")
    await client.lineage.erase("town", "m0")
    [erasure] = await client.lineage.erasures()
    assert [(entry.made, len(entry.memories)) for entry in erasure.retraining] == [("", 2)]
    await made_of(gateway, tmp_path, 2, "m1", "m2")
    [erasure] = await client.lineage.erasures()
    assert [entry.made for entry in erasure.retraining] == ["handbook@2"]


async def test_an_unknown_erasure_is_not_found(client: AsyncClient) -> None:
    assert (await failure_of(client.lineage.check_erasure("0" * 32))).code is grpc.StatusCode.NOT_FOUND
    assert (await failure_of(client.lineage.plan_erasure("nowhere", "m"))).code is grpc.StatusCode.NOT_FOUND
    assert erasures_module.LOOK_S > 0
