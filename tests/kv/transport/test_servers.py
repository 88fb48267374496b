"""A cache on a Redis Cluster and behind Sentinels, with real servers; and what is refused at start."""

from __future__ import annotations

import asyncio
import socketserver
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from redis._parsers.helpers import parse_info

from loadtests.harness.kept_port import KeptPort
from memserve.errors import StartupError
from memserve.kv.keys import redis_key
from memserve.kv.lookup import PrefixLookup
from memserve.kv.outcomes import Put
from memserve.kv.store import RedisChunkStore
from memserve.kv.transport.breaker import Circuit
from memserve.kv.transport.check import check_cache_servers, info_fault
from memserve.kv.transport.limits import CacheLimits
from memserve.kv.transport.url import Deployment, parse_cache_url, without_secrets
from memserve.kv.values.envelope import Refusal
from tests.kv.redis_server import RedisClusterServers, RedisServer, SentinelServers, wait_until

NAMESPACE = "ab" * 32
KEYS = [number.to_bytes(36, "big") for number in range(60)]
NAMES = [redis_key(NAMESPACE, key) for key in KEYS]
PAYLOADS = [bytes([number]) * 3000 for number in range(60)]


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelServers]:
    servers = SentinelServers(tmp_path_factory.mktemp("sentinels"))
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()


def store_on(url: str, lookup_timeout_s: float = 0.2) -> RedisChunkStore:
    return RedisChunkStore(
        url,
        NAMESPACE,
        limits=CacheLimits(io_s=0.5, lookup_s=lookup_timeout_s, connect_s=2.0, pause_s=0.2),
    )


@pytest.fixture
def store(cluster: RedisClusterServers) -> Iterator[RedisChunkStore]:
    """On the cluster, with every key stored."""
    store = store_on(cluster.url)
    assert store.store(KEYS, PAYLOADS, budget_s=10) == [Put.STORED] * 60
    store.take_stats()
    yield store
    store.close()


def load(store: RedisChunkStore) -> list[bool]:
    """Load every key; what came is what was stored."""
    destinations = [bytearray(3000) for _ in KEYS]
    loaded = store.load(KEYS, [memoryview(each) for each in destinations], budget_s=10)
    assert all(
        got == payload for got, payload, good in zip(destinations, PAYLOADS, loaded, strict=True) if good
    )
    return loaded


def held_by(cluster: RedisClusterServers, node: RedisServer) -> list[bool]:
    return [holder is node for holder in cluster.nodes_of(NAMES)]


def cluster_calls(cluster: RedisClusterServers) -> int:
    return sum(
        node.client.info("commandstats").get("cmdstat_cluster", {"calls": 0})["calls"]
        for node in cluster.nodes
    )


def test_a_chain_lies_on_all_masters_and_comes_back_whole(
    store: RedisChunkStore, cluster: RedisClusterServers
) -> None:
    assert all(node.client.dbsize() > 10 for node in cluster.nodes)
    assert store.exists_many(KEYS) == [True] * 60
    assert load(store) == [True] * 60
    assert store.store(KEYS, PAYLOADS, budget_s=10) == [Put.ALREADY_PRESENT] * 60
    stats = store.take_stats()
    assert (stats.hits, stats.misses, stats.already_present, stats.unanswered, stats.skipped) == (
        60,
        0,
        60,
        0,
        0,
    )
    assert store.circuit is Circuit.CLOSED


def test_a_look_up_is_one_batch_for_every_master(
    store: RedisChunkStore, cluster: RedisClusterServers
) -> None:
    assert store.exists_many(KEYS) == [True] * 60  # it is connected now
    clients = [node.client for node in cluster.nodes]
    before = [client.info("stats")["total_reads_processed"] for client in clients]
    assert store.exists_many(KEYS) == [True] * 60
    reads = [
        client.info("stats")["total_reads_processed"] - count
        for client, count in zip(clients, before, strict=True)
    ]
    assert all(1 < count <= 4 for count in reads), (
        reads
    )  # the INFO itself is one of them; every master holds more than 10 keys


def test_what_does_not_verify_is_deleted_on_each_master(
    store: RedisChunkStore, cluster: RedisClusterServers
) -> None:
    bad = [held_by(cluster, node).index(True) for node in cluster.nodes]
    for number in bad:
        cluster.nodes_of(NAMES)[number].client.setrange(NAMES[number], 500, b"\xff\x00\xff")
    assert load(store) == [number not in bad for number in range(60)]
    assert store.take_stats().refused == {Refusal.BAD_CHECKSUM: 3}
    assert store.exists_many(KEYS) == [number not in bad for number in range(60)]


