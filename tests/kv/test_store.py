"""The chunk store against a real redis-server: kept, verified, and never an error."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from memserve.kv.keys import redis_key
from memserve.kv.outcomes import Put
from memserve.kv.store import RedisChunkStore
from memserve.kv.transport.breaker import Circuit
from memserve.kv.transport.limits import CacheLimits
from memserve.kv.values.envelope import Refusal
from tests.kv.one_chunk import get, put
from tests.kv.redis_server import RedisServer

NAMESPACE = "ab" * 32
KEYS = [bytes([i]) * 36 for i in range(4)]
PAYLOAD = bytes(range(256)) * 40


def store_on(server: RedisServer, namespace: str = NAMESPACE, ttl_s: int = 100) -> RedisChunkStore:
    return RedisChunkStore(
        server.url,
        namespace,
        ttl_s=ttl_s,
        limits=CacheLimits(io_s=0.1, connect_s=0.1, failures_to_open=2, pause_s=0.2),
    )


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[RedisChunkStore]:
    store = store_on(redis_server)
    yield store
    store.close()


def test_what_is_put_is_got(store: RedisChunkStore) -> None:
    assert put(store, KEYS[0], memoryview(PAYLOAD)) is Put.STORED
    assert get(store, KEYS[0], len(PAYLOAD)) == PAYLOAD


def test_many_are_stored_and_loaded_in_one_go_and_each_has_its_own_outcome(
    store: RedisChunkStore, redis_server: RedisServer
) -> None:
    payloads = [bytes([number]) * 5000 for number in range(4)]
    put(store, KEYS[2], payloads[2])
    present = Put.ALREADY_PRESENT
    assert store.store(KEYS, payloads, budget_s=5) == [Put.STORED, Put.STORED, present, Put.STORED]
    redis_server.client.delete(redis_key(NAMESPACE, KEYS[1]))
    redis_server.client.setrange(redis_key(NAMESPACE, KEYS[2]), 500, b"\xff\x00\xff")
    destinations = [bytearray(5000) for _ in KEYS]
    assert store.load(KEYS, [memoryview(each) for each in destinations], budget_s=5) == [
        True,
        False,
        False,
        True,
    ]
    assert (destinations[0], destinations[3]) == (payloads[0], payloads[3])
    stats = store.take_stats()
    assert (stats.hits, stats.misses, dict(stats.refused)) == (2, 2, {Refusal.BAD_CHECKSUM: 1})
    assert store.store([], [], budget_s=1) == store.load([], [], budget_s=1) == []


def test_what_was_never_put_is_a_miss(store: RedisChunkStore) -> None:
    assert get(store, KEYS[0], len(PAYLOAD)) is None
    assert store.take_stats().misses == 1


def test_existence_is_told_for_each_key(store: RedisChunkStore) -> None:
    put(store, KEYS[1], PAYLOAD)
    put(store, KEYS[3], PAYLOAD)
    assert store.exists_many(KEYS) == [False, True, False, True]
    assert store.exists_many([]) == []


def test_every_entry_expires_and_using_it_puts_that_off(
    store: RedisChunkStore, redis_server: RedisServer
) -> None:
    name = redis_key(NAMESPACE, KEYS[0])
    put(store, KEYS[0], PAYLOAD)
    assert 0 < redis_server.client.ttl(name) <= 100
    for use in (lambda: get(store, KEYS[0], len(PAYLOAD)), lambda: put(store, KEYS[0], PAYLOAD)):
        redis_server.client.expire(name, 10)
        use()
        assert redis_server.client.ttl(name) > 10


def test_an_entry_that_is_there_is_not_sent_again(store: RedisChunkStore) -> None:
    put(store, KEYS[0], PAYLOAD)
    assert put(store, KEYS[0], PAYLOAD) is Put.ALREADY_PRESENT
    stats = store.take_stats()
    assert (stats.stored, stats.already_present, stats.written_bytes) == (1, 1, len(PAYLOAD))


def test_a_corrupted_entry_is_a_miss_counted_and_deleted(
    store: RedisChunkStore, redis_server: RedisServer
) -> None:
    put(store, KEYS[0], PAYLOAD)
    redis_server.client.setrange(redis_key(NAMESPACE, KEYS[0]), 500, b"\xff\x00\xff")
    assert get(store, KEYS[0], len(PAYLOAD)) is None
    assert store.take_stats().refused == {Refusal.BAD_CHECKSUM: 1}
    assert store.exists_many(KEYS[:1]) == [False]


def test_an_entry_moved_to_another_key_or_namespace_is_a_miss(
    store: RedisChunkStore, redis_server: RedisServer
) -> None:
    put(store, KEYS[0], PAYLOAD)
    other = store_on(redis_server, "cd" * 32)
    client = redis_server.client
    client.copy(redis_key(NAMESPACE, KEYS[0]), redis_key(NAMESPACE, KEYS[1]))
    client.copy(redis_key(NAMESPACE, KEYS[0]), redis_key("cd" * 32, KEYS[0]))
    assert get(store, KEYS[1], len(PAYLOAD)) is None
    assert get(other, KEYS[0], len(PAYLOAD)) is None
    assert store.take_stats().refused == {Refusal.OTHER_KEY: 1}
    assert other.take_stats().refused == {Refusal.OTHER_NAMESPACE: 1}
    other.close()


def test_a_payload_of_another_length_is_a_miss_and_no_hit(store: RedisChunkStore) -> None:
    put(store, KEYS[0], PAYLOAD)
    assert get(store, KEYS[0], 10) is None
    stats = store.take_stats()
    assert (stats.hits, stats.misses, dict(stats.refused)) == (0, 1, {Refusal.WRONG_LENGTH: 1})


def test_taking_the_stats_resets_them(store: RedisChunkStore) -> None:
    put(store, KEYS[0], PAYLOAD)
    get(store, KEYS[0], len(PAYLOAD))
    stats = store.take_stats()
    assert (stats.hits, stats.stored, stats.read_bytes) == (1, 1, len(PAYLOAD))
    assert stats.read_s > 0 and stats.write_s > 0
    assert store.take_stats().hits == 0


def test_a_full_redis_fails_puts_and_still_serves_gets(own_redis_server: RedisServer) -> None:
    store = store_on(own_redis_server)
    put(store, KEYS[0], PAYLOAD)
    own_redis_server.client.config_set("maxmemory", "1")
    assert [put(store, key, PAYLOAD) for key in KEYS[1:]] == [Put.FAILED] * 3
    assert get(store, KEYS[0], len(PAYLOAD)) == PAYLOAD
    assert store.circuit is Circuit.CLOSED
    store.close()


def test_without_redis_everything_is_a_miss_at_once_and_it_recovers_by_itself(
    own_redis_server: RedisServer,
) -> None:
    store = store_on(own_redis_server)
    put(store, KEYS[0], PAYLOAD)
    own_redis_server.stop()
    started_s = time.monotonic()
    assert [get(store, key, len(PAYLOAD)) for key in KEYS] == [None] * 4
    assert put(store, KEYS[0], PAYLOAD) is Put.FAILED
    assert store.exists_many(KEYS) == [False] * 4
    assert time.monotonic() - started_s < 1
    assert store.circuit is Circuit.OPEN
    assert store.take_stats().skipped >= 3
    own_redis_server.start()
    time.sleep(0.25)
    assert put(store, KEYS[0], PAYLOAD) is Put.STORED
    assert get(store, KEYS[0], len(PAYLOAD)) == PAYLOAD
    assert store.circuit is Circuit.CLOSED
    store.close()


def test_a_redis_that_restarts_between_two_calls_costs_no_failure(own_redis_server: RedisServer) -> None:
    store = store_on(own_redis_server)
    put(store, KEYS[0], PAYLOAD)
    own_redis_server.stop()
    own_redis_server.start()
    assert put(store, KEYS[0], PAYLOAD) is Put.STORED
    assert store.take_stats().unanswered == 0
    store.close()


def test_a_redis_that_is_a_replica_for_a_while_takes_nothing_and_then_everything(
    own_redis_server: RedisServer,
) -> None:
    store = store_on(own_redis_server)
    put(store, KEYS[0], PAYLOAD)
    own_redis_server.client.replicaof("127.0.0.1", 1)
    assert [put(store, key, PAYLOAD) for key in KEYS] == [Put.FAILED] * 4
    assert get(store, KEYS[0], len(PAYLOAD)) is None
    assert store.circuit is Circuit.CLOSED
    own_redis_server.client.replicaof("NO", "ONE")
    assert [put(store, key, PAYLOAD) for key in KEYS[:2]] == [Put.ALREADY_PRESENT, Put.STORED]
    store.close()


def test_a_redis_that_hangs_costs_two_timeouts_and_then_nothing(own_redis_server: RedisServer) -> None:
    store = store_on(own_redis_server)
    put(store, KEYS[0], PAYLOAD)
    own_redis_server.pause()
    started_s = time.monotonic()
    assert [get(store, KEYS[0], len(PAYLOAD)) for _ in range(50)] == [None] * 50
    elapsed_s = time.monotonic() - started_s
    own_redis_server.resume()
    assert 0.15 < elapsed_s < 2, "50 timeouts would take five seconds"
    time.sleep(0.25)
    assert get(store, KEYS[0], len(PAYLOAD)) == PAYLOAD
    store.close()


@pytest.mark.parametrize(("namespace", "ttl_s"), [("zz", 1), ("ab", 1), (NAMESPACE, 0)])
def test_a_store_that_cannot_work_is_refused_when_it_is_made(namespace: str, ttl_s: int) -> None:
    with pytest.raises(ValueError, match=r"hex|digest|ttl_s"):
        RedisChunkStore("redis://localhost", namespace, ttl_s=ttl_s)
