"""Traces of requests: the published one, one of our own making, and what is overlaid on them.

`memserve/bench/trace.py` reads the format.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from memserve.bench.trace import BLOCK_TOKENS, Arrival

# A block that begins so many prompts is a system prompt: copies of the trace share it.
HOT = 100


def synthetic_trace(requests: int, seed: int) -> list[Arrival]:
    """Conversations that come back, over system prompts of a few applications, some over long documents.

    Poisson arrivals of sessions, 0.9 a second; 12 applications by Zipf with system prompts of 1 to 6 blocks;
    a fifth of the sessions begins with one of 200 documents of 8 to 60 blocks; geometric number of turns,
    mean 4; log-normal turns (median 700 tokens in, 180 out); exponential pauses, mean 45 s.
    """
    dice = random.Random(seed)
    ids = iter(range(1 << 60))
    systems = [tuple(next(ids) for _ in range(dice.randint(1, 6))) for _ in range(12)]
    documents = [tuple(next(ids) for _ in range(dice.randint(8, 60))) for _ in range(200)]
    popularity = [1 / (rank + 1) for rank in range(len(systems))]
    arrivals: list[Arrival] = []
    start_s = 0.0
    while len(arrivals) < requests:
        start_s += dice.expovariate(0.9)
        at_s, history = start_s, list(dice.choices(systems, popularity)[0])
        if dice.random() < 0.2:
            history += dice.choice(documents)
        while True:
            turn = max(32, int(dice.lognormvariate(math.log(700), 0.9)))
            output = max(8, min(2000, int(dice.lognormvariate(math.log(180), 0.8))))
            # The last block of a prompt is private: the turn's text ends in it.
            history += [next(ids) for _ in range(max(1, round(turn / BLOCK_TOKENS)))]
            prompt = len(history) * BLOCK_TOKENS - dice.randint(0, BLOCK_TOKENS - 1)
            arrivals.append(Arrival(at_s, prompt, output, tuple(history)))
            if dice.random() < 0.25 or len(history) > 230:
                break
            history += [next(ids) for _ in range(round(output / BLOCK_TOKENS))]
            at_s += output * 0.03 + dice.expovariate(1 / 45)
    return sorted(arrivals, key=lambda arrival: arrival.at_s)[:requests]


def copies(trace: Sequence[Arrival], count: int, speed: float, seed: int) -> list[Arrival]:
    """The trace `count` times at the same time, each turned by an offset of its own, `speed` times as fast.

    Each copy has blocks of its own, but for the hot ones. Block ids become small numbers.
    """
    dice = random.Random(seed)
    starts: dict[int, int] = {}
    for arrival in trace:
        for block in arrival.blocks:
            starts[block] = starts.get(block, 0) + 1
    length_s = max(arrival.at_s for arrival in trace) + 1e-3
    known: dict[tuple[int, int], int] = {}
    merged = []
    for copy in range(count):
        offset_s = dice.random() * length_s
        for arrival in trace:
            blocks = tuple(
                known.setdefault((0 if starts[block] >= HOT else copy + 1, block), len(known))
                for block in arrival.blocks
            )
            at_s = (arrival.at_s + offset_s) % length_s / speed
            merged.append(
                replace(arrival, at_s=at_s, blocks=blocks, session=_session(blocks, starts, arrival))
            )
    return sorted(merged, key=lambda arrival: arrival.at_s)


def repeated(arrivals: Sequence[Arrival], times: int) -> Iterator[Arrival]:
    """One after the other, each with blocks of its own, but for its first. Made as they are asked for."""
    yield from arrivals
    length_s = arrivals[-1].at_s
    ids = 1 + max(max(arrival.blocks) for arrival in arrivals)
    for time in range(1, times):
        for arrival in arrivals:
            blocks = tuple(block + time * ids for block in arrival.blocks)
            yield replace(arrival, at_s=arrival.at_s + time * length_s, blocks=blocks)


def unshared(trace: Sequence[Arrival]) -> list[Arrival]:
    """The same load without a block that comes twice."""
    ids = iter(range(1 << 60))
    return [replace(arrival, blocks=tuple(next(ids) for _ in arrival.blocks)) for arrival in trace]


def with_adapters(arrivals: Sequence[Arrival], adapters: int, seed: int) -> list[Arrival]:
    """Each session on one adapter, by Zipf. KV of other adapters is other KV."""
    dice = random.Random(seed)
    names = [f"a{number}" for number in range(adapters)]
    weights = [1 / (rank + 1) for rank in range(adapters)]
    of: dict[str, str] = {}
    known: dict[tuple[str, int], int] = {}
    result = []
    for arrival in arrivals:
        if arrival.session not in of:
            of[arrival.session] = dice.choices(names, weights)[0]
        adapter = of[arrival.session]
        blocks = tuple(known.setdefault((adapter, block), len(known)) for block in arrival.blocks)
        result.append(replace(arrival, adapter=adapter, blocks=blocks))
    return result


def with_tenants(arrivals: Sequence[Arrival], shares: Sequence[float], seed: int) -> list[Arrival]:
    """Each session of a tenant, t0, t1 and so on, by their shares of the load. Each has KV of its own."""
    dice = random.Random(seed)
    names = [f"t{number}" for number in range(len(shares))]
    of: dict[str, str] = {}
    known: dict[tuple[str, int], int] = {}
    result = []
    for arrival in arrivals:
        tenant = of.get(arrival.session) or of.setdefault(arrival.session, dice.choices(names, shares)[0])
        blocks = tuple(known.setdefault((tenant, block), len(known)) for block in arrival.blocks)
        result.append(replace(arrival, tenant=tenant, blocks=blocks))
    return result


def write_trace(trace: Sequence[Arrival], path: Path) -> None:
    """In the format that `read_trace` reads."""
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(_lines(trace))


def _lines(trace: Sequence[Arrival]) -> Iterator[str]:
    for arrival in trace:
        each = {
            "timestamp": round(arrival.at_s * 1000),
            "input_length": arrival.prompt_tokens,
            "output_length": arrival.output_tokens,
            "hash_ids": list(arrival.blocks),
        }
        yield json.dumps(each) + "\n"


def _session(blocks: Sequence[int], starts: dict[int, int], arrival: Arrival) -> str:
    """What is common to the turns of a conversation: the first block that is not a system prompt's."""
    for block, original in zip(blocks, arrival.blocks, strict=True):
        if starts[original] < HOT:
            return str(block)
    return str(blocks[-1])
