"""Calls that their clients cancel, at any point of their way, are no news: the log has nothing above DEBUG of
them.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from memserve.client import AsyncClient
from memserve.domain import Sampling
from tests.contract.scripted_worker import Script
from tests.gateway.fixtures import StartGateway
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.running import publish_live

BATCHES, CALLS = 40, 24
LATEST_S = 0.08
SHORT = Sampling(max_tokens=30)


async def all_of(events: AsyncIterator[Any]) -> None:
    async for _ in events:
        pass


def calls(folder: Path) -> list[Callable[[AsyncClient, int], Awaitable[Any]]]:
    """Those that go well, those that are refused, those that never end."""
    return [
        lambda client, n: client.generate("hello " * (n % 50 + 1), sampling=SHORT),
        lambda client, n: client.generate(f"hello {n}", sampling=SHORT, namespaces=["notes"]),
        lambda client, n: client.generate("hello", module="tone", sampling=SHORT),
        lambda client, n: client.generate("hello", module="nope"),
        lambda client, n: client.generate("hello", sampling=Sampling(max_tokens=10**6)),
        lambda client, n: client.search(["notes"], "hello"),
        lambda client, n: client.search(["nope"], "hello"),
        lambda client, n: client.remember("notes", f"text {n}"),
        lambda client, n: client.modules.publish(f"tone{n % 3}", folder),
        lambda client, n: client.modules.promote("tone", 1),
        lambda client, n: all_of(client.modules.watch()),
        lambda client, n: client.activation.lookup("hello " * 100),
        lambda client, n: client.status(),
    ]


async def test_a_cancelled_call_leaves_nothing_in_the_log(
    start_gateway: StartGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await start_gateway(workers=[{"script": Script(pause_s=0.002)}] * 2)
    folder = write_files(tmp_path / "tone", lora_files(gateway.parts.model.tensor_shapes()))
    await publish_live(gateway.client, "tone", folder)
    await gateway.client.remember("notes", "hello world")
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    chance = random.Random(1)
    kinds = calls(folder)
    for batch in range(BATCHES):
        async with AsyncClient(gateway.address) as client:
            tasks = [
                asyncio.ensure_future(kinds[chance.randrange(len(kinds))](client, number))
                for number in range(CALLS)
            ]
            for task in tasks:
                asyncio.get_running_loop().call_later(
                    chance.random() * chance.random() * LATEST_S, task.cancel
                )
            # Every third time the channel is closed under them.
            if batch % 3:
                await asyncio.gather(*tasks, return_exceptions=True)
            else:
                await asyncio.sleep(LATEST_S / 4)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    while gateway.parts.inflight.total or len(gateway.parts.uses):
        await asyncio.sleep(0.01)
    gc.collect()  # what was never awaited or retrieved is said when it goes
    await asyncio.sleep(0)
    said = [
        f"{record.name}: {record.getMessage()}" for record in caplog.records if record.levelno > logging.DEBUG
    ]
    assert said == []
