"""`ray start --block` for one node of a cluster, as `memserve ray-node` runs it in a process of its own.

1. Ports are fixed, processes that memserve does not use are left out, and nothing is started without a token.
2. The head keeps the state of its GCS in the registry's Redis. When the head is back after a failure, the
   other nodes and their workers are still part of the cluster.
3. The password of that Redis is on no command line. Ray 2.60 would put it there, so that the start of its
   processes is replaced here. `tests/worker/fleet/test_ray_start.py` holds it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from memserve.config import MIB, Settings, load_settings
from memserve.worker.fleet.local_ray import leave_out_helpers, link_logs, private_ray_dir
from memserve.worker.fleet.node_settings import cluster_environment

GCS_PORT = 6379
PORTS = {
    "node-manager-port": 6381,
    "object-manager-port": 6382,
    "runtime-env-agent-port": 6383,
    "dashboard-agent-grpc-port": 6384,
    "dashboard-agent-listen-port": 6385,
    "metrics-export-port": 6386,
    "min-worker-port": 6400,
    "max-worker-port": 6499,
}
OBJECT_STORE_BYTES = 100 * MIB
# A worker, and a task that composes modules.
CPUS = 2
GPUS_MAX = 8
NAMESPACE = "memserve"
PASSWORD = "--redis_password="
HEAD = "--head"


@dataclass(frozen=True, slots=True)
class GcsStore:
    """A Redis in which Ray's GCS keeps its state."""

    address: str
    """host:port, with rediss:// before it for TLS."""
    username: str
    password: str


def gcs_store(redis_url: str) -> GcsStore | None:
    """The registry's Redis as Ray takes it. None where Ray cannot reach it: it listens on a unix socket.

    Ray uses database 0, under keys that begin with its namespace.
    """
    url = urlsplit(redis_url)
    if url.scheme not in ("redis", "rediss") or not url.hostname:
        return None
    place = f"{url.hostname}:{url.port or 6379}"
    return GcsStore(
        f"rediss://{place}" if url.scheme == "rediss" else place,
        unquote(url.username or ""),
        unquote(url.password or ""),
    )


def start_arguments(settings: Settings, address: str, folder: Path, *, head: bool) -> list[str]:
    """Of `ray start`, without secrets. address: of this machine."""
    place = (
        [HEAD, f"--port={GCS_PORT}", "--include-dashboard=false", "--num-cpus=0", "--num-gpus=0"]
        if head
        else [
            f"--address={settings.ray_address}",
            f"--num-cpus={GPUS_MAX + 1 if settings.worker_gpus else CPUS}",
        ]
    )
    ports = [f"--{name}={port}" for name, port in PORTS.items()]
    return [
        "--block",
        "--disable-usage-stats",
        "--include-log-monitor=false",
        "--log-style=record",
        "--log-color=false",
        f"--node-ip-address={address}",
        f"--temp-dir={folder}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        *place,
        *ports,
    ]


def head_environment(settings: Settings, store: GcsStore, ray_version: str) -> dict[str, str]:
    """Where the GCS keeps its state, without the password. Another version of Ray begins anew."""
    files = {
        "RAY_REDIS_CA_CERT": settings.internal_tls_ca_file,
        "RAY_REDIS_CLIENT_CERT": settings.internal_tls_cert_file,
        "RAY_REDIS_CLIENT_KEY": settings.internal_tls_key_file,
    }
    with_tls = {name: str(file) for name, file in files.items() if file is not None}
    return {
        "RAY_REDIS_ADDRESS": store.address,
        "RAY_external_storage_namespace": f"{NAMESPACE}-{ray_version}",
        **(with_tls if store.address.startswith("rediss://") else {}),
    }


def hide_password(password: str) -> None:
    """From now on no command line of Ray's processes has the password. The GCS gets it in its environment."""
    from ray._private import ray_constants, services

    start_raylet, start = services.start_raylet, services.start_ray_process

    def start_without_password(command: list[str], process_type: str, *args: Any, **options: Any) -> Any:
        if process_type == ray_constants.PROCESS_TYPE_GCS_SERVER:
            command = from_environment(command)
            updates = options.get("env_updates") or {}
            options = {**options, "env_updates": {**updates, "FLAGS_redis_password": password}}
        return start(command, process_type, *args, **options)

    services.start_ray_process = start_without_password
    # A raylet would hand it to its workers, which have no use for it.
    services.start_raylet = lambda *args, **options: start_raylet(
        *args, **{**options, "redis_password": None}
    )


def from_environment(command: Sequence[str]) -> list[str]:
    """The command line of a GCS that reads the password from its environment, in FLAGS_redis_password."""
    return ["--fromenv=redis_password" if part.startswith(PASSWORD) else part for part in command]


def main(arguments: Sequence[str]) -> None:
    """Run a node until SIGTERM, or until one of its processes ends. The address of this machine is the first
    argument.
    """
    address, head = arguments[0], HEAD in arguments
    settings = load_settings()
    os.environ.update(cluster_environment(settings, makes_token=head))
    # The node's workers leave by themselves; this is how long Ray waits for them.
    os.environ["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0" if head else str(settings.shutdown_grace_s + 5)
    import ray

    store = gcs_store(settings.redis) if head else None
    secrets = []
    if store is not None:
        os.environ.update(head_environment(settings, store, ray.__version__))
        if store.username:
            secrets.append(f"--redis-username={store.username}")
        if store.password:
            secrets.append(f"--redis-password={store.password}")
            hide_password(store.password)
    leave_out_helpers()
    folder = private_ray_dir(settings.data)
    link_logs(settings, folder)
    os.environ["VLLM_RPC_BASE_PATH"] = str(folder)
    from ray.scripts.scripts import start

    start.main([*start_arguments(settings, address, folder, head=head), *secrets], standalone_mode=False)


if __name__ == "__main__":
    main(sys.argv[1:])