def test_a_slot_that_moves_costs_its_own_chunks_until_the_topology_is_learned(
    store: RedisChunkStore, cluster: RedisClusterServers
) -> None:
    moving = held_by(cluster, cluster.nodes[0]).index(True)
    others = [number != moving for number in range(60)]
    cluster.nodes[0].client.delete(NAMES[moving])
    cluster.begin_move(NAMES[moving], to=cluster.nodes[1])
    calls, started_s = cluster_calls(cluster), time.monotonic()
    for _ in range(100):
        assert load(store) == others  # ASK
    # A hundred errors are not a hundred questions about the topology: one, and another after every pause.
    assert cluster_calls(cluster) - calls <= (time.monotonic() - started_s) / 0.2 + 2
    assert store.exists_many(KEYS) == others
    outcomes = store.store(KEYS, PAYLOADS, budget_s=10)
    assert outcomes == [Put.ALREADY_PRESENT if other else Put.FAILED for other in others]
    cluster.end_move(NAMES[moving], to=cluster.nodes[1])
    time.sleep(0.5)  # whatever was learned during the move is old now
    first = store.store([KEYS[moving]], [PAYLOADS[moving]], budget_s=10)
    assert first in ([Put.FAILED], [Put.STORED])  # MOVED, or the topology learned already
    wait_until(lambda: store.store([KEYS[moving]], [PAYLOADS[moving]], budget_s=10) != [Put.FAILED])
    assert cluster.nodes[1].client.exists(NAMES[moving])
    assert load(store) == [True] * 60
    assert store.circuit is Circuit.CLOSED


def test_a_master_that_hangs_costs_one_timeout_and_only_its_own_chunks(
    store: RedisChunkStore, cluster: RedisClusterServers
) -> None:
    assert load(store) == store.exists_many(KEYS) == [True] * 60
    hung = cluster.nodes[2]
    others = [not held for held in held_by(cluster, hung)]
    hung.pause()
    try:
        started_s = time.monotonic()
        assert store.exists_many(KEYS) == others
        # Asked key by key, twenty of them would take twenty timeouts.
        assert time.monotonic() - started_s < 10 * 0.2
        assert load(store) == others
        wait_until(lambda: store.exists_many(KEYS) == others and store.circuit is Circuit.OPEN)
        assert load(store) == others
        assert store.take_stats().circuit_opened == 1
    finally:
        hung.resume()
    wait_until(lambda: store.circuit is Circuit.CLOSED)
    assert load(store) == [True] * 60


@pytest.mark.asyncio
async def test_the_gateway_counts_what_the_masters_hold_and_a_hung_one_ends_the_count(
    store: RedisChunkStore, cluster: RedisClusterServers
) -> None:
    lookup = PrefixLookup(cluster.url, budget_s=0.5, pause_s=0.1)
    assert await lookup.present(NAMESPACE, KEYS) == 60
    assert await lookup.present("cd" * 32, KEYS) == 0
    hung = cluster.nodes[0]
    others = [not held for held in held_by(cluster, hung)]
    hung.pause()
    try:
        for _ in range(4):
            assert await lookup.present(NAMESPACE, KEYS) == others.index(False)
        held = [key for key, other in zip(KEYS, others, strict=True) if not other]
        assert await lookup.present(NAMESPACE, held) is None
    finally:
        hung.resume()
    await asyncio.sleep(0.15)
    assert await lookup.present(NAMESPACE, KEYS) == 60
    await lookup.close()


@pytest.mark.asyncio
async def test_a_cluster_that_is_not_there_is_a_miss_and_an_open_circuit() -> None:
    nobody = KeptPort()
    url = f"redis+cluster://127.0.0.1:{nobody.number}"
    store, lookup = store_on(url), PrefixLookup(url)
    assert store.circuit is Circuit.CLOSED  # nothing is tried before the first use
    assert store.exists_many(KEYS) == [False] * 60
    wait_until(lambda: store.circuit is Circuit.OPEN)
    assert load(store) == [False] * 60
    assert store.store(KEYS[:1], PAYLOADS[:1], budget_s=1) == [Put.FAILED]
    assert store.take_stats().skipped == 3
    assert await lookup.present(NAMESPACE, KEYS) is None
    store.close()
    await lookup.close()


