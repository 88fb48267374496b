"""The gateway's question to Redis: right, in time, or not at all."""

from __future__ import annotations

import asyncio
import time

import pytest

from memserve.kv.lookup import PrefixLookup
from memserve.kv.store import RedisChunkStore
from tests.kv.one_chunk import put
from tests.kv.redis_server import RedisServer

NAMESPACE = "ab" * 32
KEYS = [bytes([i]) * 36 for i in range(5)]


def fill(server: RedisServer, keys: list[bytes], namespace: str = NAMESPACE) -> None:
    store = RedisChunkStore(server.url, namespace)
    for key in keys:
        put(store, key, b"payload")
    store.close()


@pytest.mark.asyncio
async def test_only_the_unbroken_beginning_counts(redis_server: RedisServer) -> None:
    fill(redis_server, [KEYS[0], KEYS[1], KEYS[3]])
    lookup = PrefixLookup(redis_server.url, budget_s=1)
    assert await lookup.present(NAMESPACE, KEYS) == 2
    assert await lookup.present(NAMESPACE, KEYS[:2]) == 2
    assert await lookup.present(NAMESPACE, KEYS[2:]) == 0
    assert await lookup.present(NAMESPACE, []) == 0
    await lookup.close()


@pytest.mark.asyncio
async def test_another_namespace_holds_nothing(redis_server: RedisServer) -> None:
    fill(redis_server, KEYS)
    lookup = PrefixLookup(redis_server.url, budget_s=1)
    assert await lookup.present("cd" * 32, KEYS) == 0
    await lookup.close()


@pytest.mark.asyncio
async def test_a_redis_that_hangs_costs_its_budget_and_then_nothing(own_redis_server: RedisServer) -> None:
    fill(own_redis_server, KEYS[:3])
    lookup = PrefixLookup(own_redis_server.url, budget_s=0.05, pause_s=0.2)
    assert await lookup.present(NAMESPACE, KEYS) == 3
    own_redis_server.pause()
    started_s = time.monotonic()
    assert [await lookup.present(NAMESPACE, KEYS) for _ in range(20)] == [None] * 20
    assert time.monotonic() - started_s < 0.7, "20 budgets are a second"
    own_redis_server.resume()
    await asyncio.sleep(0.25)
    # The late replies to the abandoned questions are not taken for answers to the next ones.
    assert await lookup.present(NAMESPACE, KEYS[3:]) == 0
    assert await lookup.present(NAMESPACE, KEYS) == 3
    await lookup.close()


@pytest.mark.asyncio
async def test_without_redis_the_answer_is_none(own_redis_server: RedisServer) -> None:
    lookup = PrefixLookup(own_redis_server.url)
    own_redis_server.stop()
    assert await lookup.present(NAMESPACE, KEYS) is None
    await lookup.close()


@pytest.mark.asyncio
async def test_many_questions_at_once_get_their_own_answers(redis_server: RedisServer) -> None:
    fill(redis_server, KEYS[:3])
    lookup = PrefixLookup(redis_server.url, budget_s=2)
    answers = await asyncio.gather(*(lookup.present(NAMESPACE, KEYS[i % 5 :]) for i in range(50)))
    assert answers == [3, 2, 1, 0, 0] * 10
    await lookup.close()
