"""What is done to the cluster, and the figures of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass

from loadtests.cluster.cluster_nodes.asking import Load, failed
from loadtests.cluster.cluster_nodes.rig import Cluster, NotInTime
from loadtests.harness.figures import report
from memserve.client import Client
from memserve.demo.facts import handbook, handbook_questions
from memserve.domain import Message, Role, Sampling

HANDBOOK_TOKENS = 600
STORED_S = 20.0
# The load before something happens.
BEFORE_S = 2.0
BACK_S = 240.0
APPLICATION = """
import ray
ray.init(address="head:6379", namespace="serve", log_to_driver=False, logging_level="ERROR")
from ray import serve
print("state", serve.status().applications["memserve"].status.value)
"""


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """A prompt that node A computed, and that node B was asked then."""

    redis_tokens: int
    """Prompt tokens that B took from Redis."""
    prompt_tokens: int
    equal: bool
    """Whether both gave the same answer."""


def shared_prefix(cluster: Cluster) -> SharedPrefix:
    """Raises NotInTime when what node A computes does not come to Redis."""
    book = handbook(7, HANDBOOK_TOKENS)
    (question,) = handbook_questions(book, 7, 1)
    messages = [Message(Role.SYSTEM, book.text), Message(Role.USER, question.text)]
    workers, sampling = cluster.workers(), Sampling(max_tokens=24)
    with Client(cluster.address) as client:
        of_a = client.generate(messages, worker_id=workers["a"], sampling=sampling)
        cluster.until(
            "what node A computed is in Redis",
            lambda: (client.activation.lookup(messages).redis_tokens or 0) > HANDBOOK_TOKENS // 2,
            STORED_S,
        )
        of_b = client.generate(messages, worker_id=workers["b"], sampling=sampling)
    return SharedPrefix(of_b.usage.cached.redis, of_b.usage.prompt_tokens, of_a.text == of_b.text)


@dataclass(frozen=True, slots=True)
class CutOff:
    """Node B's link down under load, and up again. Times in seconds."""

    requests: int
    ended: int
    """Streams of B that ended UNAVAILABLE."""
    other_failures: tuple[str, ...]
    streams_end_s: float
    """From the cut to the end of the last of them."""
    chosen_for_s: float
    """From the cut to the last time that the gateway chose B."""
    back_s: float
    """From the link up to the gateway choosing B again."""
    same_engine: bool


def cut_off(cluster: Cluster, cut_s: float) -> CutOff:
    """Raises NotInTime when the node does not come back."""
    worker = cluster.workers()["b"]
    with Load(cluster.address) as load:
        time.sleep(BEFORE_S)
        cluster.until("node B has streams", lambda: _chose(load, worker, 0.0), 20)
        cluster.nodes["b"].cut()
        cut_at_s = time.monotonic()
        report(f"node B is cut off for {cut_s:.0f} s")
        time.sleep(cut_s)
        cluster.nodes["b"].mend()
        mended_at_s = time.monotonic()
        back_s = cluster.until(
            "the gateway chooses node B again",
            lambda: _chose(load, cluster.workers().get("b", "none"), mended_at_s),
            BACK_S,
        )
        same_engine = cluster.workers().get("b") == worker
    requests = load.between(cut_at_s, mended_at_s + back_s)
    lost = [
        request
        for request in failed(requests)
        if request.worker_id == worker
        and request.failure.startswith("UNAVAILABLE")
        and request.started_s < cut_at_s
    ]
    chosen = [
        when - cut_at_s
        for request in requests
        for when, chosen_id in request.routes
        if chosen_id == worker and cut_at_s < when < mended_at_s
    ]
    return CutOff(
        requests=len(requests),
        ended=len(lost),
        other_failures=tuple(request.failure for request in failed(requests) if request not in lost),
        streams_end_s=max((request.ended_s - cut_at_s for request in lost), default=0.0),
        chosen_for_s=max(chosen, default=0.0),
        back_s=back_s,
        same_engine=same_engine,
    )


def _chose(load: Load, worker_id: str, since_s: float) -> bool:
    """Whether the gateway has given that worker a request since then."""
    return any(
        when > since_s and chosen == worker_id for asked in list(load.asked) for when, chosen in asked.routes
    )


