"""Two writers race on one tenant's quota: what the ledger counts is what Redis holds, and never more than the
quota.

Each writer is a process of its own with a store as a worker has it. They store chains that overlap (the same
prefixes, longer and shorter), load some, remove some, and together want several times the quota. In every
second the quota is held against what Redis holds; at the end counted bytes are held against stored bytes,
tenant by tenant, and every chain that is there is there from its beginning on.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import redis

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.redis_server import PrivateRedis
from memserve.kv.keys import VALUE_PREFIX, member
from memserve.kv.ledger.names import entry_key
from memserve.kv.ledger.records import Owner, Quotas
from memserve.kv.outcomes import Account
from memserve.kv.store import RedisChunkStore
from memserve.kv.transport.limits import CacheLimits
from memserve.kv.values.envelope import HEADER_BYTES

SECONDS, QUICK_SECONDS = 60.0, 15.0
WRITERS = 2
CHAINS, CHAIN_CHUNKS = 40, 24
CHUNK_BYTES = 64 << 10
CHUNK_TOKENS = 64
QUOTA_CHUNKS = 200
QUOTA_BYTES = QUOTA_CHUNKS * (CHUNK_BYTES + HEADER_BYTES)
NAMESPACE = "ab" * 32
RACED, OTHER = "anna", "bert"


def chain(number: int) -> list[bytes]:
    """The chunk keys of a chain."""
    return [bytes([number, place]) * 16 + bytes(4) for place in range(CHAIN_CHUNKS)]


def write(url: str, seed: int, until_s: float, counts_to: multiprocessing.Queue[dict[str, int]]) -> None:
    """A writer's process."""
    quotas = Quotas(tenant_bytes=QUOTA_BYTES)
    store = RedisChunkStore(
        url, NAMESPACE, quotas=quotas, limits=CacheLimits(io_s=10, lookup_s=10, failures_to_open=1000)
    )
    draw = random.Random(seed)
    body = draw.randbytes(CHUNK_BYTES)
    places = [memoryview(bytearray(CHUNK_BYTES)) for _ in range(CHAIN_CHUNKS)]
    counts: Counter[str] = Counter()
    while time.monotonic() < until_s:
        number, length = draw.randrange(CHAINS), draw.randrange(1, CHAIN_CHUNKS + 1)
        keys = chain(number)[:length]
        present = sum(store.exists_many(keys))
        if draw.random() < 0.3 and present:
            loaded = store.load(keys[:present], places[:present], budget_s=10)
            store.use([key for key, came in zip(keys, loaded, strict=False) if came])
            counts["loaded"] += sum(loaded)
        elif draw.random() < 0.05:
            condemned, _ = store.ledger.condemn(
                [member(NAMESPACE, key) for key in chain(number)[length - 1 :]]
            )
            store.ledger.remove_values(condemned)
            counts["removed on request"] += len(condemned)
        else:
            owner = Owner(OTHER if number % 10 == 0 else RACED)
            account = Account(
                owner,
                [b"", *keys[:-1]],
                [CHUNK_TOKENS * (n + 1) for n in range(len(keys))],
                worth_per_use=0.5,
            )
            for outcome in store.store(keys, [body] * len(keys), budget_s=10, account=account):
                counts[outcome.value] += 1
    stats = store.take_stats()
    counts.update({f"removed for {reason.value}": number for reason, number in stats.removed.items()})
    counts.update({"unanswered": stats.unanswered, "refused on load": stats.refused.total()})
    store.close()
    counts_to.put(dict(counts))


def stored(client: redis.Redis) -> dict[str, int]:
    """Bytes that Redis really holds, by the tenant of their entry; "nobody" for values that no entry
    counts.
    """
    held: Counter[str] = Counter()
    for key in client.scan_iter(VALUE_PREFIX + "*", count=1000):
        owner = cast(bytes | None, client.hget(entry_key(key.decode().removeprefix(VALUE_PREFIX)), "t"))
        held[owner.decode() if owner else "nobody"] += client.strlen(key)
    return dict(held)


