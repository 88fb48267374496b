"""How a node starts Ray: fixed ports, and no secret on any command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from memserve.config import Settings
from memserve.worker.fleet.ray_start import (
    PORTS,
    GcsStore,
    gcs_store,
    head_environment,
    start_arguments,
)

SCRIPT = """
import json
from ray._private import ray_constants, services

shown = []
services.start_ray_process = lambda command, kind, **options: shown.append([kind, command, options])
from memserve.worker.fleet.ray_start import hide_password
hide_password("the password")
place = dict(session_name="s", log_dir="/tmp", stdout_filepath=None, stderr_filepath=None)
services.start_gcs_server("redis:6379", redis_password="the password", gcs_server_port=1, **place)

started = []
services.start_raylet = lambda *args, **options: started.append(options)
hide_password("the password")
services.start_raylet("redis:6379", redis_password="the password")
print(json.dumps([shown, started]))
"""


def test_the_password_of_redis_is_on_no_command_line_and_the_gcs_gets_it() -> None:
    """Ray's own functions are called, so that another Ray which passes it on in another way is noticed."""
    import json

    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, encoding="utf-8", timeout=60, check=True
    )
    shown, started = json.loads(done.stdout.splitlines()[-1])
    ((kind, command, options),) = shown
    assert kind == "gcs_server"
    assert "--fromenv=redis_password" in command
    assert not [part for part in command if "the password" in part]
    assert options["env_updates"] == {"FLAGS_redis_password": "the password"}
    assert started == [{"redis_password": None}]


@pytest.mark.parametrize("head", [True, False])
def test_a_node_starts_with_the_ports_that_it_documents_and_without_secrets(head: bool) -> None:
    settings = Settings(redis_url="redis://:the-password@redis", salt_key="k" * 32, ray_address="head:6379")
    arguments = start_arguments(settings, "10.0.0.7", Path("/tmp/x"), head=head)
    assert {f"--{name}={port}" for name, port in PORTS.items()} <= set(arguments)
    assert "--node-ip-address=10.0.0.7" in arguments
    assert ("--head" in arguments) is head
    assert ("--address=head:6379" in arguments) is not head
    # The head has no worker.
    assert ("--num-cpus=0" in arguments) is head
    assert not [part for part in arguments if "the-password" in part or "kkk" in part]


def test_a_node_with_gpus_has_a_cpu_for_each_worker_and_for_a_task() -> None:
    settings = Settings(ray_address="head:6379", worker_gpus=1)
    assert "--num-cpus=9" in start_arguments(settings, "10.0.0.7", Path("/tmp/x"), head=False)


@pytest.mark.parametrize(
    ("url", "store"),
    [
        ("redis://registry", GcsStore("registry:6379", "", "")),
        ("redis://user:p%40ss@registry:7000/3", GcsStore("registry:7000", "user", "p@ss")),
        ("rediss://:pass@registry", GcsStore("rediss://registry:6379", "", "pass")),
        ("unix:///run/redis.sock", None),
        ("", None),
    ],
)
def test_the_gcs_keeps_its_state_in_the_registry_where_it_can_reach_it(
    url: str, store: GcsStore | None
) -> None:
    assert gcs_store(url) == store


def test_the_state_belongs_to_one_version_of_ray_and_tls_has_its_files() -> None:
    settings = Settings(internal_tls_ca_file="/etc/ca.crt")
    plain = head_environment(settings, GcsStore("registry:6379", "", "p"), "2.60.0")
    assert plain == {
        "RAY_REDIS_ADDRESS": "registry:6379",
        "RAY_external_storage_namespace": "memserve-2.60.0",
    }
    with_tls = head_environment(settings, GcsStore("rediss://registry:6379", "", "p"), "2.60.0")
    assert with_tls["RAY_REDIS_CA_CERT"] == "/etc/ca.crt"
