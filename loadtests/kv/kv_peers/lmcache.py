"""LMCache's server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Self

from loadtests.harness import install_lmcache
from loadtests.harness.kept_port import KeptPort
from loadtests.harness.redis_server import PrivateRedis

if TYPE_CHECKING:
    pass


LMCACHE_CHUNK_TOKENS = 256
LMCACHE_START_TIMEOUT_S = 60.0


class LMCacheServer:
    """LMCache's server process with Redis as its second level. Runs while the `with` block does."""

    def __init__(self, store: PrivateRedis, folder: Path) -> None:
        self._log = folder / "lmcache.log"
        self._kept = KeptPort(), KeptPort()
        self.port, http_port = (kept.number for kept in self._kept)
        self._http = f"http://127.0.0.1:{http_port}"
        level = {"type": "resp", "host": "127.0.0.1", "port": store.port}
        self._command = [
            sys.executable,
            "-m",
            "lmcache.v1.multiprocess.http_server",
            "--disable-observability",
        ]
        self._command += ["--host", "127.0.0.1", "--port", str(self.port), "--http-port", str(http_port)]
        self._command += ["--chunk-size", str(LMCACHE_CHUNK_TOKENS), "--l2-adapter", json.dumps(level)]
        self._command += ["--l1-size-gb", "0.5", "--no-l1-use-lazy", "--eviction-policy", "LRU"]

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            environment = {**os.environ, "PYTHONPATH": str(install_lmcache.FOLDER)}
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        deadline_s = time.monotonic() + LMCACHE_START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.__exit__()
                raise RuntimeError(
                    f"LMCache's server does not start:\n{self._log.read_text(encoding='utf-8')[-2000:]}"
                )
            time.sleep(0.1)
        return self

    def forget(self) -> None:
        """Drop what its own memory holds; Redis keeps it."""
        urllib.request.urlopen(
            urllib.request.Request(f"{self._http}/cache/clear", method="POST"), timeout=10
        ).close()

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self._http}/healthcheck", timeout=1).close()
        except (urllib.error.URLError, TimeoutError):
            return False
        return True

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
