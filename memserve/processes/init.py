"""The first process of a container: it hands signals on, and buries every process that ends.

1. The kernel gives process 1 no signal that it has no handler for: SIGTERM would do nothing while a command
   starts.
2. Every process whose parent has ended becomes a child of process 1, and stays a zombie until process 1 waits
   for it. Ray's processes are such ones.
3. So a command that is started as process 1 goes on in a child, and process 1 does these two things alone.

An init of the container's own, such as Docker's `--init`, does the same; then this does nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

# These are about process 1 itself: what a debugger and a terminal do, and its own faults.
_KEPT = {
    signal.SIGCHLD,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGTSTP,
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGTRAP,
    signal.SIGSYS,
    signal.SIGABRT,
}
SIGNAL_STATUS = 128
"""What a shell adds to the number of the signal that ended a command."""


def go_on_in_a_child() -> None:
    """Return at once in a process that is not the first, or in the child of the first.

    Process 1 stays here and ends with the child's exit status. Call it before any thread is started.
    """
    if os.getpid() != 1:
        return
    handed_on = signal.valid_signals() - _KEPT - {signal.SIGKILL, signal.SIGSTOP}
    waited_for = handed_on | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    child = os.fork()
    if child == 0:
        _lead_the_terminal()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        number = signal.sigwait(waited_for)
        if number != signal.SIGCHLD:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
        elif (status := _buried(child)) is not None:
            _end(status)


def _lead_the_terminal() -> None:
    """Ctrl-C at a container's terminal is for the child: process 1 would hand it on a second time."""
    os.setpgid(0, 0)
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # no terminal
        os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, before)


def _buried(child: int) -> int | None:
    """Wait for every process that has ended. Returns the child's exit status once it is among them."""
    ended = None
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            pid, status = found
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                ended = code if code >= 0 else SIGNAL_STATUS - code
    return ended


def _end(status: int) -> None:
    sys.stdout.flush()
    os._exit(status)
