"""Limits of one tenant: calls under way, calls a second, changes a minute, long work."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from memserve.config import Settings
from memserve.errors import QuotaExceeded
from memserve.gateway.access.limits import ANSWERS, MEMORY_CHANGES, MODULE_CHANGES, WATCHES, Limits
from memserve.pb.v1 import activation_pb2, inference_pb2, memory_pb2, module_pb2, status_pb2


def limits(**settings: Any) -> Limits:
    return Limits(Settings(**settings))


def test_every_rpc_that_changes_something_is_under_a_limit_of_changes() -> None:
    files = (activation_pb2, inference_pb2, memory_pb2, module_pb2, status_pb2)
    rpcs = {
        method.name: service.name
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert rpcs.keys() >= MODULE_CHANGES | MEMORY_CHANGES | WATCHES | ANSWERS
    reads = ("Get", "List", "Watch", "Read")
    changes = {
        name for name, service in rpcs.items() if service == "ModuleService" and not name.startswith(reads)
    }
    assert changes == MODULE_CHANGES
    reads = (*reads, "Search", "Follow", "Export")
    changes = {
        name for name, service in rpcs.items() if service == "MemoryService" and not name.startswith(reads)
    }
    assert changes | {"RecordOutcome"} == MEMORY_CHANGES
    assert {name for name in rpcs if name.startswith("Watch")} == WATCHES


@pytest.mark.parametrize(
    "rpc",
    ["GetStatus", "Search", "ListNamespaces", "PublishModule", "WatchModules", "WatchMemories", "Generate"],
)
async def test_calls_of_every_kind_have_a_limit_of_those_under_way(rpc: str) -> None:
    of_gateway = limits(max_calls_per_tenant=16, max_inflight_per_tenant=16)
    async with contextlib.AsyncExitStack() as held:
        for _ in range(16):
            await held.enter_async_context(of_gateway.call(rpc, "noisy"))
        with pytest.raises(
            QuotaExceeded, match=f"calls of {rpc} under way for tenant noisy: the limit of 16"
        ):
            async with of_gateway.call(rpc, "noisy"):
                pass
        async with of_gateway.call(rpc, "quiet"), of_gateway.call("GetUsage", "noisy"):
            pass
    async with of_gateway.call(rpc, "noisy"):
        pass


async def waits_s(of_gateway: Limits, rpc: str, tenant: str, received_bytes: int = 0) -> float:
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    async with of_gateway.call(rpc, tenant, received_bytes):
        return loop.time() - begun_s


async def test_a_tenant_that_takes_more_than_its_share_waits_while_others_call() -> None:
    of_gateway = limits(gateway_share_per_tenant=0.02)
    assert await waits_s(of_gateway, "GetModule", "quiet") < 0.1
    noisy = await asyncio.gather(*(waits_s(of_gateway, "GetModule", "noisy") for _ in range(30)))
    assert max(noisy) >= 0.4, "30 calls of 1 ms in 20 ms a second, and a second's share at once"
    assert await waits_s(of_gateway, "GetModule", "quiet") < 0.1


async def test_a_tenant_that_calls_alone_waits_for_nobody() -> None:
    of_gateway = limits(gateway_share_per_tenant=0.001)
    assert max([await waits_s(of_gateway, "Generate", "only") for _ in range(50)]) < 0.1


async def test_bytes_are_paid_for_also_by_calls_that_are_refused() -> None:
    of_gateway = limits(gateway_share_per_tenant=0.05)
    assert await waits_s(of_gateway, "Generate", "quiet") < 0.1
    for _ in range(2):
        with contextlib.suppress(ZeroDivisionError):
            async with of_gateway.call("Generate", "noisy", 4 << 20):
                raise ZeroDivisionError
    assert await waits_s(of_gateway, "Generate", "noisy", 4 << 20) >= 0.5
    with pytest.raises(
        QuotaExceeded, match=r"part of the gateway's time of tenant noisy: the limit of 0\.05"
    ):
        await asyncio.gather(*(waits_s(of_gateway, "Generate", "noisy", 4 << 20) for _ in range(12)))


@pytest.mark.parametrize(
    ("rpc", "setting", "words"),
    [
        ("SetTraffic", "module_changes_per_minute_per_tenant", "changes of modules a minute of tenant noisy"),
        ("Forget", "memory_changes_per_minute_per_tenant", "changes of memories a minute of tenant noisy"),
    ],
)
async def test_changes_have_a_limit_a_minute(rpc: str, setting: str, words: str) -> None:
    of_gateway = limits(**{setting: 4})
    for _ in range(2):
        async with of_gateway.call(rpc, "noisy"):
            pass
    with pytest.raises(QuotaExceeded, match=words) as refusal:
        async with of_gateway.call(rpc, "noisy"):
            pass
    assert 0 < refusal.value.retry_after_s <= 15
    async with of_gateway.call(rpc, "quiet"), of_gateway.call("GetModule", "noisy"):
        pass


async def test_long_work_of_one_tenant_leaves_room_for_anothers() -> None:
    long = limits().long
    async with contextlib.AsyncExitStack() as held:
        for _ in range(2):
            await held.enter_async_context(long.of("noisy"))
        waiting = [asyncio.create_task(long.take("noisy")) for _ in range(16)]
        await asyncio.sleep(0)
        with pytest.raises(
            QuotaExceeded, match="long work on modules that wait for tenant noisy: the limit of 16"
        ):
            await long.take("noisy")
        await asyncio.wait_for(held.enter_async_context(long.of("quiet")), 5)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
