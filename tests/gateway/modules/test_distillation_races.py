"""What comes between while a distillation runs: erasures, changes, stops, and a registry that was away."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import cast

import grpc
import pytest
import redis

from memserve.client import AsyncClient
from memserve.domain import (
    DistilChoice,
    Distillation,
    DistillationState,
    DistilPlan,
    ModuleKind,
    Recipe,
    Tenant,
)
from memserve.errors import RegistryUnavailable
from memserve.gateway.modules import distillation
from memserve.gateway.modules.deletion import ModuleDeletion
from memserve.gateway.modules.distil_work import DistilWork, Outcome, Standing
from memserve.gateway.modules.distillation import TAKEN_UP_MAX, ModuleDistillation
from memserve.memory.erasures.store import KeptErasures
from memserve.memory.modules.registry.distillations import DistillationRecords, KeptDistillation
from memserve.memory.texts.records import memory_key
from memserve.processes.supervised import Background
from tests.contract.scripted_worker import Script
from tests.gateway.modules.publishing import failure_of
from tests.gateway.modules.test_distillation import TOWN, lost, town
from tests.gateway.running import RunningGateway, eventually, open_gateway


async def test_a_version_of_a_memory_that_is_erased_while_it_is_published_goes(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(gateway, tmp_path)

    async def mark() -> None:
        erasures = KeptErasures(gateway.redis.url)
        await erasures.mark_erased("default", [memory_key("default", "town", "m1")], time.time())
        await erasures.close()

    def erase(digest: str, kind: str) -> float:
        """Another gateway's erasure, after the files were checked and before the version is registered."""
        thread = threading.Thread(target=lambda: asyncio.run(mark()))
        thread.start()
        thread.join()
        return 0.5

    for worker in gateway.workers:
        worker.try_module = erase  # type: ignore[method-assign]
    refused = await failure_of(client.modules.distil("handbook", TOWN, kind=ModuleKind.LORA))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT and "erased" in refused.detail
    assert (await failure_of(client.modules.get("handbook"))).code is grpc.StatusCode.NOT_FOUND
    [job] = await client.modules.distillations()
    assert (job.state, job.version) == (DistillationState.FAILED, 0)


async def lost_with_a_version(gateway: RunningGateway, client: AsyncClient, tmp_path: Path) -> None:
    """A job of a gateway that is gone, which has published its version and has not told of it."""
    await town(gateway, tmp_path)
    held = lost(gateway)
    await client.modules.publish(
        "handbook", gateway.workers[0].distilled, recipe=json.dumps({"job": held.job_id})
    )
    await gateway.parts.modules.store.begin_distillation(held, Distillation("handbook", TOWN))


