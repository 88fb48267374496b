"""What every rendered pod is: confined, probed, drained, and made anew when its settings change."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helm.charts import (
    NAMES,
    container,
    containers,
    example,
    example_manifests,
    manifests,
    named,
    of_kind,
    pod_templates,
    render,
    settings_of,
    variables,
    with_values,
)

every_example = pytest.mark.parametrize("name", NAMES)


@every_example
def test_a_pod_meets_kubernetes_restricted_profile(name: str) -> None:
    seen = 0
    for where, pod, each in containers(example_manifests(name)):
        seen += 1
        whole, own = pod["securityContext"], each["securityContext"]
        assert whole["runAsNonRoot"] and whole["runAsUser"] > 0, where
        assert whole["seccompProfile"] == own["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert own["allowPrivilegeEscalation"] is False, where
        assert own["readOnlyRootFilesystem"] is True, where
        assert own["capabilities"] == {"drop": ["ALL"]}, where
        assert pod.get("hostNetwork", False) is pod.get("hostPID", False) is False, where
        assert all("hostPath" not in volume for volume in pod["volumes"]), where
    assert seen >= 4


@every_example
def test_a_pod_gets_neither_a_token_nor_the_variables_of_services(name: str) -> None:
    """MEMSERVE_PORT of a Service called memserve would be read as a setting."""
    for where, template in pod_templates(example_manifests(name)):
        assert template["spec"]["automountServiceAccountToken"] is False, where
        assert template["spec"]["enableServiceLinks"] is False, where


def test_only_rays_autoscaler_gets_a_token() -> None:
    values = {"workers": {"mode": "kuberay", "kuberay": {"autoscaler": {"enabled": True}}}}
    tokens = {
        where: template["spec"]["automountServiceAccountToken"]
        for where, template in pod_templates(manifests(values))
    }
    assert [where for where, token in tokens.items() if token] == ["RayService memserve-ray head"]


@every_example
def test_everything_that_is_written_has_a_volume(name: str) -> None:
    for where, pod, each in containers(example_manifests(name)):
        mounts = {mount["mountPath"]: mount["name"] for mount in each["volumeMounts"]}
        claimed = [
            claim["metadata"]["name"]
            for workload in example_manifests(name)
            if workload["kind"] == "StatefulSet"
            for claim in workload["spec"].get("volumeClaimTemplates", ())
        ]
        volumes = [volume["name"] for volume in pod["volumes"]]
        assert len(set(volumes)) == len(volumes), where
        assert set(mounts.values()) <= {*volumes, *claimed}, where
        assert set(volumes) <= set(mounts.values()), where
        if each["name"] == "redis":
            assert "/data" in mounts
            continue
        assert "/tmp" in mounts, where
        homes = {item["name"]: item["value"] for item in each["env"] if "value" in item}
        assert homes["HOME"] == "/tmp", where
        if each["name"] != "test":
            assert {
                "/var/lib/memserve",
                "/var/lib/memserve/models",
                "/etc/memserve/secrets",
            } <= mounts.keys(), where
        if "ray" in each["name"] or each["name"] == "worker":
            shm = next(volume for volume in pod["volumes"] if volume["name"] == mounts["/dev/shm"])
            assert shm["emptyDir"]["medium"] == "Memory" and shm["emptyDir"]["sizeLimit"], where


@every_example
def test_every_container_asks_for_memory_and_is_bounded(name: str) -> None:
    for where, _, each in containers(example_manifests(name)):
        assert each["resources"]["requests"]["memory"], where
        assert each["resources"]["requests"]["cpu"], where
        assert each["resources"]["limits"]["memory"], where
        # A bound of the processor slows an engine without need.
        assert "cpu" not in each["resources"]["limits"], where


@every_example
def test_probes_of_memserve_know_ready_from_alive(name: str) -> None:
    """Alive is the empty service, which neither Redis, Milvus nor a model changes."""
    for where, _, each in containers(example_manifests(name)):
        if each["name"] == "test":
            continue
        startup, readiness, liveness = (
            each[f"{probe}Probe"] for probe in ("startup", "readiness", "liveness")
        )
        assert liveness["failureThreshold"] * liveness["periodSeconds"] >= 60, where
        assert startup["failureThreshold"] * startup.get("periodSeconds", 10) >= 600, where
        if "grpc" in liveness:
            assert "service" not in liveness["grpc"], where
            assert "service" not in startup["grpc"], where
            assert readiness["grpc"] == {**liveness["grpc"], "service": "ready"}, where
        elif "httpGet" in liveness:
            assert liveness["httpGet"] == startup["httpGet"]
            assert liveness["httpGet"]["path"] == "/api/local_raylet_healthz", where
        else:
            assert each["name"] == "redis"


def test_a_gateway_may_take_as_long_as_its_start_is_given() -> None:
    objects = manifests({"gateway": {"startupSeconds": 61}, "workers": {"startupSeconds": 60}})
    gateway = container(objects, "Deployment", "memserve-gateway")
    worker = container(objects, "StatefulSet", "memserve-worker")
    assert gateway["startupProbe"]["failureThreshold"] == 13
    assert worker["startupProbe"]["failureThreshold"] == 12


def test_the_grace_period_is_longer_than_the_drain() -> None:
    values = {
        "gateway": {"drainDelaySeconds": 7, "shutdownGraceSeconds": 300, "preStopSleepSeconds": 4},
        "workers": {"shutdownGraceSeconds": 200},
    }
    objects = manifests(values)
    gateway = named(objects, "Deployment", "memserve-gateway")["spec"]["template"]["spec"]
    settings = settings_of(objects, "memserve-gateway")
    assert (settings.drain_delay_s, settings.shutdown_grace_s) == (7, 300)
    assert gateway["terminationGracePeriodSeconds"] == 7 + 300 + 4 + 10
    assert gateway["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "4"]
    worker = named(objects, "StatefulSet", "memserve-worker")["spec"]["template"]["spec"]
    assert settings_of(objects, "memserve-worker").shutdown_grace_s == 200
    assert worker["terminationGracePeriodSeconds"] == 230
    [ray] = of_kind(manifests(with_values(values, {"workers": {"mode": "kuberay"}})), "RayService")
    pod = ray["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 230
    drain = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert "ray drain-node" in drain and "--deadline-remaining-seconds 200" in drain


def test_a_gateway_with_milvus_lite_goes_before_the_next_comes() -> None:
    lite = named(manifests(), "Deployment", "memserve-gateway")["spec"]["strategy"]
    assert lite == {"type": "Recreate"}
    server = named(example_manifests("everything"), "Deployment", "memserve-gateway")["spec"]["strategy"]
    assert server["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


# Changes


def checksums(values: dict[str, Any]) -> dict[str, str]:
    return {
        where: json.dumps({key: value for key, value in annotations.items() if key.startswith("checksum/")})
        for where, template in pod_templates(manifests(values))
        if (annotations := template["metadata"].get("annotations", {}))
    }


CHANGES: list[tuple[dict[str, Any], set[str]]] = [
    ({"gateway": {"settings": {"page": False}}}, {"gateway"}),
    ({"workers": {"settings": {"kv_ttl_s": 60}}}, {"worker", "ray-head"}),
    ({"settings": {"lookup_timeout_ms": 30}}, {"gateway", "worker", "ray-head"}),
    ({"secrets": {"saltKey": {"existingSecret": "another"}}}, {"gateway", "worker", "ray-head"}),
    ({"redis": {"trial": {"cache": {"maxBytes": 2**28}}}}, {"gateway", "worker", "ray-head", "redis-cache"}),
    ({"gateway": {"service": {"grpc": {"port": 50}}}}, set()),
]


@pytest.mark.parametrize(("change", "parts"), CHANGES, ids=[str(change) for change, _ in CHANGES])
def test_a_change_of_settings_rolls_the_pods_that_read_them(change: dict[str, Any], parts: set[str]) -> None:
    before, after = checksums({}), checksums(change)
    changed = {where.split(" memserve-")[1] for where in before if before[where] != after[where]}
    assert changed == parts
    # Random secrets are no change.
    assert checksums({}) == before


def selectors(values: dict[str, Any], **options: Any) -> Iterator[tuple[str, Any]]:
    for each in manifests(values, **options):
        if each["kind"] in ("Deployment", "StatefulSet"):
            yield each["metadata"]["name"], each["spec"]["selector"]
            labels = each["spec"]["template"]["metadata"]["labels"]
            assert each["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_selectors_do_not_change_with_values_or_versions() -> None:
    """A Deployment's selector cannot be changed: an upgrade would fail."""
    plain = dict(selectors({}))
    changed = {
        "commonLabels": {"team": "a"}, "gateway": {"podLabels": {"a": "b"}, "image": {"tag": "9"}},
        "workers": {"podLabels": {"a": "b"}, "replicas": 2},
    }  # fmt: skip
    assert dict(selectors(changed)) == plain
    text = json.dumps(list(plain.values()))
    assert "version" not in text and "chart" not in text


