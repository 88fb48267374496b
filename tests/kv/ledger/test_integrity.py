"""Each kind of contradiction in the ledger is found when it is made by hand; a ledger in use is sound."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import redis

from memserve.kv.keys import VALUE_PREFIX
from memserve.kv.ledger.check import LedgerCheck
from memserve.kv.ledger.ledger import Ledger
from memserve.kv.ledger.records import Candidate, Owner, Settled
from memserve.kv.transport.servers import CacheServers
from tests.kv.redis_server import RedisServer

P = "{memserve:kv}:"
MODULE = "ad" * 32
SIZE = 100
Damage = Callable[[redis.Redis], object]


def store(client: redis.Redis, ledger: Ledger, name: str, length: int) -> None:
    """A chain of chunks, stored as a worker does."""
    members = [f"{name}:{number:04}" for number in range(length)]
    candidates = [
        Candidate(member, SIZE, members[number - 1] if number else "", (number + 1) * 64)
        for number, member in enumerate(members)
    ]
    reservation = ledger.reserve(candidates, Owner("anna", MODULE), worth_per_use=0.5)
    ledger.remove_values([entry for entry, _ in reservation.victims])
    for member in reservation.entries:
        client.set(VALUE_PREFIX + member, b"v" * SIZE, ex=100)
    ledger.settle((Settled.STORED, entry) for entry in reservation.entries.values())


@pytest.fixture
def ledger(redis_server: RedisServer, servers: CacheServers) -> Ledger:
    """With a chain of two chunks, the second of which is pinned, and a chunk that stands alone."""
    ledger = Ledger(servers, ttl_s=100)
    store(redis_server.client, ledger, "a", 2)
    store(redis_server.client, ledger, "b", 1)
    ledger.pin(["a:0001"], "anna", seconds=1000)
    return ledger


DAMAGES: dict[str, tuple[Damage, list[str]]] = {
    "an entry that is gone": (
        lambda client: client.delete(P + "entry:b:0000"),
        [
            f"{P}bytes: * has more than its entries have together",
            f"{P}bytes: anna has more than its entries have together",
            f"{P}chunks: * has more than its entries have together",
            f"{P}chunks: anna has more than its entries have together",
            f"{P}entry:b:0000: there is no such entry, but its member is in {P}due",
            f"{P}entry:b:0000: there is no such entry, but its member is in {P}worth",
            f"{P}entry:b:0000: there is no such entry, but its value is stored: nobody counts it",
            f"{P}module:{MODULE}: b:0000 is in it and has no entry",
            f"{P}worth:anna: b:0000 is in it and has no entry",
        ],
    ),
    "an entry without a field": (
        lambda client: client.hdel(P + "entry:b:0000", "c", "u", "s"),
        [
            f"{P}bytes: * has more than its entries have together",
            f"{P}bytes: anna has more than its entries have together",
            f"{P}chunks: * has more than its entries have together",
            f"{P}chunks: anna has more than its entries have together",
            f"{P}entry:b:0000: it is no entry: it has no state",
        ],
    ),
    "a value that nobody counts": (
        lambda client: client.set(VALUE_PREFIX + "c:0000", b"v"),
        [f"{P}entry:c:0000: there is no such entry, but its value is stored: nobody counts it"],
    ),
    "a value that is longer than what is counted": (
        lambda client: client.append(VALUE_PREFIX + "b:0000", "v"),
        [f"{P}entry:b:0000: its value has 101 bytes, and 100 are counted"],
    ),
    "a counter that is too low": (
        lambda client: client.hincrby(P + "bytes", "anna", -1),
        [f"{P}bytes: anna has less than its entries have together"],
    ),
    "a counter of a tenant that has nothing": (
        lambda client: client.hincrby(P + "pinned", "bert", 7),
        [f"{P}pinned: bert has more than its entries have together"],
    ),
    "a counter of pins that is too high": (
        lambda client: client.hincrby(P + "pinned", "*", 1),
        [f"{P}pinned: * has more than its entries have together"],
    ),
    "an entry that is in no order": (
        lambda client: [client.zrem(P + key, "b:0000") for key in ("worth", "worth:anna", "due")],
        [
            f"{P}entry:b:0000: it is at no time in {P}due",
            f"{P}entry:b:0000: it is not in {P}worth",
            f"{P}entry:b:0000: it is not in {P}worth:anna",
        ],
    ),
    "two worths": (
        lambda client: client.zadd(P + "worth", {"b:0000": 0.25}),
        [f"{P}entry:b:0000: its worth in {P}worth is not that in {P}worth:anna"],
    ),
    "an entry that is in the order of another tenant too": (
        lambda client: client.zadd(P + "worth:bert", {"b:0000": 1}),
        [f"{P}worth:bert: b:0000 is in it and belongs to tenant anna and module {MODULE}"],
    ),
    "an entry that is not in the set of its module": (
        lambda client: client.srem(P + "module:" + MODULE, "b:0000"),
        [f"{P}entry:b:0000: it is not in {P}module:{MODULE}"],
    ),
    "an entry that is in the set of another module": (
        lambda client: client.sadd(P + "module:other", "b:0000"),
        [f"{P}module:other: b:0000 is in it and belongs to tenant anna and module {MODULE}"],
    ),
    "a pinned chunk that may be evicted": (
        lambda client: [client.zadd(P + key, {"a:0001": 1}) for key in ("worth", "worth:anna")],
        [f"{P}entry:a:0001: it is pinned, and may be evicted"],
    ),
    "a reserved chunk that may be evicted": (
        lambda client: client.hset(P + "entry:b:0000", "s", "r"),
        [f"{P}entry:b:0000: it is reserved, and may be evicted"],
    ),
    "a chunk that can never be evicted": (
        lambda client: [client.zadd(P + key, {"b:0000": "inf"}) for key in ("worth", "worth:anna")],  # type: ignore[dict-item]
        [f"{P}entry:b:0000: it is committed, and can never be evicted"],
    ),
    "a pin that leads nowhere": (
        lambda client: client.hdel(P + "entry:a:0001", "w"),
        [f"{P}entry:a:0001: it is pinned, and what it is worth afterwards is not known"],
    ),
    "a state that there is not": (
        lambda client: client.hset(P + "entry:a:0001", "s", "y"),
        [
            f"{P}bytes: * has more than its entries have together",
            f"{P}bytes: anna has more than its entries have together",
            f"{P}chunks: * has more than its entries have together",
            f"{P}chunks: anna has more than its entries have together",
            f"{P}entry:a:0001: it is no entry: 'y' is not a valid State",
            f"{P}pinned: * has more than its entries have together",
            f"{P}pinned: anna has more than its entries have together",
        ],
    ),
    "a generation that was never given out": (
        lambda client: client.hset(P + "entry:b:0000", "g", 99),
        [f"{P}entry:b:0000: its generation was never given out"],
    ),
    "a parent that ends no sooner": (
        lambda client: client.hset(P + "entry:a:0000", "d", 128),
        [f"{P}entry:a:0001: it does not end deeper in its prompt than its parent a:0000"],
    ),
}


@pytest.mark.damages_state
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_contradiction_is_found(ledger: Ledger, redis_server: RedisServer, damage: str) -> None:
    assert ledger.check_integrity() == []
    make, sentences = DAMAGES[damage]
    make(redis_server.client)
    assert ledger.check_integrity() == sentences


@pytest.mark.damages_state
def test_what_is_right_when_it_is_read_again_is_no_contradiction(
    ledger: Ledger, redis_server: RedisServer, servers: CacheServers
) -> None:
    redis_server.client.hincrby(P + "bytes", "anna", 1)
    redis_server.client.zrem(P + "due", "b:0000")
    redis_server.client.sadd(P + "module:other", "b:0000")

    def repair() -> None:
        redis_server.client.hincrby(P + "bytes", "anna", -1)
        redis_server.client.zadd(P + "due", {"b:0000": 1e10})
        redis_server.client.srem(P + "module:other", "b:0000")

    timer = threading.Timer(0.3, repair)
    timer.start()
    assert LedgerCheck(servers, pause_s=1.0).contradictions() == []
    timer.join()


@contextmanager
def in_use(client: redis.Redis, ledger: Ledger) -> Iterator[None]:
    """A ledger of 900 chunks and more, in which a writer stores, uses and removes."""
    for number in range(300):
        store(client, ledger, f"before{number}", 3)
    is_over = threading.Event()

    def write() -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            store(client, ledger, f"c{number % 50}", 4)
            ledger.remove_values(ledger.condemn([f"c{(number + 7) % 50}:0003"])[0])
            ledger.use([f"before{number % 300}:0001"])

    writer = threading.Thread(target=write)
    writer.start()
    yield
    is_over.set()
    writer.join()


def test_a_ledger_in_use_is_sound(redis_server: RedisServer, servers: CacheServers) -> None:
    ledger = Ledger(servers, ttl_s=100)
    with in_use(redis_server.client, ledger):
        contradictions = [sentence for _ in range(5) for sentence in ledger.check_integrity()]
    assert contradictions == []


@pytest.mark.damages_state
def test_a_ledger_in_use_that_counts_too_little_is_found_out(
    redis_server: RedisServer, servers: CacheServers
) -> None:
    ledger = Ledger(servers, ttl_s=100)
    with in_use(redis_server.client, ledger):
        redis_server.client.hincrby(P + "bytes", "anna", -500 * SIZE)
        contradictions = ledger.check_integrity()
    assert contradictions == [f"{P}bytes: anna has less than its entries have together"]
