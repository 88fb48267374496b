from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from memserve.memory.texts import milvus_lite
from memserve.registry import client as registry_client
from memserve.worker.fleet.local_ray import ray_environment
from tests.api.http.fixtures import http
from tests.browser.fixtures import browser, chromium
from tests.gateway.fixtures import gateway, model_dir, start_gateway
from tests.kv.redis_server import RedisServer
from tests.memory.texts.lite_inside import REAL_CHILD, ChildInside
from tests.stack.fixtures import client, stack, traces

# Fixtures of other files, for all tests below this folder.
__all__ = [
    "browser",
    "chromium",
    "client",
    "gateway",
    "http",
    "model_dir",
    "stack",
    "start_gateway",
    "traces",
]

# Before any test imports Ray, which reads it then.
_RAY = tempfile.mkdtemp(prefix="memserve-tests-")
atexit.register(shutil.rmtree, _RAY, ignore_errors=True)
os.environ.update(ray_environment(Path(_RAY)))

# No test fails because the machine was busy.
settings.register_profile("memserve", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("memserve")
registry_client.TIMEOUT_S = 5.0


@pytest.fixture(autouse=True)
def milvus_lite_inside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of Milvus Lite that a test opens in its own process has no child."""
    if not getattr(request.module, REAL_CHILD, False):
        monkeypatch.setattr(milvus_lite, "_Child", ChildInside)


@pytest.fixture(scope="session")
def shared_redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(shared_redis_server: RedisServer) -> RedisServer:
    """Running and empty."""
    shared_redis_server.client.flushall()
    return shared_redis_server


@pytest.fixture
def own_redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One that the test may stop, pause and start again."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()