def test_the_test_pod_calls_the_gateway_s_service_with_a_key() -> None:
    objects = manifests()
    pod = named(objects, "Pod", "memserve-test")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod["spec"]["containers"][0]["command"] == [
        "memserve", "status", "--address", "memserve-grpc.prod.svc:50051",
    ]  # fmt: skip
    [reference] = [
        item["valueFrom"]["secretKeyRef"]
        for item in pod["spec"]["containers"][0]["env"]
        if item["name"] == "MEMSERVE_API_KEY"
    ]
    assert reference == {"name": "memserve-api-keys", "key": "admin_key"}
    without = manifests({"secrets": {"apiKeys": {"existingSecret": "mine"}}})
    command = named(without, "Pod", "memserve-test")["spec"]["containers"][0]["command"]
    assert command[:3] == ["memserve", "health", "--ready"]
    host = command[-1].split(".")[0]
    assert named(without, "Service", host)["spec"]["ports"][0]["port"] == 50052


def test_a_gpu_is_asked_for_by_its_resource() -> None:
    [ray] = of_kind(example_manifests("gpu-kuberay"), "RayService")
    pods = [template["spec"]["containers"][0]["resources"]["limits"] for _, template in pod_templates([ray])]
    assert [limits.get("nvidia.com/gpu") for limits in pods] == [None, 1]
    settings = settings_of(example_manifests("gpu-kuberay"), "memserve-worker")
    assert (settings.workers, settings.worker_gpus) == (4, 1)
    two = manifests({"workers": {"replicas": 3, "gpu": {"count": 2}}})
    assert settings_of(two, "memserve-worker").workers == 6
    assert settings_of(manifests(), "memserve-worker").worker_gpus == 0


def test_workers_know_nothing_of_tokens() -> None:
    objects = example_manifests("everything")
    assert settings_of(objects, "memserve-gateway").jwt_jwks == "/etc/memserve/jwks/jwks.json"
    assert not [key for key in variables(objects, "memserve-worker") if "JWT" in key]


def test_nothing_is_rendered_with_a_name_of_go() -> None:
    """What a template does not find is written as `<no value>`, and a map as `map[…]`."""
    for name in NAMES:
        text = "".join(render(example(name)).values())
        assert not re.search(r"<no value>|<nil>|map\[|%!", text)
