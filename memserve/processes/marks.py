"""Processes that are known by marks in their environment.

A child hands its environment on to its own children. So no process is missed when all have to end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

import psutil


def processes_with(marks: Mapping[str, str]) -> Iterator[psutil.Process]:
    """Running processes whose environment has all of the marks. This process and its parents are left out."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        if process.pid in own:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and marks.items() <= process.environ().items():
                yield process


def kill_with(marks: Mapping[str, str], timeout_s: float = 5.0) -> list[int]:
    """Kill the processes with the marks, and wait until they are gone. Returns their process ids."""
    left = list(processes_with(marks))
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=timeout_s)
    return [process.pid for process in left]
