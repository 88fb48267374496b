"""Ends what a dead process has left. Run as a script, in a process of its own, it waits until its standard
input is closed, which the kernel does when the only process that holds the other end has ended, and then
kills all whose environment has a mark.

For what no parent can tie to itself: processes that others start, as Ray's agents, which outlive a raylet
that was killed.
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
    """A process that kills all that have the variable in their environment as soon as this one ends, or
    closes the reaper's `stdin`.

    It has no environment, so no sweep takes it. Raises OSError.
    """
    command = [sys.executable, "-I", "-S", __file__, variable, value]
    return subprocess.Popen(command, stdin=subprocess.PIPE, env={}, start_new_session=True)


def marked(mark: bytes) -> list[int]:
    """Process ids. mark: variable=value."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # it ended, or belongs to another user
            continue
    return found


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
