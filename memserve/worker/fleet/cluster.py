"""The workers on a Ray cluster that others have started: the application is deployed there, and followed.

The application is named by its import path, as `serve deploy` and KubeRay name it. To deploy it once more
changes nothing that runs. So this process may come and go.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

from memserve.config import Settings
from memserve.errors import StartupError
from memserve.worker.fleet.generations import READY
from memserve.worker.fleet.local_ray import forget_settings_environment
from memserve.worker.fleet.node_settings import (
    BY_NODES,
    DEPLOYMENT,
    RESTART,
    SCALE,
    check_cluster,
    cluster_environment,
)

log = logging.getLogger("memserve.workers")

APPLICATION = "memserve"
IMPORT_PATH = "memserve.worker.app:application"
LOOK_S = 2.0
# A cluster that has not answered for this long is connected to anew.
SILENT_S = 120.0
RETRY_S = 30.0
# For how long there must be fewer nodes before fewer workers are asked for.
SHRINK_S = 60.0


def follow_application(settings: Settings, status: int, *, a_node: bool) -> None:
    """Have the cluster run the workers until SIGINT or SIGTERM, which leave them there. SIGHUP replaces them.

    status: the file descriptor that gets `ready` when they run; with `a_node` when they are asked for.
    a_node: one worker for each node that has room for one, whatever the setting `workers`.
    Raises StartupError when the cluster cannot be reached, or its first workers do not start.
    """
    _join(settings)
    import ray
    from ray import serve
    from ray.serve.config import ProxyLocation

    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop_or_note(signals))
    try:
        serve.start(proxy_location=ProxyLocation.Disabled)
        application = _Application(settings, status, a_node=a_node)
        answered_s = time.monotonic()
        while True:
            try:
                application.look()
                answered_s = time.monotonic()
            except (ray.exceptions.RayError, ConnectionError, TimeoutError) as error:
                log.warning("the Ray cluster does not answer: %s", str(error).splitlines()[0])
                if time.monotonic() - answered_s > SILENT_S:
                    raise StartupError(f"the Ray cluster at {settings.ray_address} is gone") from None
            try:
                signals.get(timeout=LOOK_S)
                application.restart()
            except queue.Empty:
                continue
    except KeyboardInterrupt:
        log.info("the workers stay on the cluster")
    finally:
        ray.shutdown()


def remove_application(settings: Settings) -> None:
    """End the workers of the cluster. Raises StartupError."""
    _join(settings)
    import ray
    from ray import serve

    serve.delete(APPLICATION)
    ray.shutdown()


def _join(settings: Settings) -> None:
    """Connect to the cluster. Raises StartupError where that cannot be."""
    check_cluster(settings)
    # Ray reads its environment when it is imported.
    os.environ.update(cluster_environment(settings))
    forget_settings_environment()
    import ray

    try:
        ray.init(address=settings.ray_address, namespace="serve", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise StartupError(
            f"no Ray cluster at {settings.ray_address} that this machine is a node of: "
            f"{_first_line(str(error))}. Run this on a node, such as one of `memserve ray-node`"
        ) from None


def application_config(replicas: int | None, args: Mapping[str, str]) -> dict[str, Any]:
    """As `serve deploy` reads it. replicas: None for as many as the application itself asks for."""
    return {
        "name": APPLICATION,
        "route_prefix": None,
        "import_path": IMPORT_PATH,
        "args": dict(args),
        **({"deployments": [{"name": DEPLOYMENT, "num_replicas": replicas}]} if replicas else {}),
    }


def room_for_workers(nodes: Sequence[Mapping[str, Any]], gpus: int) -> int:
    """How many workers the nodes have room for, as `ray.nodes()` describes nodes."""
    resources = [node.get("Resources", {}) for node in nodes if node.get("Alive")]
    if gpus:
        return sum(int(of_node.get("GPU", 0)) // gpus for of_node in resources)
    return sum(of_node.get("CPU", 0) >= 1 for of_node in resources)


def wanted_workers(room: int, asked: int, fewer_for_s: float) -> int:
    """How many workers to ask for. At least one.

    room: for how many the nodes of now have room. asked: for how many they were asked last.
    fewer_for_s: for how long there has been less room than that. Nodes come back after a head that was lost,
    one after the other, and their workers are not to be ended meanwhile.
    """
    if room < asked and fewer_for_s < SHRINK_S:
        return asked
    return max(1, room)


class _Application:
    """The application on the cluster, as Serve has it."""

    def __init__(self, settings: Settings, status: int, *, a_node: bool) -> None:
        self._settings = settings
        self._status = status
        self._scale = {SCALE: BY_NODES} if a_node else {}
        self._a_node = a_node
        self._configs: dict[str, dict[str, Any]] | None = None
        self._asked: int | None = None
        self._enough_s = time.monotonic()
        self._is_ready = False
        self._not_before_s = 0.0

    def look(self) -> None:
        """Deploy it where it is missing, has failed, or wants another number of workers.

        Raises StartupError when the first workers do not start.
        """
        from ray import serve

        first = self._configs is None
        if first:
            self._read_deployed()
        overview = serve.status().applications.get(APPLICATION)
        state = str(overview.status.value) if overview else ""
        replicas = self._replicas()
        if overview and state == "DEPLOY_FAILED" and not first:
            if not self._is_ready:
                raise StartupError(f"the workers did not start: {_first_line(overview.message)}")
            if time.monotonic() >= self._not_before_s:
                log.error("Ray Serve has given up on the workers, and starts them anew: %s", overview.message)
                self.restart()
        elif first or not state or replicas != self._asked:
            self._deploy(replicas)
        if state == "RUNNING" or self._a_node:
            self._ready()

    def restart(self) -> None:
        """Replace all workers, one after the other."""
        self._not_before_s = time.monotonic() + RETRY_S
        self._deploy(self._replicas(), {RESTART: f"{time.time():.0f}"})

    def _read_deployed(self) -> None:
        """What runs on the cluster already, and how many workers it was asked for."""
        from ray.serve.context import _get_global_client

        applications = _get_global_client().get_serve_details()["applications"]
        self._configs = {
            name: details["deployed_app_config"]
            for name, details in applications.items()
            if details.get("deployed_app_config")
        }
        for deployment in self._configs.get(APPLICATION, {}).get("deployments") or []:
            if deployment.get("name") == DEPLOYMENT and isinstance(deployment.get("num_replicas"), int):
                self._asked = deployment["num_replicas"]

    def _replicas(self) -> int | None:
        """None: as many as the application asks for."""
        if not self._a_node:
            return None
        import ray

        room = room_for_workers(ray.nodes(), self._settings.worker_gpus)
        if room >= (self._asked or 0):
            self._enough_s = time.monotonic()
        return wanted_workers(room, self._asked or 0, time.monotonic() - self._enough_s)

    def _deploy(self, replicas: int | None, args: Mapping[str, str] | None = None) -> None:
        """args: None for those that it has: with others Serve would replace its workers."""
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        self._read_deployed()
        configs = self._configs or {}
        before = configs.pop(APPLICATION, {}).get("args") or {}
        own = application_config(replicas, {**before, **self._scale, **(args or {})})
        log.info("asking Ray Serve for %s workers", replicas or self._settings.workers)
        # Serve removes the applications that a configuration does not name.
        every = ServeDeploySchema.model_validate({"applications": [*configs.values(), own]})
        _get_global_client().deploy_apps(every)
        self._asked = replicas

    def _ready(self) -> None:
        if not self._is_ready:
            self._is_ready = True
            os.write(self._status, f"{READY}\n".encode())


def _stop_or_note(signals: queue.SimpleQueue[int]) -> Any:
    """SIGHUP is noted. The others raise KeyboardInterrupt: a call to the cluster may never return."""

    def on_signal(number: int, frame: Any) -> None:
        if number != signal.SIGHUP:
            raise KeyboardInterrupt
        signals.put(number)

    return on_signal


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason is known"])[0]
