"""The first request on an adapter, by where the worker has the adapter."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from loadtests.harness.figures import print_table
from loadtests.modules.module_cold_start.adapters import Adapter, prompt, ttft_s
from memserve.client import AsyncClient
from memserve.domain import ModulePlace

SLOTS = 4
PLACE_TIMEOUT_S = 15.0
DEVICE, HOST, DISK, COLD = "in a slot", "in host memory", "on disk, in the page cache", "on disk"


async def wait_for_place(
    client: AsyncClient, worker_id: str, adapters: Sequence[Adapter], place: ModulePlace
) -> None:
    """Until the status tells that the worker has all of them there."""
    deadline_s = time.monotonic() + PLACE_TIMEOUT_S
    while True:
        (held,) = [
            worker.modules for worker in (await client.status()).workers if worker.worker_id == worker_id
        ]
        if all(held.get(adapter.version.digest, ModulePlace.DISK) is place for adapter in adapters):
            return
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the status does not tell that the adapters are {place.value}: {held}")
        await asyncio.sleep(0.05)


async def put(
    client: AsyncClient, worker_id: str, adapters: Sequence[Adapter], others: Sequence[Adapter], where: str
) -> None:
    """Have the worker hold `adapters` there. others: as many as there are slots."""
    if where in (DISK, COLD):
        for adapter in adapters:
            await client.modules.unload(adapter.reference, worker_id=worker_id)
        for adapter in adapters if where == COLD else ():
            drop_from_page_cache(adapter.weights)
        await wait_for_place(client, worker_id, adapters, ModulePlace.DISK)
        return
    # The adapters that were used last are in slots.
    for adapter in [*adapters, *(others if where == HOST else ())]:
        await ttft_s(client, "warm", adapter.reference, worker_id)
    await wait_for_place(
        client, worker_id, adapters, ModulePlace.HOST if where == HOST else ModulePlace.DEVICE
    )


def drop_from_page_cache(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def places_round(
    client: AsyncClient, worker_id: str, adapters: Sequence[Adapter], seed: int
) -> dict[str, list[float]]:
    """TTFT of SLOTS adapters in every place, and of the base, in seconds."""
    measured, others = adapters[:SLOTS], adapters[SLOTS : 2 * SLOTS]
    taken: dict[str, list[float]] = {"base": []}
    for turn, where in enumerate((DEVICE, HOST, DISK, COLD)):
        await put(client, worker_id, measured, others, where)
        taken[where] = []
        for number, adapter in enumerate(measured):
            at = (seed * 4 + turn) * 2 * SLOTS + number
            taken[where].append(await ttft_s(client, prompt(at), adapter.reference, worker_id))
            taken["base"].append(await ttft_s(client, prompt(at + SLOTS), "", worker_id))
    return taken


def show_places(rounds: Sequence[dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    rows = {
        where: {
            "ttft_ms": statistics.median(seconds for taken in rounds for seconds in taken[where]) * 1000,
            "of_base": statistics.median(
                seconds / statistics.median(taken["base"]) for taken in rounds for seconds in taken[where]
            ),
        }
        for where in rounds[0]
    }
    cells = [(where, f"{row['ttft_ms']:.1f}", f"{row['of_base']:.2f}") for where, row in rows.items()]
    print_table(("first request on an adapter", "TTFT ms", "÷ base"), cells)
    return rows
