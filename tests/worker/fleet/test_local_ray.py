"""The local Ray: on loopback, behind a token, in a directory that only its owner enters. Each private part of
Ray that is replaced.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from memserve.errors import StartupError
from memserve.worker.fleet import local_ray
from memserve.worker.fleet.local_ray import private_ray_dir, ray_environment, remove_ray_dir

pytestmark = pytest.mark.ray

SCRIPT = """
import json, os, sys
from pathlib import Path
from memserve.private_files import private_umask
from memserve.worker.fleet.local_ray import forget_settings_environment, private_ray_dir, ray_environment
from memserve.worker.fleet.local_ray import serve_on_loopback, start_local_ray
private_umask()
data = Path(sys.argv[1])
forget_settings_environment()
os.environ.update(ray_environment(data))
folder = private_ray_dir(data)
import psutil, ray
start_local_ray(folder, 2)
from ray import serve
from ray.serve.config import ProxyLocation

serve.start(proxy_location=ProxyLocation.Disabled)

class Replica:
    def __init__(self):
        serve_on_loopback()

serve.run(serve.deployment(Replica).bind(), name="test", route_prefix=None)
found = {"listening": [], "environment": [], "processes": 0, "gcs": ray.get_runtime_context().gcs_address}
for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
    found["processes"] += 1
    if process.pid != os.getpid():
        found["environment"] += [name for name in process.environ() if name.startswith("MEMSERVE_")]
    name = process.name() + " " + " ".join(process.cmdline()[:2])
    found["listening"] += [[name, c.laddr.ip,
    c.laddr.port] for c in process.net_connections() if c.status == "LISTEN"]
print("FOUND " + json.dumps(found), flush=True)
sys.stdin.readline()
serve.shutdown()
ray.shutdown()
remove = folder
from memserve.worker.fleet.local_ray import remove_ray_dir
remove_ray_dir(remove)
"""
# Joins the cluster by its GCS port, as anybody could who reaches it.
STRANGER = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("RAN", ray.get(ray.remote(lambda: 7).remote()))
"""


def joined(address: str, home: Path, token: dict[str, str]) -> str:
    """What a stranger that joins the cluster prints. Ray keeps trying where it is refused, so it is ended
    after a while.
    """
    environment = {**os.environ, "HOME": str(home), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", **token}
    with subprocess.Popen(
        [sys.executable, "-c", STRANGER, address],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    ) as stranger:
        try:
            return stranger.communicate(timeout=12)[0]
        except subprocess.TimeoutExpired:
            stranger.kill()
            return stranger.communicate()[0]


@pytest.mark.timeout(240)
def test_ray_listens_on_loopback_only_and_nobody_without_the_token_joins(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "MEMSERVE_SALT_KEY": "hunter2" * 8,
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "")
        found = json.loads(next(line for line in lines if line.startswith("FOUND ")).removeprefix("FOUND "))
        assert found["listening"]
        assert [
            entry for entry in found["listening"] if entry[1] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
        ] == []
        assert not any("dashboard.py" in entry[0] or "monitor.py" in entry[0] for entry in found["listening"])
        assert found["environment"] == [], (
            "no setting, and so no secret, is in the environment of Ray's processes"
        )
        assert next((tmp_path / "ray").iterdir()).resolve().parent.stat().st_mode & 0o777 == 0o700
        held = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "ray_token")}
        assert "RAN 7" in joined(found["gcs"], tmp_path, held), "with the token the cluster can be joined"
        for token in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
            assert "RAN" not in joined(found["gcs"], tmp_path, token)
        process.stdin.write("stop\n")
        process.stdin.flush()
        assert process.wait(60) == 0
        assert not next((tmp_path / "ray").iterdir()).exists()
    finally:
        process.kill()
        process.communicate()


def test_the_directory_of_a_ray_that_was_killed_is_removed_at_the_next_start(tmp_path: Path) -> None:
    first = private_ray_dir(tmp_path)
    (first / "session").mkdir()
    living = tmp_path / "ray" / str(os.getppid())
    living.symlink_to(tmp_path)
    second = private_ray_dir(tmp_path)
    assert first != second and not first.parent.exists() and second.is_dir()
    assert living.is_symlink(), "a fleet beside this one keeps its own"
    remove_ray_dir(second)
    assert not second.parent.exists()


def test_nothing_else_is_taken_for_a_ray_directory(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign" / "ray"
    foreign.mkdir(parents=True)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "99999999").symlink_to(foreign)
    remove_ray_dir(private_ray_dir(tmp_path))
    assert foreign.is_dir()


def test_the_token_is_the_data_directorys_own(tmp_path: Path) -> None:
    environment = ray_environment(tmp_path)
    token = Path(environment["RAY_AUTH_TOKEN_PATH"])
    assert environment["RAY_AUTH_MODE"] == "token"
    assert token.parent == tmp_path and token.stat().st_mode & 0o777 == 0o600
    assert ray_environment(tmp_path) == environment


def test_a_long_temporary_directory_gives_way_to_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 10)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = private_ray_dir(tmp_path)
    try:
        assert folder.is_relative_to("/tmp")
        # What Ray makes below it.
        sockets = folder / "session_2026-11-27_12-36-25_236881_1157000" / "sockets"
        sockets.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(sockets / "plasma_store"))
    finally:
        remove_ray_dir(folder)
    monkeypatch.setattr(local_ray, "MAX_TEMPORARY_PATH_BYTES", 1)
    with pytest.raises(StartupError, match="set TMPDIR to one of at most 1 bytes"):
        private_ray_dir(tmp_path)
