"""A real Redis Cluster, and Redis behind real Sentinels, each started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kv.redis_server import RedisClusterServers, SentinelServers


@pytest.fixture(scope="session")
def started_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisClusterServers]:
    servers = RedisClusterServers(tmp_path_factory.mktemp("cluster"))
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()


@pytest.fixture
def cluster(started_cluster: RedisClusterServers) -> RedisClusterServers:
    """Running and empty."""
    for node in started_cluster.nodes:
        node.client.flushall()
    return started_cluster


@pytest.fixture(scope="session")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelServers]:
    servers = SentinelServers(tmp_path_factory.mktemp("sentinels"))
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()
