"""The release is run, tried, replaced and ended; what was seen."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtests.cluster.cluster_chart.asking import Asking
from loadtests.cluster.cluster_chart.chart import (
    CLIENT_LABELS,
    RELEASE,
    Release,
    changed,
    outside_objects,
    trial_values,
)
from loadtests.cluster.cluster_chart.images import image_of
from loadtests.cluster.cluster_chart.listening import Listening, listening
from loadtests.cluster.cluster_chart.reach import Try, tried, wires
from loadtests.cluster.cluster_chart.ready import Checked, ReadyChecks
from loadtests.cluster.cluster_chart.rollouts import RollOut, Stuck, roll_out, stuck_roll_out
from loadtests.cluster.hosts import network
from loadtests.cluster.kubelet.cluster import Cluster, owner_of
from loadtests.cluster.kubelet.objects import Manifest, Objects
from loadtests.cluster.kubelet.pod import PodRecord, RunningPod
from loadtests.harness.figures import report

NETWORK, NUMBER, SERVICES = "kb", 86, 186
GATEWAYS, WORKERS = f"Deployment/{RELEASE}-gateway", f"StatefulSet/{RELEASE}-worker"
HEAD = f"StatefulSet/{RELEASE}-ray-head"
START_S = 420.0
GATEWAY_ROLL_OUT_S, WORKER_ROLL_OUT_S = 180.0, 420.0
STUCK_S = 15.0
WARM_UP_S = 5.0
RAY_PORTS = (6381, 6382)
"""Ports of a Ray node that listen beyond its loopback and that other nodes call."""


@dataclass
class Seen:
    """What was seen of a release."""

    records: list[PodRecord] = field(default_factory=list)
    """The pods of the start."""
    all_ready_s: float = 0.0
    checked: list[Checked] = field(default_factory=list)
    tries: list[Try] = field(default_factory=list)
    listening: list[Listening] = field(default_factory=list)
    roll_outs: list[RollOut] = field(default_factory=list)
    stuck: Stuck | None = None
    helm_test: list[int] = field(default_factory=list)
    """Exit statuses of the pods of `helm test`."""
    ended: list[PodRecord] = field(default_factory=list)
    """The pods of the release, at its end."""


class Run:
    """One release on one cluster. Without workers there is no Ray either."""

    def __init__(self, folder: Path, gateways: int, workers: int) -> None:
        self.seen = Seen()
        self.gateways = gateways
        self.workers = workers
        self._folder = folder
        self._release = Release()
        self._values = trial_values(gateways, max(1, workers))
        self._objects: list[Manifest] = []

    def measure(self, *, roll_workers: bool) -> Seen:
        """roll_workers: replace the workers too, which takes minutes."""
        with self._cluster() as cluster:
            self._start(cluster)
            self._try_wires(cluster)
            self.seen.helm_test = self._helm_test(cluster)
            with Asking(cluster, self._release.admin_key(), self.workers) as asking:
                time.sleep(WARM_UP_S)
                self._roll(cluster, asking, "gateway", [GATEWAYS], GATEWAY_ROLL_OUT_S)
                if roll_workers:
                    # A value of the workers changes the head of their Ray too.
                    self._roll(cluster, asking, "workers", [WORKERS, HEAD], WORKER_ROLL_OUT_S)
                self._get_stuck(cluster, asking)
            report("the release ends")
            self.seen.ended = [pod.record for pod in self._own(cluster)]
        return self.seen

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[Cluster]:
        self._objects = self._render(self._values)
        secrets = Objects(self._objects)
        password = base64.b64decode(secrets.get("Secret", f"{RELEASE}-redis")["data"]["password"]).decode()
        cluster: Cluster

        def ready_gateways() -> list[RunningPod]:
            return [pod for pod in cluster.pods(GATEWAYS) if pod.ready and not pod.terminating]

        checks = ReadyChecks(self._release.admin_key(), password, ready_gateways, self.seen.checked)
        with network(NETWORK, NUMBER) as hosts:
            cluster = Cluster(
                hosts, self._folder, image_of, service_network=SERVICES, on_ready=checks.became_ready
            )
            with cluster:
                yield cluster
            checks.wait()

    def _render(self, values: dict[str, Any]) -> list[Manifest]:
        rendered = self._release.render(values)
        if not self.workers:
            rendered = [manifest for manifest in rendered if owner_of(manifest) not in (WORKERS, HEAD)]
        return [*rendered, *outside_objects()]

    def _start(self, cluster: Cluster) -> None:
        started_s = time.monotonic()
        cluster.apply(self._objects)
        report(f"{self.gateways} gateways, {self.workers} workers, Redis, Milvus: about a minute")
        cluster.wait_until_rolled_out(START_S)
        self.seen.all_ready_s = time.monotonic() - started_s
        self.seen.records = [pod.record for pod in cluster.pods()]

    def _own(self, cluster: Cluster) -> list[RunningPod]:
        """The release's pods."""
        return [pod for pod in cluster.pods() if pod.pod.owner.partition("/")[2].startswith(RELEASE)]

    def _try_wires(self, cluster: Cluster) -> None:
        report("every wire is tried")
        policies = Objects(self._objects).of("NetworkPolicy")
        self.seen.listening = [listening(pod, policies) for pod in self._own(cluster)]
        with _idle(cluster, "client", CLIENT_LABELS) as client, _idle(cluster, "stranger", {}) as stranger:
            parts = {"client": client, "stranger": stranger, **_parts(cluster)}
            self.seen.tries = tried(wires(RAY_PORTS), parts)

    def _helm_test(self, cluster: Cluster) -> list[int]:
        statuses = []
        for hook in self._release.hooks:
            if hook["kind"] == "Pod" and hook["metadata"]["annotations"]["helm.sh/hook"] == "test":
                pod = cluster.run_pod(hook)
                pod.finished.wait(60)
                statuses.append(pod.record.statuses[-1] if pod.record.statuses else -1)
                pod.delete()
        return statuses

    def _roll(self, cluster: Cluster, asking: Asking, part: str, owners: list[str], timeout_s: float) -> None:
        """part: of the values."""
        report(f"{part}: replaced under load")
        self._values = changed(self._values, part, "podAnnotations", to={"restarted": str(time.monotonic())})
        self._objects = self._render(self._values)
        self.seen.roll_outs.append(roll_out(cluster, asking, self._objects, owners, timeout_s))

    def _get_stuck(self, cluster: Cluster, asking: Asking) -> None:
        report("gateways that cannot start")
        # What the chart cannot know: there is no such model.
        broken = self._render(changed(self._values, "gateway", "settings", "model", to="/models/absent"))
        self.seen.stuck = stuck_roll_out(cluster, asking, broken, GATEWAYS, STUCK_S)
        cluster.apply(self._objects)
        cluster.wait_until_rolled_out(GATEWAY_ROLL_OUT_S, {GATEWAYS})


def _parts(cluster: Cluster) -> dict[str, RunningPod]:
    """A pod of each part of the release, and Milvus'."""
    owners = {
        "gateway": GATEWAYS,
        "worker": WORKERS,
        "head": HEAD,
        "registry": f"StatefulSet/{RELEASE}-redis-registry",
        "cache": f"StatefulSet/{RELEASE}-redis-cache",
        "milvus": "StatefulSet/milvus",
    }
    return {part: pods[0] for part, owner in owners.items() if (pods := cluster.pods(owner))}


@contextlib.contextmanager
def _idle(cluster: Cluster, name: str, labels: dict[str, str]) -> Iterator[RunningPod]:
    """A pod that does nothing, with labels of its own."""
    container = {"name": "idle", "image": "tool", "command": ["sleep", "3600"]}
    spec = {"terminationGracePeriodSeconds": 0, "containers": [container]}
    pod = cluster.run_pod({"kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec})
    try:
        yield pod
    finally:
        pod.delete()
