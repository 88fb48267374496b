"""The first process of a container: in a process namespace of its own, where it is process 1 for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memserve.processes.init import go_on_in_a_child

ROOT = Path(__file__).parents[2]
CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--mount-proc", "--fork", "--kill-child"]
FIRST = "from memserve.processes.init import go_on_in_a_child\ngo_on_in_a_child()\n"
# Twenty processes whose parents end before them, as Ray's do; then how many zombies there are.
ORPHANS = """
import os, time
from pathlib import Path
for _ in range(20):
    if (child := os.fork()) == 0:
        if os.fork() == 0:
            time.sleep(0.1)
        os._exit(0)
    os.waitpid(child, 0)
time.sleep(0.6)
stats = [file.read_text().rpartition(")")[2].split()[0] for file in Path("/proc").glob("[0-9]*/stat")]
print(stats.count("Z"))
"""


def start(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*CONTAINER, sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def process_1(container: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{container.pid}/task/{container.pid}/children")
    while not (pids := children.read_text(encoding="ascii").split()):
        time.sleep(0.01)
    return int(pids[0])


def test_another_process_than_the_first_goes_on_as_it_is() -> None:
    before = os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    go_on_in_a_child()
    assert (os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, [])) == before


def test_process_1_ends_with_the_exit_status_of_its_command() -> None:
    container = start(FIRST + "import os, sys\nprint(os.getpid(), os.getppid())\nsys.exit(7)")
    assert container.communicate(timeout=20)[0].split()[1] == "1"
    assert container.returncode == 7


@pytest.mark.parametrize(("first", "zombies"), [(FIRST, "0"), ("", "20")], ids=["with", "without"])
def test_process_1_buries_every_process_that_ends(first: str, zombies: str) -> None:
    container = start(first + ORPHANS)
    assert container.communicate(timeout=20)[0].strip() == zombies


WAITS = "import signal, time\nprint('up', flush=True)\ntime.sleep(30)"
ANSWERS = (
    "import signal, sys, time\nsignal.signal(signal.SIGHUP, lambda *_: sys.exit(3))\n"
    "print('up', flush=True)\ntime.sleep(30)"
)


@pytest.mark.parametrize(
    ("program", "number", "status"),
    [
        # The child has no handler yet, as while a command starts.
        (WAITS, signal.SIGTERM, 128 + signal.SIGTERM),
        (WAITS, signal.SIGINT, 128 + signal.SIGINT),
        (ANSWERS, signal.SIGHUP, 3),
    ],
    ids=["TERM", "INT", "HUP"],
)
def test_process_1_hands_signals_on(program: str, number: signal.Signals, status: int) -> None:
    container = start(FIRST + program)
    assert container.stdout is not None
    assert container.stdout.readline() == "up\n"
    os.kill(process_1(container), number)
    container.communicate(timeout=20)
    assert container.returncode == status


def test_without_it_a_signal_without_a_handler_is_lost() -> None:
    """That it is handed on means something."""
    container = start(WAITS)
    assert container.stdout is not None
    assert container.stdout.readline() == "up\n"
    os.kill(process_1(container), signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        container.wait(0.5)
    container.kill()
    container.communicate()