@dataclass(frozen=True, slots=True)
class HeadLost:
    """The head killed with all of its processes, and started again. Times in seconds."""

    requests: int
    failures: tuple[str, ...]
    """Of requests while the head was away and came back."""
    engines_kept: int
    back_s: float
    """From its start to the application RUNNING."""
    replaced_s: float
    """From a worker's process killed, after that, to another on the same node."""


def head_lost(cluster: Cluster, away_s: float) -> HeadLost:
    """Raises NotInTime."""
    before = cluster.workers()
    with Load(cluster.address) as load:
        time.sleep(BEFORE_S)
        killed_at_s = time.monotonic()
        cluster.kill(cluster.head)
        report(f"the head is away for {away_s:.0f} s")
        time.sleep(away_s)
        cluster.start_node("head")
        started_s = time.monotonic()
        cluster.until("the head is ready", lambda: cluster.ready(cluster.head), BACK_S)
        cluster.until("the application is RUNNING", lambda: _application(cluster) == "RUNNING", BACK_S)
        back_at_s = time.monotonic()
    requests = load.between(killed_at_s, back_at_s)
    kept = sum(cluster.workers().get(name) == worker_id for name, worker_id in before.items())
    with Client(cluster.address) as client:
        pids = {worker.worker_id: worker.pid for worker in client.status().workers}
    report("a worker's process is killed")
    os.kill(pids[before["a"]], signal.SIGKILL)
    replaced_s = cluster.until(
        "another worker on node A", lambda: cluster.workers().get("a", before["a"]) != before["a"], BACK_S
    )
    return HeadLost(
        requests=len(requests),
        failures=tuple(request.failure for request in failed(requests)),
        engines_kept=kept,
        back_s=back_at_s - started_s,
        replaced_s=replaced_s,
    )


def _application(cluster: Cluster) -> str:
    """Its state, as Ray Serve has it; empty while the cluster does not answer."""
    try:
        printed = cluster.run(cluster.head, APPLICATION, timeout_s=30)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"^state (\w+)$", printed, re.MULTILINE)
    return found[1] if found else ""


@dataclass(frozen=True, slots=True)
class Drained:
    """Node B told to stop under load."""

    requests: int
    failures: tuple[str, ...]
    took_s: float
    exit_status: int


def drained(cluster: Cluster) -> Drained:
    """Raises NotInTime."""
    with Load(cluster.address) as load:
        time.sleep(BEFORE_S)
        process, told_s = cluster.started["b"], time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(60)
        except subprocess.TimeoutExpired:
            raise NotInTime("node B does not end within 60 s of SIGTERM") from None
        ended_s = time.monotonic()
        report(f"node B is drained: {ended_s - told_s:.1f} s")
        time.sleep(BEFORE_S)
    requests = load.between(told_s, time.monotonic())
    return Drained(
        len(requests), tuple(request.failure for request in failed(requests)), ended_s - told_s, status
    )


def secrets_shown(cluster: Cluster) -> dict[str, int]:
    """How many command lines of this machine, and entries of Ray's store, have one of the secrets."""
    secrets = [cluster.password, cluster.salt_key, cluster.token]
    lines = subprocess.run(
        ["ps", "axww", "-o", "args"], capture_output=True, encoding="utf-8", errors="replace", check=True
    ).stdout.splitlines()
    entries = _ray_entries(cluster)
    assert entries, "Ray keeps nothing in Redis"
    return {
        "command lines": sum(any(secret in line for secret in secrets) for line in lines),
        "entries of Ray": sum(any(secret.encode() in entry for secret in secrets) for entry in entries),
        "entries looked at": len(entries),
    }


def _ray_entries(cluster: Cluster) -> list[bytes]:
    """All that Ray's GCS keeps: its key-value store, its jobs, its actors and their arguments."""
    import redis

    with redis.Redis(cluster.redis.address, 6379, password=cluster.password) as client:
        keys = [key for key in client.scan_iter("*RAY*") if client.type(key) == b"hash"]
        return [
            part for key in keys for field, value in client.hgetall(key).items() for part in (field, value)
        ]
