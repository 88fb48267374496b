"""A gateway is installed from its own lock, without torch, vLLM and Ray, and serves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memserve.client import CallFailed, Client
from memserve.demo import MODEL_DIR
from memserve.processes.ports import taken_ports
from tests.kv.redis_server import RedisServer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gateway_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gateway-venv")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "-r", str(ROOT / "deploy" / "locks" / "gateway.lock")], check=True)
    subprocess.run([*pip, str(ROOT)], check=True)
    return folder / "bin" / "python"


@pytest.mark.timeout(300)
def test_a_gateway_only_installation_imports_and_serves(
    gateway_python: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    installed = (
        "import importlib.util as u, json; print(json.dumps([m for m in ('torch', 'vllm', 'ray') if "
        "u.find_spec(m)]))"
    )
    listed = subprocess.run(
        [str(gateway_python), "-c", installed],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        encoding="utf-8",
    )
    assert json.loads(listed.stdout) == []

    model = tmp_path / "model"
    shutil.copytree(MODEL_DIR, model)
    environment = {
        "PATH": os.environ["PATH"],
        "MEMSERVE_MODEL": str(model),
        "MEMSERVE_REDIS_URL": redis_server.url,
        "MEMSERVE_DATA_DIR": str(tmp_path / "data"),
        "MEMSERVE_PORT": "0",
        "MEMSERVE_METRICS_PORT": "0",
    }
    log = tmp_path / "gateway.log"
    with log.open("wb") as output:
        gateway = subprocess.Popen(
            [str(gateway_python), "-m", "memserve", "gateway"],
            env=environment,
            cwd=tmp_path,
            stdout=output,
            stderr=output,
        )
    try:
        deadline_s = time.monotonic() + 60
        while (ports := taken_ports(tmp_path / "data", gateway.pid)) is None:
            assert gateway.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline_s, log.read_text(encoding="utf-8")
            time.sleep(0.1)
        with Client(f"127.0.0.1:{ports['port']}") as client:
            while True:
                try:
                    status = client.status()
                    break
                except CallFailed:
                    assert gateway.poll() is None, log.read_text(encoding="utf-8")
                    assert time.monotonic() < deadline_s, log.read_text(encoding="utf-8")
                    time.sleep(0.2)
            assert status.model == "model"
            memory = client.remember("notes", "The code of Alder station is 4071.")
            assert client.search(["notes"], "Alder")[0].memory == memory
            with pytest.raises(CallFailed) as nobody:
                client.generate("Hello.")
            assert nobody.value.code.name == "UNAVAILABLE"
            assert nobody.value.retry_after_s is not None
    finally:
        gateway.terminate()
        assert gateway.wait(30) == 0, log.read_text(encoding="utf-8")
