"""A gateway and its registry on a small disk of their own, killed, filled up, and cut from power at will."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import redis

from loadtests.harness.figures import report
from memserve.client import CallFailed, Client
from memserve.config import MIB, Settings, child_environment, load_settings
from memserve.demo import MODEL_DIR
from memserve.disk import free_share
from memserve.embedded.disk_guard import RegistryGuard
from memserve.embedded.redis_server import redis_executable, registry_server
from memserve.memory.texts.milvus import MEMORIES
from memserve.processes.ports import held_ports

DISK_BYTES = 96 * MIB
START_TIMEOUT_S = 60.0
RESTART_PAUSE_S = 0.3
SOURCE = Path(__file__).with_name("forgetful_disk.c")


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A tmpfs of DISK_BYTES at `folder` while inside. Yields whether mounting is allowed here; else it is an
    ordinary folder.
    """
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "none", folder], capture_output=True
    )
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", folder], check=True)


class Rig:
    """Two processes, started again when they end, as `memserve up` does. `close` ends them."""

    def __init__(self, disk: Path, scratch: Path) -> None:
        self.data = disk / "data"
        self.data.mkdir(mode=0o700)
        self._disk = disk
        self._ballast = disk / "ballast"
        self._shadow = scratch / "shadow"
        self._scratch = scratch
        self._logs = scratch / "logs"
        self._logs.mkdir()
        self._library = scratch / "forgetful_disk.so"
        subprocess.run(
            ["cc", "-O2", "-shared", "-fPIC", "-o", self._library, SOURCE, "-ldl"],
            check=True,
            capture_output=True,
        )
        self._held = contextlib.ExitStack()
        registry = registry_server(self.data)
        settings = load_settings(
            {},
            data_dir=str(self.data),
            model=str(MODEL_DIR),
            redis_url=registry.url,
            port=0,
            http_port=0,
            metrics_port=0,
            shutdown_grace_s=1.0,
            memory_changes_per_minute_per_tenant=10**6,
        )
        self.settings: Settings = self._held.enter_context(held_ports(settings))
        self.registry_url = registry.url
        self._registry: subprocess.Popen[bytes] | None = None
        self._gateway: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._paused = False
        self._forget_the_past()
        room = partial(free_share, self.data, self.settings.disk_reserve_bytes)
        self._guard = RegistryGuard(self.registry_url, room, lambda line: None)
        self._guard.start()
        self._watch = threading.Thread(target=self._keep_running, daemon=True)
        self._watch.start()

    @property
    def address(self) -> str:
        return f"{self.settings.host}:{self.settings.port}"

    def wait_ready(self) -> float:
        """Until a memory can be remembered; returns the seconds that it took. Raises TimeoutError."""
        began_s = time.monotonic()
        while time.monotonic() - began_s < START_TIMEOUT_S:
            with contextlib.suppress(CallFailed), Client(self.address, timeout_s=5.0) as client:
                client.remember("ready", "ready")
                return time.monotonic() - began_s
            time.sleep(0.05)
        raise TimeoutError(f"no service after {START_TIMEOUT_S:.0f} s; see {self._logs}")

    def kill(self, *, gateway: bool, registry: bool) -> None:
        """kill -9, both at once where both are named."""
        with self._lock:
            for process in ([self._gateway] if gateway else []) + ([self._registry] if registry else []):
                if process is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)

    def fill(self) -> None:
        """Leave not a byte on the disk."""
        with contextlib.suppress(OSError), self._ballast.open("wb", buffering=0) as ballast:
            for size in (MIB, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        ballast.write(bytes(size))

    def make_room(self) -> None:
        self._ballast.unlink(missing_ok=True)

    @contextlib.contextmanager
    def flushes_failing(self) -> Iterator[None]:
        """While inside, Milvus Lite cannot make the folders that a flush writes to."""
        partitions = self.data / "milvus.db" / "collections" / MEMORIES / "partitions"
        aside = partitions.with_name("partitions-aside")
        if partitions.exists():
            partitions.rename(aside)
        partitions.write_text("", encoding="utf-8")
        try:
            yield
        finally:
            partitions.unlink(missing_ok=True)
            if aside.exists():
                aside.rename(partitions)

    def cut_power(self) -> None:
        """Kill both, and leave on the disk what was synced."""
        with self._paused_watch():
            for process in (self._gateway, self._registry):
                if process is not None:
                    process.kill()
                    process.wait()
            shutil.rmtree(self.data, ignore_errors=True)
            tree = self._shadow / "tree"
            shutil.copytree(tree, self.data) if tree.exists() else self.data.mkdir(mode=0o700)
            self.data.chmod(0o700)
            (self.data / "logs").mkdir(exist_ok=True)
            self._forget_the_past()

    def waiting_writes(self) -> int:
        """In the journal; -1 when nobody says."""
        with contextlib.suppress(CallFailed), Client(self.address, timeout_s=5.0) as client:
            return client.status().waiting_writes
        return -1

    def close(self) -> None:
        self._closing.set()
        self._watch.join()
        self._guard.stop()
        self.kill(gateway=True, registry=True)
        for process in (self._gateway, self._registry):
            if process is not None:
                process.wait()
        self._held.close()

    def _forget_the_past(self) -> None:
        """What is on the disk now is synced."""
        shutil.rmtree(self._shadow, ignore_errors=True)
        for name in ("objects", "aside", "tree"):
            (self._shadow / name).mkdir(parents=True)
        for file in self.data.rglob("*"):
            kept = self._shadow / "tree" / file.relative_to(self.data)
            if file.is_dir():
                kept.mkdir(parents=True, exist_ok=True)
            elif file.is_file():
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, kept)
                os.link(kept, self._shadow / "objects" / str(file.stat().st_ino))

    @contextlib.contextmanager
    def _paused_watch(self) -> Iterator[None]:
        with self._lock:
            self._paused = True
        try:
            yield
        finally:
            with self._lock:
                self._paused = False

    def _keep_running(self) -> None:
        while not self._closing.is_set():
            with self._lock:
                if not self._paused:
                    with contextlib.suppress(OSError):  # a disk without room for a configuration or a log
                        if self._registry is None or self._registry.poll() is not None:
                            self._registry = self._start_registry()
                        if (
                            self._gateway is None or self._gateway.poll() is not None
                        ) and self._registry_answers():
                            self._gateway = self._start_gateway()
            self._closing.wait(RESTART_PAUSE_S)

    def _start_registry(self) -> subprocess.Popen[bytes]:
        folder = self.data / "registry"
        folder.mkdir(mode=0o700, exist_ok=True)
        options = [
            "--port",
            "0",
            "--unixsocket",
            str(folder / "redis.sock"),
            "--dir",
            str(folder),
            "--save",
            "",
        ]
        options += ["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"]
        return self._spawn([redis_executable(), *options], "registry", {})

    def _registry_answers(self) -> bool:
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(self.registry_url) as client:
            return bool(client.ping())
        return False

    def _start_gateway(self) -> subprocess.Popen[bytes]:
        return self._spawn(
            [sys.executable, "-m", "memserve", "gateway", "--ports-held"],
            "gateway",
            child_environment(self.settings, self._scratch / "gateway.json"),
        )

    def _spawn(self, command: list[str], name: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        layer = {
            "LD_PRELOAD": str(self._library),
            "FORGETFUL_DISK_ROOT": str(self.data),
            "FORGETFUL_DISK_SHADOW": str(self._shadow),
        }
        with (self._logs / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                env={**os.environ, **environment, **layer},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def explain_mount(allowed: bool) -> None:
    if not allowed:
        report(
            "mounting a small tmpfs is not allowed here (it takes CAP_SYS_ADMIN): the points with a "
            "full disk are left out"
        )
