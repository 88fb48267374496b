"""The servers of a cache, as the ledger's tests use them: one, running and empty."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from memserve.kv.transport.limits import CacheLimits
from memserve.kv.transport.servers import CacheServers
from tests.kv.redis_server import RedisServer


def servers_of(server: RedisServer, *, pause_s: float = 1.0) -> CacheServers:
    return CacheServers(
        server.url, CacheLimits(io_s=2, lookup_s=2, connect_s=2, failures_to_open=2, pause_s=pause_s)
    )


@pytest.fixture
def servers(redis_server: RedisServer) -> Iterator[CacheServers]:
    servers = servers_of(redis_server)
    yield servers
    servers.close()
