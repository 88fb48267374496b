"""Which servers of a cache are accepted and which are refused at start."""

from __future__ import annotations

import socketserver
import threading

import pytest
from redis._parsers.helpers import parse_info

from loadtests.harness.kept_port import KeptPort
from memserve.errors import StartupError
from memserve.kv.transport.check import check_cache_servers, info_fault
from memserve.kv.transport.url import Deployment
from tests.kv.redis_server import RedisClusterServers, RedisServer, SentinelServers
from tests.kv.transport.refusals import refusal


def test_servers_that_will_work_are_accepted_at_start(
    redis_server: RedisServer, cluster: RedisClusterServers, sentinels: SentinelServers
) -> None:
    for url in (redis_server.url, cluster.url, sentinels.url):
        check_cache_servers(url)
    # One seed that answers is enough.
    nobody = KeptPort()
    check_cache_servers(f"{cluster.url},127.0.0.1:{nobody.number}")


def test_each_kind_of_url_wants_its_own_kind_of_server(
    redis_server: RedisServer, cluster: RedisClusterServers, sentinels: SentinelServers
) -> None:
    node, sentinel, master = cluster.nodes[0].port, sentinels.sentinels[0].port, sentinels.master().port
    assert "use redis+cluster://" in refusal(f"redis://127.0.0.1:{node}")
    assert "use redis+sentinel://" in refusal(f"redis://127.0.0.1:{sentinel}")
    assert "without cluster mode; use redis://" in refusal(f"redis+cluster://127.0.0.1:{master}")
    assert f"127.0.0.1:{master} is no Sentinel" in refusal(f"redis+sentinel://127.0.0.1:{master}/cache")
    assert "no master of 'other'" in refusal(f"redis+sentinel://127.0.0.1:{sentinel}/other")


def test_a_server_that_is_not_there_is_named(sentinels: SentinelServers) -> None:
    nobody = KeptPort()
    port = nobody.number
    for url in (
        f"redis://u:hunter2@127.0.0.1:{port}/1",
        f"redis+cluster://:hunter2@127.0.0.1:{port}",
        f"redis+sentinel://127.0.0.1:{port}/x",
    ):
        assert f"127.0.0.1:{port} cannot be reached" in refusal(url)
    assert "/nowhere/redis.sock cannot be reached" in refusal("unix:///nowhere/redis.sock?password=hunter2")


def test_a_replica_is_refused(own_redis_server: RedisServer) -> None:
    own_redis_server.client.replicaof("127.0.0.1", 1)
    assert "read-only replica" in refusal(own_redis_server.url)


def test_a_wrong_password_is_told_and_not_shown(own_redis_server: RedisServer) -> None:
    own_redis_server.client.config_set("requirepass", "right")
    assert "refuses the user or password" in refusal(own_redis_server.url)
    assert "refuses the user or password" in refusal(own_redis_server.url + "?password=hunter2")
    check_cache_servers(own_redis_server.url + "?password=right")


@pytest.mark.parametrize("missing", ["ping", "info", "eval", "time"])
def test_a_user_that_lacks_a_right_is_told_which_ones_it_needs(
    own_redis_server: RedisServer, missing: str
) -> None:
    rights = ["+info", "+time", "+@read", "+@write", "+@connection", "+@scripting"]
    set_user = ("ACL", "SETUSER", "cache", "on", ">pass", "~*", *rights)
    own_redis_server.client.execute_command(*set_user)
    url = own_redis_server.url.replace("unix://", "unix://cache:pass@")
    check_cache_servers(url)
    own_redis_server.client.execute_command(*set_user, f"-{missing}")
    with pytest.raises(StartupError) as refused:
        check_cache_servers(url)
    assert all(right in str(refused.value) for right in rights)


def test_a_server_that_evicts_the_ledger_is_refused(own_redis_server: RedisServer) -> None:
    client, url = own_redis_server.client, own_redis_server.url
    client.config_set("maxmemory-policy", "allkeys-lru")
    check_cache_servers(url)  # without a limit nothing is evicted
    client.config_set("maxmemory", 100 << 20)
    assert "volatile-lru" in refusal(url)
    client.config_set("maxmemory-policy", "volatile-lru")
    check_cache_servers(url)


def test_what_does_not_speak_redis_is_refused() -> None:
    class Web(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1000)
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Web) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        message = refusal(f"redis://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
        thread.join()
    assert "memserve needs Redis or Valkey" in message


VALKEY = """# Server
redis_version:7.2.4
server_name:valkey
valkey_version:8.0.1
redis_git_sha1:00000000
server_mode:{mode}
os:Linux x86_64

# Replication
role:master

# Cluster
cluster_enabled:{clustered}
"""


def test_valkey_is_accepted() -> None:
    assert info_fault(parse_info(VALKEY.format(mode="standalone", clustered=0)), Deployment.SINGLE) is None
    assert info_fault(parse_info(VALKEY.format(mode="standalone", clustered=0)), Deployment.SENTINEL) is None
    assert info_fault(parse_info(VALKEY.format(mode="cluster", clustered=1)), Deployment.CLUSTER) is None
    assert "redis+cluster" in str(
        info_fault(parse_info(VALKEY.format(mode="cluster", clustered=1)), Deployment.SINGLE)
    )


@pytest.mark.parametrize(
    ("info", "fault"),
    [
        ("redis_version:6.0.16\nredis_mode:standalone", "6.2 or later"),
        ("redis_version:5.0.7\nredis_mode:standalone", "6.2 or later"),
        ("uptime_in_seconds:3", "tells no redis_version"),
        ("redis_version:7.4.1\nredis_mode:sentinel", "redis+sentinel://"),
        ("redis_version:7.4.1\nredis_mode:standalone\nrole:slave\nslave_read_only:1", "read-only replica"),
        ("redis_version:6.2.0\nredis_mode:standalone\nrole:master", None),
        ("redis_version:8.2.1\nredis_mode:standalone\nrole:slave\nslave_read_only:0", None),
        ("redis_version:255.255.255\nredis_mode:standalone", None),
    ],
)
def test_what_info_tells_decides(info: str, fault: str | None) -> None:
    refused = info_fault(parse_info(info), Deployment.SINGLE)
    assert refused is None if fault is None else fault in str(refused)
