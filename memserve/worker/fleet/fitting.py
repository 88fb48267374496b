"""Whether the workers fit into this machine's memory, beside what runs there already."""

from __future__ import annotations

import shutil

import psutil

from memserve.config import GIB, MIB, Settings
from memserve.errors import StartupError

WORKER_BYTES = 2 * GIB
SHARED_MEMORY = "/dev/shm"
# Of the shared memory that is free. The other half is for the workers that replace these.
HOST_TIER_SHARE = 0.5
MIN_HOST_TIER_BYTES = 16 * MIB


def fit_host_tier(settings: Settings) -> Settings:
    """The settings with a smaller KV host tier, where /dev/shm is as small as in a container.

    A size that was chosen stays. On the CPU the host tier is only the way to Redis and back, so that room for
    a few chunks is enough.
    """
    room = int(shutil.disk_usage(SHARED_MEMORY).free * HOST_TIER_SHARE) // settings.most_workers // MIB * MIB
    if (
        "kv_host_bytes" in settings.model_fields_set
        or not MIN_HOST_TIER_BYTES <= room < settings.kv_host_bytes
    ):
        return settings
    return settings.model_copy(update={"kv_host_bytes": room})


def check_memory(settings: Settings) -> None:
    """Raises StartupError when the workers would not fit."""
    worker_bytes = WORKER_BYTES + settings.kv_device_bytes + settings.kv_host_bytes
    needed, free = worker_bytes * settings.most_workers, psutil.virtual_memory().available
    if needed > free:
        fitting = free // worker_bytes
        advice = f"use --workers {fitting}" if fitting else "stop something else"
        raise StartupError(
            f"{settings.most_workers} workers need about {needed / GIB:.1f} GiB and {free / GIB:.1f} GiB "
            f"are free; {advice}"
        )
    shared = shutil.disk_usage(SHARED_MEMORY).free
    if settings.kv_host_bytes * settings.most_workers > shared:
        raise StartupError(
            f"/dev/shm has {shared // MIB} MiB free and the KV host tier needs "
            f"{settings.kv_host_bytes * settings.most_workers // MIB}; "
            "enlarge it or lower MEMSERVE_KV_HOST_BYTES"
        )
