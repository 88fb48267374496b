"""Children that end with their parent. Linux only.

This file runs as a script. The script ties its process to the parent, and then becomes the child. It is a
script because Python may not run its own code between fork and exec where the parent has threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def tethered(command: Sequence[str]) -> list[str]:
    """The command line that starts `command` as a child that is killed when this process ends, also by kill
    -9.

    The kernel goes by threads. The child is killed when the thread that starts it ends, so that the thread
    must outlive the child.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends.

    Exits at once when the parent has ended already. Raises OSError where the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os._exit(1)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
