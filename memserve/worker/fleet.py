"""`memserve workers`: a local Ray with the workers on it, in the foreground. On Kubernetes KubeRay takes this place."""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import re
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

from memserve.config import MIB, Settings
from memserve.errors import StartupError

log = logging.getLogger("memserve.workers")

APPLICATION = "memserve"
LOGS = Path("session_latest", "logs")
_ERROR = re.compile(r"\b(?:[A-Za-z]+Error|[A-Za-z]+Exception): (?P<text>.+)")
# Ray reads these when it is imported.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
    # The replica's own gRPC server and vLLM share its event loop.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
}


def run_workers(settings: Settings) -> None:
    """Start Ray and the workers; SIGHUP restarts the workers, SIGINT and SIGTERM stop it all.

    Raises StartupError when the workers do not start.
    """
    os.environ.update(RAY_ENVIRONMENT)
    import ray
    from ray import serve
    from ray.serve.config import ProxyLocation

    from memserve.worker.replica import worker_application

    # A short path, because Ray keeps unix sockets below it; always the same one, so that nothing piles up.
    ray_dir = Path(tempfile.gettempdir()) / f"memserve-{hashlib.sha256(str(settings.data).encode()).hexdigest()[:12]}"
    shutil.rmtree(ray_dir, ignore_errors=True)
    ray_dir.mkdir(mode=0o700)
    # vLLM leaves the sockets between its processes behind; here they go with the directory.
    os.environ["VLLM_RPC_BASE_PATH"] = str(ray_dir)
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    starting = True

    def on_signal(number: int, frame: Any) -> None:
        # Also when it is raised: a KeyboardInterrupt that meets a finalizer or a callback is lost.
        signals.put(number)
        if starting and number != signal.SIGHUP:
            raise KeyboardInterrupt

    try:
        ray.init(
            address="local",
            num_cpus=max(settings.workers, os.cpu_count() or 1) + 1,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100 * MIB,
            _temp_dir=str(ray_dir),
        )
        # After Ray, which puts in handlers of its own that end the process on the spot.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, on_signal)
        _link_logs(settings, ray_dir)
        serve.start(proxy_location=ProxyLocation.Disabled)
        while True:
            try:
                serve.run(worker_application(settings), name=APPLICATION, route_prefix=None)
            except RuntimeError as error:
                _keep_logs(settings, ray_dir)
                raise StartupError(f"the workers did not start: {_root_cause(ray_dir / LOGS, str(error))}") from None
            log.info("%d workers ready", settings.workers)
            starting = False
            if signals.get() != signal.SIGHUP:
                break
            log.info("restarting the workers")
            starting = True
            serve.delete(APPLICATION)
        serve.shutdown()
    except KeyboardInterrupt:
        log.info("stopped while starting")
    finally:
        ray.shutdown()
        shutil.rmtree(ray_dir, ignore_errors=True)


def _link_logs(settings: Settings, ray_dir: Path) -> None:
    link = settings.data / "logs" / "ray"
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    elif link.is_dir():
        shutil.rmtree(link)
    link.symlink_to(ray_dir / LOGS)


def _keep_logs(settings: Settings, ray_dir: Path) -> None:
    """Put copies in the place of the link: Ray's own are deleted with its directory."""
    link = settings.data / "logs" / "ray"
    link.unlink(missing_ok=True)
    shutil.copytree(ray_dir / LOGS, link, dirs_exist_ok=True, ignore_dangling_symlinks=True)


def _root_cause(logs: Path, message: str) -> str:
    """The first error that a worker or its engine logged; Ray's message when there is none."""
    for file in sorted(logs.glob("worker-*.err")) + sorted(logs.glob("worker-*.out")):
        for line in file.read_text(errors="replace").splitlines():
            found = _ERROR.search(line)
            # vLLM's front-end only says that its engine failed, and where a traceback begins.
            if found and not found["text"].startswith(("Traceback", "Engine core initialization failed")):
                return found[0]
    return message.strip().splitlines()[0]
