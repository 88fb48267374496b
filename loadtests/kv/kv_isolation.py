"""100,000 look-ups that try to reach KV that is not theirs: other tenants, adapters, adapter versions,
models, layouts and prompts.

A private redis-server holds the chunks of several tenants, adapters and models, with prompts that share
beginnings. Every look-up takes a stored identity and changes something of it, as a neighbour, a reloaded
adapter or a mistaken gateway would, and asks as the tier does: does the chunk exist, and does it load and
verify? What loads must be the KV of exactly the identity that was asked for. Some look-ups change nothing,
and must hit; some take a stored value to another key, and must be refused.
"""

from __future__ import annotations

import hashlib
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import redis

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.redis_server import PrivateRedis
from memserve.credentials import tenant_salt
from memserve.kv.keys import CacheNamespace, block_keys, chunk_keys, redis_key
from memserve.kv.store import RedisChunkStore
from memserve.kv.transport.limits import CacheLimits

LOOKUPS, QUICK_LOOKUPS = 100_000, 20_000
BATCH = 64
BLOCK_TOKENS, BLOCKS_PER_CHUNK = 32, 2
CHUNKS = 3
BODY_BYTES = 256


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that decides whose KV it is."""

    model: str
    layout: str
    salt: str
    adapter: str  # a content digest, or "" for the base
    tokens: tuple[int, ...]

    @property
    def namespace(self) -> str:
        return CacheNamespace(self.model, "bfloat16", self.layout, BLOCK_TOKENS, BLOCKS_PER_CHUNK).digest

    @property
    def chunk_keys(self) -> list[bytes]:
        lora = (self.adapter, f"modules/{self.adapter}") if self.adapter else None
        return chunk_keys(
            block_keys(self.tokens, BLOCK_TOKENS, lora=lora, cache_salt=self.salt), BLOCKS_PER_CHUNK
        )

    def body(self, chunk: int) -> bytes:
        """What is stored as the KV of a chunk: as long as KV, and different for whatever is not the same
        prefix of the same identity.
        """
        prefix = self.tokens[: (chunk + 1) * BLOCK_TOKENS * BLOCKS_PER_CHUNK]
        return hashlib.shake_256(
            repr((self.model, self.layout, self.salt, self.adapter, prefix)).encode()
        ).digest(BODY_BYTES)


class World:
    """The identities that may be stored, drawn from few parts, so that they are near to each other."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.models = [hashlib.sha256(f"model {number}".encode()).hexdigest() for number in range(3)]
        self.layouts = ["cpu/vec/LBHNC/tp1", "cpu/amx/LBHNC/tp1", "device/LBHNC/tp2"]
        tenants = ["acme", "acme.", "ACME", "bolt", "acme/bolt", "default"]
        self.salts = [tenant_salt(b"k" * 32, tenant) for tenant in tenants]
        self.adapters = [
            "",
            *(hashlib.sha256(f"adapter {number}".encode()).hexdigest() for number in range(4)),
        ]
        shared = tuple(self._rng.choices(range(5000), k=CHUNKS * BLOCK_TOKENS * BLOCKS_PER_CHUNK))
        self.prompts = [shared]
        for cut in (1, 63, 64, 65, 127, 128, 191):
            self.prompts.append(shared[:cut] + tuple(self._rng.choices(range(5000), k=len(shared) - cut)))

    def draw(self) -> Identity:
        pick = self._rng.choice
        return Identity(
            pick(self.models), pick(self.layouts), pick(self.salts), pick(self.adapters), pick(self.prompts)
        )

    def changed(self, identity: Identity) -> Identity:
        """The same but for one to three parts, each exchanged or slightly altered."""
        for part in self._rng.sample(
            ["model", "layout", "salt", "adapter", "tokens"], self._rng.choice((1, 1, 1, 2, 3))
        ):
            if part == "tokens":
                at = self._rng.randrange(len(identity.tokens))
                swapped = (*identity.tokens[:at], identity.tokens[at] ^ 1, *identity.tokens[at + 1 :])
                identity = replace(
                    identity, tokens=self._rng.choice((swapped, self._rng.choice(self.prompts)))
                )
            else:
                others = {
                    "model": self.models,
                    "layout": self.layouts,
                    "salt": [*self.salts, ""],
                    "adapter": self.adapters,
                }[part]
                value = getattr(identity, part)
                altered = value[:-1] + ("0" if value[-1:] != "0" else "1") if value else "0" * 64
                change: dict[str, Any] = {part: self._rng.choice([*others, altered])}
                identity = replace(identity, **change)
        return identity


