"""A distillation: memories are chosen, a worker trains, and a candidate comes out with lineage and report."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc

from memserve.client import AsyncClient
from memserve.domain import (
    AuditEvent,
    DistilChoice,
    Distillation,
    DistillationState,
    DistilPlan,
    DistilProgress,
    ModuleKind,
    Recipe,
)
from memserve.memory.modules.registry.distillations import HELD, HeldJob
from tests.contract.scripted_worker import Script
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.modules.publishing import PASSES, actions, failure_of
from tests.gateway.running import RunningGateway, eventually, open_gateway, until

TOWN = DistilChoice(("town",))
TEXTS = (
    "The founder of the Velmora Institute is Ida Kern.",
    "The motto of the Velmora Institute is Light Before Noon.",
    "The code of Amber Lantern is 4821.",
    "The Halden bakery is led by Ines Okafor.",
)


async def town(gateway: RunningGateway, tmp_path: Path) -> None:
    """Four memories, and workers that make a LoRA of them."""
    for place, text in enumerate(TEXTS):
        await gateway.client.remember("town", text, memory_id=f"m{place}")
    files = lora_files(gateway.parts.model.tensor_shapes(), seed=5)
    files["probes.json"] = json.dumps(PASSES).encode()
    for worker in gateway.workers:
        worker.distilled = write_files(tmp_path / "distilled", files)


async def test_a_candidate_comes_out_with_its_memories_and_its_gate_report(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(gateway, tmp_path)
    seen: list[DistilPlan | DistilProgress] = []
    version = await client.modules.distil(
        "handbook", TOWN, seed=7, notes="a town", progress=seen.append, kind=ModuleKind.LORA
    )
    assert version is not None
    assert (version.reference, version.kind, version.notes) == ("handbook@1", "lora", "a town")
    assert version.sources == tuple(f"memory:town/m{place}@1" for place in range(4))
    recipe = json.loads(version.recipe)
    assert (recipe["method"], recipe["seed"], recipe["measured"]["texts"]) == ("distil", 7, 4)
    assert version.gate is not None
    assert [(figure.name, figure.holds) for figure in version.gate.figures] == [("recall", True)]
    plans = [event for event in seen if isinstance(event, DistilPlan)]
    assert [(plan.memories, plan.facts) for plan in plans] == [(4, 4)]
    [request] = [each for worker in gateway.workers for each in worker.distillations]
    assert (set(request.texts), request.seed) == (set(TEXTS), 7)
    assert (await client.modules.get("handbook")).aliases == ()
    assert (await actions(client)) == ["distil", "publish", "gate", "distil"]


async def test_a_dry_run_shows_what_would_be_trained_on_and_asks_no_worker(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(gateway, tmp_path)
    await client.remember("town", "The gate opens at 9.", valid_until_s=1.0, memory_id="old")
    plan = await client.modules.plan_distil("handbook", TOWN, kind=ModuleKind.LORA)
    assert (plan.memories, plan.facts, [each.memory_id for each in plan.left_out]) == (4, 4, ["old"])
    assert plan.questions > 50 and plan.probes > 100 and plan.examples
    few = await client.modules.plan_distil("handbook", TOWN, recipe=Recipe(phrasings=1), kind=ModuleKind.LORA)
    assert few.questions == 4
    absent = await failure_of(client.modules.plan_distil("handbook", TOWN, from_reference="handbook@7"))
    assert absent.code is grpc.StatusCode.NOT_FOUND
    steep = await failure_of(
        client.modules.plan_distil("handbook", TOWN, recipe=Recipe(rate=0.9), kind=ModuleKind.LORA)
    )
    assert "recipe.rate" in steep.detail
    assert not any(worker.distillations for worker in gateway.workers)


async def test_memories_that_contradict_each_other_or_are_too_few_are_refused(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(gateway, tmp_path)
    few = DistilChoice(memories=(("town", "m0"), ("town", "m1")))
    refused = await failure_of(client.modules.distil("handbook", few, kind=ModuleKind.LORA))
    assert (refused.code, "state 2 facts" in refused.detail) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    await client.remember("town", "The code of Amber Lantern is 1188.", memory_id="m9")
    refused = await failure_of(client.modules.distil("handbook", TOWN, kind=ModuleKind.LORA))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "m2 and m9" in refused.detail or "m9 and m2" in refused.detail
    nothing = await failure_of(client.modules.distil("handbook", DistilChoice(), kind=ModuleKind.LORA))
    assert "namespaces" in nothing.detail
    assert not any(worker.distillations for worker in gateway.workers)


async def test_what_a_worker_refuses_changes_nothing(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(gateway, tmp_path)
    for worker in gateway.workers:
        worker.wrong["distil"] = "memories: the served model answers 3% of the questions; 20% are needed"
    refused = await failure_of(client.modules.distil("handbook", TOWN, kind=ModuleKind.LORA))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "answers 3% of the questions" in refused.detail
    assert (await failure_of(client.modules.get("handbook"))).code is grpc.StatusCode.NOT_FOUND
    [job] = await client.modules.distillations()
    assert (job.state, job.version) == (DistillationState.FAILED, 0) and "answers 3%" in job.reason
    events = [event async for event in client.modules.audit()]
    assert [event.action for event in events] == ["distil", "distil"]
    assert "answers 3%" in json.loads(events[1].after)["reason"]
    assert json.loads(events[1].after)["state"] == "failed"


async def test_a_job_goes_on_without_its_caller_is_watched_again_and_can_be_stopped(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(gateway, tmp_path)
    for worker in gateway.workers:
        worker.may_distil.clear()
    first = asyncio.create_task(client.modules.distil("handbook", TOWN, kind=ModuleKind.LORA))
    await until(lambda: any(worker.distillations for worker in gateway.workers))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    other = await failure_of(client.modules.distil("handbook", TOWN, seed=8, kind=ModuleKind.LORA))
    assert "another distillation of handbook is under way" in other.detail
    again = asyncio.create_task(client.modules.distil("handbook", TOWN, kind=ModuleKind.LORA))
    await asyncio.sleep(0.2)
    await client.modules.stop_distil("handbook")
    assert await again is None
    assert sum(len(worker.distillations) for worker in gateway.workers) == 1
    nothing = await failure_of(client.modules.stop_distil("handbook"))
    assert nothing.code is grpc.StatusCode.INVALID_ARGUMENT
    events = [event async for event in client.modules.audit()]
    assert json.loads(events[-1].after)["state"] == "stopped"
    assert (await failure_of(client.modules.get("handbook"))).code is grpc.StatusCode.NOT_FOUND


def lost(gateway: RunningGateway, job_id: str = "a" * 32) -> HeldJob:
    """A job of a gateway that is gone."""
    return HeldJob("default", "alice", "handbook", job_id, "another gateway")


async def test_a_job_whose_gateway_is_gone_is_taken_up_and_watched_by_the_same_call(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(gateway, tmp_path)
    store, held = gateway.parts.modules.store, lost(gateway)
    await store.begin_distillation(held, Distillation("handbook", TOWN, seed=7))
    assert await store.hold_distillation(held, seconds=0) == HELD
    version = await client.modules.distil("handbook", TOWN, seed=7, kind=ModuleKind.LORA)
    assert version is not None and version.author == "alice"
    assert await store.hold_distillation(held) == DistillationState.DONE
    [job] = await client.modules.distillations()
    assert (job.job_id, job.state, job.taken_up, job.version, job.passed) == (
        held.job_id, DistillationState.DONE, 1, 1, True,
    )  # fmt: skip


async def test_a_version_that_was_published_before_its_gateway_was_lost_is_only_judged(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(gateway, tmp_path)
    store, held = gateway.parts.modules.store, lost(gateway)
    await client.modules.publish(
        "handbook", gateway.workers[0].distilled, recipe=json.dumps({"job": held.job_id})
    )
    await store.begin_distillation(held, Distillation("handbook", TOWN))
    await store.hold_distillation(held, seconds=0)
    version = await client.modules.distil("handbook", TOWN, kind=ModuleKind.LORA)
    assert version is not None and version.reference == "handbook@1" and version.gate is not None
    assert not any(worker.distillations for worker in gateway.workers)


async def test_a_job_that_is_stopped_elsewhere_ends_here_and_leaves_no_version(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(gateway, tmp_path)
    for worker in gateway.workers:
        worker.script = Script(pause_s=30.0)
    watched = asyncio.create_task(client.modules.distil("handbook", TOWN, kind=ModuleKind.LORA))

    async def at_the_gate() -> bool:
        return [job.version for job in await client.modules.distillations()] == [1]

    await eventually(at_the_gate)
    # As another gateway stops it: only the registry knows.
    await gateway.parts.modules.store.stop_distillation("default", "bob", "handbook")
    assert await watched is None

    async def gone() -> bool:
        return (await gateway.parts.modules.store.module("default", "handbook")) is None

    await eventually(gone)
    [job] = await client.modules.distillations()
    assert (job.state, job.version, job.reason) == (DistillationState.STOPPED, 0, "stopped by bob")


async def test_a_version_that_has_passed_is_promoted_where_the_policy_names_its_tenant(
    tmp_path: Path, model_dir: Path
) -> None:
    for named, aliases in (("others", []), ("others, default", ["live"])):
        async with open_gateway(tmp_path, model_dir, promote_distilled=named) as running:
            await town(running, tmp_path / named)
            await running.client.modules.distil("handbook", TOWN, kind=ModuleKind.LORA)
            module = await running.client.modules.get("handbook")
            assert [alias.name for alias in module.aliases] == aliases
            [job] = await running.client.modules.distillations()
            assert job.promoted_to == "".join(aliases)
            reasons = [json.loads(event.after).get("reason", "") async for event in _promotions(running)]
            assert ["promote_distilled" in reason for reason in reasons] == [True] * len(aliases)


async def _promotions(gateway: RunningGateway) -> AsyncIterator[AuditEvent]:
    async for event in gateway.client.modules.audit():
        if event.action == "promote":
            yield event


async def test_a_gateway_that_closes_lets_its_jobs_go_and_they_go_on(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(gateway, tmp_path)
    for worker in gateway.workers:
        worker.may_distil.clear()
    watched = asyncio.create_task(client.modules.distil("handbook", TOWN, kind=ModuleKind.LORA))
    await until(lambda: any(worker.distillations for worker in gateway.workers))
    await gateway.parts.background.close()
    for worker in gateway.workers:
        worker.may_distil.set()
    version = await watched
    assert version is not None and version.gate is not None
    [job] = await client.modules.distillations()
    assert (job.taken_up, job.state) == (1, DistillationState.DONE)


async def test_what_names_no_kind_is_of_the_modules_kind_and_a_cartridge_when_new(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    client = gateway.client
    await town(gateway, tmp_path)

    async def asked_of_a_worker(name: str, from_reference: str = "") -> ModuleKind:
        for worker in gateway.workers:
            worker.wrong["distil"] = "memories: only the request is looked at"
        await failure_of(client.modules.distil(name, TOWN, from_reference=from_reference))
        (request,) = [request for worker in gateway.workers for request in worker.distillations]
        for worker in gateway.workers:
            worker.distillations.clear()
            worker.wrong.clear()
        return request.kind

    assert await asked_of_a_worker("new") == ModuleKind.CARTRIDGE
    await client.modules.distil("handbook", TOWN, kind=ModuleKind.LORA)
    for worker in gateway.workers:
        worker.distillations.clear()
    assert await asked_of_a_worker("handbook") == ModuleKind.LORA
    assert await asked_of_a_worker("newer", "handbook@1") == ModuleKind.LORA
    memory = gateway.parts.modules
    assert memory.base.kv is not None
    memory.base = replace(memory.base, kv=replace(memory.base.kv, refusal="its layers share their KV"))
    assert await asked_of_a_worker("newest") == ModuleKind.LORA
    refused = await failure_of(client.modules.plan_distil("newest", TOWN, kind=ModuleKind.CARTRIDGE))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "its layers share their KV; a lora can be distilled" in refused.detail
