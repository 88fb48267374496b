"""Kubernetes objects as a chart renders them, and what they say of each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

Manifest = Mapping[str, Any]
"""An object, or a part of one, as YAML has it."""


class ManifestFault(Exception):
    """An object that a kubelet could not run. The text says which and why."""


class Objects:
    """The objects of one namespace, by kind and name."""

    def __init__(self, manifests: Iterable[Manifest], namespace: str = "default") -> None:
        self.namespace = namespace
        self._objects: dict[str, dict[str, Manifest]] = {}
        for manifest in manifests:
            kind, name = manifest["kind"], manifest["metadata"]["name"]
            if name in self._objects.setdefault(kind, {}):
                raise ManifestFault(f"two objects are {kind} {name}")
            self._objects[kind][name] = manifest

    def of(self, kind: str) -> list[Manifest]:
        return list(self._objects.get(kind, {}).values())

    def find(self, kind: str, name: str) -> Manifest | None:
        return self._objects.get(kind, {}).get(name)

    def get(self, kind: str, name: str) -> Manifest:
        """Raises ManifestFault."""
        if (manifest := self.find(kind, name)) is None:
            raise ManifestFault(f"there is no {kind} {name}")
        return manifest


def read_manifests(texts: Iterable[str]) -> list[Manifest]:
    """texts: YAML, each of any number of documents. Empty documents are left out."""
    return [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]


@dataclass(frozen=True)
class Pod:
    """A pod that has been made of a template."""

    name: str
    owner: str
    """`Kind/name` of the workload. Empty: a pod of its own."""
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    spec: Manifest
    revision: str
    ordinal: int = 0
    """Of a StatefulSet's pod."""
    subdomain: str = ""
    """The headless Service that gives the pod a name. Empty: none."""


def revision_of(template: Manifest) -> str:
    """Alike for equal pod templates: 10 characters."""
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


def pod_of(workload: Manifest, name: str, ordinal: int = 0) -> Pod:
    """A pod of a Deployment or a StatefulSet. ordinal: in a StatefulSet."""
    kind, template = workload["kind"], workload["spec"]["template"]
    metadata = template.get("metadata", {})
    revision = revision_of(template)
    labels = dict(metadata.get("labels") or {})
    if kind == "StatefulSet":
        labels |= {"statefulset.kubernetes.io/pod-name": name, "apps.kubernetes.io/pod-index": str(ordinal)}
    else:
        labels |= {"pod-template-hash": revision}
    spec = dict(template["spec"])
    claims = workload["spec"].get("volumeClaimTemplates") or []
    claimed = [
        {
            "name": claim["metadata"]["name"],
            "persistentVolumeClaim": {"claimName": f"{claim['metadata']['name']}-{name}"},
        }
        for claim in claims
    ]
    spec["volumes"] = [*(spec.get("volumes") or []), *claimed]
    return Pod(
        name=name,
        owner=f"{kind}/{workload['metadata']['name']}",
        labels=labels,
        annotations=metadata.get("annotations") or {},
        spec=spec,
        revision=revision,
        ordinal=ordinal,
        subdomain=workload["spec"].get("serviceName") or "" if kind == "StatefulSet" else "",
    )


def lone_pod(manifest: Manifest) -> Pod:
    """Of an object of kind Pod."""
    metadata = manifest["metadata"]
    return Pod(
        name=metadata["name"],
        owner="",
        labels=metadata.get("labels") or {},
        annotations=metadata.get("annotations") or {},
        spec=manifest["spec"],
        revision=revision_of(manifest["spec"]),
        subdomain=manifest["spec"].get("subdomain") or "",
    )


def selects(selector: Manifest | None, labels: Mapping[str, str]) -> bool:
    """Whether a label selector (matchLabels, matchExpressions) selects the labels.

    None selects nothing, and an empty selector everything.
    """
    if selector is None:
        return False
    wanted = selector.get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _holds(expression, labels) for expression in selector.get("matchExpressions") or []
    )


def _holds(expression: Manifest, labels: Mapping[str, str]) -> bool:
    key, operator = expression["key"], expression["operator"]
    values: Sequence[str] = expression.get("values") or []
    match operator:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    raise ManifestFault(f"a selector's operator is {operator}")


@dataclass(frozen=True)
class Port:
    """A container's port that has a name or a number in the pod's template."""

    name: str
    number: int
    protocol: str = field(default="TCP")


def ports_of(spec: Manifest) -> list[Port]:
    """The ports that the containers of a pod name."""
    return [
        Port(port.get("name", ""), int(port["containerPort"]), port.get("protocol", "TCP"))
        for container in spec["containers"]
        for port in container.get("ports") or []
    ]


def port_number(port: str | int, spec: Manifest) -> int | None:
    """A port by number or by a container's name for it. None: no container names it so."""
    if isinstance(port, int):
        return port
    if port.isdigit():
        return int(port)
    return next((named.number for named in ports_of(spec) if named.name == port), None)
