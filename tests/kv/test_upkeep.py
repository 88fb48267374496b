"""The cache's upkeep on a real Redis: what is due goes, what Redis evicted is noticed, and one of all does the work."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from memserve.kv.keys import VALUE_PREFIX
from memserve.kv.ledger import Candidate, Ledger, Owner, Removal, Settled
from memserve.kv.servers import CacheServers
from memserve.kv.upkeep import Upkeep
from tests.kv.redis_server import RedisServer

SIZE = 100
INTERVAL_S = 0.05


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def servers(server: RedisServer) -> Iterator[CacheServers]:
    server.client.flushall()
    servers = CacheServers(server.url, io_timeout_s=0.5, lookup_timeout_s=0.5, connect_timeout_s=0.5, failures_to_open=2, pause_s=0.1)
    yield servers
    servers.close()


class Removals:
    """What an Upkeep has told."""

    def __init__(self) -> None:
        self.counts: Counter[Removal] = Counter()
        self._lock = threading.Lock()

    def __call__(self, reason: Removal, chunks: int) -> None:
        with self._lock:
            self.counts[reason] += chunks


def store(server: RedisServer, ledger: Ledger, *names: str) -> None:
    reservation = ledger.reserve([Candidate(name, SIZE, "", 64) for name in names], Owner(), worth_per_use=1.0)
    for name in reservation.entries:
        server.client.set(VALUE_PREFIX + name, b"v" * SIZE, ex=100)
    ledger.settle((Settled.STORED, entry) for entry in reservation.entries.values())


def eventually(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline_s, "not in time"
        time.sleep(0.02)


def test_what_is_due_is_removed_with_its_value(server: RedisServer, servers: CacheServers) -> None:
    ledger, removals = Ledger(servers, ttl_s=1, reserve_s=0.2), Removals()
    store(server, ledger, "a", "b")
    ledger.reserve([Candidate("dead", SIZE, "", 64)], Owner(), worth_per_use=1.0)
    server.client.set(VALUE_PREFIX + "dead", b"half")
    upkeep = Upkeep(ledger, removals, interval_s=INTERVAL_S)
    eventually(lambda: ledger.usage().stored_bytes == 0)
    assert server.client.keys(VALUE_PREFIX + "*") == []
    eventually(lambda: removals.counts == {Removal.EXPIRED: 2, Removal.ABANDONED: 1})
    eventually(lambda: upkeep.counted_bytes == 0)
    upkeep.close()


def test_what_redis_evicted_is_no_longer_counted(server: RedisServer, servers: CacheServers) -> None:
    ledger, removals = Ledger(servers, ttl_s=100), Removals()
    store(server, ledger, "a", "b", "c")
    server.client.unlink(VALUE_PREFIX + "b")
    upkeep = Upkeep(ledger, removals, interval_s=INTERVAL_S)
    eventually(lambda: ledger.usage().stored_bytes == 2 * SIZE)
    eventually(lambda: removals.counts == {Removal.VANISHED: 1})
    upkeep.close()


def test_one_of_all_takes_a_turn(server: RedisServer, servers: CacheServers) -> None:
    ledger = Ledger(servers, ttl_s=100)
    assert [ledger.take_turn(0.2), ledger.take_turn(0.2)] == [True, False]
    time.sleep(0.25)
    assert ledger.take_turn(0.2)


def test_a_redis_that_is_gone_for_a_while_costs_turns_only(server: RedisServer, servers: CacheServers) -> None:
    ledger, removals = Ledger(servers, ttl_s=100, reserve_s=0.1), Removals()
    upkeep = Upkeep(ledger, removals, interval_s=INTERVAL_S)
    server.stop()
    time.sleep(5 * INTERVAL_S)
    server.start()
    eventually(lambda: servers.circuit.value == 0)
    ledger.reserve([Candidate("dead", SIZE, "", 64)], Owner(), worth_per_use=1.0)
    eventually(lambda: removals.counts == {Removal.ABANDONED: 1})
    upkeep.close()
