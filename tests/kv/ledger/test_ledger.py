"""The cache's ledger on a real Redis: counting, quotas, what goes first, pins, and what a writer that dies
leaves behind.
"""

from __future__ import annotations

import random
import threading
import time

import pytest
import redis

from memserve.kv.keys import VALUE_PREFIX
from memserve.kv.ledger.ledger import Ledger
from memserve.kv.ledger.records import Admission, Candidate, Entry, Owner, Quotas, Removal, Settled, Usage
from memserve.kv.transport.servers import CacheServers
from tests.kv.redis_server import RedisServer

ANNA, BERT = Owner("anna"), Owner("bert", "ad" * 32)
SIZE = 1000
WORTH = 0.5


@pytest.fixture
def client(redis_server: RedisServer) -> redis.Redis:
    return redis_server.client


def chain(name: str, length: int, after: int = 0) -> list[Candidate]:
    """A chain's chunks, from the one after `after` on."""
    return [
        Candidate(f"{name}:{number:04}", SIZE, f"{name}:{number - 1:04}" if number else "", (number + 1) * 64)
        for number in range(after, length)
    ]


def write(
    client: redis.Redis, ledger: Ledger, candidates: list[Candidate], owner: Owner = ANNA
) -> list[Admission]:
    """As a worker does: reserve, remove the victims, write, settle."""
    reservation = ledger.reserve(candidates, owner, worth_per_use=WORTH)
    ledger.remove_values([entry for entry, _ in reservation.victims])
    for entry in reservation.entries.values():
        client.set(VALUE_PREFIX + entry.member, b"v" * SIZE, ex=100)
    assert ledger.settle((Settled.STORED, entry) for entry in reservation.entries.values()) == []
    return list(reservation.admissions)


def held(client: redis.Redis) -> set[str]:
    return {
        key.decode().removeprefix(VALUE_PREFIX) for key in client.scan_iter(VALUE_PREFIX + "*", count=1000)
    }


def stored_bytes(client: redis.Redis) -> int:
    return sum(client.strlen(VALUE_PREFIX + member) for member in held(client))


def test_what_is_stored_is_counted_for_its_tenant_and_for_all(
    client: redis.Redis, servers: CacheServers
) -> None:
    ledger = Ledger(servers, ttl_s=100)
    assert write(client, ledger, chain("a", 3)) == [Admission.STORE] * 3
    assert write(client, ledger, chain("b", 2), BERT) == [Admission.STORE] * 2
    assert ledger.usage("anna") == Usage(3 * SIZE, 3, 0)
    assert ledger.usage("bert") == Usage(2 * SIZE, 2, 0)
    assert ledger.usage() == Usage(5 * SIZE, 5, 0)
    assert ledger.usage("nobody") == Usage(0, 0, 0)


def test_a_chunk_that_another_worker_stores_is_not_stored_twice(
    client: redis.Redis, servers: CacheServers
) -> None:
    ledger = Ledger(servers, ttl_s=100)
    first = ledger.reserve(chain("a", 1), ANNA, worth_per_use=WORTH)
    assert ledger.reserve(chain("a", 1), ANNA, worth_per_use=WORTH).admissions == (Admission.BUSY,)
    ledger.settle((Settled.STORED, entry) for entry in first.entries.values())
    assert ledger.usage() == Usage(SIZE, 1, 0)


def test_a_value_that_was_never_counted_is_taken_up(client: redis.Redis, servers: CacheServers) -> None:
    ledger = Ledger(servers, ttl_s=100)
    [candidate] = chain("a", 1)
    present = Candidate(candidate.member, SIZE, "", 64, present=True)
    assert ledger.reserve([present], ANNA, worth_per_use=WORTH).admissions == (Admission.PRESENT,)
    assert ledger.usage("anna") == Usage(SIZE, 1, 0)


def test_a_value_that_redis_evicted_is_stored_again_and_counted_once(
    client: redis.Redis, servers: CacheServers
) -> None:
    ledger = Ledger(servers, ttl_s=100)
    write(client, ledger, chain("a", 1))
    client.unlink(VALUE_PREFIX + "a:0000")
    assert write(client, ledger, chain("a", 1)) == [Admission.STORE]
    assert ledger.usage() == Usage(SIZE, 1, 0)


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


