"""A node keeps its processes running."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from memserve.config import Settings
from memserve.errors import StartupError
from memserve.worker.fleet.ray_node import Kept, keep_node


def until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_a_child_that_has_ended_is_started_again_after_a_pause() -> None:
    kept = Kept("ray", lambda status: [sys.executable, "-c", "pass"], lambda: dict(os.environ))
    try:
        kept.keep()
        first = kept.current
        assert first is not None
        until(lambda: first.ended)
        ended_s = time.monotonic()
        kept.keep()
        assert kept.current is None
        until(lambda: kept.keep() or kept.current is not None)
        # The first pause of `processes/backoff.py`.
        assert time.monotonic() - ended_s > 0.4
        assert kept.current is not None
        assert kept.current.name != first.name
    finally:
        kept.end()


def test_nothing_of_a_child_is_left_when_it_is_ended(tmp_path: Path) -> None:
    """Ray's agents are children of children, in sessions of their own."""
    note = tmp_path / "pid"
    child = (
        "import subprocess, sys, time, pathlib;"
        "grand = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " start_new_session=True);"
        f"pathlib.Path({str(note)!r}).write_text(str(grand.pid)); time.sleep(60)"
    )
    kept = Kept("ray", lambda status: [sys.executable, "-c", child], lambda: dict(os.environ))
    kept.keep()
    until(lambda: note.exists() and bool(note.read_text(encoding="utf-8")))
    kept.end()
    pid = int(note.read_text(encoding="utf-8"))
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_node_says_which_setting_it_lacks_before_anything_is_started(tmp_path: Path) -> None:
    agreed = {"data_dir": tmp_path, "redis_url": "redis://registry", "salt_key": "k" * 32}
    with pytest.raises(StartupError, match="ray_address"):
        keep_node(Settings(**agreed), head=False)
    with pytest.raises(StartupError, match="salt_key"):
        keep_node(Settings(data_dir=tmp_path, redis_url="redis://registry"), head=True)
    assert list(tmp_path.iterdir()) == []
