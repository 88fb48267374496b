"""A private redis-server for a benchmark, as `memserve up` starts it, but in memory only, on a unix socket
and on a port of its own.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Self

import redis

from loadtests.harness.kept_port import KeptPort
from memserve.embedded import REDIS_ENVIRONMENT, redis_executable


class PrivateRedis:
    """Runs while the `with` block does."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._kept = KeptPort()
        self.port = self._kept.number
        self.tcp_url = f"redis://127.0.0.1:{self.port}"
        place = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--unixsocket",
            str(self.socket),
            "--dir",
            str(folder),
        ]
        self._command = [redis_executable(), *place, "--save", "", *options]

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Start it, empty, at the same addresses."""
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, env={**os.environ, **REDIS_ENVIRONMENT}
        )
        deadline_s = time.monotonic() + 10
        with redis.Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    if time.monotonic() > deadline_s:
                        raise
                    time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def wait_until_stored(client: redis.Redis, quiet_s: float) -> None:
    """Until Redis has held the same number of keys for quiet_s."""
    last, since_s = -1, time.monotonic()
    while time.monotonic() - since_s < quiet_s:
        held = int(client.dbsize())
        if held != last:
            last, since_s = held, time.monotonic()
        time.sleep(0.1)
