"""What the Redis tier costs the engine's scheduler, and cold requests, while Redis does not answer.

First the tier alone, driven as vLLM's scheduler drives it in every step (look-ups of new requests, a load, a
store, finished jobs, statistics), with Redis stopped by SIGSTOP half-way: the longest time on the calling
thread. Then two real engines on a model of a 0.5B shape, one with the tier on a stopped Redis and one without
a tier: TTFT of the same cold prompts, alternating, as the median of the ratios.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from loadtests.harness.engines import BenchEngine, prepare_environment, random_prompt, write_shape
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.redis_server import PrivateRedis

STEPS = 1000
STEP_S = 0.01
CHUNKS_PER_REQUEST = 64
CHUNK_BYTES = 768 << 10
HOST_CHUNKS = 128
PROMPT_TOKENS = 2080


def steps_on_the_scheduler(url: str, server_pid: int, steps: int) -> dict[str, list[float]]:
    """Seconds that each step spent in the tier, before and after Redis stopped."""
    import numpy as np
    from vllm.v1.kv_offload.base import OffloadKey, ReqContext, ScheduleEndContext
    from vllm.v1.kv_offload.tiering.base import TransferJob

    from memserve.worker.kv.redis_tier import RedisTier

    host = np.zeros((HOST_CHUNKS, CHUNK_BYTES), dtype=np.int8)
    spec: Any = SimpleNamespace(kv_events_config=SimpleNamespace(enable_kv_cache_events=False))
    tier = RedisTier(spec, host.data, "RedisTier", redis_url=url, namespace="cd" * 32)
    taken: dict[str, list[float]] = {"answers": [], "stopped": []}
    busy: set[int] = set()  # host chunks that a job holds
    jobs: dict[int, range] = {}
    for step in range(2 * steps):
        if step == steps:
            report("Redis is stopped")
            os.kill(server_pid, signal.SIGSTOP)
        request = ReqContext(f"request-{step}")
        keys = [
            OffloadKey((step * CHUNKS_PER_REQUEST + number).to_bytes(36, "big"))
            for number in range(CHUNKS_PER_REQUEST)
        ]
        place = (step % (HOST_CHUNKS // 8)) * 8
        chunks = range(place, place + 8)
        started_s = time.perf_counter()
        tier.on_new_request(request)
        for key in keys:
            tier.lookup(key, request)
        tier.on_schedule_end(ScheduleEndContext(new_req_ids=[request.req_id], preempted_req_ids=()))
        for done in tier.get_finished_jobs():
            busy -= set(jobs.pop(done.job_id))
        if busy.isdisjoint(chunks):
            busy |= set(chunks)
            jobs[step] = chunks
            job = TransferJob(step, keys[:8], np.array(chunks, dtype=np.int32), step % 2 == 1, request)
            (tier.submit_load if step % 2 else tier.submit_store)(job)
        tier.on_request_finished(request)
        tier.get_stats()
        taken["stopped" if step >= steps else "answers"].append(time.perf_counter() - started_s)
        time.sleep(STEP_S)
    os.kill(server_pid, signal.SIGCONT)
    tier.shutdown()
    return taken


def ttft_ratios(model: Path, server: PrivateRedis, rounds: int) -> list[float]:
    report("starting two engines")
    with_tier, without = BenchEngine(model, redis_url=server.url), BenchEngine(model)
    server.pause()
    ratios = []
    try:
        for number in range(rounds + 1):
            prompt = random_prompt(number, PROMPT_TOKENS)
            arms = [with_tier, without] if number % 2 else [without, with_tier]
            seconds = {id(engine): engine.first_token(prompt)[0] for engine in arms}
            ratio = seconds[id(with_tier)] / seconds[id(without)]
            report(
                f"round {number} of {rounds}: {seconds[id(with_tier)]:.3f} s with the tier, ratio {ratio:.3f}"
            )
            if number:
                ratios.append(ratio)
    finally:
        server.resume()
        with_tier.close()
        without.close()
    return ratios


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("kv_scheduler", __doc__).parse_args(arguments)
    prepare_environment()
    with tempfile.TemporaryDirectory() as folder, PrivateRedis(Path(folder)) as server:
        report(f"{STEPS} steps with Redis, {STEPS} without an answer")
        taken = steps_on_the_scheduler(server.url, server.process.pid, STEPS // 4 if chosen.quick else STEPS)
        ratios = ttft_ratios(write_shape(Path(folder) / "model"), server, 2 if chosen.quick else 11)
    quantiles = {name: statistics.quantiles(seconds, n=100) for name, seconds in taken.items()}
    rows = [
        [f"Redis {name}", *(f"{1000 * seconds:.3f}" for seconds in (cuts[49], cuts[98], max(taken[name])))]
        for name, cuts in quantiles.items()
    ]
    print_table(("tier on the scheduler's thread, ms a step", "p50", "p99", "max"), rows)
    bars = [
        Bar(
            "Redis stopped: p99 of the tier on the scheduler's thread, ms",
            1000 * quantiles["stopped"][98],
            at_most=1.0,
        ),
        Bar(
            "Redis stopped: TTFT of a cold request ÷ without the tier",
            statistics.median(ratios),
            at_most=1.02,
        ),
    ]
    figures = {f"{name}_p99_ms": 1000 * cuts[98] for name, cuts in quantiles.items()}
    return finish(bars, {**figures, "ttft_ratios": ratios}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
