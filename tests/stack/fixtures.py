"""One whole memserve for all tests that are marked `stack`.

Real Redis, Ray, vLLM and Milvus Lite, the bundled model, two workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memserve.client import Client
from memserve.config import load_settings
from memserve.embedded import Stack
from tests.stack.otlp import OtlpReceiver

WORKERS = 2


@pytest.fixture(scope="session")
def traces() -> Iterator[OtlpReceiver]:
    """Gets the spans of the stack's processes."""
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, traces: OtlpReceiver) -> Iterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("stack")
    settings = load_settings(
        {},
        data_dir=folder,
        workers=WORKERS,
        port=0,
        http_port=0,
        metrics_port=0,
        routing_exploration=0.0,
        traces_endpoint=traces.endpoint,
        log_format="json",
    )
    running = Stack(settings, lambda line: print(line, flush=True))
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.address) as connected:
        eventually(
            lambda: sum(worker.ready for worker in connected.status().workers) == WORKERS, timeout_s=120
        )
        yield connected


def eventually(holds: Callable[[], bool], timeout_s: float) -> None:
    """Wait until it holds; fail when it does not in time."""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "did not come true in time"
        time.sleep(0.1)
