"""`memserve workers`: generations of workers, each a local Ray with all workers on it.

On several machines `ray_node.py` and `cluster.py` do this.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import queue
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from memserve.config import STACK_MARK, Settings, changed_settings, child_environment
from memserve.errors import StartupError
from memserve.private_files import keep_private, lock_data_dir, open_data_dir
from memserve.processes.supervised import repeating_thread
from memserve.worker.fleet.fitting import check_memory
from memserve.worker.fleet.generations import GENERATION, Generations, Rules
from memserve.worker.fleet.leaving import drain, serving_workers, takes_requests
from memserve.worker.fleet.local_ray import (
    LOGS,
    forget_settings_environment,
    link_logs,
    private_ray_dir,
    ray_environment,
    remove_ray_dir,
    start_local_ray,
)
from memserve.worker.fleet.ray_life import LOOK_S, RayLife
from memserve.worker.probes import probe_port

log = logging.getLogger("memserve.workers")

APPLICATION = "memserve"
START_TIMEOUT_S = 300.0
# What ending takes, beyond the time that answers under way get.
GENERATION_GRACE_S = 30.0
CLUSTER_GRACE_S = 10.0
SERVE_LOOK_S = 5.0
PROBES_S = 0.5
# How a process reports an error that another process had.
CONSEQUENCES = ("Traceback", "Engine core initialization failed", "EngineCore encountered an issue")
_ERROR = re.compile(r"\b(?:[A-Za-z]+Error|[A-Za-z]+Exception): (?P<text>.+)")


def keep_workers(settings: Settings) -> int:
    """Keep workers running: SIGHUP has others take their place, SIGINT and SIGTERM stop it all.

    Returns the exit status. It is not 0 when the first workers do not start; they have said why. Raises
    StartupError when other workers run on the same data directory.
    """
    if settings.ray_address:
        return Generations(_cluster_rules(settings), _noted_signals()).run()
    open_data_dir(settings.data)
    # Two on one data directory would remove each other's logs and settings. `memserve up` has locked the
    # directory already for what it starts.
    lock = None if os.environ.get(STACK_MARK) == str(settings.data) else lock_data_dir(settings.data)
    signals = _noted_signals()

    def fits() -> bool:
        try:
            check_memory(settings)
        except StartupError:
            return False
        return True

    rules = Rules(
        command=_generation_command,
        environment=lambda: child_environment(settings, _run_folder(settings) / "generation.json"),
        fits=fits,
        drain=lambda name: drain(settings, name),
        start_within_s=START_TIMEOUT_S,
        grace_s=settings.shutdown_grace_s + GENERATION_GRACE_S,
    )
    try:
        with _probes_answered(settings):
            return Generations(rules, signals).run()
    finally:
        if lock is not None:
            lock.close()


@contextlib.contextmanager
def _probes_answered(settings: Settings) -> Iterator[None]:
    """Say on worker_health_port, while inside, whether a worker takes requests. This process is live all the
    time: it starts workers again that have ended, so that no probe needs to end it all. Raises StartupError.
    """
    if not settings.worker_health_port:
        yield
        return
    ending = threading.Event()
    with probe_port(settings) as probes:

        def look() -> None:
            probes.say(live=True, ready=takes_requests(settings))

        looking = repeating_thread("probes", look, PROBES_S, ending)
        try:
            yield
        finally:
            ending.set()
            looking.join()


def _cluster_rules(settings: Settings) -> Rules:
    """For a Ray that others keep running: a generation is the process that has it run the workers."""
    return Rules(
        command=_generation_command,
        environment=lambda: child_environment(settings, _run_folder(settings) / "generation.json"),
        fits=lambda: False,
        drain=lambda name: None,
        start_within_s=math.inf,
        grace_s=CLUSTER_GRACE_S,
    )


def _generation_command(status: int) -> list[str]:
    return [sys.executable, "-m", "memserve", "workers", "--generation", "--status", str(status)]


def _noted_signals() -> queue.SimpleQueue[int]:
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: signals.put(number))
    return signals


def run_generation(settings: Settings, status: int) -> None:
    """Start Ray and the workers, and serve until SIGINT or SIGTERM.

    SIGHUP restarts the workers one after the other.

    status: the file descriptor that `Generation` reads. Raises StartupError when the workers do not start.
    """
    settings_file = _run_folder(settings) / "replicas.json"
    keep_private(settings_file, json.dumps(changed_settings(settings), default=str).encode())
    forget_settings_environment()
    os.environ.update(ray_environment(settings.data))
    import ray
    from ray import serve
    from ray.serve.config import ProxyLocation

    ray_dir = private_ray_dir(settings.data)
    # vLLM leaves the sockets between its processes behind. Here they go with the directory.
    os.environ["VLLM_RPC_BASE_PATH"] = str(ray_dir)
    generation = os.environ.get(GENERATION, "")
    life = RayLife(status, serving=lambda: len(serving_workers(settings, generation)) >= settings.workers)
    ending = threading.Event()
    looking = repeating_thread("ray_life", life.look, LOOK_S, ending)
    try:
        start_local_ray(ray_dir, max(settings.most_workers, os.cpu_count() or 1) + 1)
        # After Ray, which puts in handlers of its own that end the process on the spot.
        signals = _Signals()
        link_logs(settings, ray_dir)
        serve.start(proxy_location=ProxyLocation.Disabled)
        _serve_workers(partial(_start_workers, settings, settings_file, ray_dir), life, signals, ending)
        if not life.damage:
            serve.shutdown()
    except KeyboardInterrupt:
        log.info("stopped while starting")
    finally:
        ending.set()
        looking.join()
        ray.shutdown()
        remove_ray_dir(ray_dir)


class _Signals:
    """SIGINT, SIGTERM and SIGHUP, in the order in which they come. While `starting`, the first two raise."""

    def __init__(self) -> None:
        self.starting = True
        self._numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def next(self) -> int:
        return self._numbers.get()

    def _on_signal(self, number: int, frame: Any) -> None:
        # The number is kept even where it raises: a KeyboardInterrupt in a finalizer or a callback is lost.
        self._numbers.put(number)
        if self.starting and number != signal.SIGHUP:
            raise KeyboardInterrupt


def _serve_workers(
    start: Callable[[], None], life: RayLife, signals: _Signals, ending: threading.Event
) -> None:
    """Start the workers, and again for each SIGHUP, until another signal comes. Raises as `start`."""
    from ray import serve

    def look_at_serve() -> None:
        """Serve gives up when six starts in a row have failed and none has succeeded under its controller."""
        application = serve.status().applications.get(APPLICATION)
        if application is not None and application.status == "DEPLOY_FAILED":
            life.damaged("Serve has given up on the workers")

    serve_watched = False
    while True:
        start()
        life.workers_ready()
        if not serve_watched:
            serve_watched = True
            # Nobody waits for this thread at the end: a Serve that has gone never answers.
            repeating_thread("serve_life", look_at_serve, SERVE_LOOK_S, ending)
        signals.starting = False
        if signals.next() != signal.SIGHUP:
            return
        # Serve takes a second deployment for a new version, and replaces one replica after the other.
        log.info("restarting the workers one after the other")
        signals.starting = True


def _start_workers(settings: Settings, settings_file: Path, ray_dir: Path) -> None:
    """Returns when all workers take requests. Raises StartupError."""
    from ray import serve

    from memserve.worker.replica import worker_application

    try:
        serve.run(worker_application(settings, settings_file), name=APPLICATION, route_prefix=None)
    except RuntimeError as error:
        _keep_logs(settings, ray_dir)
        raise StartupError(f"the workers did not start: {_root_cause(ray_dir / LOGS, str(error))}") from None
    log.info("%d workers ready", settings.workers)


def _run_folder(settings: Settings) -> Path:
    folder = settings.data / "run"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _keep_logs(settings: Settings, ray_dir: Path) -> None:
    """Put copies of the logs in the place of the link: Ray's own are deleted with its directory."""
    link = settings.data / "logs" / "ray"
    link.unlink(missing_ok=True)
    shutil.copytree(ray_dir / LOGS, link, dirs_exist_ok=True, ignore_dangling_symlinks=True)


def _root_cause(logs: Path, message: str) -> str:
    """The first error that a worker or its engine logged; Ray's message when there is none."""
    for file in sorted(logs.glob("worker-*.err")) + sorted(logs.glob("worker-*.out")):
        for line in file.read_text(errors="replace", encoding="utf-8").splitlines():
            error = _ERROR.search(line)
            # vLLM's front-end only says that its engine failed or died, and where a traceback begins.
            if error and not error["text"].startswith(CONSEQUENCES):
                return error[0]
    return message.strip().splitlines()[0]
