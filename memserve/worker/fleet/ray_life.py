"""Whether Ray's own processes live, reported to the parent of a generation of workers."""

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
# The names of Ray's processes.
GCS, RAYLET = "gcs_server", "raylet"
NEEDED = {GCS, RAYLET}


@dataclass
class RayLife:
    """The life of the Ray that this process starts.

    `look` is called again and again, from before Ray is started.
    """

    status: int
    """The file descriptor that `Generation` reads."""
    serving: Callable[[], bool] = lambda: False
    """Whether all workers take requests. They do a moment before Serve says that they are ready."""
    ready: bool = False
    """Whether the parent knows that the workers are ready."""
    damage: str = ""
    """What has ended that the workers can go on without."""
    _seen: dict[str, psutil.Process] = field(default_factory=dict)

    def workers_ready(self) -> None:
        if not self.ready:
            self.ready = True
            self._tell(READY)

    def look(self) -> None:
        """End this process when Ray can start no workers, or has none any more.

        The parent then starts another generation.
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
            # At once: no part of Ray can be ended in order any more, and calls to it never return.
            log.error("Ray has lost its %s", " and ".join(sorted(ended)))
            os._exit(1)
        if GCS in ended and not self.damage:
            self.damaged("the GCS has ended")
            # Ray's threads would take a core that the workers need, those that go on and those that start.
            listen_to_gcs_no_more()

    def damaged(self, why: str) -> None:
        """Ask the parent for other workers in the place of these."""
        if not self.damage:
            self.damage = why
            self._tell(f"{DAMAGED} {why}")

    def _tell(self, line: str) -> None:
        os.write(self.status, f"{line}\n".encode())
