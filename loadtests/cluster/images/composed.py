"""The services of deploy/docker/compose.yaml, run together: a host for each."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.cluster.hosts import Network
from loadtests.cluster.images.building import ROOT, Image
from loadtests.cluster.images.checks import Check, last_line
from loadtests.cluster.images.compose import Project, Service, read_compose, services_of
from loadtests.cluster.images.container import Running
from loadtests.harness.figures import report
from memserve.client import CallFailed, Client

FOLDER = ROOT / "deploy" / "docker"
LOOK_S = 0.5
HEALTHY_WITHIN_S = 240.0
QUESTION, FACT = "What is the code of Amber Lantern?", "The code of Amber Lantern is 4071."
# Of each service, what may be reached from the other services. Ray's own ports are on loopback.
PORTS = {
    "registry": {6379},
    "cache": {6379},
    "gateway": {50051, 50052, 8000, 9464},
    "worker": {50061, 50062, 9465},
}


@dataclass
class Composed:
    """What `docker compose up` does."""

    network: Network
    images: Mapping[str, Image]
    """By the stage of the Dockerfile; "" is the image of Redis."""
    folder: Path
    running: dict[str, Running] = field(default_factory=dict)
    healthy_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        secrets = self.folder / "secrets"
        subprocess.run([FOLDER / "secrets.sh", secrets], check=True, stdout=subprocess.DEVNULL)
        compose = read_compose(FOLDER / "compose.yaml", {})
        self.services = {
            name: service for name, service in services_of(compose).items() if service.target in self.images
        }
        self.project = Project(compose, self.folder / "volumes", secrets)
        # All of them first, so that each knows the names of the others.
        self.hosts = {name: self.network.host(name) for name in self.services}

    def key(self) -> str:
        """`docker compose run --rm --no-deps gateway keys add alice`, which prints the key."""
        service = self.services["gateway"]
        command = ("keys", "add", "alice", "--json")
        container = self.project.container(service, self.images[service.target], command)
        ended = Running(container, self.hosts["gateway"], self.folder / "keys.log")
        ended.process.wait(30)
        return str(json.loads(ended.said().splitlines()[-1])["key"])

    def up(self) -> None:
        """Raises RuntimeError where a service does not become healthy."""
        for service in self.services.values():
            for need in service.needs:
                self._wait_healthy(self.services[need])
            report(f"starting {service.name}")
            image = self.images[service.target]
            container = self.project.container(service, image)
            self.running[service.name] = Running(
                container, self.hosts[service.name], self.folder / f"{service.name}.log"
            )
            self.healthy_s[service.name] = -time.monotonic()
        for service in self.services.values():
            self._wait_healthy(service)

    def down(self) -> dict[str, tuple[int | None, float]]:
        """Exit status and seconds of each, the last that was started first."""
        return {
            name: self.running.pop(name).end(self.services[name].grace_s) for name in reversed(self.services)
        }

    def _wait_healthy(self, service: Service) -> None:
        running = self.running[service.name]
        if self.healthy_s[service.name] > 0:
            return
        command = service.health or self.images[service.target].config.health
        deadline_s = time.monotonic() + HEALTHY_WITHIN_S
        while running.execute(command).returncode != 0:
            if running.process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"{service.name} is not healthy: {running.said()[-3000:]}")
            time.sleep(LOOK_S)
        self.healthy_s[service.name] += time.monotonic()


def served(composed: Composed) -> Iterator[Check]:
    """What a client on another host gets."""
    key = composed.key()
    composed.up()
    yield Check("compose: every service is healthy", True, _seconds(composed.healthy_s))
    gateway = composed.hosts["gateway"].address
    try:
        with Client(f"{gateway}:50051") as client:
            client.status()
        yield Check("compose: a call without a key is refused", False)
    except CallFailed as failed:
        yield Check("compose: a call without a key is refused", failed.code.name == "UNAUTHENTICATED")
    with Client(f"{gateway}:50051", key, timeout_s=60) as client:
        client.remember("notes", FACT)
        found = client.search(["notes"], "Amber")
        yield Check("compose: a memory is kept and found", found[0].memory.text == FACT)
        yield from _answers(client, with_worker="worker" in composed.services)
    yield _metrics(gateway, composed)
    for name, running in composed.running.items():
        yield Check(f"compose: {name} has no zombies", running.zombies() == 0, str(running.zombies()))
        yield _listens(name, composed)
    ended = composed.down()
    for name, (status, seconds) in ended.items():
        yield Check(f"compose: {name} ends by itself", status == 0, f"status {status} in {seconds:.1f} s")


def _answers(client: Client, *, with_worker: bool) -> Iterator[Check]:
    if not with_worker:
        try:
            client.generate(QUESTION)
            yield Check("compose: without a worker an answer is refused", False)
        except CallFailed as failed:
            yield Check("compose: without a worker an answer is refused", failed.code.name == "UNAVAILABLE")
        return
    answer = client.generate(QUESTION, namespaces=["notes"])
    yield Check("compose: a question is answered from a memory", "4071" in answer.text, answer.text[:80])
    workers = client.status().workers
    yield Check("compose: its worker shares KV", len(workers) == 1 and workers[0].shares_kv)


def _metrics(gateway: str, composed: Composed) -> Check:
    key = (composed.folder / "secrets" / "metrics_key").read_text(encoding="ascii")
    request = urllib.request.Request(
        f"http://{gateway}:9464/metrics", headers={"authorization": f"Bearer {key}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        text = answer.read().decode()
    return Check("compose: metrics are served to whoever has the key", "memserve_" in text)


def _listens(name: str, composed: Composed) -> Check:
    """On addresses that the other services reach."""
    outer = composed.hosts[name].listening_beyond_loopback()
    seen = ", ".join(f"{address} {port}" for address, port in sorted(outer))
    return Check(f"compose: {name} listens where it should", {port for _, port in outer} == PORTS[name], seen)


def _seconds(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in figures.items())


def tail(composed: Composed) -> str:
    """The last line of each log, for whoever has to find out why."""
    return "\n".join(f"{name}: {last_line(running.said())}" for name, running in composed.running.items())
