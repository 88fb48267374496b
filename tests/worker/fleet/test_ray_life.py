"""What has ended of Ray is noticed, with a real Ray: the GCS was missed for 61 s, and then all workers ended
at once.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.ray

SCRIPT = """
import os, sys, threading
from pathlib import Path
from memserve.processes.supervised import repeating_thread
from memserve.worker.fleet.local_ray import private_ray_dir, ray_environment, start_local_ray
from memserve.worker.fleet.ray_life import LOOK_S, RayLife
data, state = Path(sys.argv[1]), sys.argv[2]
os.environ.update(ray_environment(data))
folder = private_ray_dir(data)
life = RayLife(1, serving=lambda: state == "serving")
repeating_thread("ray_life", life.look, LOOK_S, threading.Event())
start_local_ray(folder, 2)
import ray

@ray.remote
class Worker:
    def pid(self):
        return os.getpid()

worker = Worker.remote()
ray.get(worker.pid.remote())
if state == "ready":
    life.workers_ready()
print("started", flush=True)
threading.Event().wait()
"""


class Started:
    """A Ray with one actor, below a process that looks after it; what it tells is its standard output."""

    def __init__(self, data: Path, state: str) -> None:
        command = [sys.executable, "-c", SCRIPT, str(data), state]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
        )
        assert self.process.stdout is not None
        self.told = [self.process.stdout.readline().strip()]
        while self.told[-1] != "started":
            assert self.told[-1] or self.process.poll() is None, "it did not start"
            self.told.append(self.process.stdout.readline().strip())
        self.below = psutil.Process(self.process.pid).children(recursive=True)
        self.actors = [process for process in self.below if "::Worker" in " ".join(process.cmdline())]

    def kill(self, name: str) -> None:
        next(process for process in self.below if process.name() == name).kill()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def busy(self) -> float:
        """The share of a core that it uses in the second that comes."""
        process = psutil.Process(self.process.pid)
        process.cpu_percent()
        time.sleep(1)
        return process.cpu_percent() / 100

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        # Ray's agents outlive a raylet that was killed; `memserve workers` has its reaper for that.
        for process in self.below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.mark.timeout(120)
def test_workers_that_serve_already_outlive_the_gcs_before_serve_says_that_they_are_ready(
    tmp_path: Path,
) -> None:
    with Started(tmp_path, "serving") as ray:
        ray.kill("gcs_server")
        assert [ray.line(), ray.line()] == ["ready", "damaged the GCS has ended"]
        assert ray.process.poll() is None


@pytest.mark.timeout(120)
def test_workers_outlive_the_gcs_which_is_missed_at_once(tmp_path: Path) -> None:
    with Started(tmp_path, "ready") as ray:
        assert "ready" in ray.told
        ray.kill("gcs_server")
        assert ray.line() == "damaged the GCS has ended"
        assert [actor.status() != psutil.STATUS_ZOMBIE for actor in ray.actors] == [True]
        assert ray.process.poll() is None
        # Ray's threads asked the dead GCS again without a pause: a whole core, beside the answers and the
        # workers that start.
        assert any(ray.busy() < 0.3 for _ in range(10))


@pytest.mark.parametrize(
    ("victim", "state"), [("gcs_server", "starting"), ("raylet", "starting"), ("raylet", "ready")]
)
@pytest.mark.timeout(120)
def test_a_ray_that_can_have_no_workers_ends(tmp_path: Path, victim: str, state: str) -> None:
    with Started(tmp_path, state) as ray:
        ray.kill(victim)
        assert ray.process.wait(30) != 0
