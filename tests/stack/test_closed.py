"""A running memserve is closed: every socket of every process against the settings, and no secret where
others look.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from memserve import credentials
from memserve.embedded import Stack, marked_processes
from memserve.registry.leases import WORKERS, lease_key

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600), pytest.mark.usefixtures("client")]


def listening(stack: Stack) -> Iterator[tuple[str, str, int]]:
    """Name of the process, address, port."""
    for process in marked_processes(stack.settings.data):
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    yield process.name(), connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port


def test_everything_listens_on_loopback_and_the_settings_ports_are_there(stack: Stack) -> None:
    open_ports = list(listening(stack))
    assert [entry for entry in open_ports if not ipaddress.ip_address(entry[1]).is_loopback] == []
    with redis.Redis.from_url(stack.settings.redis, decode_responses=True) as registry:
        leases = [
            json.loads(lease)
            for name in registry.smembers(WORKERS)
            if (lease := registry.get(lease_key(name)))
        ]
    named = {stack.settings.port, stack.settings.metrics_port}
    named |= {
        int(lease[field].rpartition(":")[2]) for lease in leases for field in ("address", "metrics_address")
    }
    assert len(named) == 2 + 2 * stack.settings.workers
    assert named <= {port for _, _, port in open_ports}
    # Of what is not in the settings: Ray behind its token, gloo of the engines.
    others = {name for name, _, port in open_ports if port not in named}
    assert others <= {
        "gcs_server",
        "raylet",
        "python",
        "memserve",
        *{name for name in others if name.startswith(("ray::", "VLLM"))},
    }


def test_every_unix_socket_is_in_a_directory_of_ours_alone(stack: Stack) -> None:
    paths = set()
    for process in marked_processes(stack.settings.data):
        with contextlib.suppress(psutil.Error):
            paths |= {
                Path(str(connection.laddr))
                for connection in process.net_connections("unix")
                if connection.laddr
            }
    paths = {path for path in paths if path.is_absolute() and path.exists()}
    assert any(path.name == "redis.sock" for path in paths)
    assert [
        path for path in paths if all(stat.S_IMODE(parent.stat().st_mode) & 0o077 for parent in path.parents)
    ] == []


def test_nothing_in_the_data_directory_is_open_to_others(stack: Stack) -> None:
    def is_open(path: Path) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return not path.is_symlink() and bool(path.stat().st_mode & 0o077)
        return False

    assert [path for path in (stack.settings.data, *stack.settings.data.rglob("*")) if is_open(path)] == []


def test_no_secret_stands_in_an_environment_or_on_a_command_line(stack: Stack) -> None:
    key = credentials.salt_key(stack.settings)
    token = (stack.settings.data / "ray_token").read_text(encoding="utf-8").strip()
    secrets = [key.decode(), credentials.worker_credential(key), credentials.operator_credential(key), token]
    looked = 0
    for process in marked_processes(stack.settings.data):
        with contextlib.suppress(psutil.Error):
            text = "\n".join([*process.cmdline(), *process.environ().values()])
            looked += 1
            assert [secret for secret in secrets if secret in text] == []
            assert [name for name in process.environ() if name.startswith("MEMSERVE_")] in (
                [],
                ["MEMSERVE_SETTINGS_FILE"],
            )
    assert looked >= 8
