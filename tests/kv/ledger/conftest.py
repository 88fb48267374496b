"""After every test on a Redis the ledger must be sound."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from memserve.kv.ledger.check import LedgerCheck
from tests.kv.conftest import servers_of
from tests.kv.redis_server import RedisServer

MARKER = "damages_state: the test leaves contradictions in Redis on purpose"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)


@pytest.fixture(autouse=True)
def sound_ledger(request: pytest.FixtureRequest) -> Iterator[None]:
    """Checks the ledger when the test is over, unless it is marked `damages_state`."""
    names = {"redis_server", "own_redis_server"} & set(request.fixturenames)
    if not names or request.node.get_closest_marker("damages_state"):
        yield
        return
    server: RedisServer = request.getfixturevalue(names.pop())
    yield
    servers = servers_of(server)
    contradictions = LedgerCheck(servers, pause_s=0.05).contradictions()
    servers.close()
    assert contradictions == []


@pytest.fixture
def client(redis_server: RedisServer) -> redis.Redis:
    return redis_server.client
