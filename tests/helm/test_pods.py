"""What every rendered pod is: confined, probed, drained, and made anew when its settings change."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from memserve.config import SETTINGS_DIR, Settings, load_settings
from memserve.gateway.access.keys import read_keys
from tests.helm.charts import (
    NAMES,
    Manifest,
    containers,
    example,
    example_manifests,
    manifests,
    named,
    of_kind,
    pod_templates,
    render,
    with_values,
)

every_example = pytest.mark.parametrize("name", NAMES)


def container(objects: list[Manifest], kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = named(objects, kind, name)["spec"]["template"]["spec"]["containers"][0]
    return found


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


# Settings


def variables(objects: list[Manifest], config_map: str) -> dict[str, str]:
    found: dict[str, str] = named(objects, "ConfigMap", config_map)["data"]
    return found


def settings_of(objects: list[Manifest], config_map: str) -> Settings:
    return load_settings(variables(objects, config_map))


@every_example
def test_every_variable_is_a_setting_and_is_read(name: str) -> None:
    objects = example_manifests(name)
    maps = [
        each
        for each in of_kind(objects, "ConfigMap")
        if any(key.startswith("MEMSERVE_") for key in each["data"])
    ]
    assert len(maps) == 2
    for each in maps:
        settings = load_settings(each["data"])
        assert len(settings.model_fields_set) == len(each["data"]) >= 10
    for where, _, each in containers(objects):
        names = [item["name"] for item in each.get("env", ()) if item["name"].startswith("MEMSERVE_")]
        client = {"MEMSERVE_API_KEY", "MEMSERVE_TLS_CA_FILE", "MEMSERVE_TLS_CLIENT_CERT_FILE"}
        known = {
            SETTINGS_DIR, "MEMSERVE_RAY_ADDRESS", "MEMSERVE_WORKER_ADDRESS", "MEMSERVE_TLS_CLIENT_KEY_FILE",
            *client,
        }  # fmt: skip
        assert set(names) <= known, where


def test_a_part_s_own_settings_go_before_the_shared() -> None:
    values = {
        "settings": {"page": True, "kv_ttl_s": 7200, "disk_reserve_bytes": 0, "routing_exploration": 0.25},
        "gateway": {"settings": {"page": False}},
        "workers": {
            "settings": {"kv_ttl_s": 60, "kv_host_bytes": 8589934592},
            "shmSize": "8.5Gi",
            "resources": {"limits": {"memory": "16G"}},
        },
    }
    objects = manifests(values)
    gateway, worker = settings_of(objects, "memserve-gateway"), settings_of(objects, "memserve-worker")
    assert (gateway.page, gateway.kv_ttl_s, gateway.disk_reserve_bytes) == (False, 7200, 0)
    assert (worker.page, worker.kv_ttl_s, worker.kv_host_bytes) == (True, 60, 8589934592)
    assert gateway.routing_exploration == 0.25


@every_example
def test_files_that_settings_name_are_mounted(name: str) -> None:
    objects = example_manifests(name)
    for kind, config_map in (("Deployment", "gateway"), ("StatefulSet", "worker")):
        workloads = [each for each in of_kind(objects, kind) if each["metadata"]["name"].endswith(config_map)]
        for workload in workloads:
            release = workload["metadata"]["name"].removesuffix(f"-{config_map}")
            values = variables(objects, f"{release}-{config_map}")
            mounts = [
                mount["mountPath"]
                for mount in container(objects, kind, f"{release}-{config_map}")["volumeMounts"]
            ]
            files = [
                value for key, value in values.items() if value.startswith("/") and key.endswith("_FILE")
            ]
            assert files or config_map == "worker"
            assert [file for file in files if file.rpartition("/")[0] not in mounts] == []


# Secrets


def secret_texts(objects: list[Manifest]) -> list[str]:
    return [
        base64.b64decode(value).decode()
        for each in of_kind(objects, "Secret")
        for value in each["data"].values()
    ]


SECRETS = {name for name, field in Settings.model_fields.items() if field.annotation is SecretStr}


@every_example
def test_no_secret_stands_anywhere_but_in_a_secret(name: str) -> None:
    values = {"redis": {"mode": "external", "external": {"url": "redis://:hunter2000@r:6379/0"}}}
    for objects in (example_manifests(name), manifests(values)):
        secrets = [text for text in secret_texts(objects) if len(text) >= 8]
        rest = json.dumps([each for each in objects if each["kind"] != "Secret"])
        assert [text for text in secrets if text in rest or text.strip() in rest] == []
        for each in of_kind(objects, "ConfigMap"):
            assert not {f"MEMSERVE_{secret.upper()}" for secret in SECRETS} & each["data"].keys()
    assert "hunter2000" in " ".join(secret_texts(manifests(values)))


def test_secrets_are_files_by_the_names_of_settings() -> None:
    for name in NAMES:
        for where, pod, each in containers(example_manifests(name)):
            if each["name"] in ("redis", "test"):
                continue
            [volume] = [volume for volume in pod["volumes"] if volume["name"] == "secrets"]
            paths = [
                item["path"]
                for source in volume["projected"]["sources"]
                for item in source["secret"]["items"]
            ]
            assert {"salt_key", "redis_url"} <= set(paths) <= SECRETS, where
            # Workers do not speak to Milvus.
            assert "milvus_token" not in paths or each["name"] == "gateway", where


def test_the_chart_s_own_secrets_fit_together() -> None:
    objects = manifests()
    redis = data_of(objects, "memserve-redis")
    assert redis["auth.conf"] == f"requirepass {redis['password']}\n"
    assert redis["redis_url"] == f"redis://:{redis['password']}@memserve-redis-registry:6379/0"
    assert len(redis["password"]) >= 32
    assert len(data_of(objects, "memserve-salt")["salt_key"].encode()) >= 32
    keys = data_of(objects, "memserve-api-keys")
    assert (
        json.loads(keys["keys.json"])["keys"][0]["sha256"]
        == hashlib.sha256(keys["admin_key"].encode()).hexdigest()
    )


def test_the_file_of_keys_is_one_that_a_gateway_reads(tmp_path: Any) -> None:
    file = tmp_path / "keys.json"
    file.write_text(data_of(manifests(), "memserve-api-keys")["keys.json"], encoding="utf-8")
    file.chmod(0o600)
    keys = read_keys(file, must_exist=True)
    assert keys is not None
    assert [(key.name, key.tenant, key.role.value) for key in keys] == [("admin", "default", "admin")]


def data_of(objects: list[Manifest], name: str) -> dict[str, str]:
    data = named(objects, "Secret", name)["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


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
