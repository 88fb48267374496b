"""A distillation: memories are chosen, a worker trains, and a candidate comes out with lineage and report."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc

from memserve.client import AsyncClient
from memserve.domain import DistilChoice, DistilPlan, DistilProgress
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.modules.publishing import PASSES, actions, failure_of
from tests.gateway.running import RunningGateway, until

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
    version = await client.modules.distil("handbook", TOWN, seed=7, notes="a town", progress=seen.append)
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
    assert (await actions(client))[-2:] == ["publish", "gate"]


async def test_a_dry_run_shows_what_would_be_trained_on_and_asks_no_worker(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(gateway, tmp_path)
    await client.remember("town", "The gate opens at 9.", valid_until_s=1.0, memory_id="old")
    plan = await client.modules.plan_distil("handbook", TOWN)
    assert (plan.memories, plan.facts, [each.memory_id for each in plan.left_out]) == (4, 4, ["old"])
    assert plan.questions > 50 and plan.probes > 100 and plan.examples
    assert not any(worker.distillations for worker in gateway.workers)


async def test_memories_that_contradict_each_other_or_are_too_few_are_refused(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(gateway, tmp_path)
    few = DistilChoice(memories=(("town", "m0"), ("town", "m1")))
    refused = await failure_of(client.modules.distil("handbook", few))
    assert (refused.code, "not 2" in refused.detail) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    await client.remember("town", "The code of Amber Lantern is 1188.", memory_id="m9")
    refused = await failure_of(client.modules.distil("handbook", TOWN))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "m2 and m9" in refused.detail or "m9 and m2" in refused.detail
    nothing = await failure_of(client.modules.distil("handbook", DistilChoice()))
    assert "namespaces" in nothing.detail
    assert not any(worker.distillations for worker in gateway.workers)


async def test_what_a_worker_refuses_changes_nothing(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(gateway, tmp_path)
    for worker in gateway.workers:
        worker.wrong["distil"] = "memories: the served model answers 3% of the questions; 20% are needed"
    refused = await failure_of(client.modules.distil("handbook", TOWN))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "answers 3% of the questions" in refused.detail
    assert (await failure_of(client.modules.get("handbook"))).code is grpc.StatusCode.NOT_FOUND


async def test_a_job_goes_on_without_its_caller_is_watched_again_and_can_be_stopped(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(gateway, tmp_path)
    for worker in gateway.workers:
        worker.may_distil.clear()
    first = asyncio.create_task(client.modules.distil("handbook", TOWN))
    await until(lambda: any(worker.distillations for worker in gateway.workers))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    other = await failure_of(client.modules.distil("handbook", TOWN, seed=8))
    assert "another distillation of handbook is under way" in other.detail
    again = asyncio.create_task(client.modules.distil("handbook", TOWN))
    await asyncio.sleep(0.2)
    await client.modules.stop_distil("handbook")
    assert await again is None
    assert sum(len(worker.distillations) for worker in gateway.workers) == 1
    nothing = await failure_of(client.modules.stop_distil("handbook"))
    assert nothing.code is grpc.StatusCode.INVALID_ARGUMENT
