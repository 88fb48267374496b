"""The hosts: Redis and Milvus behind a relay that ends TLS, two workers, a gateway, a client."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis

from loadtests.cluster.hosts import Host, Network, network
from loadtests.harness.certificates import Trial, new_trial
from loadtests.harness.tls_redis import arguments
from memserve.demo import MODEL_DIR
from memserve.tls.pem import PemFiles

NETWORK, NUMBER = "tl", 81
WORKERS = ("w1", "w2")
PARTS = ("public", "client", "internal-gateway", "internal-worker", "redis", "milvus")
REDIS, MILVUS, MILVUS_PLAIN = 6379, 19530, 19531
GRPC, HTTP, METRICS, WORKER, WORKER_METRICS = 50051, 8000, 9464, 50061, 9465
START_S = 90.0


@dataclass
class Mounted:
    """Certificates as Kubernetes mounts a Secret: links to a folder that is changed for another at once."""

    folder: Path
    _versions: int = field(default=0)

    def show(self, trial: Trial) -> None:
        """From now on the files of every part are the trial's."""
        self._versions += 1
        for part in PARTS:
            place = self.folder / part
            version = place / f"..v{self._versions}"
            version.mkdir(parents=True)
            for file in (trial.folder / part).iterdir():
                shutil.copy(file, version / file.name)
                link = place / file.name
                if not link.is_symlink():
                    link.symlink_to(Path("..data") / file.name)
            swap = place / "..swap"
            swap.symlink_to(version.name)
            swap.rename(place / "..data")

    def files(self, part: str) -> PemFiles:
        return Trial(self.folder).files(part)


@dataclass
class Rig:
    """Running hosts."""

    net: Network
    folder: Path
    trial: Trial
    """What all certificates are of."""
    mounted: Mounted
    hosts: dict[str, Host]

    def url(self, host: str, port: int) -> str:
        return f"{self.hosts[host].address}:{port}"

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def redis_reads_again(self) -> None:
        """Redis does not look at its files by itself: an operator has it do so, here over a unix socket."""
        with redis.Redis(unix_socket_path=str(self.folder / "redis" / "redis.sock")) as client:
            client.config_set("tls-cert-file", str(self.mounted.files("redis").certificate))


@contextmanager
def rig(folder: Path) -> Iterator[Rig]:
    """Everything runs while inside. Raises HostsError, and RuntimeError with the log of what fails."""
    with network(NETWORK, NUMBER) as net:
        hosts = {name: net.host(name) for name in ("data", *WORKERS, "gw", "client")}
        names = [each for host in hosts.values() for each in (host.name, host.address)]
        trial = new_trial(folder / "certs", names)
        mounted = Mounted(folder / "mounted")
        mounted.show(trial)
        running = Rig(net, folder, trial, mounted, hosts)
        _start_data(running)
        for worker in WORKERS:
            settings = {
                "worker_host": "0.0.0.0", "worker_port": WORKER, "metrics_host": "0.0.0.0",
                "worker_metrics_port": WORKER_METRICS, **_internal(mounted, "internal-worker"),
            }  # fmt: skip
            _start(
                running, worker, worker,
                ["-m", "loadtests.cluster.cluster_tls.worker", worker, hosts[worker].address, str(MODEL_DIR)],
                settings,
            )  # fmt: skip
            _wait(running, worker, f"{hosts[worker].address}:{WORKER}")
        _start(running, "gw", "gateway", ["-m", "memserve", "gateway"], _gateway_settings(mounted))
        _wait(running, "gateway", "serving on")
        yield running


def _start_data(running: Rig) -> None:
    data, folder = running.hosts["data"], running.folder
    (folder / "redis").mkdir()
    place = folder / "redis"
    own = ("--unixsocket", str(place / "redis.sock"), "--protected-mode", "no")
    command = arguments(running.mounted.files("redis"), REDIS, place, *own, bind="0.0.0.0")
    with (folder / "redis.log").open("wb") as log:
        data.start(command, output=log)
    _wait(running, "redis", "Ready to accept connections")
    milvus = running.mounted.files("milvus")
    lite = Path(sys.executable).with_name("milvus-lite")
    with (folder / "milvus.log").open("wb") as log:
        data.start([lite, "server", "--data-dir", folder / "milvus", *_at("--host", "--port")], output=log)
    files = [milvus.certificate, milvus.key, milvus.authorities]
    relay = ["-m", "loadtests.harness.tls_relay", str(MILVUS), *map(str, files), *_at()]
    _start(running, "data", "relay", relay, {})
    deadline_s = time.monotonic() + START_S
    while not {MILVUS_PLAIN, MILVUS} <= {port for _, port in data.listening()}:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"Milvus has not started: {running.log('milvus')[-500:]}")
        time.sleep(0.2)


def _at(*options: str) -> list[str]:
    """Where Milvus listens without TLS, behind the relay. options: before host and port."""
    place = ["127.0.0.1", str(MILVUS_PLAIN)]
    return [part for pair in zip(options, place, strict=True) for part in pair] if options else place


def _internal(mounted: Mounted, part: str) -> dict[str, object]:
    files = mounted.files(part)
    return {
        "redis_url": f"rediss://data:{REDIS}",
        "salt_key": "cd" * 32,
        "internal_tls_ca_file": files.authorities,
        "internal_tls_cert_file": files.certificate,
        "internal_tls_key_file": files.key,
    }


def _gateway_settings(mounted: Mounted) -> dict[str, object]:
    public = mounted.files("public")
    return {
        **_internal(mounted, "internal-gateway"),
        "data_dir": mounted.folder.parent / "gateway",
        "model": MODEL_DIR,
        "host": "0.0.0.0",
        "metrics_host": "0.0.0.0",
        "allow_anonymous": True,
        "milvus_uri": f"https://data:{MILVUS}",
        "milvus_token": "user:word",
        "tls_cert_file": public.certificate,
        "tls_key_file": public.key,
        "tls_client_ca_file": public.authorities,
        "max_inflight": 1024,
        "max_inflight_per_tenant": 1024,
        "max_calls_per_tenant": 1024,
    }


def environment(settings: Mapping[str, object]) -> dict[str, str]:
    """This process's own, with these settings of memserve and no others."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MEMSERVE_")}
    return {**own, **{f"MEMSERVE_{name.upper()}": str(value) for name, value in settings.items()}}


def _start(running: Rig, host: str, name: str, python: list[str], settings: Mapping[str, object]) -> None:
    with (running.folder / f"{name}.log").open("wb") as log:
        running.hosts[host].start([sys.executable, *python], environment=environment(settings), output=log)


def _wait(running: Rig, name: str, text: str) -> None:
    deadline_s = time.monotonic() + START_S
    while text not in (said := running.log(name)):
        if time.monotonic() > deadline_s or "Traceback" in said:
            raise RuntimeError(f"{name} has not started: {running.log(name)[-1500:]}")
        time.sleep(0.1)
