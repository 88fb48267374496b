"""How the workers of a generation say that they serve, and leave when its Ray can no longer end them.

They look for a file, finish their answers, and end.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import psutil

from memserve.config import Settings
from memserve.processes.marks import processes_with
from memserve.worker.fleet.generations import GENERATION

LOOK_S = 0.25


def leaving_file(settings: Settings, generation: str) -> Path:
    """While this file exists, the workers of the generation leave."""
    return settings.data / "run" / f"leaving-{generation}"


def events_socket(settings: Settings, pid: int) -> Path:
    """Where the engine of the worker with that process id publishes its events. It exists as long as the
    worker.
    """
    return settings.data / "run" / f"{pid}.ev"


def serving_file(settings: Settings, pid: int) -> Path:
    """Exists while the worker with that process id takes requests."""
    return settings.data / "run" / f"{pid}.up"


def takes_requests(settings: Settings) -> bool:
    """Whether any worker of this machine's data directory does."""
    pids = [int(file.stem) for file in (settings.data / "run").glob("*.up") if file.stem.isdigit()]
    return any(psutil.pid_exists(pid) and serving_file(settings, pid).exists() for pid in pids)


def serving_workers(settings: Settings, generation: str) -> list[int]:
    """The process ids of the workers of a generation that take requests."""
    return [
        process.pid
        for process in processes_with({GENERATION: generation})
        if serving_file(settings, process.pid).exists()
    ]


def drain(settings: Settings, generation: str) -> None:
    """Have a generation's workers finish their answers and end.

    Returns when they have ended, or after `shutdown_grace_s`.
    """
    file = leaving_file(settings, generation)
    deadline_s = time.monotonic() + settings.shutdown_grace_s
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
        while time.monotonic() < deadline_s and _workers(settings, generation):
            time.sleep(LOOK_S)
        file.unlink(missing_ok=True)


def _workers(settings: Settings, generation: str) -> list[int]:
    alive = [process.pid for process in processes_with({GENERATION: generation})]
    return [pid for pid in alive if events_socket(settings, pid).exists()]
