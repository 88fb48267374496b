"""Who watches changes is told them also after the registry was away for a while."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from memserve.client import AsyncClient
from memserve.errors import RegistryUnavailable
from memserve.registry.client import patiently
from tests.gateway.fixtures import StartGateway
from tests.gateway.modules.publishing import publish
from tests.gateway.running import until

AWAY_S = 9.0
"""Longer than either watch waits for one answer of the registry."""


@contextlib.asynccontextmanager
async def collecting(events: AsyncGenerator[Any, None], into: list[Any]) -> AsyncIterator[None]:
    async def collect() -> None:
        async with contextlib.aclosing(events):
            async for event in events:
                into.append(event)

    task = asyncio.create_task(collect())
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_registry_that_is_silent_for_a_while_ends_no_watch(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    client = gateway.client
    modules: list[Any] = []
    memories: list[Any] = []
    async with (
        AsyncClient(gateway.address, timeout_s=120) as watcher,
        collecting(watcher.modules.watch(), modules),
        collecting(watcher.watch_memories(), memories),
    ):
        await client.remember("notes", "The code of Alder is 1.")
        await publish(gateway, tmp_path / "one", 1)
        await until(lambda: bool(modules and memories))
        gateway.redis.pause()
        await asyncio.sleep(AWAY_S)
        gateway.redis.resume()
        seen = len(modules), len(memories)
        await client.remember("notes", "The code of Birch is 2.")
        await publish(gateway, tmp_path / "two", 2)
        await until(lambda: len(modules) > seen[0] and len(memories) > seen[1])
    for each in (modules, memories):
        assert len(each) == len({str(event) for event in each})


async def test_patience_ends() -> None:
    async def away() -> None:
        raise RegistryUnavailable("TimeoutError")

    with pytest.raises(RegistryUnavailable):
        await patiently(away, patience_s=0)
