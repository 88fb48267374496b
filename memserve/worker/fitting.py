"""Do so many workers fit into this machine's memory, beside what runs already?"""

from __future__ import annotations

import shutil

import psutil

from memserve.config import GIB, MIB, Settings
from memserve.errors import StartupError

WORKER_BYTES = 2 * GIB


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