def test_admission_on_second_use_stores_what_comes_again(client: redis.Redis, servers: CacheServers) -> None:
    ledger = Ledger(servers, ttl_s=100, admit_on_use=2)
    assert write(client, ledger, chain("a" * 64, 2)) == [Admission.NOT_YET] * 2
    assert write(client, ledger, chain("a" * 64, 2)) == [Admission.STORE] * 2
    assert write(client, ledger, chain("b" * 64, 1)) == [Admission.NOT_YET]
    with pytest.raises(ValueError, match="admit_on_use"):
        Ledger(servers, ttl_s=100, admit_on_use=3)


def test_a_value_that_was_not_written_is_not_counted(client: redis.Redis, servers: CacheServers) -> None:
    ledger = Ledger(servers, ttl_s=100)
    reservation = ledger.reserve(chain("a", 1), ANNA, worth_per_use=WORTH)
    ledger.settle((Settled.FAILED, entry) for entry in reservation.entries.values())
    assert ledger.usage() == Usage(0, 0, 0)


def test_what_a_dead_writer_reserved_falls_due_and_a_late_one_is_told(
    client: redis.Redis, servers: CacheServers
) -> None:
    ledger = Ledger(servers, ttl_s=100, reserve_s=0.05)
    late = ledger.reserve(chain("a", 1), ANNA, worth_per_use=WORTH)
    assert ledger.due() == []
    time.sleep(0.06)
    [(entry, reason)] = ledger.due()
    assert (entry.member, reason) == ("a:0000", Removal.ABANDONED)
    assert ledger.usage() == Usage(SIZE, 1, 0)  # until its value is known to be gone
    ledger.remove_values([entry])
    assert ledger.usage() == Usage(0, 0, 0)
    assert ledger.settle((Settled.STORED, entry) for entry in late.entries.values()) == ["a:0000"]
    assert ledger.usage() == Usage(0, 0, 0)


def test_a_removal_that_nobody_confirmed_falls_due_again(client: redis.Redis, servers: CacheServers) -> None:
    ledger = Ledger(servers, ttl_s=100, reserve_s=0.05)
    write(client, ledger, chain("a", 1))
    condemned, kept = ledger.condemn(["a:0000"])
    assert (len(condemned), kept) == (1, 0)
    assert ledger.reserve(chain("a", 1), ANNA, worth_per_use=WORTH).admissions == (Admission.BUSY,)
    time.sleep(0.06)
    assert ledger.due() == [(condemned[0], Removal.AGAIN)]
    ledger.remove_values(condemned)
    assert (ledger.usage(), held(client)) == (Usage(0, 0, 0), set())


def test_an_unused_chunk_expires_and_a_used_one_lives_on_with_what_stands_before_it(
    client: redis.Redis, servers: CacheServers
) -> None:
    ledger = Ledger(servers, ttl_s=1)
    write(client, ledger, chain("a", 3))
    write(client, ledger, chain("b", 1))
    time.sleep(0.7)
    ledger.use(["a:0002"])
    time.sleep(0.4)
    assert [(entry.member, reason) for entry, reason in ledger.due()] == [("b:0000", Removal.EXPIRED)]
    assert client.ttl(VALUE_PREFIX + "a:0000") == 1


def test_what_redis_evicted_itself_is_found(client: redis.Redis, servers: CacheServers) -> None:
    ledger = Ledger(servers, ttl_s=100)
    write(client, ledger, chain("a", 3))
    client.unlink(VALUE_PREFIX + "a:0001")
    cursor, vanished = ledger.vanished(0)
    assert cursor == 0 and [entry.member for entry in vanished] == ["a:0001"]
    ledger.settle((Settled.GONE, entry) for entry in vanished)
    assert ledger.usage() == Usage(2 * SIZE, 2, 0)


def test_an_entry_that_was_counted_anew_is_not_dropped_by_an_old_finding(
    client: redis.Redis, servers: CacheServers
) -> None:
    ledger = Ledger(servers, ttl_s=100)
    write(client, ledger, chain("a", 1))
    client.unlink(VALUE_PREFIX + "a:0000")
    _, vanished = ledger.vanished(0)
    write(client, ledger, chain("a", 1))
    ledger.settle((Settled.GONE, entry) for entry in vanished)
    assert ledger.usage() == Usage(SIZE, 1, 0)


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


def worths(client: redis.Redis, *names: str) -> list[float]:
    return [float(client.zscore("{memserve:kv}:worth", name) or 0) for name in names]


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


