"""Settings reach the pods as memserve reads them, and secrets as files alone."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from pydantic import SecretStr

from memserve.config import SETTINGS_DIR, Settings, load_settings
from memserve.gateway.access.keys import read_keys
from tests.helm.charts import (
    NAMES,
    Manifest,
    container,
    containers,
    example_manifests,
    manifests,
    named,
    of_kind,
    settings_of,
    variables,
)

every_example = pytest.mark.parametrize("name", NAMES)


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
