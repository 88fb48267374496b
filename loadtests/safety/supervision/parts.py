"""The parts of a `memserve up`, and which of them a request needs."""

from __future__ import annotations

import contextlib

import psutil
import redis

from loadtests.harness.up import Up, is_engine
from memserve.embedded import marked_processes
from memserve.embedded.readiness import serves_memories

WORKERS = 2
REGISTRY, CACHE, GATEWAY, FLEET, DRIVER = "registry", "cache", "gateway", "fleet", "fleet driver"
GCS, RAYLET, CONTROLLER, WORKER, ENGINE = "gcs", "raylet", "serve controller", "worker", "engine"
PARTS = (REGISTRY, CACHE, GATEWAY, FLEET, DRIVER, GCS, RAYLET, CONTROLLER, WORKER, ENGINE)
# All workers end with each of these parts.
ALL_WORKERS = {FLEET, DRIVER, RAYLET}
ANSWER, REMEMBER, SEARCH, LIST = "Generate", "Remember", "Search", "ListModules"
NEEDS = {
    ANSWER: {GATEWAY, *ALL_WORKERS},
    # A memory is acknowledged when it is in the registry's journal.
    REMEMBER: {GATEWAY, REGISTRY},
    SEARCH: {GATEWAY},
    LIST: {GATEWAY, REGISTRY},
}


class WatchedUp(Up):
    """A `memserve up` whose parts are looked at."""

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Of each part, the oldest first."""
        processes: dict[str, list[psutil.Process]] = {part: [] for part in PARTS}
        for process in marked_processes(self.data):
            with contextlib.suppress(psutil.Error):
                part = part_of(process)
                if part:
                    processes[part].append(process)
        return {
            part: sorted(of_part, key=lambda process: process.create_time())
            for part, of_part in processes.items()
        }

    def is_back(self) -> bool:
        """Everything runs, Ray's own processes too, and nothing of a generation that is being replaced is
        left.
        """
        processes = self.processes()
        once = all(len(processes[part]) == 1 for part in PARTS if part not in (WORKER, ENGINE))
        if (
            not once
            or len(processes[ENGINE]) != WORKERS
            or not self.redis_answers(REGISTRY)
            or not self.redis_answers(CACHE)
        ):
            return False
        return serves_memories(self.address) and len(self.ready_workers()) == WORKERS

    def redis_answers(self, part: str) -> bool:
        with redis.Redis(unix_socket_path=str(self.data / part / "redis.sock"), socket_timeout=1.0) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


def part_of(process: psutil.Process) -> str:
    """The part that a process of memserve is, or "" for one that is none of them."""
    name, command = process.name(), " ".join(process.cmdline())
    by_command = {
        "registry/redis.conf": REGISTRY,
        "cache/redis.conf": CACHE,
        "memserve gateway": GATEWAY,
        "workers --generation": DRIVER,
    }
    titles = {"ServeController": CONTROLLER, "ServeReplica": WORKER}
    if is_engine(process):
        return ENGINE
    if name in ("gcs_server", "raylet"):
        return GCS if name == "gcs_server" else RAYLET
    for text, part in {**by_command, **titles, "memserve workers": FLEET}.items():
        if text in command or text in name:
            return part
    return ""
