"""A memserve in pieces on this machine: each part is a process that can be ended and started again.

Two gateways, one registry, one cache, one `milvus-lite server`, and the workers of one `memserve workers`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loadtests.harness.figures import report
from loadtests.harness.kept_port import KeptPort
from memserve.api.grpc.probes import READY
from memserve.client import AsyncClient, CallFailed
from memserve.config import Settings, child_environment, load_settings
from memserve.demo import MODEL_DIR
from memserve.embedded import REDIS_ENVIRONMENT, redis_executable

REGISTRY, CACHE, MILVUS, WORKER = "registry", "cache", "milvus", "worker"
SALT_KEY = "cd" * 32
START_S = 120.0
WORKERS_START_S = 300.0
END_S = 60.0
LOOK_S = 0.1


@dataclass
class Part:
    """A process."""

    name: str
    command: list[str]
    log: Path
    environment: Mapping[str, str] | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def end(self, number: signal.Signals) -> int:
        """End it with this signal, and wait. Returns the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(END_S)

    async def is_up(self) -> bool:
        """Whether it runs, and does its work as far as that can be seen."""
        return self.process is not None and self.process.poll() is None

    async def until_up(self, within_s: float = START_S) -> None:
        """Raises RuntimeError with the end of its log."""
        deadline_s = time.monotonic() + within_s
        while not await self.is_up():
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline_s:
                said = self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise RuntimeError(f"{self.name} is not up: {said}")
            await asyncio.sleep(LOOK_S)

    def kill(self) -> None:
        """For the end of everything."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@dataclass
class ServerPart(Part):
    """It is up when its port is open."""

    port: int = 0

    async def is_up(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@dataclass
class GatewayPart(Part):
    """It is up when its health port says that it is ready."""

    address: str = ""
    """host:port of its gRPC port."""
    health: str = ""
    """host:port of its health port."""

    async def is_up(self) -> bool:
        # All of gRPC here is asyncio's: in one process with it, calls that block may never end.
        async with grpc.aio.insecure_channel(self.health) as channel:
            request = health_pb2.HealthCheckRequest(service=READY)
            with contextlib.suppress(grpc.RpcError):
                status = (await health_pb2_grpc.HealthStub(channel).Check(request, timeout=2)).status
                return bool(status == health_pb2.HealthCheckResponse.SERVING)
        return False


@dataclass
class Pieces:
    """All parts. `gateways` share the rest."""

    folder: Path
    settings: Settings
    """What gateways and workers have in common."""
    parts: dict[str, Part]
    gateways: list[GatewayPart]
    fleet: Part
    kept: list[KeptPort] = field(default_factory=list)

    async def ready_workers(self) -> dict[str, int]:
        """The process ids of the ready workers, by worker id, as the first gateway that answers says."""
        for gateway in self.gateways:
            async with AsyncClient(gateway.address, timeout_s=2.0) as client:
                with contextlib.suppress(CallFailed):
                    workers = (await client.status(workers_only=True)).workers
                    return {worker.worker_id: worker.pid for worker in workers if worker.ready}
        return {}

    async def until_workers(self, count: int, within_s: float = WORKERS_START_S) -> None:
        """Raises RuntimeError."""
        deadline_s = time.monotonic() + within_s
        while len(await self.ready_workers()) < count:
            if time.monotonic() > deadline_s:
                said = self.fleet.log.read_text(encoding="utf-8", errors="replace")[-3000:]
                raise RuntimeError(f"not {count} workers within {within_s:g} s: {said}")
            await asyncio.sleep(LOOK_S)

    async def until_all_up(self) -> None:
        """All but the workers. Raises RuntimeError."""
        for part in (*self.parts.values(), *self.gateways):
            await part.until_up()


@contextlib.contextmanager
def pieces(folder: Path, *, workers: int, milvus: bool = True, **settings: Any) -> Iterator[Pieces]:
    """Running while inside, with every worker ready.

    milvus: whether the gateways share a Milvus server; else each has a Milvus Lite of its own.
    settings: of gateways and workers.
    """
    kept = [KeptPort() for _ in range(3)]
    redis_ports = {REGISTRY: kept[0].number, CACHE: kept[1].number}
    parts: dict[str, Part] = {name: redis_part(folder, name, port) for name, port in redis_ports.items()}
    common = load_settings(
        {},
        data_dir=folder / "workers",
        model=str(MODEL_DIR),
        redis_url=f"redis://127.0.0.1:{redis_ports[REGISTRY]}",
        cache_redis_url=f"redis://127.0.0.1:{redis_ports[CACHE]}",
        module_store_url=str(folder / "modules"),
        milvus_uri=f"http://127.0.0.1:{kept[2].number}" if milvus else "",
        salt_key=SALT_KEY,
        workers=max(workers, 1),
        metrics=False,
        http=False,
        **settings,
    )
    if milvus:
        parts[MILVUS] = milvus_part(folder, kept[2].number)
    gateways = [gateway_part(folder, f"gateway {name}", common) for name in "ab"]
    environment = child_environment(common, private(folder / "workers.json"))
    fleet = Part("workers", memserve("workers"), folder / "workers.log", environment)
    whole = Pieces(folder, common, parts, gateways, fleet, kept)
    try:
        for part in (*parts.values(), *gateways, *([fleet] if workers else [])):
            report(f"starting {part.name}")
            part.start()
        asyncio.run(whole.until_all_up())
        asyncio.run(whole.until_workers(workers))
        yield whole
    finally:
        if fleet.process is not None and fleet.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                fleet.end(signal.SIGTERM)
        for part in (*gateways, fleet, *parts.values()):
            part.kill()


def redis_part(folder: Path, name: str, port: int) -> Part:
    """The registry keeps what it is given, as `memserve up` has it; a cache may lose it."""
    data = folder / name
    data.mkdir()
    keeps = ["--appendonly", "yes", "--appendfsync", "always"] if name == REGISTRY else ["--appendonly", "no"]
    command = [redis_executable(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(data)]
    environment = {**os.environ, **REDIS_ENVIRONMENT}
    log = folder / f"{name}.log"
    return ServerPart(name, [*command, "--save", "", *keeps], log, environment, port=port)


def milvus_part(folder: Path, port: int) -> Part:
    data = folder / "milvus"
    tool = str(Path(sys.executable).with_name("milvus-lite"))
    command = [tool, "server", "--data-dir", str(data), "--host", "127.0.0.1", "--port", str(port)]
    return ServerPart(MILVUS, command, folder / "milvus.log", port=port)


def gateway_part(folder: Path, name: str, common: Settings) -> GatewayPart:
    port, health_port = free_port(), free_port()
    data = folder / name.replace(" ", "-")
    chosen = common.model_copy(update={"data_dir": data, "port": port, "health_port": health_port})
    environment = child_environment(chosen, private(folder / f"{data.name}.json"))

    return GatewayPart(
        name,
        memserve("gateway"),
        folder / f"{data.name}.log",
        environment,
        address=f"127.0.0.1:{port}",
        health=f"127.0.0.1:{health_port}",
    )


def memserve(command: str) -> list[str]:
    return [sys.executable, "-m", "memserve", command]


def private(file: Path) -> Path:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return file


def free_port() -> int:
    """One that is free now. A gateway refuses a port that another socket keeps."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# gRPC's own client in front of a headless service of Kubernetes: each call goes to the next gateway, and is
# sent again where it ended with UNAVAILABLE before its first message.
RETRIES = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def balanced_channel(addresses: list[str]) -> grpc.aio.Channel:
    """Round robin over all addresses, with RETRIES. For one address: the same client, of one gateway."""
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [{"name": [{}], "retryPolicy": RETRIES}],
    }
    options = [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    return grpc.aio.insecure_channel("ipv4:" + ",".join(addresses), options)
