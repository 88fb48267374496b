"""The ledger on a real Redis: counting, admission, expiry, and what a writer that dies leaves behind."""

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
from tests.kv.ledger.chains import ANNA, BERT, SIZE, WORTH, chain, held, stored_bytes, write
from tests.kv.redis_server import RedisServer


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
def test_an_entry_that_redis_evicted_from_the_ledger_stops_nothing(
    client: redis.Redis, servers: CacheServers
) -> None:
    ledger = Ledger(servers, ttl_s=1, reserve_s=0.01)
    write(client, ledger, chain("a", 1))
    client.delete("{memserve:kv}:entry:a:0000")
    ledger.reserve(chain("b", 1), ANNA, worth_per_use=WORTH)
    time.sleep(1.1)
    assert [entry.member for entry, _ in ledger.due()] == ["b:0000"]


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
