"""A cache behind real Sentinels."""

from __future__ import annotations

import asyncio
import time

import pytest

from memserve.kv.lookup import PrefixLookup
from memserve.kv.outcomes import Put
from memserve.kv.transport.breaker import Circuit
from tests.kv.redis_server import SentinelServers, wait_until
from tests.kv.transport.chain import KEYS, NAMES, NAMESPACE, PAYLOADS, load, store_on


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
