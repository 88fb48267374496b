"""The Helm chart, rendered with Helm's own engine, as a release that is installed and upgraded."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import helm_python

from loadtests.cluster.kubelet.image import TREE
from loadtests.cluster.kubelet.objects import Manifest, Objects, read_manifests

CHART = TREE / "helm/memserve"
RELEASE = "memserve"
NAMESPACE = "default"
CLIENT_LABELS = {"role": "client"}
MILVUS = "milvus"
MILVUS_PORT = 19530
HOOK = "helm.sh/hook"


def trial_values(gateways: int, workers: int) -> dict[str, Any]:
    """A trial on the CPU with several gateways and workers, small enough for two cores.

    Only pods that are labelled as clients may call the gateways.
    """
    return {
        "gateway": {
            "replicas": gateways,
            "drainDelaySeconds": 5,
            "shutdownGraceSeconds": 30,
        },
        "workers": {
            "replicas": workers,
            "shutdownGraceSeconds": 30,
            "shmSize": "1Gi",
            "settings": {
                "kv_device_bytes": 256 << 20,
                "kv_host_bytes": 64 << 20,
                "max_context_tokens": 2048,
                # A pod has processors of its own; here all pods share two.
                "worker_nice": 0,
            },
        },
        "redis": {"mode": "trial", "trial": {"cache": {"maxBytes": 256 << 20}}},
        "milvus": {"uri": f"http://{MILVUS}:{MILVUS_PORT}"},
        "moduleStore": {"claim": {"enabled": True}},
        "networkPolicy": {
            "clients": [{"podSelector": {"matchLabels": CLIENT_LABELS}}],
            "milvus": {"to": [{"podSelector": {"matchLabels": {"app": MILVUS}}}]},
        },
    }


def changed(values: Mapping[str, Any], *path: str, to: object) -> dict[str, Any]:
    """Values with one of them changed. path: its keys."""
    copy = deepcopy(dict(values))
    place = copy
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = to
    return copy


class Release:
    """What `helm install` and `helm upgrade` would have made, hooks apart."""

    def __init__(self, name: str = RELEASE, namespace: str = NAMESPACE) -> None:
        self._chart = helm_python.Chart.load(CHART)
        self._name = name
        self._namespace = namespace
        self._secrets: dict[str, Manifest] = {}
        self.hooks: list[Manifest] = []
        """Of the last rendering, such as the pod of `helm test`."""

    def render(self, values: Mapping[str, Any]) -> list[Manifest]:
        """The objects. Secrets that the chart makes up keep their first contents, as its `lookup` has them.

        Raises helm_python.HelmError.
        """
        upgrade = bool(self._secrets)
        texts = self._chart.render(
            dict(values),
            name=self._name,
            namespace=self._namespace,
            is_install=not upgrade,
            is_upgrade=upgrade,
        )
        manifests = read_manifests(
            text for name, text in texts.items() if name.endswith((".yaml", ".yml", ".tpl"))
        )
        self.hooks = [manifest for manifest in manifests if _is_hook(manifest)]
        objects = [manifest for manifest in manifests if not _is_hook(manifest)]
        kept = []
        for manifest in objects:
            if manifest["kind"] == "Secret":
                manifest = self._secrets.setdefault(manifest["metadata"]["name"], manifest)
            kept.append(manifest)
        return kept

    def admin_key(self) -> str:
        """The administrator's key that the chart has made up."""
        secret = Objects(self._secrets.values()).get("Secret", f"{self._name}-api-keys")
        return base64.b64decode(secret["data"]["admin_key"]).decode()


def _is_hook(manifest: Manifest) -> bool:
    return HOOK in (manifest["metadata"].get("annotations") or {})


def outside_objects() -> list[Manifest]:
    """What stands beside the release: a Milvus server, and its Service."""
    labels = {"app": MILVUS}
    container = {
        "name": "server",
        "image": MILVUS,
        "command": ["milvus-lite", "server", "--data-dir", "/data", "--port", str(MILVUS_PORT)],
        "ports": [{"name": "milvus", "containerPort": MILVUS_PORT}],
        "readinessProbe": {"tcpSocket": {"port": "milvus"}, "periodSeconds": 1},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    spec = {
        "enableServiceLinks": False,
        # It takes no notice of SIGTERM as process 1.
        "terminationGracePeriodSeconds": 2,
        "containers": [container],
        "volumes": [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
    }
    return [
        {
            "kind": "StatefulSet",
            "metadata": {"name": MILVUS},
            "spec": {
                "replicas": 1,
                "serviceName": MILVUS,
                "template": {"metadata": {"labels": labels}, "spec": spec},
            },
        },
        {
            "kind": "Service",
            "metadata": {"name": MILVUS},
            "spec": {"selector": labels, "ports": [{"port": MILVUS_PORT, "targetPort": "milvus"}]},
        },
    ]
