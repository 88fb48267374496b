"""What the chart says to other programs is what they take: Redis, Ray, memserve itself."""

from __future__ import annotations

import base64
import re
import socket
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import redis
import typer
import yaml

from memserve.cli.app import app
from memserve.config import SETTINGS_DIR, load_settings
from memserve.embedded.redis_server import redis_executable
from memserve.worker.fleet.ray_start import GCS_PORT, PORTS
from tests.helm.charts import (
    NAMES,
    Manifest,
    containers,
    example_manifests,
    manifests,
    named,
    of_kind,
    pod_templates,
)

# The registry acknowledges what is on disk, and evicts nothing; the cache evicts what has a time to live.
CONFIGURATION = {
    "registry": {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"},
    "cache": {"appendonly": "no", "maxmemory-policy": "volatile-lru", "maxmemory": "268435456", "save": ""},
}


def secret_files(objects: list[Manifest], template: Manifest, volume: str) -> dict[str, str]:
    """Texts by path, of a volume made of the chart's own Secrets."""
    [found] = [each for each in template["spec"]["volumes"] if each["name"] == volume]
    sources = [each["secret"] for each in found.get("projected", {}).get("sources", ())]
    if "secret" in found:
        sources = [{"name": found["secret"]["secretName"], "items": found["secret"]["items"]}]
    return {
        item["path"]: base64.b64decode(named(objects, "Secret", source["name"])["data"][item["key"]]).decode()
        for source in sources
        for item in source["items"]
    }


@pytest.mark.parametrize("role", CONFIGURATION)
def test_redis_runs_as_the_trial_configures_it(tmp_path: Path, role: str) -> None:
    objects = manifests({"redis": {"trial": {"cache": {"maxBytes": 268435456}}}})
    workload = named(objects, "StatefulSet", f"memserve-redis-{role}")["spec"]["template"]
    password = secret_files(objects, workload, "auth")["auth.conf"]
    (tmp_path / "auth.conf").write_text(password, encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = named(objects, "ConfigMap", f"memserve-redis-{role}")["data"]["redis.conf"]
    for pods, here in (
        ("/etc/redis-auth", tmp_path),
        ("/data", tmp_path),
        ("6379", port),
        ("0.0.0.0", "127.0.0.1"),
    ):
        assert str(pods) in text
        text = text.replace(str(pods), str(here))
    (tmp_path / "redis.conf").write_text(text, encoding="utf-8")
    server = subprocess.Popen([redis_executable(), str(tmp_path / "redis.conf")], stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(port=port, password=password.split()[1])
        for _ in range(100):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port).ping()
        found = client.config_get("*")
        assert {key: found[key] for key in CONFIGURATION[role]} == CONFIGURATION[role]
        client.close()
    finally:
        server.terminate()
        server.wait(10)


@pytest.mark.parametrize(
    "part", [("Deployment", "gateway"), ("StatefulSet", "worker"), ("StatefulSet", "ray-head")]
)
def test_memserve_reads_its_settings_as_the_pod_has_them(tmp_path: Path, part: tuple[str, str]) -> None:
    """The ConfigMap as environment, and the Secrets as a directory of files."""
    kind, name = part
    objects = manifests()
    template = named(objects, kind, f"memserve-{name}")["spec"]["template"]
    for path, text in secret_files(objects, template, "secrets").items():
        (tmp_path / path).write_text(text, encoding="utf-8")
    [container] = template["spec"]["containers"]
    environment = {item["name"]: item.get("value", "10.1.2.3") for item in container["env"]}
    assert environment[SETTINGS_DIR] == "/etc/memserve/secrets"
    for source in container["envFrom"]:
        environment |= named(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    settings = load_settings({**environment, SETTINGS_DIR: str(tmp_path)})
    assert settings.redis.endswith("@memserve-redis-registry:6379/0")
    assert settings.cache_redis.endswith("@memserve-redis-cache:6379/0")
    assert len(settings.salt_key.get_secret_value()) == 64
    if name == "worker":
        assert settings.ray_address == f"memserve-ray-head:{GCS_PORT}"
    if name != "gateway":
        assert settings.worker_address == "10.1.2.3"
        assert str(settings.ray_token_file) == "/etc/memserve/ray/token"
        assert list(secret_files(objects, template, "ray")) == ["token"]


# Ray


def ray_parameters() -> list[dict[str, str]]:
    [service] = of_kind(example_manifests("gpu-kuberay"), "RayService")
    cluster = service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["rayStartParams"] for group in groups]


def test_kuberay_starts_ray_with_options_that_it_has_and_memserves_ports() -> None:
    with warnings.catch_warnings():
        # Ray's own import.
        warnings.simplefilter("ignore")
        from ray.scripts.scripts import start
    options = {name for option in start.params for name in option.opts}
    for parameters in ray_parameters():
        assert {f"--{name}" for name in parameters} <= options
        assert {name: int(parameters[name]) for name in PORTS} == PORTS


def test_ray_serve_takes_the_application() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.serve.schema import ServeDeploySchema
    [service] = of_kind(example_manifests("gpu-kuberay"), "RayService")
    schema = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    [application] = schema.applications
    assert application.import_path == "memserve.worker.app:application"
    assert application.route_prefix is None
    module, _, name = application.import_path.partition(":")
    source = Path(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    assert f"\ndef {name}(" in source


@pytest.mark.parametrize("name", NAMES)
def test_a_ray_node_declares_the_ports_that_it_listens_on(name: str) -> None:
    single = {port for key, port in PORTS.items() if not key.endswith("worker-port")}
    for where, _, each in containers(example_manifests(name)):
        declared = {port["containerPort"] for port in each.get("ports", ())}
        if each["name"] in ("ray-head", "ray-worker", "worker"):
            assert single <= declared, where
            assert (GCS_PORT in declared) == (each["name"] == "ray-head"), where


def test_ray_is_told_to_ask_for_a_token() -> None:
    [service] = of_kind(example_manifests("gpu-kuberay"), "RayService")
    assert service["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}


def commands(objects: list[Manifest]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for where, template in pod_templates(objects):
        for container in template["spec"]["containers"]:
            command: Any = container.get("command")
            if command and command[0] == "memserve":
                found[where] = command[1:]
    return found


def test_pods_run_memserves_parts() -> None:
    assert commands(manifests()) == {
        "Deployment memserve-gateway": ["gateway"],
        "StatefulSet memserve-worker": ["ray-node"],
        "StatefulSet memserve-ray-head": ["ray-node", "--head"],
        "Pod memserve-test": ["status", "--address", "memserve-grpc.prod.svc:50051"],
    }


def is_command(words: list[str]) -> bool:
    """Whether memserve has the command, with its options."""
    command, rest = typer.main.get_command(app), list(words)
    while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        command = command.commands.get(rest.pop(0))
        if command is None:
            return False
    options = {name for option in command.params for name in option.opts}
    return all(word in options for word in rest if word.startswith("-"))


def test_every_command_of_a_pod_is_one_of_memserves() -> None:
    said = [command for name in NAMES for command in commands(example_manifests(name)).values()]
    without_key = manifests({"secrets": {"apiKeys": {"existingSecret": "mine"}}})
    said += commands(without_key).values()
    text = "".join(map(str, of_kind(example_manifests("gpu-kuberay"), "RayService")))
    in_hooks = re.findall(r"memserve (health [^>]+) >", text)
    assert len(in_hooks) == 1
    said += [each.split() for each in in_hooks]
    assert [command for command in said if not is_command(command)] == []
    assert {command[0] for command in said} == {"gateway", "ray-node", "status", "health"}
    assert not is_command(["status", "--adress", "x"])
