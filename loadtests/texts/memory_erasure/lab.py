"""A registry and a gateway as processes, and where they keep things."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from loadtests.harness.redis_server import PrivateRedis
from memserve.client import CallFailed, Client
from memserve.config import child_environment, load_settings
from memserve.demo import MODEL_DIR
from memserve.processes.ports import held_ports

START_TIMEOUT_S = 90.0
CALL_TIMEOUT_S = 150.0


class Lab:
    """A gateway without workers over a registry that syncs every write. Leave it with `close`."""

    def __init__(self, folder: Path, milvus_uri: str = "") -> None:
        """milvus_uri: "" for Milvus Lite with the local index."""
        self.data = folder / "data"
        self.data.mkdir(mode=0o700)
        self.registry_folder = folder / "registry"
        self.registry_folder.mkdir()
        self.log = folder / "logs" / "gateway.log"
        self.log.parent.mkdir()
        self._scratch = folder
        self.registry = PrivateRedis(
            self.registry_folder, "--appendonly", "yes", "--appendfsync", "always"
        )  # fmt: skip
        self.registry.start()
        self._held = contextlib.ExitStack()
        settings = load_settings(
            {}, data_dir=str(self.data), model=str(MODEL_DIR), redis_url=self.registry.unix_url,
            milvus_uri=milvus_uri, port=0, http_port=0, metrics_port=0, shutdown_grace_s=1.0,
            memory_changes_per_minute_per_tenant=10**6, gateway_share_per_tenant=1000.0,
        )  # fmt: skip
        self.settings = self._held.enter_context(held_ports(settings))
        self._gateway: subprocess.Popen[bytes] | None = None
        self.start()

    def client(self) -> Client:
        return Client(f"{self.settings.host}:{self.settings.port}", timeout_s=CALL_TIMEOUT_S)

    def start(self) -> None:
        """Start the gateway, and wait until it answers. Raises TimeoutError."""
        with self.log.open("ab") as log:
            self._gateway = subprocess.Popen(
                [sys.executable, "-m", "memserve", "gateway", "--ports-held"],
                env={**os.environ, **child_environment(self.settings, self._scratch / "gateway.json")},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(CallFailed), self.client() as client:
                client.namespaces()
                return
            if self._gateway.poll() is not None:
                break
            time.sleep(0.1)
        raise TimeoutError(f"no gateway: {self.log.read_text(encoding='utf-8', errors='replace')[-2000:]}")

    def kill(self) -> None:
        """kill -9 of the gateway."""
        if self._gateway is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._gateway.pid, signal.SIGKILL)
            self._gateway.wait()

    def close(self) -> None:
        self.kill()
        self.registry.stop()
        self._held.close()
