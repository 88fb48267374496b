"""The ledger's quotas on a real Redis: what goes first."""

from __future__ import annotations

import random

import pytest
import redis

from memserve.kv.keys import VALUE_PREFIX
from memserve.kv.ledger.ledger import Ledger
from memserve.kv.ledger.records import Admission, Candidate, Quotas, Removal, Settled, Usage
from memserve.kv.transport.servers import CacheServers
from tests.kv.ledger.chains import ANNA, BERT, SIZE, WORTH, chain, held, worths, write


def test_a_tenants_quota_costs_that_tenant_only(client: redis.Redis, servers: CacheServers) -> None:
    ledger = Ledger(servers, ttl_s=100, quotas=Quotas(tenant_bytes=4 * SIZE))
    write(client, ledger, chain("b", 4), BERT)
    write(client, ledger, chain("a", 4))
    reservation = ledger.reserve(chain("c", 1), ANNA, worth_per_use=WORTH)
    assert [(entry.member, reason) for entry, reason in reservation.victims] == [
        ("a:0003", Removal.TENANT_QUOTA)
    ]
    ledger.remove_values([entry for entry, _ in reservation.victims])
    ledger.settle((Settled.STORED, entry) for entry in reservation.entries.values())
    assert ledger.usage("anna") == ledger.usage("bert") == Usage(4 * SIZE, 4, 0)


def test_the_quota_of_the_whole_cache_takes_the_least_worthy_of_any_tenant(
    client: redis.Redis, servers: CacheServers
) -> None:
    ledger = Ledger(servers, ttl_s=100, quotas=Quotas(cache_bytes=4 * SIZE))
    write(client, ledger, chain("b", 2), BERT)
    write(client, ledger, chain("a", 2))
    ledger.use(["b:0000", "b:0001"])
    reservation = ledger.reserve(chain("c", 1), BERT, worth_per_use=WORTH)
    assert [(entry.member, reason) for entry, reason in reservation.victims] == [
        ("a:0001", Removal.CACHE_QUOTA)
    ]


def test_the_end_of_a_chain_goes_before_its_beginning(client: redis.Redis, servers: CacheServers) -> None:
    ledger = Ledger(servers, ttl_s=100, quotas=Quotas(cache_bytes=6 * SIZE))
    write(client, ledger, chain("a", 3))
    write(client, ledger, chain("a", 6, after=3))
    ledger.use(["a:0005"])  # its end alone was asked of Redis: the rest was in the worker's memory
    gone = []
    for number in range(5):
        before = held(client)
        write(client, ledger, chain(f"new{number}", 1), BERT)
        gone += sorted(before - held(client))
    assert gone == ["a:0005", "a:0004", "a:0003", "a:0002", "a:0001"] or gone[0].startswith("new")
    kept = [member for member in sorted(held(client)) if member.startswith("a")]
    assert kept == [one.member for one in chain("a", len(kept))]


def test_what_was_used_more_or_saves_more_stays_longer(client: redis.Redis, servers: CacheServers) -> None:
    ledger = Ledger(servers, ttl_s=100, quotas=Quotas(cache_bytes=3 * SIZE))
    write(client, ledger, chain("used", 1))
    dear = ledger.reserve(chain("dear", 1), ANNA, worth_per_use=WORTH * 9)
    client.set(VALUE_PREFIX + "dear:0000", b"v" * SIZE)
    ledger.settle((Settled.STORED, entry) for entry in dear.entries.values())
    write(client, ledger, chain("plain", 1))
    for _ in range(3):
        ledger.use(["used:0000"])
    write(client, ledger, chain("new", 1))
    assert held(client) == {"used:0000", "dear:0000", "new:0000"}


def test_what_was_used_long_ago_goes_in_the_end(client: redis.Redis, servers: CacheServers) -> None:
    ledger = Ledger(servers, ttl_s=100, quotas=Quotas(cache_bytes=2 * SIZE))
    write(client, ledger, chain("old", 1))
    for _ in range(5):
        ledger.use(["old:0000"])
    for number in range(20):
        write(client, ledger, chain(f"new{number}", 1))
    assert "old:0000" not in held(client)


def test_a_chain_longer_than_the_quota_keeps_its_beginning(
    client: redis.Redis, servers: CacheServers
) -> None:
    ledger = Ledger(servers, ttl_s=100, quotas=Quotas(cache_bytes=4 * SIZE))
    assert write(client, ledger, chain("a", 3)) == [Admission.STORE] * 3
    assert write(client, ledger, chain("a", 8, after=3)) == [Admission.STORE] + [Admission.NO_ROOM] * 4
    assert held(client) == {"a:0000", "a:0001", "a:0002", "a:0003"}


def test_a_chunk_larger_than_the_quota_evicts_nothing(client: redis.Redis, servers: CacheServers) -> None:
    ledger = Ledger(servers, ttl_s=100, quotas=Quotas(tenant_bytes=2 * SIZE))
    write(client, ledger, chain("a", 2))
    large = ledger.reserve([Candidate("large", 3 * SIZE, "", 64)], ANNA, worth_per_use=WORTH)
    assert large.admissions == (Admission.NO_ROOM,) and not large.victims


def test_the_beginning_stays_worth_more_however_a_chain_is_used(
    client: redis.Redis, servers: CacheServers
) -> None:
    ledger, draw = Ledger(servers, ttl_s=100), random.Random(1)
    names = [one.member for one in chain("a", 40)]
    for start in range(0, 40, 8):
        write(client, ledger, chain("a", start + 8, after=start))
    for _ in range(60):
        first = draw.randrange(40)
        ledger.use(names[first : draw.randrange(first, 40) + 1])
        now = worths(client, *names)
        assert now == sorted(now, reverse=True) and len(set(now)) == 40


@pytest.mark.damages_state
def test_the_clock_never_runs_backwards(client: redis.Redis, servers: CacheServers) -> None:
    dear = Ledger(servers, ttl_s=100, quotas=Quotas(tenant_bytes=SIZE))
    for number in range(2):
        reservation = dear.reserve(chain(f"dear{number}", 1), ANNA, worth_per_use=9.0)
        dear.remove_values([entry for entry, _ in reservation.victims])
        dear.settle((Settled.STORED, entry) for entry in reservation.entries.values())
    before = float(client.get("{memserve:kv}:clock") or 0)
    cheap = Ledger(servers, ttl_s=100, quotas=Quotas(cache_bytes=2 * SIZE))
    write(client, cheap, chain("b", 1), BERT)
    client.zadd("{memserve:kv}:worth", {"b:0000": 0.01})
    write(client, cheap, chain("c", 1), BERT)
    assert float(client.get("{memserve:kv}:clock") or 0) >= before > 8
