"""`memserve workers`: generations of workers, each a local Ray with all workers on it. On Kubernetes KubeRay
takes this place.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from memserve.config import STACK_MARK, Settings, changed_settings, child_environment
from memserve.errors import StartupError
from memserve.private_files import keep_private, lock_data_dir, open_data_dir
from memserve.processes.supervised import repeating_thread
from memserve.worker.fleet.fitting import check_memory
from memserve.worker.fleet.generations import GENERATION, Generations, Rules
from memserve.worker.fleet.leaving import drain, serving_workers
from memserve.worker.fleet.local_ray import (
    forget_settings_environment,
    private_ray_dir,
    ray_environment,
    remove_ray_dir,
    start_local_ray,
)
from memserve.worker.fleet.ray_life import LOOK_S, RayLife

log = logging.getLogger("memserve.workers")

APPLICATION = "memserve"
START_TIMEOUT_S = 300.0
# What ending takes beyond the time that answers under way get.
GENERATION_GRACE_S = 30.0
SERVE_LOOK_S = 5.0
LOGS = Path("session_latest", "logs")
# What a process says of an error that another one had.
CONSEQUENCES = ("Traceback", "Engine core initialization failed", "EngineCore encountered an issue")
_ERROR = re.compile(r"\b(?:[A-Za-z]+Error|[A-Za-z]+Exception): (?P<text>.+)")


def keep_workers(settings: Settings) -> int:
    """Keep workers running: SIGHUP has others take their place, SIGINT and SIGTERM stop it all.

    Returns the exit status: not 0 when the first workers do not start; they have said why. Raises
    StartupError when others run there.
    """
    open_data_dir(settings.data)
    # Two on one data directory would remove each other's logs and settings. Below `memserve up` the directory
    # is locked already.
    lock = None if os.environ.get(STACK_MARK) == str(settings.data) else lock_data_dir(settings.data)
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, lambda number, frame: signals.put(number))

    def fits() -> bool:
        try:
            check_memory(settings)
        except StartupError:
            return False
        return True

    rules = Rules(
        command=lambda status: [
            sys.executable,
            "-m",
            "memserve",
            "workers",
            "--generation",
            "--status",
            str(status),
        ],
        environment=lambda: child_environment(settings, _run_folder(settings) / "generation.json"),
        fits=fits,
        drain=lambda name: drain(settings, name),
        start_within_s=START_TIMEOUT_S,
        grace_s=settings.shutdown_grace_s + GENERATION_GRACE_S,
    )
    try:
        return Generations(rules, signals).run()
    finally:
        if lock is not None:
            lock.close()


def run_generation(settings: Settings, status: int) -> None:
    """Start Ray and the workers; SIGHUP restarts the workers one after the other, SIGINT and SIGTERM stop it
    all.

    status: the file descriptor that `Generation` reads. Raises StartupError when the workers do not start.
    """
    settings_file = _run_folder(settings) / "replicas.json"
    keep_private(settings_file, json.dumps(changed_settings(settings), default=str).encode())
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
    generation = os.environ.get(GENERATION, "")
    life = RayLife(status, serving=lambda: len(serving_workers(settings, generation)) >= settings.workers)
    ending, serve_watched = threading.Event(), False

    def on_signal(number: int, frame: Any) -> None:
        # Also when it is raised: a KeyboardInterrupt that meets a finalizer or a callback is lost.
        signals.put(number)
        if starting and number != signal.SIGHUP:
            raise KeyboardInterrupt

    def look_at_serve() -> None:
        """Serve starts no more workers when six starts in a row have failed and none has succeeded since its
        controller began.
        """
        found = serve.status().applications.get(APPLICATION)
        if found is not None and found.status == "DEPLOY_FAILED":
            life.damaged("Serve has given up on the workers")

    looking = repeating_thread("ray_life", life.look, LOOK_S, ending)
    try:
        start_local_ray(ray_dir, max(settings.workers, os.cpu_count() or 1) + 1)
        # After Ray, which puts in handlers of its own that end the process on the spot.
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, on_signal)
        _link_logs(settings, ray_dir)
        serve.start(proxy_location=ProxyLocation.Disabled)
        while True:
            try:
                serve.run(worker_application(settings, settings_file), name=APPLICATION, route_prefix=None)
            except RuntimeError as error:
                _keep_logs(settings, ray_dir)
                raise StartupError(
                    f"the workers did not start: {_root_cause(ray_dir / LOGS, str(error))}"
                ) from None
            log.info("%d workers ready", settings.workers)
            life.workers_ready()
            if not serve_watched:
                serve_watched = True
                # Not waited for at the end: what is asked of a Serve that has gone never comes back.
                repeating_thread("serve_life", look_at_serve, SERVE_LOOK_S, ending)
            starting = False
            if signals.get() != signal.SIGHUP:
                break
            # Serve takes a second deployment for a new version, and replaces one replica after the other.
            log.info("restarting the workers one after the other")
            starting = True
        if not life.damage:
            serve.shutdown()
    except KeyboardInterrupt:
        log.info("stopped while starting")
    finally:
        ending.set()
        looking.join()
        ray.shutdown()
        remove_ray_dir(ray_dir)


def _run_folder(settings: Settings) -> Path:
    folder = settings.data / "run"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


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
        for line in file.read_text(errors="replace", encoding="utf-8").splitlines():
            found = _ERROR.search(line)
            # vLLM's front-end only says that its engine failed or died, and where a traceback begins.
            if found and not found["text"].startswith(CONSEQUENCES):
                return found[0]
    return message.strip().splitlines()[0]
