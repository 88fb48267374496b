"""What looking a prefix up and loading it costs, by its length: 1,000 to 128,000 tokens, without an engine.

A private redis-server holds the whole prefix in chunks of a 0.5B model's KV (12 KiB a token). Timed are
computing the keys of the prompt's blocks, the gateway's and the tier's look-up (one round trip for all
chunks), loading with verification into memory that is reused, and telling the ledger that all of it was used.
A figure is the median of the rounds; the bar is on the cost of a token at the longest prefix against one at
8,000 tokens.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from loadtests.harness.engines import BLOCK_TOKENS, KV_BYTES_PER_TOKEN, random_prompt
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.redis_server import PrivateRedis
from memserve.kv.keys import block_keys, chunk_keys
from memserve.kv.ledger.records import Owner
from memserve.kv.lookup import PrefixLookup
from memserve.kv.outcomes import Account
from memserve.kv.store import RedisChunkStore
from memserve.kv.transport.limits import CacheLimits

NAMESPACE = "ef" * 32
LENGTHS = (1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 128_000)
BLOCKS_PER_CHUNK = 4
CHUNK_BYTES = BLOCK_TOKENS * BLOCKS_PER_CHUNK * KV_BYTES_PER_TOKEN
# Loaded chunks go here in turn, as they do in an engine's host tier.
HOST_CHUNKS = 128
COMPARED_WITH = 8000


def seconds(action: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        started_s = time.perf_counter()
        action()
        taken.append(time.perf_counter() - started_s)
    return statistics.median(taken)


def measure(server: PrivateRedis, lengths: Sequence[int], rounds: int) -> dict[str, dict[str, float]]:
    store = RedisChunkStore(server.url, NAMESPACE, limits=CacheLimits(io_s=5.0))
    prompt = random_prompt(1, max(lengths))
    report(f"storing {max(lengths):,} tokens of KV")
    every_key = chunk_keys(block_keys(prompt, BLOCK_TOKENS, lora=None, cache_salt="tenant"), BLOCKS_PER_CHUNK)
    body = os.urandom(CHUNK_BYTES)
    for start in range(0, len(every_key), HOST_CHUNKS):
        some = every_key[start : start + HOST_CHUNKS]
        depths = [(start + number + 1) * BLOCK_TOKENS * BLOCKS_PER_CHUNK for number in range(len(some))]
        account = Account(
            Owner(), [every_key[start - 1] if start else b"", *some[:-1]], depths, worth_per_use=0.1
        )
        store.store(some, [body] * len(some), budget_s=60, account=account)
    host = [memoryview(bytearray(CHUNK_BYTES)) for _ in range(HOST_CHUNKS)]
    report("loading all of it once, so that the machine has it at hand")
    for start in range(0, len(every_key), HOST_CHUNKS):
        some = every_key[start : start + HOST_CHUNKS]
        store.load(some, host[: len(some)], budget_s=60)
    figures = {}
    with asyncio.Runner() as runner:

        async def open_lookup() -> PrefixLookup:
            return PrefixLookup(server.url, budget_s=10)

        lookup = runner.run(open_lookup())
        for length in lengths:
            report(f"{length:,} tokens, {rounds} rounds")
            keys = every_key[: length // (BLOCK_TOKENS * BLOCKS_PER_CHUNK)]

            def load(keys: Sequence[bytes] = keys) -> None:
                for start in range(0, len(keys), HOST_CHUNKS):
                    some = keys[start : start + HOST_CHUNKS]
                    assert all(store.load(some, host[: len(some)], budget_s=60))

            def gateway(keys: Sequence[bytes] = keys) -> None:
                assert runner.run(lookup.present(NAMESPACE, keys)) == len(keys)

            load()
            figures[str(length)] = {
                "keys_s": seconds(
                    partial(block_keys, prompt[:length], BLOCK_TOKENS, lora=None, cache_salt="tenant"), rounds
                ),
                "gateway_lookup_s": seconds(gateway, rounds),
                "tier_lookup_s": seconds(partial(store.exists_many, keys), rounds),
                "load_s": seconds(load, rounds),
                "ledger_s": seconds(partial(store.use, keys), rounds),
            }
        runner.run(lookup.close())
    store.close()
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("kv_growth", __doc__).parse_args(arguments)
    lengths, rounds = (LENGTHS[:6], 5) if chosen.quick else (LENGTHS, 9)
    with tempfile.TemporaryDirectory() as folder, PrivateRedis(Path(folder)) as server:
        figures = measure(server, lengths, rounds)
    rows = [
        [
            f"{int(length):,}",
            f"{int(length) * KV_BYTES_PER_TOKEN / 1e6:,.0f}",
            *(
                f"{row[name] * 1000:.2f}"
                for name in ("keys_s", "gateway_lookup_s", "tier_lookup_s", "load_s", "ledger_s")
            ),
            f"{int(length) * KV_BYTES_PER_TOKEN / row['load_s'] / 1e9:.2f}",
        ]
        for length, row in figures.items()
    ]
    print_table(
        (
            "tokens",
            "MB",
            "keys ms",
            "gateway's look-up ms",
            "tier's look-up ms",
            "load ms",
            "ledger ms",
            "load GB/s",
        ),
        rows,
    )
    longest = str(max(lengths))
    bars = []
    for name in ("keys_s", "gateway_lookup_s", "tier_lookup_s", "load_s", "ledger_s"):
        growth = (figures[longest][name] / int(longest)) / (figures[str(COMPARED_WITH)][name] / COMPARED_WITH)
        bars.append(
            Bar(
                f"{name.removesuffix('_s')}: cost of a token at {int(longest):,} ÷ at {COMPARED_WITH:,}",
                growth,
                at_most=1.5,
            )
        )
    return finish(bars, {"figures": figures}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
