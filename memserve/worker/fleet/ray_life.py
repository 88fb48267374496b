"""Whether Ray's own processes live, told to the parent of a generation of workers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from memserve.worker.fleet.generations import DAMAGED, READY
from memserve.worker.fleet.local_ray import listen_to_gcs_no_more

log = logging.getLogger("memserve.workers")

LOOK_S = 0.5
# As Ray's processes are named.
GCS, RAYLET = "gcs_server", "raylet"
NEEDED = {GCS, RAYLET}


@dataclass
class RayLife:
    """Of the Ray that this process starts. `look` is called again and again, from before Ray is started.

    status: the file descriptor that `Generation` reads. serving: whether all workers take requests; a moment
    before Serve says that they are ready. ready: they are. damage: what has ended that they can go on
    without, or "".
    """

    status: int
    serving: Callable[[], bool] = lambda: False
    ready: bool = False
    damage: str = ""
    _seen: dict[str, psutil.Process] = field(default_factory=dict)

    def workers_ready(self) -> None:
        if not self.ready:
            self.ready = True
            self._tell(READY)

    def look(self) -> None:
        """End this process when Ray can start no workers, or has none any more; others are started when it
        has ended.
        """
        if len(self._seen) < len(NEEDED):
            self._seen.update(
                {child.name(): child for child in psutil.Process().children() if child.name() in NEEDED}
            )
        ended = {
            name
            for name, process in self._seen.items()
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        }
        if GCS in ended and not self.ready and self.serving():
            self.workers_ready()
        if RAYLET in ended or (GCS in ended and not self.ready):
            # At once: nothing of Ray can be told to end any more, and what it is asked never comes back.
            log.error("Ray has lost its %s", " and ".join(sorted(ended)))
            os._exit(1)
        if GCS in ended and not self.damage:
            self.damaged("the GCS has ended")
            # The workers that go on need that core, and so do those that are starting.
            listen_to_gcs_no_more()

    def damaged(self, why: str) -> None:
        """Ask the parent for others in the place of these workers."""
        if not self.damage:
            self.damage = why
            self._tell(f"{DAMAGED} {why}")

    def _tell(self, line: str) -> None:
        os.write(self.status, f"{line}\n".encode())
