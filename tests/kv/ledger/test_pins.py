"""The ledger's pins on a real Redis."""

from __future__ import annotations

import time

import redis

from memserve.kv.keys import VALUE_PREFIX
from memserve.kv.ledger.ledger import Ledger
from memserve.kv.ledger.records import Admission, Candidate, Quotas, Usage
from memserve.kv.transport.servers import CacheServers
from tests.kv.ledger.chains import ANNA, BERT, SIZE, WORTH, chain, held, write


def test_pinned_chunks_stay_and_their_bytes_are_limited(client: redis.Redis, servers: CacheServers) -> None:
    ledger = Ledger(servers, ttl_s=100, quotas=Quotas(cache_bytes=3 * SIZE))
    write(client, ledger, chain("a", 2))
    members = [one.member for one in chain("a", 2)]
    assert ledger.pin(members, "anna", seconds=1000, limit_bytes=SIZE) == (False, 0, 2)
    assert ledger.pin(members, "bert", seconds=1000, limit_bytes=0) == (False, 0, 0)
    assert ledger.pin([*members, "a:0009"], "anna", seconds=1000, limit_bytes=0) == (False, 0, 2)
    assert ledger.pin(members, "anna", seconds=1000, limit_bytes=2 * SIZE) == (True, 2 * SIZE, 2)
    assert ledger.pin(members, "anna", seconds=1000, limit_bytes=2 * SIZE) == (True, 2 * SIZE, 2)
    assert client.ttl(VALUE_PREFIX + "a:0000") > 900
    for number in range(4):
        write(client, ledger, chain(f"new{number}", 1), BERT)
    assert held(client) == {*members, "new3:0000"}
    assert ledger.condemn(members) == ([], 2)
    client.expire(VALUE_PREFIX + "a:0000", 100)  # as a load does
    ledger.use(members)
    assert client.ttl(VALUE_PREFIX + "a:0000") > 900
    assert ledger.usage("anna") == Usage(2 * SIZE, 2, 2 * SIZE)
    assert ledger.unpin(members, "anna") == 2 and ledger.unpin(members, "anna") == 0
    assert ledger.usage("anna") == Usage(2 * SIZE, 2, 0)
    assert client.ttl(VALUE_PREFIX + "a:0000") <= 100
    write(client, ledger, chain("last", 2), BERT)
    assert "a:0001" not in held(client)


def test_a_pin_that_is_shorter_than_an_unused_chunks_life_takes_none_of_it(
    client: redis.Redis, servers: CacheServers
) -> None:
    ledger = Ledger(servers, ttl_s=1000)
    write(client, ledger, chain("a", 1))
    ledger.pin(["a:0000"], "anna", seconds=1)
    assert client.ttl(VALUE_PREFIX + "a:0000") > 900
    time.sleep(1.1)
    ledger.use(["a:0000"])  # its pin has run out and nobody has noticed
    assert client.ttl(VALUE_PREFIX + "a:0000") > 900


def test_a_second_pin_does_not_shorten_the_first(client: redis.Redis, servers: CacheServers) -> None:
    ledger = Ledger(servers, ttl_s=100)
    write(client, ledger, chain("a", 2))
    ledger.pin(["a:0000", "a:0001"], "anna", seconds=5000)
    ledger.pin(["a:0000"], "anna", seconds=0.01)
    time.sleep(0.02)
    assert ledger.due() == [] and ledger.usage("anna").pinned_bytes == 2 * SIZE


def test_storing_or_loading_a_pinned_chunk_leaves_it_its_time(
    client: redis.Redis, servers: CacheServers
) -> None:
    ledger = Ledger(servers, ttl_s=100)
    write(client, ledger, chain("a", 1))
    ledger.pin(["a:0000"], "anna", seconds=5000)
    client.expire(VALUE_PREFIX + "a:0000", 100)  # as a store does that finds it there
    ledger.reserve([Candidate("a:0000", SIZE, "", 64, present=True)], ANNA, worth_per_use=WORTH)
    assert client.ttl(VALUE_PREFIX + "a:0000") > 4000
    client.expire(VALUE_PREFIX + "a:0000", 100)  # as a load does whose use is never told
    ledger.vanished(0)
    assert client.ttl(VALUE_PREFIX + "a:0000") > 4000


def test_a_pinned_chunk_that_redis_lost_is_written_again_and_stays_pinned(
    client: redis.Redis, servers: CacheServers
) -> None:
    ledger = Ledger(servers, ttl_s=100)
    write(client, ledger, chain("a", 1))
    ledger.pin(["a:0000"], "anna", seconds=5000)
    client.unlink(VALUE_PREFIX + "a:0000")
    assert ledger.pin(["a:0000"], "anna", seconds=6000) == (False, SIZE, 0)
    assert write(client, ledger, chain("a", 1)) == [Admission.STORE]
    assert ledger.usage("anna") == Usage(SIZE, 1, SIZE)
    assert ledger.condemn(["a:0000"]) == ([], 1)


def test_all_tenants_together_cannot_pin_everything(client: redis.Redis, servers: CacheServers) -> None:
    ledger = Ledger(servers, ttl_s=100)
    write(client, ledger, chain("a", 1))
    write(client, ledger, chain("b", 1), BERT)
    assert ledger.pin(["a:0000"], "anna", seconds=5000, limit_all_bytes=SIZE)[0]
    assert not ledger.pin(["b:0000"], "bert", seconds=5000, limit_all_bytes=SIZE)[0]


def test_a_pin_that_has_run_out_leaves_an_ordinary_chunk(client: redis.Redis, servers: CacheServers) -> None:
    ledger = Ledger(servers, ttl_s=100)
    write(client, ledger, chain("a", 1))
    ledger.pin(["a:0000"], "anna", seconds=0.05, limit_bytes=0)
    time.sleep(0.06)
    assert ledger.due() == []
    assert ledger.usage("anna") == Usage(SIZE, 1, 0)
    assert 0 < client.ttl(VALUE_PREFIX + "a:0000") <= 100
