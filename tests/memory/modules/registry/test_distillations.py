"""Distillations in a real Redis: who works on a job, how it ends, and how many are kept."""

from __future__ import annotations

import json

import pytest

from memserve.domain import DistilChoice, Distillation, DistillationState, DistilProgress
from memserve.errors import InvalidField
from memserve.memory.modules.registry.distillations import HELD, HeldJob
from memserve.memory.modules.registry.store import ModuleStore
from memserve.registry.client import close_client, registry_client
from tests.kv.redis_server import RedisServer

ASKED = Distillation("handbook", DistilChoice(("town",), memories=(("town", "m"),)), seed=3)


def held(job_id: str = "j1", gateway: str = "g1", module: str = "handbook") -> HeldJob:
    return HeldJob("t", "alice", module, job_id, gateway)


async def test_a_job_comes_back_as_it_was_asked_for(store: ModuleStore) -> None:
    kept = await store.begin_distillation(held(), ASKED)
    assert (kept.asked, kept.job.principal, kept.job.state) == (ASKED, "alice", DistillationState.RUNNING)
    assert (await store.begin_distillation(held("j2"), ASKED)).job.job_id == "j1"
    progress = DistilProgress("training", 3, 9, 1.5, 700, 0.25)
    assert await store.hold_distillation(held(), progress=progress, version=2) == HELD
    [other] = await store.distillations("t")
    assert (other.job.progress, other.job.version) == (progress, 2)


async def test_only_a_job_that_nobody_holds_is_taken_up_and_its_gateway_is_told(store: ModuleStore) -> None:
    await store.begin_distillation(held(), ASKED)
    assert await store.take_distillations("g2", 9) == []
    await store.hold_distillation(held(), seconds=0)
    [taken] = await store.take_distillations("g2", 9)
    assert (taken.tenant, taken.job.module, taken.job.taken_up) == ("t", "handbook", 1)
    assert await store.hold_distillation(held()) == "lost"
    assert await store.hold_distillation(held(gateway="g2")) == HELD
    assert await store.take_distillations("g3", 9) == []


async def test_a_job_ends_once_and_the_audit_has_why(store: ModuleStore) -> None:
    await store.begin_distillation(held(), ASKED)
    await store.stop_distillation("t", "bob", "handbook")
    assert not await store.end_distillation(held(), DistillationState.DONE, {"version": 1})
    assert await store.hold_distillation(held()) == "stopped"
    events = await store.events("t", limit=9)
    assert [(event.principal, json.loads(event.after)["state"]) for event in events] == [
        ("alice", "running"),
        ("bob", "stopped"),
    ]
    assert json.loads(events[-1].after)["reason"] == "stopped by bob"
    with pytest.raises(InvalidField, match="no distillation of handbook"):
        await store.stop_distillation("t", "bob", "handbook")


async def test_what_has_ended_is_bounded_in_number_and_in_age(
    store: ModuleStore, redis_server: RedisServer
) -> None:
    for number in range(66):
        job = held(f"j{number}", module=f"m{number}")
        await store.begin_distillation(job, ASKED)
        await store.end_distillation(job, DistillationState.FAILED, {"reason": "why"})
    kept = await store.distillations("t")
    assert [len(kept), kept[0].job.module, kept[-1].job.module] == [64, "m65", "m2"]
    client = registry_client(redis_server.url)
    key = "memserve:module:distillations:1:t"
    old = json.loads(await client.hget(key, "m9")) | {"ended_s": "1000.000000"}
    await client.hset(key, "m9", json.dumps(old))
    await close_client(client)
    assert "m9" not in {each.job.module for each in await store.distillations("t")}


async def test_a_tenant_has_so_many_under_way_and_no_more(store: ModuleStore) -> None:
    for number in range(16):
        await store.begin_distillation(held(f"j{number}", module=f"m{number}"), ASKED)
    with pytest.raises(InvalidField, match="16 distillations"):
        await store.begin_distillation(held(), ASKED)
