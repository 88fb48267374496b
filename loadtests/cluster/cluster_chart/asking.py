"""The requests of a pod of clients, and which of them failed when."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.cluster.cluster_chart.chart import CLIENT_LABELS, RELEASE
from loadtests.cluster.kubelet.cluster import Cluster
from loadtests.cluster.kubelet.objects import Manifest
from loadtests.cluster.kubelet.pod import RunningPod


@dataclass(frozen=True, slots=True)
class Request:
    """A request that has ended. Times are on the monotonic clock."""

    kind: str
    started_s: float
    ended_s: float
    failure: str
    """Empty when the request succeeded."""


def client_pod(name: str, admin_key: str, workers: int) -> Manifest:
    """A pod that asks the gateways without a pause, by the names of their Services."""
    environment = {
        "ADDRESS": f"{RELEASE}-grpc:50051",
        "HTTP_URL": f"http://{RELEASE}-http:8000",
        "API_KEY": admin_key,
        "WORKERS": str(workers),
    }
    container = {
        "name": "asker",
        "image": "clients",
        "command": ["python", "-m", "loadtests.cluster.cluster_chart.asker"],
        "env": [{"name": key, "value": value} for key, value in environment.items()],
    }
    spec = {"enableServiceLinks": False, "terminationGracePeriodSeconds": 0, "containers": [container]}
    return {"kind": "Pod", "metadata": {"name": name, "labels": CLIENT_LABELS}, "spec": spec}


class Asking:
    """A pod of clients while inside."""

    def __init__(self, cluster: Cluster, admin_key: str, workers: int, name: str = "clients") -> None:
        self._cluster = cluster
        self._manifest = client_pod(name, admin_key, workers)
        self._pod: RunningPod | None = None

    def __enter__(self) -> Asking:
        self._pod = self._cluster.run_pod(self._manifest)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pod is not None:
            self._pod.delete()
            self._pod.finished.wait()

    def requests(self) -> list[Request]:
        """All that have ended."""
        assert self._pod is not None, "not inside"
        if not self._pod.log.exists():
            return []
        lines = self._pod.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [Request(**json.loads(line)) for line in lines if line.startswith('{"kind"')]


def overlapping(requests: Sequence[Request], from_s: float, until_s: float) -> list[Request]:
    return [request for request in requests if request.ended_s >= from_s and request.started_s <= until_s]
