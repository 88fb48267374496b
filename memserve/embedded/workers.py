"""The fleet of workers as a part: the process `memserve workers`.

The part has started when the configured number of new workers keep a lease in the registry.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path

import redis

from memserve.config import Settings
from memserve.embedded.children import kill_marked, last_line, spawn_memserve
from memserve.embedded.part import Report
from memserve.errors import StartupError
from memserve.registry.leases import WORKERS, lease_key

START_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 1.0
PART = "workers"


class Fleet:
    """The workers of one data directory, as the registry and the processes show them."""

    def __init__(self, settings: Settings, report: Report) -> None:
        self._settings = settings
        self._report = report
        self._before: frozenset[str] = frozenset()
        self._seen = 0

    @property
    def log(self) -> Path:
        return self._settings.data / "logs" / f"{PART}.log"

    def spawn(self) -> subprocess.Popen[bytes]:
        """Kill the workers that are left from before, and start new workers. Raises OSError."""
        for pid in kill_marked(self._settings.data, PART):
            self._report(f"killing process {pid}, left by the workers before")
        count = self._settings.workers
        self._report(f"workers    starting {count} × vLLM with {self._settings.model} (about half a minute)")
        self._before, self._seen = self.live(), 0
        return spawn_memserve(PART, self._settings, self.log)

    def is_ready(self, process: subprocess.Popen[bytes]) -> bool:
        ready = len(self.live() - self._before)
        if ready > self._seen:
            self._seen = ready
            self._report(f"workers    {ready} of {self._settings.workers} ready")
        return ready >= self._settings.workers

    def wait_for_new(self, before: frozenset[str], process: subprocess.Popen[bytes]) -> frozenset[str]:
        """Wait until the configured number of workers is live and no worker of `before` is.

        process: the fleet. The wait ends when it ends.
        Returns the ids of the new workers. Raises StartupError.
        """
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while len(live := self.live()) < self._settings.workers or live & before:
            if process.poll() is not None:
                raise StartupError(self.why_ended())
            if time.monotonic() > deadline_s:
                raise StartupError(f"the workers are not new after {START_TIMEOUT_S:.0f} s; see {self.log}")
            time.sleep(0.2)
        return live

    def live(self) -> frozenset[str]:
        """The ids of the workers that keep a lease. Empty while the registry does not answer."""
        with (
            contextlib.suppress(redis.RedisError),
            redis.Redis.from_url(
                self._settings.redis, decode_responses=True, socket_timeout=ANSWER_TIMEOUT_S
            ) as client,
        ):
            names = sorted(client.smembers(WORKERS))
            return frozenset(name for name in names if client.exists(lease_key(name)))
        return frozenset()

    def why_ended(self) -> str:
        return f"{last_line(self.log)} (logs: {self.log.parent})"
