"""Requests on resident adapters, by how many modules are registered."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from loadtests.harness.figures import print_table
from loadtests.modules.module_cold_start.adapters import Adapter, ttft_s
from loadtests.modules.module_cold_start.places import SLOTS
from memserve.client import AsyncClient
from memserve.domain import ModuleVersion
from memserve.memory.modules.registry.store import ModuleStore

FEW, MANY = 10, 1000
TENANT, PRINCIPAL = "default", "module_cold_start"


@contextlib.asynccontextmanager
async def registered(store: ModuleStore, content: ModuleVersion, count: int) -> AsyncIterator[None]:
    """While inside, `count` more modules are registered."""
    versions = [
        await store.publish(TENANT, PRINCIPAL, replace(content, module=f"many-{number:04}"))
        for number in range(count)
    ]
    try:
        yield
    finally:
        for version in versions:
            await store.delete_version(TENANT, PRINCIPAL, version.module, version.version)


async def resident_block(
    client: AsyncClient, worker_id: str, adapters: Sequence[Adapter], requests: int
) -> float:
    """Median TTFT of short prompts on adapters that are in slots, in seconds."""
    for adapter in adapters:
        await ttft_s(client, "warm", adapter.reference, worker_id)
    return statistics.median(
        [
            await ttft_s(client, f"Question {number}", adapters[number % len(adapters)].reference, worker_id)
            for number in range(requests)
        ]
    )


async def registered_round(
    client: AsyncClient, worker_id: str, store: ModuleStore, adapters: Sequence[Adapter], requests: int
) -> list[float]:
    """Median TTFT of four blocks: few, few, many, many registered."""
    resident = adapters[:SLOTS]
    taken = [await resident_block(client, worker_id, resident, requests) for _ in range(2)]
    async with registered(store, adapters[0].version, MANY - FEW):
        if (count := (await client.status()).modules) != MANY:
            raise RuntimeError(f"{count} modules are registered, not {MANY}")
        taken += [await resident_block(client, worker_id, resident, requests) for _ in range(2)]
    return taken


def show_registered(rounds: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Returns many ÷ few, the median of the rounds, and by how much equal blocks differ, the median too."""
    many = statistics.median(statistics.mean(blocks[2:]) / statistics.mean(blocks[:2]) for blocks in rounds)
    noise = statistics.median(
        abs(first / other - 1)
        for few, again, more, last in rounds
        for first, other in ((again, few), (last, more))
    )
    few_ms, many_ms = (
        statistics.median(seconds for blocks in rounds for seconds in blocks[at]) * 1000
        for at in (slice(2), slice(2, 4))
    )
    rows = [
        (f"{FEW}", f"{few_ms:.2f}"),
        (f"{MANY:,}", f"{many_ms:.2f}"),
        ("ratio", f"{many:.3f}"),
        ("equal blocks differ by", f"{noise:.3f}"),
    ]
    print_table(("modules registered", "TTFT ms"), rows)
    return many, noise
