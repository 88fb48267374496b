"""What the load of `cluster_restarts` keeps as acknowledged, and that a loss is noticed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from loadtests.cluster.acknowledged import Load, look, not_found_by_search, until_well, word
from tests.gateway.fixtures import StartGateway


async def test_what_was_acknowledged_is_found_and_a_loss_is_noticed(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway(workers=[{}])
    client = gateway.client
    assert await until_well([client], 20.0) < 20.0
    load = Load([client, client], tmp_path)
    async with load.running() as known:
        while not (known.promotions and known.forgotten and len(known.memories) > 3):
            assert not known.unclear
            await asyncio.sleep(0.05)
    found = await look(client, known)
    assert (found.total, known.refused.total()) == (0, 0), found
    assert await not_found_by_search(client, known) == []

    gone, back = next(iter(known.memories)), next(iter(known.forgotten))
    await client.forget("restarts", gone)
    await client.remember("restarts", "It is back.", memory_id=back)
    known.versions[77], known.promotions[99] = "00" * 32, 77
    found = await look(client, known)
    assert found.memories == [f"{gone} is gone", f"{back} is back"]
    assert found.modules == ["version 77 is not there", "revision 99 does not point at version 77"]
    assert found.audit == ["of version 77", "of revision 99"]


async def test_a_refusal_is_counted_and_one_without_sense_is_told(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway(workers=[{}])
    load = Load([gateway.client], tmp_path)
    async with load.running() as known:
        gateway.redis.stop()
        while not known.refused["remember UNAVAILABLE"]:
            await asyncio.sleep(0.05)
    assert not known.unclear
    assert known.unsure, "it may have been stored"


def test_words_tell_memories_apart() -> None:
    assert len({word(number) for number in range(2000)}) == 2000
    assert word(12) == "qbcx"
