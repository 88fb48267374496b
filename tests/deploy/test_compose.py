"""compose.yaml: valid by the Compose specification, closed by default, with settings and commands that exist.
`loadtests.images` runs it.
"""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compose_spec
import pytest

from loadtests.cluster.images.building import DOCKERFILE, Image
from loadtests.cluster.images.compose import ComposeError, Project, read_compose, services_of, size_bytes
from loadtests.cluster.images.dockerfile import ImageConfig, stages_of
from memserve.config import load_settings
from tests.cli.commands import commands

FOLDER = DOCKERFILE.parent
STAGES = stages_of(DOCKERFILE.read_text(encoding="utf-8"), {})
OURS = ("gateway", "worker")
REDIS = ("registry", "cache")
each_of_ours = pytest.mark.parametrize("name", OURS)


def compose(**environment: str) -> dict[str, Any]:
    return read_compose(FOLDER / "compose.yaml", environment)


def validated(content: dict[str, Any]) -> None:
    """Raises ValueError."""
    compose_spec.PyCompose.from_json(json.dumps(content)).validate()


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compose") / "secrets"
    subprocess.run([FOLDER / "secrets.sh", folder], check=True, capture_output=True)
    return folder


def test_both_files_are_valid_by_the_compose_specification() -> None:
    validated(compose())
    validated(read_compose(FOLDER / "compose.cuda.yaml", {}))


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    content = compose()
    change(content)
    return content


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["services"]["gateway"].update(imagee="x"),
        lambda c: c["services"]["gateway"].update(networks=["nothing"]),
        lambda c: c["services"]["gateway"]["secrets"].append({"source": "nothing"}),
        lambda c: c["services"]["gateway"].update(stop_grace_period="30 parsecs"),
        lambda c: c["services"]["gateway"].update(ports=["127.0.0.1:x:1"]),
        lambda c: c["services"]["worker"].update(shm_size="1q"),
        lambda c: c.update(service={}),
    ],
)
def test_what_the_specification_does_not_know_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        validated(changed(change))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["services"]["gateway"].update(privileged=True),
        lambda c: c["services"]["registry"].update(depends_on={"gateway": {}}),
        lambda c: c["services"]["gateway"].update(depends_on={"nothing": {}}),
    ],
)
def test_what_the_runner_does_not_know_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(ComposeError):
        services_of(changed(change))


def test_each_service_comes_after_those_that_it_needs() -> None:
    assert list(services_of(compose())) == ["registry", "cache", "gateway", "worker"]


@pytest.mark.parametrize("name", [*OURS, *REDIS])
def test_a_service_has_no_right_that_it_does_not_need(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("user", "10001:10001") in ("10001:10001", "999:999")
    # Nothing is published beyond this machine, and Redis not even there.
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert ("ports" in service) == (name == "gateway")
    assert "healthcheck" in service or STAGES[service["build"]["target"]].config.health


def container(name: str, secrets: Path, folder: Path) -> Any:
    content = compose()
    service = services_of(content)[name]
    config = STAGES[service.target].config if service.target else ImageConfig()
    (folder / "root").mkdir(exist_ok=True)
    return Project(content, folder / "volumes", secrets).container(service, Image(folder / "root", config))


@each_of_ours
def test_its_settings_are_known_and_its_command_exists(name: str, secrets: Path, tmp_path: Path) -> None:
    ran = container(name, secrets, tmp_path)
    assert ran.command[0] == "memserve"
    assert ran.command[1] in dict(commands())
    below = ran.environment["MEMSERVE_SETTINGS_DIR"]
    files = {volume.target: volume.source for volume in ran.volumes if volume.target.startswith(below)}
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    for target, source in files.items():
        (mounted / Path(target).name).symlink_to(source)
    settings = load_settings({**ran.environment, "MEMSERVE_SETTINGS_DIR": str(mounted)})
    assert len(settings.salt_key.get_secret_value()) >= 32
    assert settings.metrics_key.get_secret_value()
    assert settings.redis.endswith("@registry:6379/0")
    assert settings.cache_redis.endswith("@cache:6379/0")
    assert settings.model == ""
    assert any(volume.target == str(settings.data) and not volume.read_only for volume in ran.volumes)
    assert settings.kv_host_bytes < ran.shm_bytes or name == "gateway"


def test_gateway_and_worker_have_the_same_settings_but_the_workers_own() -> None:
    gateway, worker = (compose()["services"][name]["environment"] for name in OURS)
    assert {key: value for key, value in worker.items() if key != "MEMSERVE_WORKERS"} == gateway


def test_redis_is_set_up_as_memserve_wants_it(secrets: Path, tmp_path: Path) -> None:
    registry, cache = (container(name, secrets, tmp_path).command for name in REDIS)
    options = {name: dict(zip(words[2::2], words[3::2], strict=True)) for name, words in
               (("registry", registry), ("cache", cache))}  # fmt: skip
    assert options["registry"]["--appendonly"] == "yes"
    assert options["registry"]["--appendfsync"] == "always"
    assert options["registry"]["--maxmemory-policy"] == "noeviction"
    assert options["cache"]["--maxmemory-policy"].startswith("volatile-")
    quota = int(compose()["services"]["gateway"]["environment"]["MEMSERVE_KV_QUOTA_BYTES"])
    assert quota == size_bytes(options["cache"]["--maxmemory"]) * 9 // 10


def test_a_password_is_no_argument_of_a_process() -> None:
    for name in REDIS:
        service = compose()["services"][name]
        assert "requirepass" not in " ".join(service["command"])
        assert service["command"][1] == service["secrets"][0]["target"]
    assert "environment" not in compose()["services"]["registry"]


def test_secrets_are_made_once_and_belong_together(secrets: Path) -> None:
    files = {file.name: file.read_text(encoding="ascii") for file in secrets.iterdir()}
    sources = {entry["file"].removeprefix("./secrets/") for entry in compose()["secrets"].values()}
    assert files.keys() == sources
    for name, url in (("registry", "redis_url"), ("cache", "cache_redis_url")):
        password = files[f"{name}.conf"].removeprefix("requirepass ").strip()
        assert len(password) == 64
        assert files[url].strip() == f"redis://:{password}@{name}:6379/0"
    assert len({files["salt_key"], files["metrics_key"], files["registry.conf"], files["cache.conf"]}) == 4
    subprocess.run([FOLDER / "secrets.sh", secrets], check=True, capture_output=True)
    assert {file.name: file.read_text(encoding="ascii") for file in secrets.iterdir()} == files
    # Another user enters the folder nowhere, and a container's user reads the file that is mounted.
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o644 for file in secrets.iterdir())


def test_variables_are_filled_in_as_compose_does_it() -> None:
    assert compose()["services"]["gateway"]["image"].startswith("memserve-gateway:")
    assert compose(GATEWAY_IMAGE="mine:1")["services"]["gateway"]["image"] == "mine:1"
    assert "$(sed" in compose()["services"]["registry"]["healthcheck"]["test"][1]
    worker = compose(MEMSERVE_MODEL="Qwen/Qwen3-0.6B")["services"]["worker"]["environment"]
    assert worker["MEMSERVE_MODEL"] == "Qwen/Qwen3-0.6B"
