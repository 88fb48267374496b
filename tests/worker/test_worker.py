"""A worker's start, as far as it needs no engine."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from memserve.config import Settings
from memserve.errors import StartupError


async def test_a_worker_whose_start_has_failed_can_be_closed(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray, vLLM and torch, which it imports
        from memserve.worker.worker import Worker

    registered = set(REGISTRY._collector_to_names)
    worker = Worker(Settings(data_dir=tmp_path, model=str(tmp_path / "nowhere")))
    try:
        with pytest.raises(StartupError, match="nowhere"):
            await worker.start()
        await worker.close()
    finally:
        for collector in set(REGISTRY._collector_to_names) - registered:
            REGISTRY.unregister(collector)
