"""A real redis-server for tests and benchmarks. It is the server of `memserve up`, but in memory only."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

import redis

from loadtests.harness.kept_port import KeptPort
from memserve.embedded import REDIS_ENVIRONMENT, redis_executable

# The distance from a node's port to the port of its cluster bus.
CLUSTER_BUS = 10000


class RedisServer:
    """A redis-server that can be started, stopped, paused and resumed at any time.

    It is empty after every `start`, and keeps its entries with `start_durably`. Signals go only to its own
    process.
    """

    def __init__(self, directory: Path, *, tcp: bool = False) -> None:
        """The server listens on a unix socket in the directory.

        tcp: it listens on a port of 127.0.0.1 too. The port stays reserved while the server is stopped.
        `url` and `client` then use the port.
        """
        self._kept = KeptPort(also=[CLUSTER_BUS]) if tcp else None
        self.port = self._kept.number if self._kept else 0
        self.socket = directory / "redis.sock"
        self._directory = directory
        self._server: subprocess.Popen[bytes] | None = None
        self.unix_url, self.tcp_url = f"unix://{self.socket}", f"redis://127.0.0.1:{self.port}"
        self.url = self.tcp_url if tcp else self.unix_url

    @property
    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port) if self.port else redis.Redis(unix_socket_path=str(self.socket))

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._server is not None, "the server is not started"
        return self._server

    def start(self, *options: str) -> None:
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)]
        self.run(*place, "--dir", str(self._directory), "--save", "", *options)

    def start_durably(self) -> None:
        """Stop the server and start it as the registry is started.

        `stop` kills the server. After the next `start_durably` it has every write that it has acknowledged.
        """
        self.stop()
        self.start("--appendonly", "yes", "--appendfsync", "always")

    def run(self, *arguments: str) -> None:
        """Start the server with these arguments only, and wait until it answers.

        Raises redis.ConnectionError when it does not answer within 10 seconds.
        """
        self._server = subprocess.Popen(
            [redis_executable(), *arguments],
            stdout=subprocess.DEVNULL,
            env={**os.environ, **REDIS_ENVIRONMENT},
        )
        deadline_s = time.monotonic() + 10
        while True:
            try:
                self.client.ping()
                return
            except redis.AuthenticationError:
                return
            except redis.ConnectionError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.02)

    def stop(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None
            self.socket.unlink(missing_ok=True)

    def pause(self) -> None:
        """Pause the server: it answers nothing. It keeps its connections, and the kernel accepts new ones."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


class PrivateRedis(RedisServer):
    """A benchmark's server, on a unix socket and on its own port. It runs during the `with` block."""

    def __init__(self, folder: Path, *options: str) -> None:
        """options: arguments of redis-server for every start."""
        super().__init__(folder, tcp=True)
        self.url = self.unix_url
        self._options = options

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self, *options: str) -> None:
        """Start it, empty, at the same addresses."""
        super().start(*self._options, *options)

    def __exit__(self, *_: object) -> None:
        self.stop()


def wait_until_stored(client: redis.Redis, quiet_s: float) -> None:
    """Wait until Redis has held the same number of keys for quiet_s."""
    last, since_s = -1, time.monotonic()
    while time.monotonic() - since_s < quiet_s:
        held = int(client.dbsize())
        if held != last:
            last, since_s = held, time.monotonic()
        time.sleep(0.1)
