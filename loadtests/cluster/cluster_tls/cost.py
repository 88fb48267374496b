"""What TLS costs: the gateway's processor time for a token and for a request, and KV's way from Redis.

Two gateways on one machine, each with two fake workers: one without TLS, one with TLS to its clients and to
its workers. Rounds alternate between them, and a figure is the median of the rounds' ratios. What a gateway
uses without a request is taken off. The load is that of `gateway_overhead`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from loadtests.cluster.cluster_tls.rig import environment
from loadtests.harness.certificates import Trial, new_trial
from loadtests.harness.figures import report
from loadtests.harness.redis_server import PrivateRedis
from loadtests.harness.second_gateway import second_gateway
from loadtests.harness.tls_redis import one_server
from loadtests.traffic.gateway_overhead.__main__ import Client, Target
from memserve.config import load_settings
from memserve.demo import MODEL_DIR
from memserve.kv.store import RedisChunkStore
from memserve.kv.transport.limits import CacheLimits
from memserve.processes.ports import taken_ports

WORKERS = 2
SALT_KEY = "cd" * 32
IDLE_S = 1.5
WAYS = ("plain", "tls")
CHUNK_BYTES, CHUNKS = 1 << 20, 16


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one unit, without and with TLS."""

    plain: float
    tls: float
    ratio: float


def costs(folder: Path, rounds: int, tokens: int, requests: int) -> dict[str, Cost]:
    """Processor time in us, by "token_grpc" and so on; and "chunk_ms": KV from Redis, wall time."""
    trial = new_trial(folder / "certs")
    measured = {}
    with ExitStack() as stack:
        targets = {
            (way, wire): target
            for way in WAYS
            for wire, target in stack.enter_context(_targets(folder, way, trial)).items()
        }
        client = Client()
        stack.callback(client.close)
        idle = {way: _idle_cores(targets[way, "grpc"]) for way in WAYS}
        targets = {key: replace(target, idle_cores=idle[key[0]]) for key, target in targets.items()}
        for wire in ("grpc", "http"):
            pair = {way: targets[way, wire] for way in WAYS}
            stream = {"streams": 16, "requests": 16, "tokens": tokens, "step_ms": 20}
            measured[f"token_{wire}"] = _cost(client, pair, f"{wire}, a token", rounds, stream)
            single = {"streams": 4, "requests": requests, "tokens": 1, "step_ms": 0}
            measured[f"request_{wire}"] = _cost(client, pair, f"{wire}, a request", rounds, single)
    measured["chunk_ms"] = _chunk_cost(folder / "redis", trial, rounds)
    return measured


def _cost(client: Client, pair: Mapping[str, Target], name: str, rounds: int, job: Mapping[str, int]) -> Cost:
    units = job["requests"] * job["tokens"]
    used: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in WAYS if number % 2 else reversed(WAYS):
            _, cpu_s = client.run(pair[way], **job)
            used[way].append(cpu_s / units * 1e6)
        report(f"{name}: {used['plain'][-1]:.0f} us, with TLS {used['tls'][-1]:.0f} us")
    return _of(used)


def _of(used: Mapping[str, list[float]]) -> Cost:
    """The first round is warm-up."""
    plain, tls = used["plain"][1:], used["tls"][1:]
    ratios = [with_tls / without for with_tls, without in zip(tls, plain, strict=True)]
    return Cost(statistics.median(plain), statistics.median(tls), statistics.median(ratios))


def _idle_cores(target: Target) -> float:
    before_s = target.cpu_s()
    time.sleep(IDLE_S)
    return (target.cpu_s() - before_s) / IDLE_S


@contextmanager
def _targets(folder: Path, way: str, trial: Trial) -> Iterator[dict[str, Target]]:
    place = folder / way
    place.mkdir()
    with ExitStack() as stack:
        redis = stack.enter_context(PrivateRedis(place))
        base: dict[str, object] = {"redis_url": redis.url, "salt_key": SALT_KEY, "metrics": False}
        for number in range(WORKERS):
            stack.enter_context(_worker(f"w{number}", {**base, **_internal(way, trial, "internal-worker")}))
        public = trial.files("public")
        tls: dict[str, object] = {} if way == "plain" else {
            "tls_cert_file": public.certificate, "tls_key_file": public.key,
            "tls_client_ca_file": public.authorities, **_internal(way, trial, "internal-gateway"),
        }  # fmt: skip
        settings = load_settings(
            {}, data_dir=place / "first", model=str(MODEL_DIR), max_inflight=1024,
            max_inflight_per_tenant=1024, max_calls_per_tenant=1024, **base, **tls,
        )  # fmt: skip
        gateway = stack.enter_context(second_gateway(settings, place / "gateway"))
        process = psutil.Process(gateway.process.pid)
        http = f"127.0.0.1:{(taken_ports(place / 'gateway', process.pid) or {})['http_port']}"
        shown = "" if way == "plain" else str(trial.folder / "client")
        yield {
            "grpc": Target("gateway_grpc", gateway.address, process, tls=shown),
            "http": Target("gateway_http", http, process, tls=shown),
        }


def _internal(way: str, trial: Trial, part: str) -> dict[str, object]:
    if way == "plain":
        return {}
    files = trial.files(part)
    return {
        "internal_tls_ca_file": files.authorities,
        "internal_tls_cert_file": files.certificate,
        "internal_tls_key_file": files.key,
    }


@contextmanager
def _worker(worker_id: str, settings: Mapping[str, object]) -> Iterator[None]:
    module = "loadtests.cluster.cluster_tls.worker"
    process = subprocess.Popen(
        [sys.executable, "-m", module, worker_id, "127.0.0.1", str(MODEL_DIR)],
        env=environment(settings),
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        assert process.stdout
        if not process.stdout.readline():
            raise RuntimeError("a worker has not started")
        yield
    finally:
        process.kill()
        process.wait()


def _chunk_cost(folder: Path, trial: Trial, rounds: int) -> Cost:
    """Milliseconds for one chunk of KV from Redis over TCP on this machine."""
    limits = CacheLimits(io_s=5.0, lookup_s=5.0, connect_s=5.0)
    files = trial.files("internal-worker")
    with one_server(trial.files("redis"), folder) as server, server.plain_port() as plain:
        parameters = (
            f"ssl_ca_certs={files.authorities}&ssl_certfile={files.certificate}&ssl_keyfile={files.key}"
        )
        urls = {
            "plain": f"redis://127.0.0.1:{plain}",
            "tls": f"rediss://127.0.0.1:{server.port}?{parameters}",
        }
        stores = {way: RedisChunkStore(url, "ab" * 32, ttl_s=600, limits=limits) for way, url in urls.items()}
        keys = [bytes([number]) * 36 for number in range(CHUNKS)]
        stores["plain"].store(keys, [os.urandom(CHUNK_BYTES) for _ in keys], budget_s=30)
        places = [memoryview(bytearray(CHUNK_BYTES)) for _ in keys]
        used: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(4 * rounds + 1):
            for way in WAYS if number % 2 else reversed(WAYS):
                begun_s = time.perf_counter()
                if not all(stores[way].load(keys, places, budget_s=10)):
                    raise RuntimeError(f"{way}: a chunk did not come")
                used[way].append((time.perf_counter() - begun_s) / CHUNKS * 1e3)
        for store in stores.values():
            store.close()
    return _of(used)
