"""A Ray that only this user of this machine reaches: loopback, token authentication, no needless processes.

Ray 2.60 has no settings for much of this, so private parts of it are replaced here, and here only.
`tests/worker/fleet/test_local_ray.py` holds each of them.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memserve.config import MIB, Settings
from memserve.errors import StartupError
from memserve.private_files import kept_secret

HOST = "127.0.0.1"
LOGS = Path("session_latest", "logs")
# A unix socket's path has at most 107 bytes. Below a temporary directory Ray's longest path has 86, with a
# process id of seven digits.
MAX_TEMPORARY_PATH_BYTES = 21


def ray_environment(data: Path) -> dict[str, str]:
    """The environment of a Ray on this machine alone, whose token is kept in `data`. Raises StartupError."""
    token = data / "ray_token"
    kept_secret(token)
    return {
        **common_environment(token),
        # Ray keeps to loopback where it takes the machine for one that cannot be part of a cluster. Elsewhere
        # it replaces a loopback address by the machine's outer one.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def common_environment(token: Path) -> dict[str, str]:
    """What Ray reads when it is imported, in this process and in those that it starts.

    token: without it nobody joins the cluster, sends it a task, or calls one of its ports.
    """
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_worker_niceness": "0",
        # Ray ends all workers when its GCS has been away for this long. The workers serve without the GCS
        # until others have taken their place.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "900",
        # The replica's own gRPC server and vLLM share its event loop.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    }


def start_local_ray(folder: Path, num_cpus: int) -> None:
    """Start Ray below the folder, from `private_ray_dir`. `ray_environment` must be in the environment, and
    Ray not yet imported.
    """
    import ray

    leave_out_helpers()
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * MIB,
        _node_ip_address=HOST,
        _temp_dir=str(folder),
        _system_config={"enable_metrics_collection": False},
    )


def listen_to_gcs_no_more() -> None:
    """End this process's threads that wait for messages from the GCS.

    They ask a dead GCS again without a pause, which takes a whole core.
    """
    from ray._private.worker import global_worker

    global_worker.threads_stopped.set()


def private_ray_dir(data: Path) -> Path:
    """A new directory with a short path, because Ray keeps unix sockets below it.

    Directories that killed fleets left behind are removed. Ray gives everybody all rights to its directory,
    so the private one is its parent. Raises StartupError where no temporary directory has a short path.
    """
    notes = data / "ray"
    notes.mkdir(mode=0o700, exist_ok=True)
    for note in notes.iterdir():
        if not _is_alive(note.name):
            remove_ray_dir(note.readlink())
            note.unlink()
    parent = Path(tempfile.mkdtemp(prefix="memserve-", dir=_short_temporary_directory()))
    (parent / "ray").mkdir()
    (notes / str(os.getpid())).symlink_to(parent / "ray")
    return parent / "ray"


def _short_temporary_directory() -> str:
    for place in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if len(os.fsencode(place)) <= MAX_TEMPORARY_PATH_BYTES and os.access(place, os.W_OK | os.X_OK):
            return place
    rule = f"at most {MAX_TEMPORARY_PATH_BYTES} bytes, for Ray's unix sockets"
    raise StartupError(
        f"the path of the temporary directory {tempfile.gettempdir()} is too long: set TMPDIR to one "
        f"of {rule}"
    )


def remove_ray_dir(folder: Path) -> None:
    """Remove a directory from `private_ray_dir`, with its private parent. Others are left alone."""
    if folder.name == "ray" and folder.parent.name.startswith("memserve-"):
        shutil.rmtree(folder.parent, ignore_errors=True)


def link_logs(settings: Settings, ray_dir: Path) -> None:
    """`logs/ray` in data_dir leads to the logs of the Ray in the directory."""
    link = settings.data / "logs" / "ray"
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    elif link.is_dir():
        shutil.rmtree(link)
    link.symlink_to(ray_dir / LOGS)


def serve_on_loopback() -> None:
    """Bind the port that Ray Serve opens in every replica to loopback.

    The port is for calls between replicas, and memserve makes none. This is for the replica's process, before
    Serve has initialised it.
    """
    from ray.serve._private import replica

    bind = replica.add_port_to_grpc_server

    def bind_to_loopback(server: Any, address: str, *args: Any, **options: Any) -> int:
        return int(bind(server, address.replace("[::]", HOST), *args, **options))

    replica.add_port_to_grpc_server = bind_to_loopback


@contextlib.contextmanager
def serve_log_kept() -> Iterator[None]:
    """Keep Serve's log handlers while other code sets logging up anew, as vLLM's import does.

    That closes the handlers. A new Serve controller asks every replica for the file of its log, and stops a
    replica whose handler is closed. Without this all workers would end with their controller.
    """
    handlers = [
        handler
        for handler in logging.getLogger("ray.serve").handlers
        if isinstance(handler, logging.handlers.MemoryHandler)
    ]
    targets = [(handler, handler.target) for handler in handlers]
    yield
    for handler, target in targets:
        handler.setTarget(target)


def leave_out_helpers() -> None:
    """No dashboard, no autoscaler monitor, no server of the Ray client, and an agent without HTTP, job
    submission and metrics.
    """
    from ray._private import node, utils

    def without_api_server(self: Any, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
        self._webui_url = ""

    utils.get_dashboard_dependency_error = lambda: ImportError("memserve does not use it")
    node.Node.start_monitor = lambda self: None
    node.Node.start_ray_client_server = lambda self: None
    node.Node.start_api_server = without_api_server


def forget_settings_environment() -> None:
    """Take memserve's settings out of the environment, because secrets may be among them.

    Ray hands the environment on to all of its processes.
    """
    for name in [name for name in os.environ if name.startswith("MEMSERVE_")]:
        del os.environ[name]


def _is_alive(pid: str) -> bool:
    """Whether another process than this one has the number."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return int(pid) != os.getpid()
