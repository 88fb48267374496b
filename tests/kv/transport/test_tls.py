"""The cache over TLS, with a password: what holds without them holds with them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from memserve.errors import StartupError
from memserve.kv.keys import redis_key
from memserve.kv.outcomes import Put
from memserve.kv.store import RedisChunkStore
from memserve.kv.transport.breaker import Circuit
from memserve.kv.transport.check import check_cache_servers
from memserve.kv.transport.limits import CacheLimits
from memserve.kv.values.envelope import Refusal
from tests.kv.redis_server import RedisServer, wait_until
from tests.kv.transport.tls_front import Certificate, TlsFront, new_certificate

NAMESPACE = "ab" * 32
KEYS = [bytes([number]) * 36 for number in range(9)]
PASSWORD = "se:cret/"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return new_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def front(own_redis_server: RedisServer, certificate: Certificate) -> Iterator[TlsFront]:
    own_redis_server.client.execute_command("ACL", "SETUSER", "cache", "on", f">{PASSWORD}", "~*", "+@all")
    front = TlsFront(own_redis_server.socket, certificate)
    front.start()
    yield front
    front.stop()


def url(front: TlsFront, authority: Path, password: str = PASSWORD) -> str:
    return f"rediss://cache:{quote(password, safe='')}@127.0.0.1:{front.port}?ssl_ca_certs={authority}"


@pytest.fixture
def store(front: TlsFront, certificate: Certificate) -> Iterator[RedisChunkStore]:
    address = url(front, certificate.authority)
    limits = CacheLimits(io_s=1.0, lookup_s=5.0, connect_s=5.0, failures_to_open=2, pause_s=0.1)
    store = RedisChunkStore(address, NAMESPACE, ttl_s=100, limits=limits)
    yield store
    store.close()


def loaded(store: RedisChunkStore, lengths: list[int]) -> list[bytes | None]:
    destinations = [bytearray(length) for length in lengths]
    came = store.load(KEYS[: len(lengths)], [memoryview(chunk) for chunk in destinations], budget_s=10)
    return [bytes(chunk) if loaded else None for chunk, loaded in zip(destinations, came, strict=True)]


@pytest.mark.parametrize("length", [1, 16_000, 1 << 20, 5 << 20])
def test_what_is_stored_is_loaded_byte_for_byte(store: RedisChunkStore, front: TlsFront, length: int) -> None:
    chunks = [os.urandom(length) for _ in KEYS]
    assert store.store(KEYS, chunks, budget_s=20) == [Put.STORED] * len(KEYS)
    assert store.exists_many(KEYS) == [True] * len(KEYS)
    connections = front.connections
    for _ in range(5):
        assert loaded(store, [length] * len(KEYS)) == chunks
    # What TLS itself sends on an idle connection does not make it look broken.
    assert front.connections <= connections + 1


def test_missing_damaged_and_other_values_are_misses_between_good_ones(
    store: RedisChunkStore, own_redis_server: RedisServer
) -> None:
    chunks = [os.urandom(300_000) for _ in range(4)]
    store.store(KEYS[:4], chunks, budget_s=10)
    own_redis_server.client.delete(redis_key(NAMESPACE, KEYS[1]))
    own_redis_server.client.setrange(redis_key(NAMESPACE, KEYS[2]), 299_000, b"\x00\xff\x00")
    assert loaded(store, [300_000] * 4) == [chunks[0], None, None, chunks[3]]
    assert dict(store.take_stats().refused) == {Refusal.BAD_CHECKSUM: 1}


def test_a_connection_that_is_cut_costs_hits_and_nothing_else(
    store: RedisChunkStore, front: TlsFront
) -> None:
    chunks = [os.urandom(4 << 20) for _ in KEYS]
    store.store(KEYS, chunks, budget_s=20)
    for delay_s in (0.0, 0.002, 0.01, 0.03):
        cutter = threading.Timer(delay_s, front.cut)
        cutter.start()
        came = loaded(store, [4 << 20] * len(KEYS))
        cutter.join()
        assert all(got in (None, chunk) for got, chunk in zip(came, chunks, strict=True))
    wait_until(lambda: loaded(store, [4 << 20] * len(KEYS)) == chunks)
    assert store.circuit is Circuit.CLOSED


def test_a_redis_that_is_paused_is_a_miss_in_time(
    store: RedisChunkStore, own_redis_server: RedisServer
) -> None:
    chunk = os.urandom(1000)
    store.store(KEYS[:1], [chunk], budget_s=5)
    own_redis_server.pause()
    try:
        started_s = time.monotonic()
        assert loaded(store, [1000]) == [None]
        assert time.monotonic() - started_s < 5
    finally:
        own_redis_server.resume()
    wait_until(lambda: loaded(store, [1000]) == [chunk])


def test_at_start_a_server_that_is_not_the_one_is_refused_with_the_reason(
    front: TlsFront, certificate: Certificate, tmp_path: Path
) -> None:
    check_cache_servers(url(front, certificate.authority))
    stranger = new_certificate(tmp_path).authority
    with pytest.raises(StartupError, match="certificate"):
        check_cache_servers(url(front, stranger))
    with pytest.raises(StartupError, match="password") as refused:
        check_cache_servers(url(front, certificate.authority, "wrong"))
    assert "wrong" not in str(refused.value)


def test_nothing_is_told_to_a_server_of_another_authority(front: TlsFront, tmp_path: Path) -> None:
    stranger = new_certificate(tmp_path).authority
    limits = CacheLimits(io_s=1, connect_s=1)
    store = RedisChunkStore(url(front, stranger), NAMESPACE, ttl_s=100, limits=limits)
    assert store.store(KEYS[:1], [b"chunk"], budget_s=5) == [Put.FAILED]
    assert loaded(store, [5]) == [None]
    store.close()
    assert front.connections == 0
