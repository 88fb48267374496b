"""The registry in a real Redis: leases that run out, and a Redis that does not answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from memserve.domain import WorkerLease
from memserve.errors import RegistryUnavailable
from memserve.registry.client import answering, close_client, registry_client
from memserve.registry.leases import WORKERS, Registry, lease_key
from tests.kv.redis_server import RedisServer

LEASE = WorkerLease("w0", "127.0.0.1:1", "127.0.0.1:2", 7, "tiny", "md", "td", "ns", 32, 1, 8192, 8, 1.5)


@pytest_asyncio.fixture
async def registry(redis_server: RedisServer) -> AsyncIterator[Registry]:
    registry = Registry(redis_server.url)
    yield registry
    await registry.close()


async def test_a_lease_comes_back_as_it_was_given(registry: Registry) -> None:
    await registry.renew_lease(LEASE, 60)
    await registry.renew_lease(replace(LEASE, worker_id="a"), 60)
    assert await registry.live_workers() == [replace(LEASE, worker_id="a"), LEASE]


async def test_whoever_is_cancelled_while_redis_is_asked_ends(registry: Registry) -> None:
    await registry.renew_lease(LEASE, 60)

    async def ask_forever() -> None:
        while True:
            await registry.live_workers()

    for number in range(300):
        asking = asyncio.create_task(ask_forever())
        await asyncio.sleep(number * 1e-5)
        asking.cancel()
        _, going_on = await asyncio.wait([asking], timeout=5)
        assert not going_on


async def test_a_lease_runs_out_unless_it_is_renewed(registry: Registry, redis_server: RedisServer) -> None:
    await registry.renew_lease(LEASE, 60)
    await registry.renew_lease(replace(LEASE, worker_id="brief"), 0.05)
    deadline_s = time.monotonic() + 10
    while await registry.live_workers() != [LEASE]:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)
    assert redis_server.client.smembers(WORKERS) == {b"w0"}, "the name of the other is off the list"
    assert 0 < redis_server.client.pttl(lease_key("w0")) <= 60_000


async def test_a_dropped_lease_is_gone_at_once_and_dropping_again_is_fine(registry: Registry) -> None:
    await registry.renew_lease(LEASE, 60)
    await registry.drop_lease("w0")
    await registry.drop_lease("w0")
    assert await registry.live_workers() == []


@pytest.mark.parametrize("gone", ["stopped", "paused"])
async def test_a_redis_that_does_not_answer_is_said_so_within_a_second_or_so(
    own_redis_server: RedisServer, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memserve.registry.client.TIMEOUT_S", 1.0)
    registry = Registry(own_redis_server.url)
    await registry.renew_lease(LEASE, 60)
    own_redis_server.stop() if gone == "stopped" else own_redis_server.pause()
    calls = {
        "ping": registry.ping(),
        "renew_lease": registry.renew_lease(LEASE, 60),
        "drop_lease": registry.drop_lease("w0"),
        "live_workers": registry.live_workers(),
    }
    started_s = time.monotonic()
    results = await asyncio.gather(*calls.values(), return_exceptions=True)
    took_s = time.monotonic() - started_s
    assert {name: type(result) for name, result in zip(calls, results, strict=True)} == dict.fromkeys(
        calls, RegistryUnavailable
    )
    assert all("\n" not in str(result) for result in results)
    assert took_s < 3, "one second each, all at once, and a busy machine"
    if gone == "paused":
        own_redis_server.resume()
    await registry.close()


async def test_an_answer_that_came_while_the_loop_was_held_up_is_taken(redis_server: RedisServer) -> None:
    own = registry_client(redis_server.url)
    await own.ping()

    async def asked() -> bool:
        async with answering(0.2):
            return bool(await own.ping())

    asking = asyncio.create_task(asked())
    asyncio.get_running_loop().call_soon(time.sleep, 0.4)
    assert await asking
    await close_client(own)


async def test_a_redis_that_was_restarted_is_used_at_once(own_redis_server: RedisServer) -> None:
    registry = Registry(own_redis_server.url)
    await registry.ping()
    own_redis_server.stop()
    own_redis_server.start()
    await registry.renew_lease(LEASE, 60)
    assert await registry.live_workers() == [LEASE]
    await registry.close()


async def test_a_client_that_is_closed_opens_no_connection_any_more(redis_server: RedisServer) -> None:
    client = registry_client(redis_server.url)
    await client.set("key", "value")

    async def blocked() -> None:
        async with answering(10.0):
            await client.blpop("nothing", timeout=0)

    under_way = asyncio.create_task(blocked())
    await asyncio.sleep(0.1)
    await close_client(client)
    for call in (under_way, blocked()):
        with pytest.raises(RegistryUnavailable):
            await call
    connected = redis_server.client.client_list()
    assert [other["cmd"] for other in connected if "blpop" in other["cmd"]] == []
    assert len(connected) == 1, "the test's own"