def test_a_value_that_another_wrote_meanwhile_stays_counted_until_it_is_gone(
    client: redis.Redis, servers: CacheServers
) -> None:
    ledger = Ledger(servers, ttl_s=100)
    late = chain("a", 1)  # asked whether it is there before the other wrote it
    write(client, ledger, chain("a", 1))
    reservation = ledger.reserve(late, ANNA, worth_per_use=WORTH)
    ledger.settle((Settled.FAILED, entry) for entry in reservation.entries.values())
    assert ledger.usage("anna") == Usage(SIZE, 1, 0)
    ledger.remove_values([entry for entry, _ in ledger.due()])
    assert (ledger.usage("anna"), held(client)) == (Usage(0, 0, 0), set())


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


@pytest.mark.damages_state
def test_an_entry_that_redis_evicted_from_the_ledger_stops_nothing(
    client: redis.Redis, servers: CacheServers
) -> None:
    ledger = Ledger(servers, ttl_s=1, reserve_s=0.01)
    write(client, ledger, chain("a", 1))
    client.delete("{memserve:kv}:entry:a:0000")
    ledger.reserve(chain("b", 1), ANNA, worth_per_use=WORTH)
    time.sleep(1.1)
    assert [entry.member for entry, _ in ledger.due()] == ["b:0000"]


def test_a_pin_that_has_run_out_leaves_an_ordinary_chunk(client: redis.Redis, servers: CacheServers) -> None:
    ledger = Ledger(servers, ttl_s=100)
    write(client, ledger, chain("a", 1))
    ledger.pin(["a:0000"], "anna", seconds=0.05, limit_bytes=0)
    time.sleep(0.06)
    assert ledger.due() == []
    assert ledger.usage("anna") == Usage(SIZE, 1, 0)
    assert 0 < client.ttl(VALUE_PREFIX + "a:0000") <= 100


def test_chunks_are_found_and_condemned_by_tenant_and_module(
    client: redis.Redis, servers: CacheServers
) -> None:
    ledger = Ledger(servers, ttl_s=100)
    write(client, ledger, chain("a", 2))
    write(client, ledger, chain("b", 2), BERT)
    write(client, ledger, chain("c", 1), Owner("anna", BERT.module))
    [of_module] = ledger.members(module=BERT.module)
    assert set(of_module) == {"b:0000", "b:0001", "c:0000"}
    [of_anna] = ledger.members(tenant="anna")
    assert set(of_anna) == {"a:0000", "a:0001", "c:0000"}
    condemned, _ = ledger.condemn(of_module, tenant="anna", module=BERT.module)
    assert [entry.member for entry in condemned] == ["c:0000"]
    assert ledger.condemn(["nothing"]) == ([], 0) and ledger.condemn([]) == ([], 0)


def test_two_writers_race_and_every_byte_is_counted(
    client: redis.Redis, redis_server: RedisServer, servers: CacheServers
) -> None:
    quota = 20 * SIZE

    def race(seed: int) -> None:
        own = redis_server.client
        ledger, draw = Ledger(servers, ttl_s=100, quotas=Quotas(tenant_bytes=quota)), random.Random(seed)
        for _ in range(300):
            name, length = f"c{draw.randrange(12)}", draw.randrange(1, 8)
            present = [bool(own.exists(VALUE_PREFIX + one.member)) for one in chain(name, length)]
            candidates = [
                Candidate(one.member, SIZE, one.parent, one.depth_tokens, there)
                for one, there in zip(chain(name, length), present, strict=True)
            ]
            reservation = ledger.reserve(candidates, ANNA, worth_per_use=WORTH)
            ledger.remove_values([entry for entry, _ in reservation.victims])
            outcomes: list[tuple[Settled, Entry]] = []
            for entry in reservation.entries.values():
                written = draw.random() < 0.9
                if written:
                    own.set(VALUE_PREFIX + entry.member, b"v" * SIZE, ex=100)
                outcomes.append((Settled.STORED if written else Settled.FAILED, entry))
            ledger.settle(outcomes)
            if draw.random() < 0.2:
                ledger.remove_values(ledger.condemn([one.member for one in chain(name, length)][-1:])[0])

    threads = [threading.Thread(target=race, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = Ledger(servers, ttl_s=100)
    ledger.remove_values([entry for entry, _ in ledger.due()])
    _, vanished = ledger.vanished(0)
    ledger.settle((Settled.GONE, entry) for entry in vanished)
    assert quota >= ledger.usage("anna").stored_bytes == stored_bytes(client) > 0
    assert ledger.usage("anna").chunks == len(held(client))