def broken_chains(client: redis.Redis) -> int:
    """Chunks in Redis whose beginning is not."""
    present = [
        [bool(client.exists(VALUE_PREFIX + member(NAMESPACE, key))) for key in chain(number)]
        for number in range(CHAINS)
    ]
    return sum(sum(chunks[chunks.index(False) :]) for chunks in present if False in chunks)


@dataclass(frozen=True, slots=True)
class Race:
    """What the writers did, and what Redis holds after them."""

    counts: Counter[str]
    most_bytes: int
    """What the raced tenant was seen to hold at most, while they raced."""
    held: dict[str, int]
    """As of `stored`."""
    counted: dict[str, int]
    """Bytes that the ledger counts, by tenant, and of all."""
    broken: int
    """As of `broken_chains`."""


def race(server: PrivateRedis, client: redis.Redis, seconds: float) -> Race:
    context = multiprocessing.get_context("spawn")
    counts_of = context.Queue()
    until_s = time.monotonic() + seconds
    writers = [
        context.Process(target=write, args=(server.url, seed, until_s, counts_of)) for seed in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    most_bytes = 0
    while any(writer.is_alive() for writer in writers) and time.monotonic() < until_s:
        time.sleep(1.0)
        # Not a snapshot: what is evicted and stored while it is read may be counted on both sides, or on
        # neither.
        most_bytes = max(most_bytes, stored(client).get(RACED, 0))
        report(
            f"{max(0.0, until_s - time.monotonic()):5.0f} s left, {most_bytes / QUOTA_BYTES:.3f} "
            "of the quota at most"
        )
    counts: Counter[str] = Counter()
    for _ in writers:
        counts.update(counts_of.get(timeout=60))
    for writer in writers:
        writer.join()
    counted = {
        tenant: int(client.hget("{memserve:kv}:bytes", name) or 0)  # type: ignore[arg-type]
        for tenant, name in ((RACED, RACED), (OTHER, OTHER), ("all", "*"))
    }
    return Race(counts, most_bytes, stored(client), counted, broken_chains(client))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("kv_quota", __doc__).parse_args(arguments)
    seconds = QUICK_SECONDS if chosen.quick else SECONDS
    with (
        tempfile.TemporaryDirectory() as folder,
        PrivateRedis(Path(folder)) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        result = race(server, client, seconds)
    held, counts = result.held, result.counts
    rows = [
        (tenant, counted, sum(held.values()) if tenant == "all" else held.get(tenant, 0))
        for tenant, counted in result.counted.items()
    ]
    print_table(("tenant", "counted bytes", "stored bytes"), rows)
    print()
    print_table(("in all", "chunks"), [[name, number] for name, number in sorted(counts.items())])
    bars = [
        Bar(
            "difference of counted and stored bytes, all tenants",
            sum(abs(counted_bytes - stored_bytes) for _, counted_bytes, stored_bytes in rows),
            at_most=0,
        ),
        Bar(
            "stored bytes ÷ quota of the raced tenant, at the end",
            held.get(RACED, 0) / QUOTA_BYTES,
            at_most=1,
        ),
        Bar("the same, seen while they raced", result.most_bytes / QUOTA_BYTES, at_most=1),
        Bar("evictions for the quota", counts["removed for tenant_quota"], at_least=100),
        Bar("calls that failed", counts["unanswered"] + counts["refused on load"], at_most=0),
    ]
    print(
        "\nchunks whose chain's beginning is gone (removed on request while a writer stored its "
        f"end): {result.broken}"
    )
    figures: dict[str, object] = {
        "counts": dict(counts),
        "counted": result.counted,
        "stored": held,
        "broken_chains": result.broken,
        "seconds": seconds,
    }
    return finish(bars, figures, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