def measure(server: PrivateRedis, lookups: int, seed: int) -> Counter[str]:
    world, rng, counts = World(seed), random.Random(seed + 1), Counter[str]()
    stores: dict[str, RedisChunkStore] = {}

    def store_of(namespace: str) -> RedisChunkStore:
        if namespace not in stores:
            stores[namespace] = RedisChunkStore(server.url, namespace, limits=CacheLimits(io_s=5.0))
        return stores[namespace]

    stored = list({world.draw() for _ in range(300)})
    held: dict[tuple[str, bytes], bytes] = {}
    for identity in stored:
        keys = identity.chunk_keys
        bodies = [identity.body(chunk) for chunk in range(len(keys))]
        store_of(identity.namespace).store(keys, bodies, budget_s=10)
        held.update({(identity.namespace, key): body for key, body in zip(keys, bodies, strict=True)})
    counts["identities stored"] = len(stored)
    counts["chunks stored"] = len(held)
    with redis.Redis.from_url(server.url) as raw:
        while counts["look-ups"] < lookups:
            before = rng.choice(stored)
            kind = rng.random()
            if kind < 0.05:
                _moved_value(raw, store_of, before, world.changed(before), counts)
                continue
            asked = before if kind < 0.15 else world.changed(before)
            keys = asked.chunk_keys
            present = store_of(asked.namespace).exists_many(keys)
            destinations = [bytearray(BODY_BYTES) for _ in keys]
            loaded = store_of(asked.namespace).load(
                keys, [memoryview(body) for body in destinations], budget_s=10
            )
            for chunk, (exists, came, destination) in enumerate(
                zip(present, loaded, destinations, strict=True)
            ):
                counts["look-ups"] += 1
                counts["hits"] += came
                counts["foreign hits"] += came and bytes(destination) != asked.body(chunk)
                counts["own entries missed"] += asked == before and not (exists and came)
            if counts["look-ups"] % 10_000 < CHUNKS:
                report(f"{counts['look-ups']:,} of {lookups:,}")
    for store in stores.values():
        store.close()
    return counts


def _moved_value(
    raw: redis.Redis,
    store_of: Callable[[str], RedisChunkStore],
    identity: Identity,
    other: Identity,
    counts: Counter[str],
) -> None:
    """Copy a stored value under another identity's key, as an attacker with a foot in Redis would, and ask
    for it there.
    """
    source, target = (
        redis_key(identity.namespace, identity.chunk_keys[0]),
        redis_key(other.namespace, other.chunk_keys[0]),
    )
    if source == target or raw.exists(target):
        return
    raw.copy(source, target)
    destination = bytearray(BODY_BYTES)
    [came] = store_of(other.namespace).load([other.chunk_keys[0]], [memoryview(destination)], budget_s=10)
    counts["look-ups"] += 1
    counts["values moved to another key"] += 1
    counts["foreign hits"] += came
    raw.delete(target)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("kv_isolation", __doc__)
    options.add_argument(
        "--seed", type=int, default=1, help="seed of the identities and the changes (default: 1)"
    )
    chosen = options.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, PrivateRedis(Path(folder)) as server:
        counts = measure(server, QUICK_LOOKUPS if chosen.quick else LOOKUPS, chosen.seed)
    print_table(("counted", "number"), [(name, f"{number:,}") for name, number in counts.items()])
    bars = [
        Bar("foreign hits", counts["foreign hits"], at_most=0),
        Bar("own entries missed", counts["own entries missed"], at_most=0),
        Bar("hits (so that the look-ups do reach something)", counts["hits"], at_least=1000),
    ]
    return finish(bars, {"counts": dict(counts)}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
