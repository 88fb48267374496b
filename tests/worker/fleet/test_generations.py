"""Generations of workers, with children that are small: what is damaged serves on until others have taken its
place.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from memserve.processes.marks import processes_with
from memserve.worker.fleet.generations import GENERATION, Generation, Generations, Rules
from tests.kv.redis_server import wait_until

# Its first argument is a folder. It is ready when the file `ready` is there, damaged when one with its
# process id is; on SIGHUP it leaves a note.
CHILD = """
import os, signal, sys, time
folder, status = sys.argv[1], int(sys.argv[2])
signal.signal(signal.SIGHUP, lambda *_: open(f"{folder}/restarted-{os.getpid()}", "w").close())
told = set()
while True:
    for file, word in ((f"{folder}/ready", b"ready\\n"), (f"{folder}/{os.getpid()}",
    b"damaged gcs_server ended with -9\\n")):
        if file not in told and os.path.exists(file):
            told.add(file)
            os.write(status, word)
    time.sleep(0.02)
"""


@dataclass
class Running:
    """Generations in a thread, which stands for the main thread of `memserve workers`."""

    folder: Path
    room: bool = True
    drained: list[str] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    command: str = CHILD
    start_within_s: float = 60.0

    def __post_init__(self) -> None:
        line = [sys.executable, "-I", "-S", "-c", self.command, str(self.folder)]
        rules = Rules(
            lambda status: [*line, str(status)],
            lambda: dict(os.environ),
            lambda: self.room,
            self.drained.append,
            self.start_within_s,
            grace_s=5.0,
        )
        self.kept = Generations(rules)
        self.thread = threading.Thread(target=lambda: self.exits.append(self.kept.run()))

    def serving(self, *, but_not: Generation | None = None) -> Generation:
        """The one that serves, when it is ready."""
        wait_until(lambda: self.kept.serving not in (None, but_not) and self.kept.serving.ready_s > 0)  # type: ignore[union-attr]
        assert self.kept.serving is not None
        return self.kept.serving

    def set_ready(self, ready: bool) -> None:
        (self.folder / "ready").touch() if ready else (self.folder / "ready").unlink()


@contextlib.contextmanager
def running(folder: Path, **changes: object) -> Iterator[Running]:
    started = Running(folder, **changes)  # type: ignore[arg-type]
    started.set_ready(True)
    started.thread.start()
    try:
        yield started
    finally:
        started.kept.signals.put(signal.SIGTERM)
        started.thread.join(30)
        assert not started.thread.is_alive()


def pids(generation: Generation) -> list[int]:
    return [process.pid for process in processes_with({GENERATION: generation.name})]


def test_a_generation_that_ends_is_followed_by_another(tmp_path: Path) -> None:
    with running(tmp_path) as workers:
        first = workers.serving()
        os.kill(first.process.pid, signal.SIGKILL)
        second = workers.serving(but_not=first)
        assert pids(second) == [second.process.pid]
    assert pids(second) == []
    assert workers.exits == [0]


def test_a_damaged_generation_serves_until_the_next_is_ready_and_then_leaves(tmp_path: Path) -> None:
    """Without its GCS Ray ended all workers at once, 61 s later."""
    with running(tmp_path) as workers:
        first = workers.serving()
        workers.set_ready(False)
        (tmp_path / str(first.process.pid)).touch()
        wait_until(
            lambda: workers.kept.successor is not None and workers.kept.successor.process.poll() is None
        )
        assert workers.kept.serving is first
        assert pids(first) == [first.process.pid]
        workers.set_ready(True)
        second = workers.serving(but_not=first)
        wait_until(lambda: pids(first) == [])
        assert workers.drained == [first.name]
        assert pids(second) == [second.process.pid]


def test_a_damaged_generation_whose_successor_does_not_come_up_serves_on(tmp_path: Path) -> None:
    with running(tmp_path) as workers:
        first = workers.serving()
        workers.set_ready(False)
        (tmp_path / str(first.process.pid)).touch()
        failed = []
        for _ in range(2):
            wait_until(
                lambda: (
                    workers.kept.successor is not None and workers.kept.successor.process.pid not in failed
                )
            )
            assert workers.kept.successor is not None
            failed.append(workers.kept.successor.process.pid)
            os.kill(failed[-1], signal.SIGKILL)
            assert workers.kept.serving is first
        workers.set_ready(True)
        workers.serving(but_not=first)


def test_a_damaged_generation_is_ended_first_where_there_is_no_room_for_two(tmp_path: Path) -> None:
    with running(tmp_path, room=False) as workers:
        first = workers.serving()
        (tmp_path / str(first.process.pid)).touch()
        second = workers.serving(but_not=first)
        assert pids(first) == []
        assert workers.kept.successor is None
        assert pids(second) == [second.process.pid]


def test_a_generation_that_does_not_become_ready_is_followed_by_another(tmp_path: Path) -> None:
    with running(tmp_path, start_within_s=1.0) as workers:
        first = workers.serving()
        workers.set_ready(False)
        os.kill(first.process.pid, signal.SIGKILL)
        wait_until(lambda: workers.kept.serving not in (None, first))
        stuck = workers.kept.serving
        assert stuck is not None
        wait_until(lambda: stuck.process.poll() is not None)
        workers.set_ready(True)
        assert workers.serving(but_not=stuck).damage == ""


def test_sighup_puts_new_workers_in_the_place_of_those_that_serve(tmp_path: Path) -> None:
    with running(tmp_path) as workers:
        first = workers.serving()
        workers.kept.signals.put(signal.SIGHUP)
        workers.serving(but_not=first)
        wait_until(lambda: pids(first) == [])
        assert workers.drained == [], "it can be told to end, and finishes its answers by itself"


def test_sighup_has_the_generation_restart_its_workers_one_by_one_where_there_is_no_room_for_two(
    tmp_path: Path,
) -> None:
    with running(tmp_path, room=False) as workers:
        first = workers.serving()
        workers.kept.signals.put(signal.SIGHUP)
        wait_until(lambda: (tmp_path / f"restarted-{first.process.pid}").exists())
        assert workers.kept.serving is first


def test_a_first_generation_that_fails_ends_it_all_with_its_status(tmp_path: Path) -> None:
    with running(tmp_path, command="raise SystemExit(3)") as workers:
        workers.thread.join(20)
        assert workers.exits == [3]


def test_what_a_dead_generation_left_is_killed_before_the_next_starts(tmp_path: Path) -> None:
    leaves_a_child = (
        "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        + CHILD
    )
    with running(tmp_path, command=leaves_a_child) as workers:
        first = workers.serving()
        assert len(pids(first)) == 2
        os.kill(first.process.pid, signal.SIGKILL)
        workers.serving(but_not=first)
        assert pids(first) == []


KEEPER = """
import os, sys
from memserve.worker.fleet.generations import Generations, Rules
command = [sys.executable, "-I", "-S", "-c", sys.argv[1]]
rules = Rules(lambda status: [*command, str(status)], lambda: dict(os.environ), lambda: True, print, 60.0,
5.0)
Generations(rules).run()
"""
# A daemon, as Ray's agents are: in a session of its own, the child of nobody.
DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
os.write(int(sys.argv[1]), b"ready\\n")
time.sleep(600)
"""


def test_nothing_of_a_generation_outlives_a_memserve_workers_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KEEPER, DAEMON]) as keeper:
        name = f"{keeper.pid}-1"
        wait_until(lambda: len(list(processes_with({GENERATION: name}))) == 2)
        keeper.kill()
        keeper.wait()
        wait_until(lambda: list(processes_with({GENERATION: name})) == [], timeout_s=10)
