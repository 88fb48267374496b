"""The examples render, lint clean, and are what Kubernetes and the operators take."""

from __future__ import annotations

import copy
import tarfile
from pathlib import Path
from typing import Any

import helm_python
import pytest

from tests.helm.charts import (
    CHART,
    NAMES,
    OPERATORS,
    chart,
    example,
    example_manifests,
    manifests,
    named,
    notes,
    of_kind,
    render,
    with_values,
)
from tests.helm.schemas import SCHEMAS, faults

VERSIONS = ("1.27", "1.31", "1.34", "1.37")
KINDS = {
    "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "Ingress", "NetworkPolicy", "PersistentVolumeClaim",
    "Pod", "PodDisruptionBudget", "Secret", "Service", "ServiceAccount", "StatefulSet", *SCHEMAS,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_example_lints_clean(name: str) -> None:
    values = with_values(example(name), {"requireCrds": False})
    report = helm_python.lint(CHART, values, strict=True, namespace="prod")
    assert report["errors"] == []
    # A chart of one's own needs no picture.
    assert [each["error"] for each in report["messages"]] in ([], ["icon is recommended"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_object_of_an_example_is_valid(name: str, version: str) -> None:
    objects = manifests(example(name), kubernetes=f"v{version}.0")
    assert len(objects) > 20
    assert [fault for each in objects for fault in faults(each, version)] == []


def test_the_examples_have_every_kind_that_the_chart_makes() -> None:
    assert {each["kind"] for name in NAMES for each in example_manifests(name)} == KINDS


PLANTED: list[tuple[str, tuple[Any, ...]]] = [
    ("Deployment", ("spec", "replica")),
    ("StatefulSet", ("spec", "template", "spec", "containers", 0, "readinesProbe")),
    ("NetworkPolicy", ("spec", "ingres")),
    ("RayService", ("spec", "rayClusterConfig", "headGroup")),
    (
        "RayService",
        ("spec", "rayClusterConfig", "headGroupSpec", "template", "spec", "containers", 0, "prots"),
    ),
    ("ServiceMonitor", ("spec", "endpoints", 0, "intervall")),
    ("PodMonitor", ("spec", "podMetricsEndpoints", 0, "sheme")),
    ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "alerts")),
    ("ScaledObject", ("spec", "minReplicas")),
    ("Certificate", ("spec", "dnsName")),
    ("GRPCRoute", ("spec", "rules", 0, "backends")),
    ("HTTPRoute", ("spec", "hosts")),
]


@pytest.mark.parametrize(("kind", "path"), PLANTED, ids=[f"{kind} {path[-1]}" for kind, path in PLANTED])
def test_a_key_that_is_misspelt_is_found(kind: str, path: tuple[Any, ...]) -> None:
    """That the objects are valid means something."""
    objects = example_manifests("gpu-kuberay" if kind == "RayService" else "everything")
    objects += example_manifests("default")
    planted = copy.deepcopy(of_kind(objects, kind)[0])
    place = planted
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = 1
    assert str(path[-1]) in " ".join(faults(planted, "1.31"))


def test_the_chart_is_whole_in_an_archive(tmp_path: Path) -> None:
    archive = chart().save(tmp_path)
    with tarfile.open(archive) as opened:
        names = opened.getnames()
    assert "memserve/files/prometheus/rules.yaml" in names
    assert "memserve/values.schema.json" in names
    assert not [name for name in names if "/ci/" in name]
    values = with_values(example("everything"), {"requireCrds": False})
    with helm_python.Chart.load(archive) as packed:
        texts = packed.render(values, name="memserve", namespace="prod")
    for path, text in render(values).items():
        assert path.endswith("secrets.yaml") or texts[path] == text


def test_a_kind_that_the_cluster_lacks_is_explained() -> None:
    for values, operator, words in (
        (
            {"workers": {"mode": "kuberay"}},
            "ray.io/v1",
            "workers.mode: the cluster has no ray.io/v1; install",
        ),
        (
            {"metrics": {"prometheusRule": {"enabled": True}}},
            "monitoring.coreos.com/v1",
            "Prometheus' operator",
        ),
    ):
        others = tuple(each for each in OPERATORS if each != operator)
        assert manifests(values)
        with pytest.raises(helm_python.HelmError, match=words):
            render(values, operators=others)
        assert manifests(with_values(values, {"requireCrds": False}), operators=())


def test_an_autoscaler_owns_the_number_alone() -> None:
    objects = example_manifests("everything")
    assert "replicas" not in named(objects, "Deployment", "memserve-gateway")["spec"]
    assert "replicas" not in named(objects, "StatefulSet", "memserve-worker")["spec"]
    plain = manifests({"workers": {"replicas": 3}})
    assert of_kind(plain, "HorizontalPodAutoscaler") == of_kind(plain, "ScaledObject") == []
    assert named(plain, "Deployment", "memserve-gateway")["spec"]["replicas"] == 1
    assert named(plain, "StatefulSet", "memserve-worker")["spec"]["replicas"] == 3
    [ray] = of_kind(
        manifests({"workers": {"mode": "kuberay", "kuberay": {"autoscaler": {"enabled": True}}}}),
        "RayService",
    )
    [group] = ray["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert "replicas" not in group
    assert (group["minReplicas"], group["maxReplicas"]) == (1, 4)


def test_no_role_is_given_to_anybody() -> None:
    for name in NAMES:
        kinds = {each["kind"] for each in example_manifests(name)}
        assert kinds.isdisjoint({"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"})


def test_the_notes_say_the_next_command_for_the_values() -> None:
    default, kuberay = notes(), notes(example("gpu-kuberay"))
    assert "rollout status statefulset/memserve-worker" in default
    assert "rayservice/memserve-ray" in kuberay
    assert "get secret memserve-api-keys" in default
    assert "Redis is for trials" in default
    assert "Redis is for trials" not in kuberay
    assert "placeholders" in default
    own = {"gateway": {"image": {"repository": "r.io/g"}}, "workers": {"image": {"repository": "r.io/w"}}}
    assert "placeholders" not in notes(own)
    everything = notes(example("everything"))
    assert "MEMSERVE_TLS_CA_FILE" in everything
    assert "https://memserve.example.com/v1" in everything
    assert "without TLS" not in everything


def test_an_image_is_named_by_tag_or_digest() -> None:
    digest = "sha256:" + "a" * 64
    objects = manifests({"gateway": {"image": {"repository": "r.io/g", "tag": "7", "digest": digest}}})
    gateway = named(objects, "Deployment", "memserve-gateway")["spec"]["template"]["spec"]["containers"][0]
    assert gateway["image"] == f"r.io/g@{digest}"
    objects = manifests({"workers": {"image": {"repository": "r.io/w", "tag": "7"}}})
    worker = named(objects, "StatefulSet", "memserve-worker")["spec"]["template"]["spec"]["containers"][0]
    assert worker["image"] == "r.io/w:7"
