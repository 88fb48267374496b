"""A cluster on this machine: Redis, a Ray head, worker nodes and a gateway, each a host of its own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loadtests.cluster.hosts import Host, Network
from loadtests.harness.figures import report
from memserve.client import CallFailed, Client
from memserve.config import PREFIX, SETTINGS_DIR
from memserve.embedded import REDIS_ENVIRONMENT, redis_executable
from memserve.registry.leases import WORKERS, lease_key

REDIS_PORT, GATEWAY_PORT = 6379, 50051
GATEWAY_HEALTH, WORKER_HEALTH = 50052, 50062
MIB = 1 << 20
START_S = 240.0
LOOK_S = 0.2
NODES = ("a", "b")


class NotInTime(Exception):
    """Something of the cluster did not happen. The text says what."""


class Cluster:
    """The hosts, and the processes that run on them."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self.folder = folder
        self.password, self.salt_key, self.token = (secrets.token_hex(32) for _ in range(3))
        self.redis = network.host("redis")
        self.head = network.host("head")
        self.nodes = {name: network.host(name) for name in NODES}
        self.gateway = network.host("gateway")
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        return f"{self.gateway.address}:{GATEWAY_PORT}"

    @property
    def registry(self) -> redis.Redis:
        return redis.Redis(self.redis.address, REDIS_PORT, password=self.password, decode_responses=True)

    def start(self) -> None:
        """Start everything. Raises NotInTime."""
        self._write_secrets()
        self.start_redis()
        self.start_node("head")
        for name in NODES:
            self.start_node(name)
        self.started["gateway"] = self._memserve(
            self.gateway,
            "gateway",
            MEMSERVE_HOST="0.0.0.0",
            MEMSERVE_PORT=str(GATEWAY_PORT),
            MEMSERVE_ALLOW_ANONYMOUS="true",
        )

    def start_redis(self) -> None:
        """One Redis for all: the registry, the cache, and the state of Ray's GCS."""
        config = self.folder / "redis.conf"
        config.write_text(
            f'bind 0.0.0.0\nport {REDIS_PORT}\nrequirepass {self.password}\nsave ""\nprotected-mode no\n',
            encoding="utf-8",
        )
        self.started["redis"] = self.redis.start(
            [redis_executable(), config], environment={**os.environ, **REDIS_ENVIRONMENT}
        )
        self.until("Redis answers", lambda: bool(self.registry.ping()), 10)

    def start_node(self, name: str) -> None:
        """name: head, or of a node."""
        host = self.head if name == "head" else self.nodes[name]
        self.started[name] = self._memserve(host, "ray-node", *(["--head"] if name == "head" else []))

    def workers(self) -> dict[str, str]:
        """The ids of the workers whose lease lives, by node."""
        client = self.registry
        by_address = {host.address: name for name, host in self.nodes.items()}
        leases = [client.get(lease_key(str(name))) for name in client.smembers(WORKERS)]
        known = [json.loads(str(lease)) for lease in leases if lease]
        return {by_address[lease["address"].rpartition(":")[0]]: lease["worker_id"] for lease in known}

    def ready(self, host: Host, port: int = WORKER_HEALTH) -> bool:
        """What the host answers to a readiness probe."""
        with grpc.insecure_channel(f"{host.address}:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            with contextlib.suppress(grpc.RpcError):
                answer = stub.Check(health_pb2.HealthCheckRequest(service="ready"), timeout=1)
                return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        return False

    def until_serving(self) -> None:
        """Wait until the gateway knows a worker of each node. Raises NotInTime."""
        with Client(self.address) as client:
            self.until(
                "the gateway has all workers",
                lambda: (
                    set(self.workers().values())
                    == {worker.worker_id for worker in client.status().workers if worker.ready}
                    and set(self.workers()) == set(NODES)
                ),
            )

    def kill(self, host: Host) -> None:
        """`kill -9` of every process on the host."""
        for pid in host.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def until(self, what: str, holds: Callable[[], bool], within_s: float = START_S) -> float:
        """Returns after how many seconds it held. Raises NotInTime."""
        started_s = time.monotonic()
        while time.monotonic() - started_s < within_s:
            with contextlib.suppress(redis.RedisError, CallFailed):
                if holds():
                    took_s = time.monotonic() - started_s
                    report(f"{what}: {took_s:.1f} s")
                    return took_s
            time.sleep(LOOK_S)
        raise NotInTime(f"{what}: not within {within_s:.0f} s; logs are in {self.folder}")

    def run(self, host: Host, script: str, timeout_s: float = 60.0) -> str:
        """What a Python script prints on the host, as a member of the Ray cluster."""
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "token")}
        names = [f"{name}={value}" for name, value in token.items()]
        return host.run(["env", *names, sys.executable, "-W", "ignore", "-c", script], timeout_s)

    def _write_secrets(self) -> None:
        (self.folder / "token").write_text(self.token, encoding="utf-8")
        settings = self.folder / "secrets"
        settings.mkdir()
        for name, value in {
            "redis_url": f"redis://:{self.password}@redis:{REDIS_PORT}",
            "salt_key": self.salt_key,
        }.items():
            (settings / name).write_text(value, encoding="utf-8")

    def _memserve(
        self, host: Host, command: str, *arguments: str, **settings: str
    ) -> subprocess.Popen[bytes]:
        data = self.folder / host.name
        shared = {
            SETTINGS_DIR: str(self.folder / "secrets"),
            f"{PREFIX}DATA_DIR": str(data),
            f"{PREFIX}MODULE_STORE_URL": str(self.folder / "modules"),
            f"{PREFIX}RAY_ADDRESS": "head:6379",
            f"{PREFIX}RAY_TOKEN_FILE": str(self.folder / "token"),
            f"{PREFIX}WORKER_HOST": "0.0.0.0",
            f"{PREFIX}METRICS_HOST": "0.0.0.0",
            f"{PREFIX}WORKER_PORT": "50061",
            f"{PREFIX}WORKER_METRICS_PORT": "9465",
            f"{PREFIX}WORKER_HEALTH_PORT": str(WORKER_HEALTH),
            f"{PREFIX}HEALTH_PORT": str(GATEWAY_HEALTH),
            # Each stands for a host of its own.
            f"{PREFIX}WORKER_NICE": "0",
            f"{PREFIX}KV_DEVICE_BYTES": str(64 * MIB),
            f"{PREFIX}KV_HOST_BYTES": str(32 * MIB),
            # The demo model computes quicker than it loads.
            f"{PREFIX}KV_ALWAYS_LOAD": "true",
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        with (self.folder / f"{host.name}.log").open("ab") as log:
            return host.start(
                [sys.executable, "-m", "memserve", command, *arguments],
                environment={**inherited, **shared, **settings},
                output=log,
            )
