"""A worker in a process of its own, which is killed and started again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from loadtests.harness.demo_engine import PATIENT
from loadtests.harness.engines import prepare_environment
from loadtests.harness.tenant_engine import Asked, TenantEngine


def ask_each(engine: TenantEngine, prompts: Sequence[Asked]) -> tuple[list[tuple[int, ...]], float, int]:
    """Returns the tokens, the longest wait, and the cached tokens."""
    answers, longest_s, cached = [], 0.0, 0
    for prompt in prompts:
        started_s = time.perf_counter()
        [answer] = engine.ask([prompt])
        longest_s = max(longest_s, time.perf_counter() - started_s)
        answers.append(answer.token_ids)
        cached += answer.cached_tokens
    return answers, longest_s, cached


def serve_worker(connection: Connection, redis_url: str) -> None:
    """Start as a worker does, and answer; the whole of a process."""
    prepare_environment()
    from memserve.worker.kv.host_regions import sweep_orphan_regions

    sweep_orphan_regions()
    engine = TenantEngine(redis_url, PATIENT, counts=True)
    connection.send("ready")
    while prompts := connection.recv():
        answers, longest_s, cached = ask_each(engine, prompts)
        connection.send((answers, longest_s, cached, engine.counted("memserve_kv_tier_hits")))
    engine.close()


class Worker:
    """A process that runs `serve_worker`."""

    def __init__(self, redis_url: str) -> None:
        """Returns when it is ready."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve_worker, args=(theirs, redis_url))
        self.process.start()
        theirs.close()
        self.connection.recv()

    def regions(self) -> set[Path]:
        """The shared memory that it and its engine have mapped."""
        root = psutil.Process(self.process.pid)
        maps = [
            mapped.path
            for process in (root, *root.children(recursive=True))
            for mapped in process.memory_maps()
        ]
        return {Path(path.removesuffix(" (deleted)")) for path in maps if "/vllm_offload_" in path}

    def kill(self) -> None:
        """With -9, it alone: its engine's process sees that and ends."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()

    def close(self) -> None:
        self.connection.send(())
        self.process.join()


@dataclass(frozen=True, slots=True)
class Restart:
    """What became of a worker that was killed, and of its successor."""

    was_answering: bool
    left: int
    """Files of the killed worker's shared memory, after its successor had started."""
    restart_s: float
    right: int
    cached_tokens: int
    hits: int


# Long enough that the worker is at work, and much shorter than the answers take.
ANSWERING_S = 0.2


def kill_and_restart(
    redis_url: str, prompts: Sequence[Asked], cold: Sequence[tuple[int, ...]], region_age_s: float
) -> Restart:
    """prompts: [n], in Redis; cold: [n] their answers. region_age_s: how long the worker has run when it is
    killed.
    """
    worker = Worker(redis_url)
    regions = worker.regions()
    time.sleep(region_age_s)
    # Many times over: they must not be answered before the end.
    worker.connection.send([*prompts] * 10)
    time.sleep(ANSWERING_S)
    was_answering = bool(regions) and not worker.connection.poll()
    worker.kill()
    started_s = time.monotonic()
    successor = Worker(redis_url)
    restart_s = time.monotonic() - started_s
    left = [region for region in regions if region.exists()]
    successor.connection.send(prompts)
    answers, _, cached, hits = successor.connection.recv()
    successor.close()
    for region in left:
        region.unlink(missing_ok=True)
    same = sum(answer == other for answer, other in zip(answers, cold, strict=True))
    return Restart(was_answering, len(left), restart_s, same, cached, hits)
