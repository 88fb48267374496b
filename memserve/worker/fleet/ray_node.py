"""`memserve ray-node`: one node of a Ray cluster, on which Ray Serve starts workers.

1. Ray runs in a child process (`ray_start.py`). Whenever it ends, it is started again, with growing pauses.
2. The head has another child (`cluster.py`), which has Ray Serve keep the workers of all nodes.
3. SIGTERM drains a node: Ray puts nothing new on it, its workers finish their answers and leave, Ray ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from memserve.config import STACK_MARK, Settings, at, child_environment
from memserve.errors import StartupError
from memserve.private_files import lock_data_dir, open_data_dir
from memserve.processes.backoff import failures_now, pause_s
from memserve.worker.addresses import own_address
from memserve.worker.fleet.generations import Command, Generation, start_generation
from memserve.worker.fleet.leaving import drain, takes_requests
from memserve.worker.fleet.node_settings import check_cluster, cluster_environment
from memserve.worker.fleet.ray_life import RAYLET
from memserve.worker.fleet.ray_start import GCS_PORT, HEAD
from memserve.worker.probes import Probes, probe_port

log = logging.getLogger("memserve.workers")

LOOK_S = 0.5
# A node whose Ray has been away for this long is not live: what supervises this process may start it again.
RAY_AWAY_S = 600.0
# Ray knows by then that the node drains, and starts no other worker on it.
DRAIN_KNOWN_S = 1.0
RAY_END_S = 5.0


def keep_node(settings: Settings, *, head: bool) -> int:
    """Be a node until SIGINT or SIGTERM. Returns the exit status. Raises StartupError."""
    check_cluster(settings)
    if not head and not settings.ray_address:
        raise StartupError("setting ray_address is needed: host:port of the Ray cluster's head")
    open_data_dir(settings.data)
    lock = lock_data_dir(settings.data)
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.put(number))
    try:
        cluster_environment(settings, makes_token=head)
        with probe_port(settings) as probes:
            node = RayNode(settings, probes, head=head)
            try:
                _look_until_asked(node, signals)
                node.leave()
            finally:
                node.end()
        return 0
    finally:
        lock.close()


def _look_until_asked(node: RayNode, signals: queue.SimpleQueue[int]) -> None:
    while True:
        with contextlib.suppress(queue.Empty):
            signals.get(timeout=LOOK_S)
            return
        try:
            node.look()
        except OSError as error:
            # The system had no process, no file handle or no memory left. The step is taken again.
            log.error("ray-node: %s; trying again", error)


@dataclass
class Kept:
    """A child process with all that it starts. It is started again when it has ended."""

    what: str
    command: Command
    environment: Callable[[], dict[str, str]]
    current: Generation | None = None
    _started: int = 0
    _failures: int = 0
    _not_before_s: float = 0.0

    def keep(self) -> None:
        """Start it where it does not run, after a pause that grows with each end. Raises OSError."""
        if self.current is not None and self.current.ended:
            log.error("%s has ended with %s", self.what, self.current.process.returncode)
            self._failures = failures_now(self._failures, time.monotonic() - self.current.started_s)
            self._not_before_s = time.monotonic() + pause_s(self._failures)
            self.end()
        if self.current is None and time.monotonic() >= self._not_before_s:
            self._started += 1
            name = f"{self.what}-{os.getpid()}-{self._started}"
            self.current = start_generation(name, self.command, self.environment)

    def end(self, grace_s: float = 0.0) -> None:
        """End it with all that it has started."""
        if self.current is not None:
            self.current.end(grace_s)
            self.current = None


class RayNode:
    """Ray on this machine, the workers that run on it, and on the head what keeps the application."""

    def __init__(self, settings: Settings, probes: Probes, *, head: bool) -> None:
        """Nothing is started yet. Raises StartupError."""
        self._settings = settings
        self._probes = probes
        self._head = head
        self._raylet: psutil.Process | None = None
        self._live_s = time.monotonic()
        address = settings.worker_address or own_address("" if head else settings.ray_address)
        self._run = settings.data / "run"
        self._run.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._ray = Kept(
            "ray",
            lambda status: [
                sys.executable,
                "-m",
                "memserve.worker.fleet.ray_start",
                address,
                *([HEAD] if head else []),
            ],
            lambda: self._environment("ray-node.json", settings),
        )
        own = settings.model_copy(update={"ray_address": at(address, GCS_PORT)})
        self._application = Kept(
            "application",
            lambda status: [
                *(sys.executable, "-m", "memserve", "workers", "--generation", "--a-node"),
                *("--status", str(status)),
            ],
            lambda: self._environment("application.json", own),
        )

    def look(self) -> None:
        """Start what is to run and does not, and tell the probes. Raises OSError."""
        self._ray.keep()
        ray_lives = self._ray_lives()
        if ray_lives:
            self._live_s = time.monotonic()
        if self._head:
            self._keep_application(ray_lives)
        ready = self._has_application() if self._head else takes_requests(self._settings)
        self._probes.say(live=time.monotonic() - self._live_s < RAY_AWAY_S, ready=ray_lives and ready)

    def leave(self) -> None:
        """Have the workers finish their answers and end. The head has none, and is gone at once."""
        self._probes.say(live=True, ready=False)
        ray = self._ray.current
        if self._head or ray is None or ray.ended:
            return
        log.info("draining this node")
        ray.process.send_signal(signal.SIGTERM)
        time.sleep(DRAIN_KNOWN_S)
        drain(self._settings, ray.name)
        with contextlib.suppress(subprocess.TimeoutExpired):
            ray.process.wait(RAY_END_S)

    def end(self) -> None:
        """End all processes of this node."""
        self._application.end()
        self._ray.end(RAY_END_S if self._head else 0.0)

    def _environment(self, file: str, settings: Settings) -> dict[str, str]:
        return {
            **child_environment(settings, self._run / file),
            STACK_MARK: str(settings.data),
        }

    def _keep_application(self, ray_lives: bool) -> None:
        if not ray_lives:
            # It belongs to the Ray that has gone.
            self._application.end()
            return
        self._application.keep()
        if self._application.current is not None:
            self._application.current.read_status()

    def _has_application(self) -> bool:
        current = self._application.current
        return current is not None and bool(current.ready_s)

    def _ray_lives(self) -> bool:
        ray = self._ray.current
        if ray is None or ray.ended:
            self._raylet = None
            return False
        with contextlib.suppress(psutil.Error):
            if self._raylet is None:
                children = psutil.Process(ray.process.pid).children()
                self._raylet = next((child for child in children if child.name() == RAYLET), None)
            return (
                self._raylet is not None
                and self._raylet.is_running()
                and self._raylet.status() != psutil.STATUS_ZOMBIE
            )
        return False
