"""Gateways of one registry ask each other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial

import pytest

from memserve.errors import RegistryUnavailable
from memserve.processes.supervised import repeat
from memserve.registry.gateways import ASKED, Gateways, Said
from tests.kv.redis_server import RedisServer


@contextlib.asynccontextmanager
async def listening(redis_url: str, *, says: str | None = None) -> AsyncIterator[Gateways]:
    """A gateway that answers questions of the topic "name" with this."""
    gateways = Gateways(redis_url)
    gateways.on("name", lambda question: says and f"{question['greeting']} {says}")
    task = asyncio.create_task(repeat("gateways", gateways.listen, 0.05))
    try:
        await asyncio.wait_for(gateways.listening.wait(), 5)
        yield gateways
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await gateways.close()


async def test_every_other_gateway_is_asked_and_nobody_waits_for_more(
    own_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memserve.registry.gateways.ANSWER_S", 5.0)
    meet = partial(listening, own_redis_server.url)
    async with meet(says="ada") as ada, meet(says="bob"), meet(says="cyd"), meet():
        began_s = asyncio.get_running_loop().time()
        said = await ada.ask("name", greeting="hello")
        assert (sorted(said.answers), said.silent) == (["hello bob", "hello cyd"], 0)
        assert await ada.ask("unknown topic") == Said((), 0)
        assert asyncio.get_running_loop().time() - began_s < 4, "all have answered"


async def test_a_gateway_that_does_not_answer_is_counted(own_redis_server: RedisServer) -> None:
    async with listening(own_redis_server.url, says="ada") as ada:
        with own_redis_server.client as client, client.pubsub() as hung:
            hung.subscribe(ASKED)
            hung.get_message(timeout=1.0)
            assert await ada.ask("name", greeting="hello") == Said((), 1)
        await says(ada, Said((), 0))


async def test_gateways_find_each_other_again_after_the_registry_was_away(
    own_redis_server: RedisServer,
) -> None:
    meet = partial(listening, own_redis_server.url)
    async with meet(says="ada") as ada, meet(says="bob") as bob:
        own_redis_server.stop()
        with pytest.raises(RegistryUnavailable):
            await ada.ask("name", greeting="hello")
        own_redis_server.start()
        await says(ada, Said(("hello bob",), 0))
        await says(bob, Said(("hello ada",), 0))


async def says(asking: Gateways, expected: Said) -> None:
    """It says so before long."""
    async with asyncio.timeout(10):
        while await asking.ask("name", greeting="hello") != expected:
            await asyncio.sleep(0.05)


async def test_nonsense_on_the_channel_changes_nothing(own_redis_server: RedisServer) -> None:
    meet = partial(listening, own_redis_server.url)
    async with meet(says="ada") as ada, meet(says="bob"):
        with own_redis_server.client as client:
            for text in (
                b"",
                b"{}",
                b"[1]",
                b'{"by": 1}',
                b"\xff",
                b'{"by":"x","topic":"name","question":[]}',
            ):
                client.publish(ASKED, text)
        assert (await ada.ask("name", greeting="hello")).answers == ("hello bob",)