async def test_a_job_that_is_stopped_before_it_has_told_of_its_version_leaves_none(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await lost_with_a_version(gateway, client, tmp_path)
    await client.modules.stop_distil("handbook")
    assert (await failure_of(client.modules.get("handbook"))).code is grpc.StatusCode.NOT_FOUND


async def test_a_version_whose_memories_changed_meanwhile_is_not_promoted_by_the_policy(
    tmp_path: Path, model_dir: Path
) -> None:
    async with open_gateway(tmp_path, model_dir, promote_distilled="default") as running:
        await town(running, tmp_path / "town")
        for worker in running.workers:
            worker.script = Script(pause_s=0.03)
        watched = asyncio.create_task(running.client.modules.distil("handbook", TOWN, kind=ModuleKind.LORA))

        async def at_the_gate() -> bool:
            return [job.version for job in await running.client.modules.distillations()] == [1]

        await eventually(at_the_gate)
        await running.client.update_memory("town", "m2", text="The code of Amber Lantern is 1188.")
        version = await watched
        assert version is not None and version.gate is not None and version.gate.passed
        assert (await running.client.modules.get("handbook")).aliases == ()
        [job] = await running.client.modules.distillations()
        assert job.promoted_to == ""
        assert "1 of its memories have changed since, the first is town/m2@1" in job.reason


async def test_a_registry_that_is_away_for_a_moment_fails_neither_the_job_nor_who_watches_it(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await town(gateway, tmp_path)
    away = {"watching": 3, "working": 2}

    async def kept(records: DistillationRecords, tenant: str, module: str) -> KeptDistillation | None:
        if (found := await read(records, tenant, module)) is not None and away["watching"]:
            away["watching"] -= 1
            raise RegistryUnavailable("TimeoutError")
        return found

    async def erased(kept: KeptErasures, tenant: str, keys: Sequence[str], since_s: float) -> list[str]:
        if away["working"]:
            away["working"] -= 1
            raise RegistryUnavailable("TimeoutError")
        return await erased_since(kept, tenant, keys, since_s)

    read, erased_since = DistillationRecords.distillation, KeptErasures.erased_since
    monkeypatch.setattr(DistillationRecords, "distillation", kept)
    monkeypatch.setattr(KeptErasures, "erased_since", erased)
    monkeypatch.setattr(distillation, "REGISTRY_AGAIN_S", (0.01, 0.01, 0.01))
    version = await client.modules.distil("handbook", TOWN, kind=ModuleKind.LORA)
    assert version is not None and version.version == 1
    assert away == {"watching": 0, "working": 0}


async def test_what_cannot_be_published_is_refused_before_it_is_trained(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(gateway, tmp_path)
    most = gateway.parts.modules.base.max_rank
    refused = await failure_of(
        client.modules.distil("handbook", TOWN, recipe=Recipe(rank=most + 1), kind=ModuleKind.LORA)
    )
    assert f"recipe.rank: at most {most}" in refused.detail
    assert not any(worker.distillations for worker in gateway.workers)


async def test_a_worker_that_distils_something_else_is_passed_over_for_one_that_does_not(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(gateway, tmp_path)
    for busy, idle in (gateway.workers, reversed(gateway.workers)):
        busy.refuses["distil"] = "this worker distils something else now; ask again when that has ended"
        version = await client.modules.distil("handbook", TOWN, kind=ModuleKind.LORA)
        assert version is not None and len(idle.distillations) == 1
        del busy.refuses["distil"]
        idle.distillations.clear()
        busy.distillations.clear()


async def test_a_job_that_outlives_no_gateway_is_given_up_and_leaves_no_version(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await lost_with_a_version(gateway, client, tmp_path)
    registry = redis.Redis.from_url(gateway.redis.url)
    [key] = list(registry.scan_iter("*distillations*"))
    job = json.loads(cast(bytes, registry.hget(key, "handbook")))
    registry.hset(key, "handbook", json.dumps(job | {"held_until": 0, "taken_up": TAKEN_UP_MAX}))

    async def given_up() -> bool:
        [job] = await client.modules.distillations()
        return job.state is DistillationState.FAILED

    await eventually(given_up)
    [ended] = await client.modules.distillations()
    assert "given up" in ended.reason
    assert (await failure_of(client.modules.get("handbook"))).code is grpc.StatusCode.NOT_FOUND
    assert not any(worker.distillations for worker in gateway.workers)


class Waiting:
    """The work of a job, which ends when the test says so."""

    def __init__(self) -> None:
        self.runs = 0
        self.may_end = asyncio.Event()

    async def run(
        self,
        tenant: Tenant,
        asked: Distillation,
        job_id: str,
        standing: Standing,
        hold: Callable[[], Awaitable[None]],
    ) -> Outcome:
        self.runs += 1
        standing.plan = DistilPlan(4, 4, 4)
        await self.may_end.wait()
        raise AssertionError("stopped by then")

    async def plan(self, tenant: Tenant, asked: Distillation) -> DistilPlan:
        return DistilPlan(4, 4, 4)

    async def published(self, tenant: Tenant, module: str, job_id: str) -> None:
        return None


@pytest.fixture
async def background() -> AsyncIterator[Background]:
    own = Background()
    yield own
    await own.close()


async def test_a_gateway_does_not_begin_its_own_job_again_after_the_registry_was_away(
    gateway: RunningGateway, background: Background
) -> None:
    parts, work = gateway.parts, Waiting()
    jobs = ModuleDistillation(
        parts.modules,
        cast(DistilWork, work),
        cast(ModuleDeletion, None),
        lambda name, principal: Tenant(name, "", principal=principal),
        background,
        parts.metrics,
    )
    tenant = Tenant("default", "", principal="alice")
    registry = redis.Redis.from_url(gateway.redis.url)
    async with aclosing(jobs.distil(tenant, Distillation("handbook", DistilChoice(("town",))))) as events:
        await anext(events)
        [key] = list(registry.scan_iter("*distillations*"))
        for _ in range(5):
            job = json.loads(cast(bytes, registry.hget(key, "handbook")))
            registry.hset(key, "handbook", json.dumps(job | {"held_until": 0}))
            await jobs.look()
            await asyncio.sleep(0.05)
        assert work.runs == 1
        await jobs.stop(tenant, "handbook")
