"""The module store and its Redis: many calls at once, a Redis that goes away, an answer that is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from memserve.errors import (
    RegistryUnavailable,
)
from memserve.memory.modules.registry.records import CanaryAlias
from memserve.memory.modules.registry.scripts import CONNECTIONS
from memserve.memory.modules.registry.store import ModuleStore
from tests.kv.redis_server import RedisServer
from tests.memory.modules.registry.module_store import (
    ANN,
    LIVE,
    REPORT,
    VERSION,
    A,
    B,
    C,
    changes,
    promote,
    publish,
    versions,
)


async def test_more_calls_at_once_than_connections_are_all_answered(store: ModuleStore) -> None:
    await publish(store, A)
    found = await asyncio.gather(*(store.resolve("alice", "tone", number=1) for _ in range(10 * CONNECTIONS)))
    assert all(found)


async def test_everything_outlives_a_killed_redis(own_redis_server: RedisServer) -> None:
    options = ("--appendonly", "yes", "--appendfsync", "always")
    own_redis_server.stop()
    own_redis_server.start(*options)
    store = ModuleStore(own_redis_server.url)
    await publish(store, A, B)
    await promote(store, 1, 2)
    await store.keep_gate("alice", "ann", "tone", 1, REPORT)
    await store.preload("alice", "ann", "tone", 1)

    async def everything() -> Sequence[object]:
        looks = store.modules("alice", limit=10), versions(store), changes(store)
        return await asyncio.gather(
            *looks, store.preloads(), store.canaries(), store.events("alice", limit=100)
        )

    before = await everything()
    own_redis_server.stop()
    own_redis_server.start(*options)
    assert await everything() == before
    await publish(store, C)
    assert (await versions(store))[0].version == 3
    await store.close()


@pytest.mark.damages_state
@pytest.mark.parametrize("gone", ["stopped", "paused"])
async def test_a_redis_that_does_not_answer_is_said_so(own_redis_server: RedisServer, gone: str) -> None:
    store = ModuleStore(own_redis_server.url)
    await publish(store, A)
    own_redis_server.stop() if gone == "stopped" else own_redis_server.pause()
    calls = [
        store.publish("alice", "ann", VERSION),
        store.module("alice", "tone"),
        store.modules("alice", limit=1),
        store.count("alice"),
        store.resolve("alice", "tone", alias="live"),
        promote(store, 1),
        store.rollback(LIVE, ANN),
        store.history(LIVE, limit=1),
        store.canaries(),
        store.take_turn(CanaryAlias("alice", "tone", "live", (1,), 1), 1),
        store.hold_version("alice", "tone", 1, "t", 1),
        store.delete_version("alice", "ann", "tone", 1),
        store.preloads(),
        store.block_publishing(A, "t", 1),
        store.events("alice", limit=1),
        store.events("alice", limit=1, block_s=0.1),
    ]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [RegistryUnavailable] * len(calls)
    if gone == "paused":
        own_redis_server.resume()
    await store.close()


async def test_a_change_whose_answer_was_lost_is_made_once(
    store: ModuleStore, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Between the store and Redis stands a relay that drops a connection with the answer on it."""
    drop = asyncio.Event()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        while content := await source.read(65536):
            if answers and drop.is_set():
                drop.clear()
                break
            sink.write(content)
        sink.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_unix_connection(
            redis_server.url.removeprefix("unix://")
        )
        await asyncio.gather(
            pump(reader, redis_writer, answers=False), pump(redis_reader, writer, answers=True)
        )

    await publish(store, A, B)
    await promote(store, 1)
    socket_file = tmp_path / "relay.sock"
    async with await asyncio.start_unix_server(relay, socket_file):
        relayed = ModuleStore(f"unix://{socket_file}")
        assert await relayed.count("alice") == 1
        drop.set()
        assert (await promote(relayed, 2)).revision == 2
        assert not drop.is_set()
        await relayed.close()
    assert len(await changes(store)) == 2
