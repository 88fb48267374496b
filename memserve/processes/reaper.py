"""Ends the processes that a dead process has left.

1. This file runs as a script, in a process of its own.
2. The script waits until its standard input is closed. The kernel closes it when the only process that holds
   the other end has ended.
3. The script kills all processes whose environment has a mark.

It is for processes that no parent of memserve's can tie to itself, because others start them. Ray's agents
are such processes. They outlive a raylet that was killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

GIVE_UP_S = 10.0
LOOK_S = 0.1


def start_reaper(variable: str, value: str) -> subprocess.Popen[bytes]:
    """Start a process that kills all processes with the variable in their environment.

    The reaper does so as soon as this process ends or closes the reaper's `stdin`. The reaper has no
    environment itself, so that no sweep kills it.

    Raises OSError.
    """
    command = [sys.executable, "-I", "-S", __file__, variable, value]
    return subprocess.Popen(command, stdin=subprocess.PIPE, env={}, start_new_session=True)


def marked(mark: bytes) -> list[int]:
    """The ids of the processes with the mark.

    mark: variable=value.
    """
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                pids.append(int(folder.name))
        except OSError:  # the process has ended, or belongs to another user
            continue
    return pids


def main(variable: str, value: str) -> None:
    sys.stdin.buffer.read()
    mark, give_up_s = f"{variable}={value}".encode(), time.monotonic() + GIVE_UP_S
    while (left := marked(mark)) and time.monotonic() < give_up_s:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(LOOK_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
