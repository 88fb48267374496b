"""What a prefix in Redis is worth: TTFT of a remote hit against a cold prompt and against a hit in the
engine's own memory.

Two real vLLM engines with the Redis tier on a model of a 0.5B shape, and a private redis-server. In every
round a new prompt is asked of the first engine twice (cold, then a local hit) and, once Redis holds it, of
the second, which has never seen it (remote hit). Either engine answers a short prompt right before its hit:
the second has done nothing while the first computed, for seconds, and an engine at rest takes a hundredth of
a second to come back, wherever the prefix is. A figure is the median of the rounds' ratios.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import redis

from loadtests.harness.engines import BenchEngine, prepare_environment, random_prompt, write_shape
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.redis_server import PrivateRedis

STORE_TIMEOUT_S = 30.0
# What of a prompt may miss: its last, partial chunk.
CACHED_AT_LEAST = 0.95
# Less than a chunk: nothing of it is stored.
WAKE_TOKENS = 96


def wait_until_stored(client: redis.Redis, wanted: int) -> None:
    deadline_s = time.monotonic() + STORE_TIMEOUT_S
    while int(client.dbsize()) < wanted:
        if time.monotonic() > deadline_s:
            raise TimeoutError(
                f"Redis holds {client.dbsize()} of {wanted} chunks after {STORE_TIMEOUT_S:.0f} s"
            )
        time.sleep(0.02)


def measure(
    first: BenchEngine, second: BenchEngine, client: redis.Redis, tokens: int, rounds: int
) -> dict[str, float]:
    taken: dict[str, list[float]] = {"cold": [], "local": [], "remote": []}
    for number in range(rounds + 1):
        prompt = random_prompt(tokens * 1000 + number, tokens)
        client.flushall()
        cold_s, none_cached = first.first_token(prompt)
        assert none_cached == 0
        wait_until_stored(client, (tokens - 1) // first.chunk_tokens)
        first.first_token(random_prompt(number, WAKE_TOKENS))
        local_s, local_cached = first.first_token(prompt)
        second.first_token(random_prompt(number, WAKE_TOKENS))
        remote_s, remote_cached = second.first_token(prompt)
        assert min(local_cached, remote_cached) >= CACHED_AT_LEAST * tokens, (local_cached, remote_cached)
        report(
            f"{tokens} tokens, round {number} of {rounds}: cold {cold_s:.2f}, local {local_s:.3f}, "
            f"remote {remote_s:.3f} s"
        )
        if number:  # the first one warms up
            for name, seconds in (("cold", cold_s), ("local", local_s), ("remote", remote_s)):
                taken[name].append(seconds)
    figures = {f"{name}_s": statistics.median(seconds) for name, seconds in taken.items()}
    for name in ("cold", "local"):
        figures[f"remote_of_{name}"] = statistics.median(
            r / o for r, o in zip(taken["remote"], taken[name], strict=True)
        )
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("kv_remote_hit", __doc__).parse_args(arguments)
    prepare_environment()
    figures: dict[str, dict[str, float]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        PrivateRedis(Path(folder)) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        model = write_shape(Path(folder) / "model")
        report("starting two engines")
        engines = BenchEngine(model, redis_url=server.url), BenchEngine(model, redis_url=server.url)
        try:
            for tokens in (4128,) if chosen.quick else (2080, 4128):
                figures[str(tokens)] = measure(*engines, client, tokens, 1 if chosen.quick else 7)
        finally:
            for engine in engines:
                engine.close()
    columns = ("prompt tokens", "cold s", "local s", "remote s", "remote ÷ cold", "remote ÷ local")
    names = ("cold_s", "local_s", "remote_s", "remote_of_cold", "remote_of_local")
    print_table(
        columns, [[tokens, *(f"{row[name]:.3f}" for name in names)] for tokens, row in figures.items()]
    )
    bars = [Bar("4,128 tokens: remote ÷ cold", figures["4128"]["remote_of_cold"], at_most=1 / 60)]
    bars += [
        Bar(f"{int(tokens):,} tokens: remote ÷ local", row["remote_of_local"], at_most=1.25)
        for tokens, row in figures.items()
    ]
    return finish(bars, {"figures": figures}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
