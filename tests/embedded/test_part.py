"""The supervision of one process, with children that are small: every part of a stack is kept running by
this.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from memserve.config import STACK_MARK
from memserve.embedded import marked_processes
from memserve.embedded.children import kill_marked, spawn
from memserve.embedded.part import Part, Recipe
from memserve.embedded.redis_server import registry_server
from memserve.errors import StartupError
from memserve.processes.backoff import LONGEST_PAUSE_S, pause_s
from tests.kv.redis_server import wait_until

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]


@contextlib.contextmanager
def kept(folder: Path, name: str, lines: list[str], **changes: object) -> Iterator[Part]:
    """A child that sleeps, as a part."""
    recipe = {
        "name": name,
        "spawn": lambda: spawn(SLEEP, folder, name, {}, folder / "logs" / f"{name}.log"),
        "is_ready": lambda process: True,
        "why_ended": lambda: "it ended",
        **changes,
    }
    part = Part(Recipe(**recipe), lines.append)  # type: ignore[arg-type]
    part.begin()
    try:
        yield part
    finally:
        part.end()


def killed(part: Part) -> int:
    """Kill the process. Returns how often the part had started before."""
    starts = part.starts
    assert part.process is not None
    os.kill(part.process.pid, signal.SIGKILL)
    return starts


def test_what_is_killed_is_started_again_and_said_so(tmp_path: Path) -> None:
    lines: list[str] = []
    with kept(tmp_path, "alpha", lines) as part:
        part.wait_ready()
        for _ in range(3):
            starts = killed(part)
            wait_until(lambda: part.starts == starts + 1)  # noqa: B023
        last = part.process
        assert last is not None and last.poll() is None
    assert [line for line in lines if "ended with -9; starting it again" in line] != []
    assert last.poll() is not None


def test_what_may_be_the_cause_of_an_end_is_said_with_it(tmp_path: Path) -> None:
    lines: list[str] = []
    with kept(tmp_path, "alpha", lines, hint=lambda: "the disk is full") as part:
        part.wait_ready()
        starts = killed(part)
        wait_until(lambda: part.starts == starts + 1)
    assert [line for line in lines if "ended with -9 (the disk is full); starting it again" in line] != []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("can't start new thread"),
    ],
    ids=["no file handles", "disk full", "no threads"],
)
def test_whatever_a_start_raises_is_reported_and_tried_again(tmp_path: Path, error: Exception) -> None:
    lines: list[str] = []
    failing = False

    def start() -> subprocess.Popen[bytes]:
        if failing:
            raise error
        return spawn(SLEEP, tmp_path, "alpha", {}, None)

    with kept(tmp_path, "alpha", lines, spawn=start) as part:
        part.wait_ready()
        failing = True
        starts = killed(part)
        wait_until(lambda: sum(str(error) in line for line in lines) >= 2)
        assert part.starts == starts
        failing = False
        wait_until(lambda: part.starts == starts + 1)


def test_no_file_handles_in_this_very_process_is_got_over(tmp_path: Path) -> None:
    lines: list[str] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with kept(tmp_path, "alpha", lines) as part:
        part.wait_ready()
        starts = killed(part)
        try:
            # Less than are open already.
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            wait_until(lambda: any("Too many open files" in line for line in lines))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        wait_until(lambda: part.starts == starts + 1)


def test_a_part_that_does_not_come_up_keeps_no_other_from_it(tmp_path: Path) -> None:
    """The registry was down for 300 s because the fleet, which needs it, was being started."""
    lines: list[str] = []
    ready = True
    with (
        kept(tmp_path, "fleet", lines, is_ready=lambda process: ready) as fleet,
        kept(tmp_path, "registry", lines) as registry,
    ):
        fleet.wait_ready()
        registry.wait_ready()
        ready = False
        starts = killed(fleet)
        wait_until(lambda: fleet.process is not None and fleet.process.poll() is None)
        before = killed(registry)
        wait_until(lambda: registry.starts == before + 1, timeout_s=10)
        assert fleet.starts == starts
        ready = True
        wait_until(lambda: fleet.starts == starts + 1)


def test_a_first_start_that_fails_is_raised_with_its_reason(tmp_path: Path) -> None:
    ends = [sys.executable, "-I", "-S", "-c", "raise SystemExit(1)"]
    with (
        kept(
            tmp_path,
            "alpha",
            [],
            spawn=lambda: spawn(ends, tmp_path, "alpha", {}, None),
            is_ready=lambda process: False,
        ) as part,
        pytest.raises(StartupError, match="it ended"),
    ):
        part.wait_ready()


def test_a_report_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    def closed(line: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    recipe = Recipe(
        "alpha", lambda: spawn(SLEEP, tmp_path, "alpha", {}, None), lambda process: True, lambda: ""
    )
    part = Part(recipe, closed)
    part.begin()
    try:
        part.wait_ready()
        starts = killed(part)
        wait_until(lambda: part.starts == starts + 1)
    finally:
        part.end()


def test_a_part_can_be_ended_while_it_starts(tmp_path: Path) -> None:
    with kept(tmp_path, "alpha", [], is_ready=lambda process: False) as part:
        wait_until(lambda: part.process is not None)
    assert list(marked_processes(tmp_path)) == []


def test_pauses_grow_to_half_a_minute() -> None:
    pauses = [pause_s(failures) for failures in range(1, 100)]
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_S


def test_a_redis_server_comes_back_with_its_data_though_the_logs_are_gone(tmp_path: Path) -> None:
    server = registry_server(tmp_path)

    def answer() -> bytes | None:
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(server.url) as client:
            return client.get("key")  # type: ignore[no-any-return]
        return None

    recipe = Recipe(
        "the registry",
        server.spawn,
        lambda process: server.answers(process, lambda line: None),
        server.why_ended,
    )
    part = Part(recipe, lambda line: None)
    part.begin()
    try:
        part.wait_ready()
        with redis.Redis.from_url(server.url) as client:
            client.set("key", "value")
        server.log.unlink()
        server.log.parent.rmdir()
        starts = killed(part)
        wait_until(lambda: part.starts == starts + 1)
        assert answer() == b"value"
    finally:
        part.end()


# Lifetimes: who outlives whom


PARENT = """
import sys, time
from pathlib import Path
from memserve.embedded.part import Part, Recipe
from memserve.embedded.children import spawn
child = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
part = Part(Recipe("alpha", lambda: spawn(child, Path(sys.argv[1]), "alpha", {}, None),
lambda process: True, lambda: ""), print)
part.begin()
part.wait_ready()
print(part.process.pid, flush=True)
time.sleep(600)
"""


def test_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as parent:
        try:
            assert parent.stdout is not None
            child = psutil.Process(int(parent.stdout.readline()))
            wait_until(lambda: "sleep(600)" in (line := " ".join(child.cmdline())) and "tether" not in line)
        finally:
            parent.kill()  # else a failure waits for its end, ten minutes
        parent.wait()
        psutil.wait_procs([child], timeout=10)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_only_what_a_stack_started_carries_its_mark_and_is_swept(tmp_path: Path) -> None:
    """A program that embeds a stack keeps its own children: its environment is not touched."""
    with kept(tmp_path, "alpha", []) as part, subprocess.Popen(SLEEP) as own:
        part.wait_ready()
        assert STACK_MARK not in os.environ
        assert part.process is not None
        assert [process.pid for process in marked_processes(tmp_path)] == [part.process.pid]
        assert list(marked_processes(tmp_path, "beta")) == []
        assert kill_marked(tmp_path / "other") == []
        assert kill_marked(tmp_path, "alpha") != []
        time.sleep(0.1)
        assert own.poll() is None
        own.kill()
