"""A cache on a real Redis Cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from loadtests.harness.kept_port import KeptPort
from memserve.kv.lookup import PrefixLookup
from memserve.kv.outcomes import Put
from memserve.kv.store import RedisChunkStore
from memserve.kv.transport.breaker import Circuit
from memserve.kv.values.envelope import Refusal
from tests.kv.redis_server import RedisClusterServers, RedisServer, wait_until
from tests.kv.transport.chain import KEYS, NAMES, NAMESPACE, PAYLOADS, load, store_on


@pytest.fixture
def store(cluster: RedisClusterServers) -> Iterator[RedisChunkStore]:
    """On the cluster, with every key stored."""
    store = store_on(cluster.url)
    assert store.store(KEYS, PAYLOADS, budget_s=10) == [Put.STORED] * 60
    store.take_stats()
    yield store
    store.close()


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
