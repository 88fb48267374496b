"""The Redis tier over a real Redis, without an engine."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from memserve.kv.keys import member, redis_key
from memserve.kv.values.envelope import HEADER_BYTES
from tests.kv.redis_server import RedisServer, wait_until
from tests.worker.kv.tier import (
    CHUNK_BYTES,
    KEYS,
    NAMESPACE,
    finished,
    found_in_redis,
    job,
    labelled,
    random_host,
    request,
    tier_over,
)


def test_stored_bytes_are_loaded_bytes(redis_server: RedisServer) -> None:
    first, second = random_host(1), random_host(2)
    writer, reader = tier_over(first, redis_server.url), tier_over(second, redis_server.url)
    writer.submit_store(job(1, KEYS, [5, 4, 3, 2, 1], is_load=False))
    assert finished(writer).success
    untouched = second[5].copy()
    reader.submit_load(job(2, KEYS, [0, 1, 2, 3, 4], is_load=True))
    result = finished(reader)
    assert result.success and result.transfer_bytes == 5 * CHUNK_BYTES
    assert np.array_equal(second[:5], first[:0:-1])
    assert np.array_equal(second[5], untouched)
    writer.shutdown()
    reader.shutdown()


def test_a_load_keeps_what_verified_and_reports_the_rest_as_misses(redis_server: RedisServer) -> None:
    from vllm.v1.kv_offload.base import LookupResult, OffloadKey, ReqContext, ScheduleEndContext

    tier = tier_over(random_host(3), redis_server.url)
    tier.submit_store(job(1, KEYS, [0, 1, 2, 3, 4], is_load=False))
    finished(tier)
    context, keys = ReqContext("r"), [OffloadKey(key) for key in KEYS]
    assert {tier.lookup(key, context) for key in keys} == {LookupResult.RETRY}
    tier.on_schedule_end(ScheduleEndContext([], []))
    wait_until(
        lambda: (
            tier.on_schedule_end(ScheduleEndContext([], []))
            or tier.lookup(keys[0], context) is LookupResult.HIT
        )
    )
    redis_server.client.setrange(redis_key(NAMESPACE.digest, KEYS[2]), 1000, b"\x00\xff\x00")
    redis_server.client.delete(redis_key(NAMESPACE.digest, KEYS[4]))
    tier.submit_load(job(2, KEYS, [0, 1, 2, 3, 4], is_load=True))
    result = finished(tier)
    assert not result.success
    assert list(result.successful_keys) == [KEYS[0], KEYS[1], KEYS[3]]
    hit, miss = LookupResult.HIT, LookupResult.MISS
    assert [tier.lookup(key, context) for key in keys] == [hit, hit, miss, hit, miss]
    tier.shutdown()


def test_a_request_only_waits_until_a_load_has_ended(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = tier_over(random_host(8), redis_server.url)
    loading, load = threading.Event(), tier._store.load
    monkeypatch.setattr(
        tier._store, "load", lambda *given, **options: loading.wait(10) and load(*given, **options)
    )
    mine = request(KEYS)
    assert not tier.only_waits(mine.req_id)
    tier.submit_load(job(1, KEYS, [0, 1, 2, 3, 4], is_load=True, context=mine))
    assert tier.only_waits(mine.req_id)
    assert not tier.only_waits("another")
    loading.set()
    tier.drain_jobs()
    assert not tier.only_waits(mine.req_id)  # what has come is to be looked at
    assert len(list(tier.get_finished_jobs())) == 1
    assert not tier.only_waits(mine.req_id)
    tier.shutdown()


@pytest.mark.parametrize("aborted", [False, True])
def test_the_ledger_is_told_of_a_use_when_the_request_has_ended(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, aborted: bool
) -> None:
    """Not before: it would keep the first token waiting. A request that was aborted has ended before its
    load.
    """
    tier = tier_over(random_host(9), redis_server.url)
    tier.submit_store(job(1, KEYS, [0, 1, 2, 3, 4], is_load=False))
    assert finished(tier).success
    told: list[list[bytes]] = []
    monkeypatch.setattr(tier._store, "use", told.append)
    mine = request(KEYS)
    if aborted:
        tier.on_request_finished(mine)
    tier.submit_load(job(2, KEYS, [0, 1, 2, 3, 4], is_load=True, context=mine))
    assert finished(tier).success
    tier.drain_jobs()
    if not aborted:
        assert told == []
        tier.on_request_finished(mine)
        tier.drain_jobs()
    assert told == [KEYS]
    tier.shutdown()


def test_a_stored_chunk_is_announced_and_counted(redis_server: RedisServer) -> None:
    tier = tier_over(random_host(4), redis_server.url, announce=True)
    tier.submit_store(job(1, KEYS[:2], [0, 1], is_load=False))
    finished(tier)
    (event,) = tier.take_events()
    assert (event.keys, event.removed, event.ownership) == (KEYS[:2], False, "RedisTier")
    stats = tier.get_stats().reduce()
    assert stats["memserve_kv_tier_stored"] == 2
    assert stats["memserve_kv_tier_written_bytes"] == 2 * CHUNK_BYTES
    names = {name.partition(":")[0] for name in stats}
    assert names | {"memserve_kv_tier_cache_bytes"} == set(type(tier).build_metric_definitions({})), (
        "from the start, or `rate` does not see the first event"
    )
    assert tier.get_stats() is None
    tier.shutdown()


def test_without_redis_jobs_fail_quickly_and_the_tier_shuts_down(tmp_path: Path) -> None:
    tier = tier_over(random_host(5), f"unix://{tmp_path}/nowhere.sock")
    started_s = time.monotonic()
    tier.submit_store(job(1, KEYS, [0, 1, 2, 3, 4], is_load=False))
    assert not finished(tier).success
    tier.submit_load(job(2, KEYS, [0, 1, 2, 3, 4], is_load=True))
    result = finished(tier)
    assert not result.success and result.successful_keys is None
    tier.shutdown()
    assert time.monotonic() - started_s < 1


def test_what_is_computed_sooner_is_not_loaded(redis_server: RedisServer) -> None:
    quick, patient = (
        tier_over(random_host(7), redis_server.url),
        tier_over(random_host(7), redis_server.url, always_load=True),
    )
    quick.submit_store(job(1, KEYS, [0, 1, 2, 3, 4], is_load=False))
    finished(quick)
    assert found_in_redis(quick, KEYS, request(KEYS, "first")) == [True] * 5  # nothing is measured yet
    for number in range(3):
        quick.prefilled(10**9, 0.001)
        quick.submit_load(job(2 + number, KEYS, [0, 1, 2, 3, 4], is_load=True))
        finished(quick)
    assert found_in_redis(quick, KEYS, request(KEYS, "second")) == [False] * 5
    for _ in range(80):
        quick.prefilled(1, 1.0)
    assert found_in_redis(quick, KEYS, request(KEYS, "third")) == [True] * 5
    assert found_in_redis(patient, KEYS, request(KEYS)) == [True] * 5
    stats = quick.get_stats()
    assert stats.reduce()["memserve_kv_tier_hits"] == 15
    assert labelled(stats, "load_decisions") == {"unmeasured": 1, "recompute": 1, "load": 1}
    quick.shutdown()
    patient.shutdown()


def test_chunks_are_counted_for_the_tenant_and_the_module_and_stand_in_their_chain(
    redis_server: RedisServer,
) -> None:
    tier = tier_over(random_host(8), redis_server.url)
    context = request(KEYS, tenant="anna", module="ad" * 32, store_whole_prompt=False)
    tier.submit_store(job(1, [KEYS[2], KEYS[0], KEYS[1]], [0, 1, 2], is_load=False, context=context))
    finished(tier)
    tier.submit_store(job(2, KEYS[3:], [3, 4], is_load=False, context=context))
    finished(tier)
    client = redis_server.client
    names = [member(NAMESPACE.digest, key) for key in KEYS]
    entries = [client.hmget(f"{{memserve:kv}}:entry:{name}", "t", "m", "p", "d") for name in names]
    assert entries == [
        [b"anna", b"ad" * 32, names[number - 1].encode() if number else b"", str(64 * (number + 1)).encode()]
        for number in range(5)
    ]
    assert client.hgetall("{memserve:kv}:bytes") == {
        b"anna": b"%d" % (5 * (CHUNK_BYTES + HEADER_BYTES)),
        b"*": b"%d" % (5 * (CHUNK_BYTES + HEADER_BYTES)),
    }
    tier.shutdown()


def test_a_full_quota_keeps_the_beginning_and_what_waits_too_long_is_dropped(
    redis_server: RedisServer,
) -> None:
    tier = tier_over(random_host(9), redis_server.url, tenant_quota_bytes=3 * (CHUNK_BYTES + HEADER_BYTES))
    tier.submit_store(job(1, KEYS, [0, 1, 2, 3, 4], is_load=False))
    tier.submit_store(
        job(2, [b"x" * 32 + bytes(4)], [5], is_load=False)
    )  # half of the host's memory waits already
    tier.drain_jobs()
    assert len(list(tier.get_finished_jobs())) == 2
    assert sorted(redis_server.client.scan_iter("memserve:kv:*")) == sorted(
        redis_key(NAMESPACE.digest, key).encode() for key in KEYS[:3]
    )
    stats = tier.get_stats()
    assert stats.reduce()["memserve_kv_tier_stores_dropped"] == 1
    assert labelled(stats, "not_admitted") == {"no_room": 2}
    tier.shutdown()
