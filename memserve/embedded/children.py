"""The processes of a data directory.

They are started so that they end with their parent. A mark distinguishes them from other processes. Processes
that are left over are killed.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from memserve.config import STACK_MARK, Settings, child_environment, environment_without_settings
from memserve.processes.marks import kill_with, processes_with
from memserve.processes.tether import tethered

# Every process of a data directory has STACK_MARK (the directory) and PART_MARK in its environment, so that
# none is missed when all are stopped. The program that holds the Stack never has either.
PART_MARK = "_MEMSERVE_PART"


def spawn(
    command: Sequence[str], data: Path, part: str, environment: Mapping[str, str], log: Path | None
) -> subprocess.Popen[bytes]:
    """Start a child with the marks. It is killed when the thread that calls this ends. Raises OSError.

    The child has its own session, so that Ctrl-C reaches only this process.

    log: where the child's output goes. None: the output is dropped.
    """
    with contextlib.ExitStack() as files:
        output: int | IO[bytes] = subprocess.DEVNULL
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            output = files.enter_context(log.open("ab"))
        return subprocess.Popen(
            tethered(command),
            env={**environment_without_settings(), **environment, STACK_MARK: str(data), PART_MARK: part},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def spawn_memserve(command: str, settings: Settings, log: Path, *flags: str) -> subprocess.Popen[bytes]:
    """Start `memserve <command>` with these settings, as the part of the command's name. Raises OSError."""
    run = settings.data / "run"
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    environment = child_environment(settings, run / f"{command}.json")
    return spawn(
        [sys.executable, "-m", "memserve", command, *flags], settings.data, command, environment, log
    )


def marked_processes(data: Path, part: str = "") -> Iterator[psutil.Process]:
    """The processes that a memserve on this data directory has started, without this process and its parents.

    part: only the processes of this part, and the processes that the part has started.
    """
    yield from processes_with(_marks(data, part))


def kill_marked(data: Path, part: str = "") -> list[int]:
    """Kill the marked processes, and wait until they are gone. Returns their process ids."""
    return kill_with(_marks(data, part))


def _marks(data: Path, part: str) -> dict[str, str]:
    return {STACK_MARK: str(data), PART_MARK: part} if part else {STACK_MARK: str(data)}


def last_line(log: Path) -> str:
    """The last non-empty line of a log, without the command's own prefix.

    If there is no such line, the text says where the log is.
    """
    try:
        lines = [
            line for line in log.read_text(errors="replace", encoding="utf-8").splitlines() if line.strip()
        ]
    except OSError:
        lines = []
    return lines[-1].removeprefix("memserve: ") if lines else f"see {log}"
