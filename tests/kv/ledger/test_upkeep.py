"""The cache's upkeep on a real Redis: what is due goes, what Redis evicted is noticed, and one of all does
the work.
"""

from __future__ import annotations

import threading
import time
from collections import Counter

from memserve.kv.keys import VALUE_PREFIX
from memserve.kv.ledger.ledger import Ledger
from memserve.kv.ledger.records import Candidate, Owner, Removal, Settled
from memserve.kv.ledger.upkeep import Upkeep
from memserve.kv.transport.servers import CacheServers
from tests.kv.conftest import servers_of
from tests.kv.redis_server import RedisServer, wait_until

SIZE = 100
INTERVAL_S = 0.05


class Removals:
    """What an Upkeep has told."""

    def __init__(self) -> None:
        self.counts: Counter[Removal] = Counter()
        self._lock = threading.Lock()

    def __call__(self, reason: Removal, chunks: int) -> None:
        with self._lock:
            self.counts[reason] += chunks


def store(server: RedisServer, ledger: Ledger, *names: str) -> None:
    reservation = ledger.reserve(
        [Candidate(name, SIZE, "", 64) for name in names], Owner(), worth_per_use=1.0
    )
    for name in reservation.entries:
        server.client.set(VALUE_PREFIX + name, b"v" * SIZE, ex=100)
    ledger.settle((Settled.STORED, entry) for entry in reservation.entries.values())


def test_what_is_due_is_removed_with_its_value(redis_server: RedisServer, servers: CacheServers) -> None:
    ledger, removals = Ledger(servers, ttl_s=1, reserve_s=0.2), Removals()
    store(redis_server, ledger, "a", "b")
    ledger.reserve([Candidate("dead", SIZE, "", 64)], Owner(), worth_per_use=1.0)
    redis_server.client.set(VALUE_PREFIX + "dead", b"half")
    upkeep = Upkeep(ledger, removals, interval_s=INTERVAL_S)
    wait_until(lambda: ledger.usage().stored_bytes == 0)
    assert redis_server.client.keys(VALUE_PREFIX + "*") == []
    wait_until(lambda: removals.counts == {Removal.EXPIRED: 2, Removal.ABANDONED: 1})
    wait_until(lambda: upkeep.counted_bytes == 0)
    upkeep.close()


def test_what_redis_evicted_is_no_longer_counted(redis_server: RedisServer, servers: CacheServers) -> None:
    ledger, removals = Ledger(servers, ttl_s=100), Removals()
    store(redis_server, ledger, "a", "b", "c")
    redis_server.client.unlink(VALUE_PREFIX + "b")
    upkeep = Upkeep(ledger, removals, interval_s=INTERVAL_S)
    wait_until(lambda: ledger.usage().stored_bytes == 2 * SIZE)
    wait_until(lambda: removals.counts == {Removal.VANISHED: 1})
    upkeep.close()


def test_one_of_all_takes_a_turn(redis_server: RedisServer, servers: CacheServers) -> None:
    ledger = Ledger(servers, ttl_s=100)
    assert [ledger.take_turn(0.2), ledger.take_turn(0.2)] == [True, False]
    time.sleep(0.25)
    assert ledger.take_turn(0.2)


def test_a_redis_that_is_gone_for_a_while_costs_turns_only(own_redis_server: RedisServer) -> None:
    servers = servers_of(own_redis_server, pause_s=0.1)
    ledger, removals = Ledger(servers, ttl_s=100, reserve_s=0.1), Removals()
    upkeep = Upkeep(ledger, removals, interval_s=INTERVAL_S)
    own_redis_server.stop()
    time.sleep(5 * INTERVAL_S)
    own_redis_server.start()
    wait_until(lambda: servers.circuit.value == 0)
    ledger.reserve([Candidate("dead", SIZE, "", 64)], Owner(), worth_per_use=1.0)
    wait_until(lambda: removals.counts == {Removal.ABANDONED: 1})
    upkeep.close()
    servers.close()