@pytest.mark.asyncio
async def test_after_every_change_of_the_master_stores_and_loads_come_back(
    sentinels: SentinelServers,
) -> None:
    store, lookup = store_on(sentinels.url), PrefixLookup(sentinels.url, budget_s=0.5, pause_s=0.2)
    assert store.store(KEYS, PAYLOADS, budget_s=10) == [Put.STORED] * 60
    assert await lookup.present(NAMESPACE, KEYS) == 60
    first = sentinels.master()
    assert first.client.wait(1, 5000) == 1

    # By hand: the old master lives on. Once it is a replica, which Sentinel makes it after up to 10 s, it
    # answers READONLY.
    sentinels.sentinels[0].client.execute_command("SENTINEL FAILOVER", "cache")
    wait_until(lambda: sentinels.master() is not first)
    second = sentinels.master()
    first.client.replicaof("127.0.0.1", second.port)
    wait_until(lambda: load(store) == [True] * 60)
    second.client.delete(*NAMES)
    wait_until(lambda: Put.STORED in store.store(KEYS, PAYLOADS, budget_s=10))
    assert len(second.client.keys("memserve:kv:*")) == 60
    assert load(store) == [True] * 60
    wait_until(
        lambda: (
            first.client.info("replication")["master_link_status"] == "up"
            and second.client.wait(1, 5000) == 1
        )
    )

    second.stop()
    assert load(store) == [False] * 60
    wait_until(lambda: load(store) == [True] * 60)
    assert sentinels.master() is first
    assert store.exists_many(KEYS) == [True] * 60
    assert store.store(KEYS, PAYLOADS, budget_s=10) == [Put.ALREADY_PRESENT] * 60
    assert store.circuit is Circuit.CLOSED
    deadline_s = time.monotonic() + 10
    while await lookup.present(NAMESPACE, KEYS) != 60:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.05)
    store.close()
    await lookup.close()


def refusal(url: str, **arguments: Any) -> str:
    with pytest.raises(StartupError) as refused:
        check_cache_servers(url, timeout_s=2.0, **arguments)
    message = str(refused.value)
    assert "hunter2" not in message and "\n" not in message
    return message


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
    found = info_fault(parse_info(info), Deployment.SINGLE)
    assert found is None if fault is None else fault in str(found)


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("", "redis+sentinel://"),
        ("localhost:6379", "begins with one of"),
        ("http://localhost", "begins with one of"),
        ("redis+replica://:hunter2@localhost", "begins with one of"),
        ("redis://a:1,b:2", "use redis+cluster:// or redis+sentinel://"),
        ("redis://host:port", "a port is no number"),
        ("redis://host:0", "a port is no number"),
        ("redis://user:hunter2/x@host:1", "percent-encode"),
        ("redis://user:hunter2#x@host:1", "percent-encode"),
        ("redis://user:x@hunter2@[::1", "percent-encode"),
        ("redis://host/cache", "database index"),
        ("redis://host?db=one", "'db'"),
        ("redis://host?socket_timeout=60", "unknown parameter 'socket_timeout'"),
        ("redis://host?ssl_ca_certs=/ca.pem", "unknown parameter 'ssl_ca_certs'"),
        ("redis://host?pasword=hunter2", "unknown parameter 'pasword'"),
        ("redis+cluster://host?sentinel_password=hunter2", "unknown parameter 'sentinel_password'"),
        ("redis+cluster://host:1/0", "no database index"),
        ("redis+cluster://host:1?db=0", "no database index"),
        ("redis+cluster://", "host is missing"),
        ("redis+cluster://a:1,", "host is missing"),
        ("redis+sentinel://a:1,b:2", "name of the Sentinels' service"),
        ("redis+sentinel://a:1/cache/one", "database index"),
        ("unix://", "path of a socket"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_with_what_to_do(url: str, part: str) -> None:
    assert part in refusal(url)
    with pytest.raises(ValueError, match=r".+"):
        RedisChunkStore(url, NAMESPACE)


def test_a_url_says_servers_credentials_and_database() -> None:
    sentinel = parse_cache_url(
        "rediss+sentinel://me:p%2Fw@a,b:2,[::1]:3/cache/5?sentinel_password=s&ssl_ca_certs=/ca.pem"
    )
    assert (sentinel.addresses, sentinel.service) == ((("a", 26379), ("b", 2), ("::1", 3)), "cache")
    assert sentinel.options == {
        "ssl": True,
        "username": "me",
        "password": "p/w",
        "db": 5,
        "ssl_ca_certs": "/ca.pem",
    }
    assert sentinel.sentinel_options == {"ssl": True, "password": "s", "ssl_ca_certs": "/ca.pem"}
    cluster = parse_cache_url("redis+cluster://:pw@a:1,b")
    assert (cluster.addresses, cluster.options) == ((("a", 1), ("b", 6379)), {"password": "pw"})
    assert "pw" not in repr(cluster)
    plain = parse_cache_url("rediss://me@host/2?ssl_check_hostname=no")
    assert plain.addresses == (("host", 6379),)
    assert plain.options == {"ssl": True, "username": "me", "db": 2, "ssl_check_hostname": False}
    socket = parse_cache_url("unix://me@/run/redis.sock?db=1&password=pw")
    assert (socket.addresses, socket.options) == (
        (("/run/redis.sock", 0),),
        {"username": "me", "db": 1, "password": "pw"},
    )


def test_a_url_can_be_shown_without_its_secrets() -> None:
    assert (
        without_secrets("redis+sentinel://me:pw@a:1,b:2/cache?sentinel_password=pw")
        == "redis+sentinel://…@a:1,b:2/cache"
    )
    assert without_secrets("unix:///run/redis.sock?password=pw") == "unix:///run/redis.sock"
