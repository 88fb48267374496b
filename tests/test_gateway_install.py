"""A gateway is installed as its image is, by the image's script from its own lock: no torch, no vLLM, no Ray.
It serves with the image's settings.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.cluster.images.building import DOCKERFILE
from loadtests.cluster.images.dockerfile import stages_of
from memserve import __version__
from memserve.client import CallFailed, Client
from memserve.demo import MODEL_DIR
from memserve.processes.ports import taken_ports
from tests.kv.redis_server import RedisServer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gateway_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gateway-venv")
    # Python compiles what is imported, which is little of it.
    environment = {
        **os.environ,
        "PREFIX": str(folder),
        "PYTHON": sys.executable,
        "PIP_ARGS": f"{os.environ.get('PIP_ARGS', '')} --no-compile",
    }
    for step in (["packages", "gateway"], ["list"]):
        subprocess.run([ROOT / "deploy" / "docker" / "install.sh", *step], env=environment, check=True)
    return folder / "bin" / "python"


def engines_of(python: Path, folder: Path) -> list[str]:
    """Which of torch, vLLM and Ray the installation has."""
    look = (
        "import importlib.util as u, json; print(json.dumps([m for m in ('torch', 'vllm', 'ray') if "
        "u.find_spec(m)]))"
    )
    answer = subprocess.run(
        [str(python), "-c", look],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        encoding="utf-8",
    )
    return list(json.loads(answer.stdout))


def bill_of(python: Path) -> dict[str, str]:
    """Versions by name of Python's packages, memserve left out. Each has its licence."""
    content = json.loads((python.parents[1] / "sbom.json").read_text(encoding="utf-8"))
    parts = [part for part in content["components"] if part["purl"].startswith("pkg:pypi/")]
    assert [part["name"] for part in parts if "licenses" not in part] == []
    names = {re.sub(r"[-_.]+", "-", part["name"]).lower(): part["version"] for part in parts}
    assert names.pop("memserve") == __version__
    return names


def locked() -> dict[str, str]:
    lines = (ROOT / "deploy" / "locks" / "gateway.lock").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines)


@contextlib.contextmanager
def running_gateway(python: Path, folder: Path, redis_url: str) -> Iterator[Client]:
    """A client of a gateway of the installation, once the gateway answers."""
    model = folder / "model"
    shutil.copytree(MODEL_DIR, model)
    image = stages_of(DOCKERFILE.read_text(encoding="utf-8"), {})["gateway"].config
    environment = {
        **image.environment,
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "data" / "home"),
        "MEMSERVE_HOST": "127.0.0.1",
        "MEMSERVE_HEALTH_PORT": "0",
        "MEMSERVE_MODEL": str(model),
        "MEMSERVE_REDIS_URL": redis_url,
        "MEMSERVE_DATA_DIR": str(folder / "data"),
        "MEMSERVE_PORT": "0",
        "MEMSERVE_METRICS_PORT": "0",
        "MEMSERVE_HTTP_PORT": "0",
    }
    log = folder / "gateway.log"
    with log.open("wb") as output:
        gateway = subprocess.Popen(
            [str(python.parent / image.entrypoint[0]), *image.command],
            env=environment,
            cwd=folder,
            stdout=output,
            stderr=output,
        )
    deadline_s = time.monotonic() + 60

    def wait(seconds: float) -> None:
        assert gateway.poll() is None, log.read_text(encoding="utf-8")
        assert time.monotonic() < deadline_s, log.read_text(encoding="utf-8")
        time.sleep(seconds)

    try:
        while (ports := taken_ports(folder / "data", gateway.pid)) is None:
            wait(0.1)
        with Client(f"127.0.0.1:{ports['port']}") as client:
            while not answers(client):
                wait(0.2)
            yield client
    finally:
        gateway.terminate()
        assert gateway.wait(30) == 0, log.read_text(encoding="utf-8")


def answers(client: Client) -> bool:
    try:
        client.status()
    except CallFailed:
        return False
    return True


@pytest.mark.installs
@pytest.mark.timeout(300)
def test_a_gateway_only_installation_imports_and_serves(
    gateway_python: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    assert engines_of(gateway_python, tmp_path) == []
    assert bill_of(gateway_python) == locked()
    with running_gateway(gateway_python, tmp_path, redis_server.url) as client:
        assert client.status().model == "model"
        memory = client.remember("notes", "The code of Alder station is 4071.").memory
        assert client.search(["notes"], "Alder")[0].memory == memory
        with pytest.raises(CallFailed) as nobody:
            client.generate("Hello.")
        assert nobody.value.code.name == "UNAVAILABLE"
        assert nobody.value.retry_after_s is not None
