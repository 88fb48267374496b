"""What a routing decision costs a gateway: look up the index, forecast the candidates, pick one.

The gateway's own router over an index of 10 million blocks (--quick: 1 million) that 64 workers hold, most
blocks more than one of them, for prompts of 1k, 16k and 128k tokens in blocks of 16. Half of the prompts are
held, to a random depth, by a few workers; the others by nobody. Tokenizing and hashing come before a decision
and are measured apart. Then the same with 1,024 workers, and what a block takes of memory.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, cast

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.simulator.jobs import H200_8B
from memserve.config import load_settings
from memserve.demo import MODEL_DIR, facts
from memserve.domain import CacheLayout, GenerationRequest, Message, Role, Sampling, WorkerLease
from memserve.domain.worker_calls import EngineState, WorkerCalls, WorkerState
from memserve.gateway.steps.lookup import LookedUp
from memserve.gateway.steps.resolve import AnsweringModules
from memserve.gateway.steps.route import Router
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.gateway.workers.pool import WorkerPool
from memserve.gateway.workers.pooled_worker import PooledWorker
from memserve.kv.index import BlockIndex
from memserve.kv.keys import block_keys
from memserve.model.files import open_model
from memserve.policy.routing.breaker import Breakers
from memserve.policy.routing.load import BUCKETS
from memserve.policy.routing.residuals import Residuals
from memserve.registry.leases import Registry

WORKERS, MANY_WORKERS = 64, 1024
BLOCKS, QUICK_BLOCKS = 10_000_000, 1_000_000
BLOCK_TOKENS = 16
LAYOUT = CacheLayout("ab" * 32, BLOCK_TOKENS, 1)
PROMPTS = {"1k": 1_000, "16k": 16_000, "128k": 128_000}
KEY_BYTES = 32
ADDED_AT_ONCE = 1000
HOLDERS_MAX = 4
DECISIONS, QUICK_DECISIONS = 2000, 300
AT_MOST_MS = 1.0
REQUEST = GenerationRequest((Message(Role.USER, "hello"),), Sampling(max_tokens=64))


def pool_of(workers: int, index: BlockIndex) -> WorkerPool:
    """A pool that knows so many ready workers, each with some load."""
    pool = WorkerPool(cast(Registry, None), index, "tokenizer", lambda lease: cast(WorkerCalls, None))
    dice = random.Random(0)
    for number in range(workers):
        lease = WorkerLease(
            worker_id=f"w{number}",
            address="",
            metrics_address="",
            pid=0,
            model="m",
            model_digest="m",
            tokenizer_digest="tokenizer",
            namespace=LAYOUT.namespace,
            block_tokens=BLOCK_TOKENS,
            blocks_per_chunk=1,
            max_context_tokens=1 << 20,
            max_concurrent=64,
            started_s=0.0,
        )
        waiting = {1: [dice.random() for _ in range(BUCKETS)]}
        engine = EngineState(H200_8B, waiting, dice.random(), 0.0, dice.randrange(64), free_kv_tokens=1 << 20)
        state = WorkerState(engine=engine)
        pool.workers[lease.worker_id] = PooledWorker(
            lease, cast(WorkerCalls, None), connected=True, heard_s=time.monotonic() + 1e6, state=state
        )
    return pool


def fill(index: BlockIndex, blocks: int, workers: int) -> None:
    """Random keys, each held by one to HOLDERS_MAX workers."""
    dice = random.Random(1)
    for start in range(0, blocks, ADDED_AT_ONCE):
        content = os.urandom(KEY_BYTES * ADDED_AT_ONCE)
        keys = [content[at : at + KEY_BYTES] for at in range(0, len(content), KEY_BYTES)]
        for _ in range(dice.randint(1, HOLDERS_MAX)):
            index.add(f"w{dice.randrange(workers)}", keys)
        if start % (blocks // 10) == 0:
            report(f"{start} of {blocks} blocks")


def decisions(pool: WorkerPool, blocks: int, count: int) -> list[float]:
    """Seconds of each decision, for prompts of so many blocks."""
    router = Router(pool, load_settings(), Residuals(), Breakers())
    dice = random.Random(2)
    names = list(pool.workers)
    taken = []
    for number in range(count):
        content = os.urandom(KEY_BYTES * blocks)
        keys = [content[at : at + KEY_BYTES] for at in range(0, len(content), KEY_BYTES)]
        holders = dice.sample(names, HOLDERS_MAX) if number % 2 else []
        for name in holders:
            pool.index.add(name, keys[: dice.randint(1, blocks)])
        cached = {LAYOUT: LookedUp(keys, 0)}
        attempts = router.attempts(REQUEST, "t", [1] * blocks)
        started_s = time.perf_counter()
        router.choose(REQUEST, "t", AnsweringModules(), blocks * BLOCK_TOKENS, cached, attempts, started_s)
        taken.append(time.perf_counter() - started_s)
        for name in holders:
            pool.index.remove(name, keys)
    return taken


def before_a_decision(count: int) -> dict[str, tuple[float, float]]:
    """By prompt length: median seconds of tokenizing and of hashing."""
    tokenizer = ChatTokenizer(open_model(MODEL_DIR))
    found = {}
    for name, tokens in PROMPTS.items():
        text = facts.handbook(0, tokens).text
        taken: list[list[float]] = [[], []]
        for _ in range(count):
            started_s = time.perf_counter()
            token_ids = tokenizer.encode([Message(Role.USER, text)])
            encoded_s = time.perf_counter()
            block_keys(token_ids, BLOCK_TOKENS, lora=None, cache_salt="salt")
            taken[0].append(encoded_s - started_s)
            taken[1].append(time.perf_counter() - encoded_s)
        found[name] = statistics.median(taken[0]), statistics.median(taken[1])
    return found


def p99_ms(seconds: Sequence[float]) -> float:
    return 1000 * sorted(seconds)[int(0.99 * len(seconds))]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("routing_decision", __doc__).parse_args(arguments)
    blocks, count = (QUICK_BLOCKS, QUICK_DECISIONS) if chosen.quick else (BLOCKS, DECISIONS)
    index = BlockIndex()
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fill(index, blocks, WORKERS)
    block_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) * 1024 / blocks
    # What a gateway keeps for long is no work for the collector.
    gc.collect()
    gc.freeze()
    rows, figures = [], dict[str, Any]()
    apart = before_a_decision(3 if chosen.quick else 10)
    for name, tokens in PROMPTS.items():
        report(f"decisions for prompts of {name} tokens")
        ended = {
            workers: decisions(
                pool_of(workers, index), tokens // BLOCK_TOKENS, count // (1 + tokens // 64_000)
            )
            for workers in (WORKERS, MANY_WORKERS)
        }
        few, many = ended[WORKERS], ended[MANY_WORKERS]
        medians = [1000 * statistics.median(each) for each in (few, many)]
        figures[name] = {
            "p50_ms": medians[0],
            "p99_ms": p99_ms(few),
            "p50_ms_1024_workers": medians[1],
            "p99_ms_1024_workers": p99_ms(many),
            "tokenizing_ms": 1000 * apart[name][0],
            "hashing_ms": 1000 * apart[name][1],
        }
        rows.append([name, *(f"{value:.3f}" for value in figures[name].values())])
    columns = [
        "tokens",
        "p50 ms",
        "p99 ms",
        "p50, 1,024 workers",
        "p99, 1,024 workers",
        "tokenizing",
        "hashing",
    ]
    print_table(columns, rows)
    print(f"{blocks} blocks on {WORKERS} workers, {block_bytes:.0f} bytes of memory for each")
    growth = figures["16k"]["p50_ms_1024_workers"] / figures["16k"]["p50_ms"]
    bars = [
        Bar("p99 of a decision at 16k tokens, ms", figures["16k"]["p99_ms"], at_most=AT_MOST_MS),
        Bar(
            f"median at 16k tokens, {MANY_WORKERS} workers ÷ {WORKERS}",
            growth,
            at_most=MANY_WORKERS / WORKERS / 2,
        ),
    ]
    return finish(bars, {"prompts": figures, "bytes_per_block": block_bytes, "blocks": blocks}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
