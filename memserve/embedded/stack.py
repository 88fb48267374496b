"""All of memserve on one machine: two private redis-servers, the workers on a local Ray, and a gateway.

They are started, kept running, and stopped.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from pydantic import SecretStr

from memserve import credentials
from memserve.client import CallFailed, Client, wait_until_ready
from memserve.config import MIB, Settings, at
from memserve.demo import MODEL_DIR, demo_modules
from memserve.disk import free_share
from memserve.embedded.children import kill_marked, last_line, spawn_memserve
from memserve.embedded.disk_guard import RegistryGuard
from memserve.embedded.part import Part, Recipe, Report
from memserve.embedded.readiness import serves_memories
from memserve.embedded.redis_server import CACHE_SAVE_TIMEOUT_S, RedisServer, cache_server, registry_server
from memserve.embedded.workers import Fleet
from memserve.errors import StartupError
from memserve.gateway.access.callers import load_access
from memserve.gateway.access.keys import keys_file
from memserve.kv.transport.url import without_secrets
from memserve.memory.texts.embedder_files import configured_embedder
from memserve.model.architectures import TRIED
from memserve.model.checks import check_model, with_models
from memserve.model.fetch.progress import Telling
from memserve.policy.modules.references import LIVE
from memserve.private_files import lock_data_dir, new_socket_path, open_data_dir
from memserve.processes.ports import held_ports
from memserve.tls.live import internal_tls, public_tls
from memserve.tls.pem import GATEWAY_NAME, WORKER_NAME
from memserve.worker.fleet.fitting import check_memory, fit_host_tier

# The KV's share of the cache's memory. Redis needs the rest for names, the ledger and buffers. Redis's own
# eviction is the backstop.
QUOTA_SHARE = 0.9
# From the moment that all workers are ready until the gateway sends requests to each of them.
FOUND_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
# As a share of the room that is held back on a disk. With less room, a full disk may be why a process has
# ended.
FULL_SHARE = 0.05
REGISTRY, CACHE, WORKERS, GATEWAY = "the registry", "the KV cache", "the fleet of workers", "the gateway"


@dataclass
class Stack:
    """A running memserve."""

    settings: Settings
    report: Report = lambda line: None
    """Called with a line for a person at every step, also from the threads that keep the parts running."""
    started: bool = False
    _parts: dict[str, Part] = field(default_factory=dict)
    _ports: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _lock: IO[str] | None = None
    _guard: RegistryGuard | None = None
    _own_socket: str = ""

    @property
    def address(self) -> str:
        return at(self.settings.host, self.settings.port)

    @property
    def own_address(self) -> str:
        """Where this process calls the gateway. Where the port has TLS: a socket that only this user has."""
        return f"unix:{self._own_socket}" if self._own_socket else self.address

    def client_variables(self) -> dict[str, str]:
        """What a client's environment needs for TLS, as far as the files beside the gateway's say it."""
        certificate = self.settings.tls_cert_file
        if certificate is None:
            return {}
        authority, client = certificate.parent / "ca.crt", certificate.parent.parent / "client"
        variables = {"MEMSERVE_TLS_CA_FILE": str(authority if authority.exists() else "<authority>")}
        if self.settings.tls_client_ca_file is not None:
            own = client.exists()
            variables["MEMSERVE_TLS_CLIENT_CERT_FILE"] = str(client / "tls.crt" if own else "<certificate>")
            variables["MEMSERVE_TLS_CLIENT_KEY_FILE"] = str(client / "tls.key" if own else "<key>")
        return variables

    @property
    def api_key(self) -> str:
        """The operator's key, of the first tenant that has a key. Empty where no key is needed.

        Raises StartupError.
        """
        if not keys_file(self.settings).exists():
            return ""
        return credentials.operator_credential(credentials.salt_key(self.settings))

    @property
    def logs(self) -> Path:
        return self.settings.data / "logs"

    @property
    def registry_process(self) -> subprocess.Popen[bytes] | None:
        return self._process(REGISTRY)

    @property
    def cache_process(self) -> subprocess.Popen[bytes] | None:
        return self._process(CACHE)

    @property
    def workers_process(self) -> subprocess.Popen[bytes] | None:
        return self._process(WORKERS)

    @property
    def gateway_process(self) -> subprocess.Popen[bytes] | None:
        return self._process(GATEWAY)

    def start(self) -> None:
        """Start everything, and wait until the gateway takes requests. Raises StartupError.

        `stop` has to be called in any case.
        """
        settings = self.settings
        open_data_dir(settings.data)
        for folder in (self.logs, settings.modules_root / "modules"):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_data_dir(settings.data)
        self._sweep("left by a memserve that was killed")
        shutil.rmtree(settings.data / "run", ignore_errors=True)
        settings = with_models(settings, Telling(self._say))
        if (architecture := check_model(settings).architecture) not in TRIED:
            self._say(f"note       memserve's tests have no {architecture}; it is served as vLLM computes it")
        configured_embedder(settings)
        load_access(settings)
        for name in (GATEWAY_NAME, WORKER_NAME):
            internal_tls(settings, name)
        if public_tls(settings) is not None:
            (settings.data / "run").mkdir(mode=0o700)
            self._own_socket = str(new_socket_path(settings.data / "run", "gateway-"))
        if (fitted := fit_host_tier(settings)).kv_host_bytes < settings.kv_host_bytes:
            self._say(
                f"note       /dev/shm is small: the KV host tier has {fitted.kv_host_bytes // MIB} MiB a "
                "worker (kv_host_bytes)"
            )
            settings = fitted
        check_memory(settings)
        settings = self._ports.enter_context(held_ports(settings))
        self.settings = settings.model_copy(update={"data_dir": settings.data})

        if settings.redis:
            self._say(
                f"Redis      {without_secrets(settings.redis)}, the cache "
                f"{without_secrets(settings.cache_redis)}"
            )
        else:
            self._start_redis_servers()
        # The gateway listens while the workers start. It says that it has no workers yet.
        gateway, workers = self._begin(self._gateway()), self._begin(self._workers())
        gateway.wait_ready()
        workers.wait_ready()
        self._wait_until_gateway_has_all_workers()
        scheme = "http" if settings.tls_cert_file is None else "https"
        metrics = (
            f", metrics on {scheme}://{at(settings.metrics_host, settings.metrics_port)}/metrics"
            if settings.metrics
            else ""
        )
        http = f", {scheme}://{at(settings.host, settings.http_port)}/v1" if settings.http else ""
        self._say(f"gateway    {self.address}{http}{metrics}")
        if Path(settings.model) == MODEL_DIR:
            self._publish_demo_modules()
        self.started = True

    def stop(self) -> None:
        """Stop everything that `start` started, gently first. Safe to call at any time, and twice."""
        if self._guard is not None:
            self._guard.stop()
        for name in (GATEWAY, WORKERS, CACHE, REGISTRY):
            part = self._parts.pop(name, None)
            if part is not None:
                part.end()
        self._ports.close()
        if self._lock is not None:
            self._sweep("did not end by itself")
            self._lock.close()
            self._lock = None

    def restart_workers(self) -> None:
        """Replace all worker processes by new ones. The KV that they have computed is in Redis.

        Raises StartupError.
        """
        process = self.workers_process
        assert process is not None
        fleet = Fleet(self.settings, self._say)
        before = fleet.live()
        process.send_signal(signal.SIGHUP)
        self._wait_until_gateway_has_all_workers(fleet.wait_for_new(before, process))

    def _start_redis_servers(self) -> None:
        registry = registry_server(self.settings.data)
        self.settings = self.settings.model_copy(update={"redis_url": SecretStr(registry.url)})
        self._begin(self._redis(REGISTRY, registry)).wait_ready()
        room = partial(free_share, registry.folder, self.settings.disk_reserve_bytes)
        self._guard = RegistryGuard(registry.url, room, self._say)
        self._guard.start()
        if self.settings.cache_redis_url.get_secret_value():
            return
        cache = cache_server(self.settings.data, self.settings.cache_max_bytes)
        quota = self.settings.kv_quota_bytes or int(self.settings.cache_max_bytes * QUOTA_SHARE)
        self.settings = self.settings.model_copy(
            update={"cache_redis_url": SecretStr(cache.url), "kv_quota_bytes": quota}
        )
        self._begin(self._redis(CACHE, cache)).wait_ready()

    def _redis(self, name: str, server: RedisServer) -> Recipe:
        return Recipe(
            name=name,
            spawn=server.spawn,
            is_ready=lambda process: server.answers(process, self._say),
            why_ended=server.why_ended,
            before_end=server.save if name == CACHE else lambda: None,
            grace_s=CACHE_SAVE_TIMEOUT_S if name == CACHE else STOP_TIMEOUT_S,
            hint=self._disk_hint,
        )

    def _disk_hint(self) -> str:
        return (
            "the disk is full"
            if free_share(self.settings.data, self.settings.disk_reserve_bytes) < FULL_SHARE
            else ""
        )

    def _workers(self) -> Recipe:
        fleet = Fleet(self.settings, self._say)
        return Recipe(
            name=WORKERS,
            spawn=fleet.spawn,
            is_ready=fleet.is_ready,
            why_ended=fleet.why_ended,
            grace_s=self.settings.shutdown_grace_s + 3 * STOP_TIMEOUT_S,
            hint=self._disk_hint,
        )

    def _gateway(self) -> Recipe:
        log = self.logs / "gateway.log"
        options = ["--ports-held", *(["--own-socket", self._own_socket] if self._own_socket else [])]
        return Recipe(
            name=GATEWAY,
            spawn=lambda: spawn_memserve("gateway", self.settings, log, *options),
            is_ready=lambda process: serves_memories(self.own_address),
            why_ended=lambda: f"{last_line(log)} (logs: {self.logs})",
            grace_s=self.settings.shutdown_grace_s + STOP_TIMEOUT_S,
            hint=self._disk_hint,
        )

    def _wait_until_gateway_has_all_workers(self, only: frozenset[str] = frozenset()) -> None:
        """Raises StartupError. only: the ids of all workers that the gateway may have. Empty: any workers."""
        if not wait_until_ready(
            self.own_address, FOUND_TIMEOUT_S, self.settings.workers, self.api_key, only=only
        ):
            raise StartupError(
                f"the gateway has not found all workers after {FOUND_TIMEOUT_S:.0f} s; see {self.logs}"
            )

    def _begin(self, recipe: Recipe) -> Part:
        part = self._parts[recipe.name] = Part(recipe, self._say)
        part.begin()
        return part

    def _process(self, name: str) -> subprocess.Popen[bytes] | None:
        part = self._parts.get(name)
        return None if part is None else part.process

    def _publish_demo_modules(self) -> None:
        with Client(self.own_address, self.api_key) as client:
            for folder in demo_modules():
                version = client.modules.publish(folder.name, folder)
                if not any(alias.name == LIVE for alias in client.modules.get(folder.name).aliases):
                    self._say(f"module     asking the probes of {version.reference}")
                    try:
                        client.modules.promote(
                            folder.name, version.version, reason="comes with the demo model"
                        )
                    except CallFailed as refused:
                        self._say(f"module     {version.reference} is not promoted: {refused.detail}")
                self._say(f"module     {version.reference} ({version.kind}, {version.digest[:12]})")

    def _sweep(self, why: str) -> None:
        for pid in kill_marked(self.settings.data):
            self._say(f"killing process {pid}, {why}")

    def _say(self, line: str) -> None:
        # A closed terminal, or a full disk under the terminal's log, is no reason to end.
        with contextlib.suppress(Exception):
            self.report(line)
