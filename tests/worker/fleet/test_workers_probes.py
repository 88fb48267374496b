"""The health port of `memserve workers`."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from memserve.cli.health import asked
from memserve.config import Settings
from memserve.errors import StartupError
from memserve.worker.fleet.fleet import _probes_answered
from memserve.worker.fleet.leaving import serving_file, takes_requests


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "run").mkdir()
    return Settings(data_dir=tmp_path, worker_health_port=free_port())


def wait_for(address: str, said: str) -> None:
    deadline_s = time.monotonic() + 10
    while asked(address, "ready", 1.0) != said:
        assert time.monotonic() < deadline_s, asked(address, "ready", 1.0)
        time.sleep(0.05)


def test_it_is_ready_while_a_worker_takes_requests_and_live_all_the_time(settings: Settings) -> None:
    address = f"127.0.0.1:{settings.worker_health_port}"
    with _probes_answered(settings):
        wait_for(address, "NOT_SERVING")
        serving_file(settings, os.getpid()).touch()
        wait_for(address, "SERVING")
        serving_file(settings, os.getpid()).unlink()
        wait_for(address, "NOT_SERVING")
        assert asked(address, "", 1.0) == "SERVING"
    assert asked(address, "", 1.0).startswith("UNAVAILABLE")


def test_what_a_killed_worker_left_behind_is_no_worker(settings: Settings) -> None:
    (settings.data / "run" / "other.up").touch()
    serving_file(settings, 2**22 + 1).touch()
    assert not takes_requests(settings)


def test_there_is_no_port_where_none_is_asked_for_and_a_taken_one_is_refused(settings: Settings) -> None:
    with _probes_answered(settings.model_copy(update={"worker_health_port": 0})):
        assert asked(f"127.0.0.1:{settings.worker_health_port}", "", 0.5).startswith("UNAVAILABLE")
    with (
        _probes_answered(settings),
        pytest.raises(StartupError, match="worker_health_port"),
        _probes_answered(settings),
    ):
        pytest.fail("two have the same port")
