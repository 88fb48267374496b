"""A worker as a Ray Serve replica: the process around `worker.Worker`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from ray import serve
from ray.util import get_node_ip_address

from memserve.config import SETTINGS_FILE, Settings, load_settings
from memserve.errors import StartupError
from memserve.logs import log_to_stderr
from memserve.private_files import private_umask
from memserve.worker.fleet.local_ray import serve_log_kept, serve_on_loopback
from memserve.worker.fleet.node_settings import DEPLOYMENT, node_settings
from memserve.worker.fleet.scaling import DEMAND, autoscaling
from memserve.worker.probes import probe_port

CLUSTER_STARTS = 20
"""Starts in a row that may fail on a cluster before Serve gives up."""


def engine_environment(settings: Settings) -> dict[str, str]:
    """The environment that the engine's processes need. It must be set before vLLM is imported."""
    return {
        "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(settings.omp_threads),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # An engine is on one machine. Without it torch's gloo listens on the address of the machine's name.
        "GLOO_SOCKET_IFNAME": "lo",
        # The other runner, which vLLM may choose on CUDA, takes no logits processors of this interface.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TOKENIZERS_PARALLELISM": "false",
    }


class WorkerReplica:
    """One worker in a process that Ray Serve starts, and starts again when it ends."""

    # Ray Serve awaits a constructor that is a coroutine: that is its contract for a replica's start.
    async def __init__(self, settings_file: str) -> None:  # type: ignore[misc]
        """settings_file: as `MEMSERVE_SETTINGS_FILE` names one. Secrets stay out of Ray's object store.
        Empty: the settings are those of the node that this process runs on.
        """
        private_umask()
        serve_on_loopback()
        self._opened = contextlib.ExitStack()
        settings = load_settings({SETTINGS_FILE: settings_file}) if settings_file else node_settings()
        log_to_stderr(settings.log_format)
        # Ray may set PYTHONHASHSEED, which would change every block key.
        os.environ.pop("PYTHONHASHSEED", None)
        os.environ.update(engine_environment(settings))
        # Module paths are relative to this folder. Block keys contain the paths, and are to be equal on every
        # machine.
        os.chdir(settings.modules_root)
        with serve_log_kept():
            # After the environment is set: vLLM, torch and numpy read it when they are imported.
            from memserve.worker.worker import Worker

            stand_back(settings.worker_nice)
            self._worker = Worker(settings, get_node_ip_address())
            await self._worker.start()
        if not settings_file:
            self._answer_probes(settings)

    def _answer_probes(self, settings: Settings) -> None:
        """Where no `memserve ray-node` and no other worker of this node does."""
        with contextlib.suppress(StartupError):
            self._opened.enter_context(probe_port(settings)).say(live=True, ready=True)

    async def check_health(self) -> None:
        """Ray Serve calls this. Raises when the engine has died."""
        await self._worker.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray Serve calls this where the number of workers may change, with what `fleet/scaling.py` decides
        by."""
        return {DEMAND: self._worker.demand()}

    # Ray Serve awaits a destructor that is a coroutine, too: that is its contract for a replica's end.
    async def __del__(self) -> None:
        # A start that failed early has no worker yet.
        if hasattr(self, "_worker"):
            self._opened.close()
            await self._worker.close()


def stand_back(nice: int) -> None:
    """Let the gateway and Redis, which all tenants share, go first on the processor.

    On few cores an engine in full work makes their calls late. With Linux's autogroups a process's nice
    counts only within its session. The session, which Ray and the workers share, has a nice of its own.
    """
    os.nice(nice)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(nice), encoding="ascii")


def worker_application(settings: Settings, settings_file: Path | None) -> serve.Application:
    """The Ray Serve application of `settings.workers` workers, or as many as are wanted up to `max_workers`.

    settings_file: where they read their settings. None: each those of its own node, of which there may be
    several: a node then has one worker on the CPU, or one for each GPU.
    """
    scales = settings.max_workers > settings.workers
    options: dict[str, Any] = {"num_cpus": 1}
    if settings.worker_gpus:
        options["num_gpus"] = settings.worker_gpus
    deployment = serve.deployment(
        WorkerReplica,
        name=DEPLOYMENT,
        num_replicas=None if scales else settings.workers,
        autoscaling_config=autoscaling(settings) if scales else None,
        max_replicas_per_node=1 if settings_file is None and not settings.worker_gpus else None,
        max_ongoing_requests=1000,
        # On a cluster a start may fail on one node and succeed on another.
        max_constructor_retry_count=1 if settings_file else CLUSTER_STARTS,
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=settings.shutdown_grace_s + 10,
        ray_actor_options=options,
    )
    return deployment.bind(str(settings_file or ""))
