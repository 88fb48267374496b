"""After every test on a Redis the module store must be sound."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from memserve.memory.modules.registry.check import ModuleStoreCheck
from memserve.memory.modules.registry.store import ModuleStore
from memserve.registry.leases import Registry, close_client, registry_client
from tests.kv.redis_server import RedisServer

MARKER = "damages_state: the test leaves contradictions in Redis on purpose"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)


@pytest_asyncio.fixture(autouse=True)
async def sound_registry(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Checks the module store when the test is over, unless it is marked `damages_state`."""
    names = {"redis_server", "own_redis_server"} & set(request.fixturenames)
    if not names or request.node.get_closest_marker("damages_state"):
        yield
        return
    server: RedisServer = request.getfixturevalue(names.pop())
    yield
    client = registry_client(server.url)
    try:
        assert await ModuleStoreCheck(client, pause_s=0.05).contradictions() == []
    finally:
        await close_client(client)


@pytest_asyncio.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[ModuleStore]:
    store = ModuleStore(redis_server.url)
    yield store
    await store.close()


@pytest_asyncio.fixture
async def registry(redis_server: RedisServer) -> AsyncIterator[Registry]:
    registry = Registry(redis_server.url)
    yield registry
    await registry.close()
