"""What is taken of a machine's memory, and what of a container's."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from memserve.config import MIB, Settings
from memserve.errors import StartupError
from memserve.worker.fleet import fitting
from memserve.worker.fleet.fitting import check_memory, fit_host_tier


@pytest.mark.parametrize(
    ("free_mib", "workers", "fitted_mib"),
    [(64, 2, 16), (64, 1, 32), (4096, 2, 256), (1000, 2, 250), (20, 1, 256)],
    ids=["a container", "one worker", "a machine", "nearly", "too small for any"],
)
def test_the_host_tier_fits_the_shared_memory(
    monkeypatch: pytest.MonkeyPatch, free_mib: int, workers: int, fitted_mib: int
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free_mib * MIB))
    assert fit_host_tier(Settings(workers=workers)).kv_host_bytes == fitted_mib * MIB


def test_a_size_that_was_chosen_stays_and_is_refused_where_it_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=64 * MIB))
    monkeypatch.setattr(fitting, "WORKER_BYTES", 0)
    chosen = Settings(workers=1, kv_host_bytes=128 * MIB, kv_device_bytes=64 * MIB)
    assert fit_host_tier(chosen) == chosen
    with pytest.raises(
        StartupError,
        match="/dev/shm has 64 MiB free and the KV host tier needs 128; enlarge it or lower "
        "MEMSERVE_KV_HOST_BYTES",
    ):
        check_memory(chosen)
