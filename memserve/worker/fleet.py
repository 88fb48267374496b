"""`memserve workers`: a local Ray with the workers on it, in the foreground. On Kubernetes KubeRay takes this place."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import queue
import re
import shutil
import signal
from pathlib import Path
from typing import IO, Any

from memserve.config import STACK_MARK, Settings, changed_settings
from memserve.errors import StartupError
from memserve.private_files import open_data_dir, write_private
from memserve.worker.local_ray import (
    forget_settings_environment,
    private_ray_dir,
    ray_environment,
    remove_ray_dir,
    start_local_ray,
)

log = logging.getLogger("memserve.workers")

APPLICATION = "memserve"
LOGS = Path("session_latest", "logs")
_ERROR = re.compile(r"\b(?:[A-Za-z]+Error|[A-Za-z]+Exception): (?P<text>.+)")


def run_workers(settings: Settings) -> None:
    """Start Ray and the workers; SIGHUP restarts the workers, SIGINT and SIGTERM stop it all.

    Raises StartupError when the workers do not start.
    """
    open_data_dir(settings.data)
    lock = _lock(settings)
    settings_file = settings.data / "run" / "replicas.json"
    settings_file.parent.mkdir(mode=0o700, exist_ok=True)
    write_private(settings_file, json.dumps(changed_settings(settings), default=str).encode())
    forget_settings_environment()
    os.environ.update(ray_environment(settings.data))
    import ray
    from ray import serve
    from ray.serve.config import ProxyLocation

    from memserve.worker.replica import worker_application

    ray_dir = private_ray_dir(settings.data)
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
        start_local_ray(ray_dir, max(settings.workers, os.cpu_count() or 1) + 1)
        # After Ray, which puts in handlers of its own that end the process on the spot.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, on_signal)
        _link_logs(settings, ray_dir)
        serve.start(proxy_location=ProxyLocation.Disabled)
        while True:
            try:
                serve.run(worker_application(settings, settings_file), name=APPLICATION, route_prefix=None)
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
        remove_ray_dir(ray_dir)
        if lock is not None:
            lock.close()


def _lock(settings: Settings) -> IO[str] | None:
    """Held while these workers run, None below a `memserve up`, which has the directory's lock. Raises StartupError.

    Two fleets on one data directory would remove each other's Ray.
    """
    if os.environ.get(STACK_MARK) == str(settings.data):
        return None
    lock = (settings.data / "workers.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise StartupError(f"other workers run on {settings.data}; stop them, or give these their own data_dir") from None
    return lock


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
