"""The chart, rendered by Helm's own engine."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml
from helm_python import _native

from memserve.config import Settings, load_settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "memserve"
EXAMPLES = sorted((CHART / "ci").glob("*-values.yaml"))
NAMES = [file.name.removesuffix("-values.yaml") for file in EXAMPLES]
# What the operators define that the chart can use.
OPERATORS = (
    "ray.io/v1",
    "keda.sh/v1alpha1",
    "cert-manager.io/v1",
    "monitoring.coreos.com/v1",
    "gateway.networking.k8s.io/v1",
)
Manifest = dict[str, Any]


@cache
def chart() -> helm_python.Chart:
    """Loaded once: charts are immutable."""
    return helm_python.Chart.load(CHART)


def example(name: str) -> dict[str, Any]:
    """The values of an example."""
    values = yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    return values


def render(
    values: Mapping[str, Any] | None = None,
    *,
    name: str = "memserve",
    namespace: str = "prod",
    operators: tuple[str, ...] = OPERATORS,
    kubernetes: str = "v1.31.0",
) -> dict[str, str]:
    """Texts by the template's path, as `helm template` gives them.

    Raises helm_python.HelmError with what Helm says.
    """
    # `Chart.render` does not hand the cluster's kinds and version on, which Helm's own library takes.
    options = {
        "name": name, "namespace": namespace, "api_versions": list(operators), "kube_version": kubernetes,
    }  # fmt: skip
    rendered = _native.call_string(
        "helm_render", chart()._raw(), json.dumps(values or {}), json.dumps(options)
    )
    texts = json.loads(rendered)
    assert isinstance(texts, dict)
    return texts


def manifests(values: Mapping[str, Any] | None = None, **options: Any) -> list[Manifest]:
    """Every object."""
    return [
        document
        for path, text in render(values, **options).items()
        if not path.endswith("NOTES.txt")
        for document in yaml.load_all(text, yaml.CSafeLoader)
        if document
    ]


@cache
def _example_manifests(name: str) -> list[Manifest]:
    return manifests(example(name))


def example_manifests(name: str) -> list[Manifest]:
    """Every object of an example."""
    return copy.deepcopy(_example_manifests(name))


def notes(values: Mapping[str, Any] | None = None) -> str:
    return render(values)["memserve/templates/NOTES.txt"]


def of_kind(objects: list[Manifest], kind: str) -> list[Manifest]:
    return [each for each in objects if each["kind"] == kind]


def named(objects: list[Manifest], kind: str, name: str) -> Manifest:
    """The object of a kind and a name. Raises ValueError."""
    [found] = [each for each in of_kind(objects, kind) if each["metadata"]["name"] == name]
    return found


def pod_templates(objects: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod template and pod, by a name."""
    for each in objects:
        name, spec = f"{each['kind']} {each['metadata']['name']}", each.get("spec", {})
        if each["kind"] in ("Deployment", "StatefulSet"):
            yield name, spec["template"]
        elif each["kind"] == "Pod":
            yield name, each
        elif each["kind"] == "RayService":
            cluster = spec["rayClusterConfig"]
            yield f"{name} head", cluster["headGroupSpec"]["template"]
            for group in cluster["workerGroupSpecs"]:
                yield f"{name} {group['groupName']}", group["template"]


def container(objects: list[Manifest], kind: str, name: str) -> dict[str, Any]:
    """The container of a workload. Raises ValueError."""
    [found] = named(objects, kind, name)["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def variables(objects: list[Manifest], config_map: str) -> dict[str, str]:
    found: dict[str, str] = named(objects, "ConfigMap", config_map)["data"]
    return found


def settings_of(objects: list[Manifest], config_map: str) -> Settings:
    return load_settings(variables(objects, config_map))


def containers(objects: list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Every container, with its pod's specification."""
    for name, template in pod_templates(objects):
        for container in template["spec"]["containers"]:
            yield f"{name} {container['name']}", template["spec"], container


def with_values(*changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values put together, the later before the earlier."""
    whole: dict[str, Any] = {}
    for change in changes:
        merge(whole, copy.deepcopy(dict(change)))
    return whole


def merge(into: dict[str, Any], change: Mapping[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def at(path: str, value: Any) -> dict[str, Any]:
    """Values with one key, by its dotted path."""
    for name in reversed(path.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value
