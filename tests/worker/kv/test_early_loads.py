"""Loads whose blocks are allocated when they begin: what the manager says and what the worker copies."""

from __future__ import annotations

from typing import Any

import pytest

from memserve.kv.keys import redis_key
from tests.kv.redis_server import RedisServer
from tests.worker.kv.halves import BLOCK_IDS, CHUNK_BYTES, HOST_CHUNKS, KEYS, NAMESPACE, Halves, of_chunk


def test_what_is_found_is_a_hit_at_once_and_comes_to_its_blocks(halves: Halves, chunks: list[bytes]) -> None:
    context = halves.request("r")
    assert halves.look_up_until_found(context) == ["HIT"] * 5
    halves.begin_load(context, BLOCK_IDS)
    assert halves.finish_load() == set()
    assert [halves.chunk_on_device(of_chunk(number)) for number in range(5)] == chunks
    halves.manager.complete_load(KEYS, context)
    halves.end_step()
    assert halves.manager.take_lost() == {}
    assert halves.pinned() == [0] * 5
    assert halves.look_up(halves.request("another")) == ["HIT"] * 5  # in host memory now


@pytest.mark.parametrize("told_first", ["the load", "the copies"])
def test_nothing_stays_pinned_whichever_ends_first(
    halves: Halves, chunks: list[bytes], told_first: str
) -> None:
    context = halves.request("r")
    halves.look_up_until_found(context)
    halves.begin_load(context, BLOCK_IDS)
    halves.finish_load()
    halves.tier.drain_jobs()
    if told_first == "the load":
        halves.end_step()
        assert halves.pinned() == [1] * 5
    else:
        assert halves.pinned() == [-1] * 5
    halves.manager.complete_load(KEYS, context)
    halves.end_step()
    assert halves.pinned() == [0] * 5


def test_a_chunk_that_does_not_come_is_told_with_its_blocks(
    halves: Halves, chunks: list[bytes], own_redis_server: RedisServer
) -> None:
    context = halves.request("r")
    halves.look_up_until_found(context)
    own_redis_server.client.setrange(redis_key(NAMESPACE.digest, KEYS[1]), 300, b"\x00\xff\x00")
    own_redis_server.client.delete(redis_key(NAMESPACE.digest, KEYS[3]))
    halves.begin_load(context, BLOCK_IDS)
    assert halves.finish_load() == {*of_chunk(1), *of_chunk(3)}
    assert halves.worker.take_lost_blocks() == set()
    assert [halves.chunk_on_device(of_chunk(number)) for number in (0, 2, 4)] == [
        chunks[number] for number in (0, 2, 4)
    ]
    assert halves.chunk_on_device([*of_chunk(1), *of_chunk(3)]) == bytes(2 * CHUNK_BYTES)
    halves.manager.complete_load(KEYS, context)
    halves.end_step()
    assert halves.manager.take_lost() == {"r": 2 * NAMESPACE.chunk_tokens}
    assert halves.manager.take_lost() == {}
    assert halves.pinned() == [0] * 3  # those that came


def test_a_redis_that_stops_holds_no_step_and_all_blocks_are_lost(
    halves: Halves, chunks: list[bytes], own_redis_server: RedisServer
) -> None:
    context = halves.request("r")
    halves.look_up_until_found(context)
    own_redis_server.pause()
    try:
        halves.begin_load(context, BLOCK_IDS)
        halves.worker.wait_for_chunks()
        assert halves.worker.get_finished() == []
        assert halves.finish_load() == set(BLOCK_IDS)
    finally:
        own_redis_server.resume()
    halves.manager.complete_load(KEYS, context)
    assert halves.manager.take_lost() == {"r": NAMESPACE.chunk_tokens}


def test_a_request_that_gets_no_blocks_waits_as_vllms_do(halves: Halves, chunks: list[bytes]) -> None:
    context = halves.request("r")
    assert halves.look_up_until_found(context) == ["HIT"] * 5
    halves.end_step()  # nothing was allocated
    halves.tier.drain_jobs()
    assert halves.look_up(context) == ["HIT"] * 5
    halves.begin_load(context, BLOCK_IDS)
    assert halves.finish_load() == set()
    assert [halves.chunk_on_device(of_chunk(number)) for number in range(5)] == chunks
    assert halves.pinned() == [1] * 5
    halves.manager.complete_load(KEYS, context)
    assert halves.pinned() == [0] * 5


def test_another_request_waits_for_chunks_that_are_on_their_way(
    halves: Halves, chunks: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halves.tier, "get_finished_jobs", list)  # the load goes on for as long as this
    first, second = halves.request("first"), halves.request("second")
    assert halves.look_up_until_found(first) == ["HIT"] * 5
    assert halves.look_up(second) == ["HIT_PENDING"] * 5
    halves.begin_load(first, BLOCK_IDS)
    assert halves.look_up(second) == ["HIT_PENDING"] * 5
    assert halves.finish_load() == set()
    monkeypatch.undo()
    halves.manager.complete_load(KEYS, first)
    halves.tier.drain_jobs()
    halves.end_step()
    assert halves.look_up(second) == ["HIT"] * 5


def test_what_host_memory_has_and_what_comes_are_loaded_together(halves: Halves, chunks: list[bytes]) -> None:
    halves.fill_host_memory()
    for key in KEYS[2:]:  # host memory forgets the end
        halves.manager.primary_tier._policy.remove(key)
    for tensor in halves.device:
        tensor.zero_()
    context = halves.request("r")
    assert halves.look_up_until_found(context) == ["HIT"] * 5
    halves.begin_load(context, BLOCK_IDS, job_id=2)
    assert halves.finish_load() == set()
    assert [halves.chunk_on_device(of_chunk(number)) for number in range(5)] == chunks


def test_waiting_for_a_job_waits_for_its_chunks(halves: Halves, chunks: list[bytes]) -> None:
    context = halves.request("r")
    halves.look_up_until_found(context)
    halves.begin_load(context, BLOCK_IDS)
    halves.worker.wait({1})
    (result,) = halves.worker.get_finished()
    assert (result.job_id, result.success, result.transfer_size) == (1, True, 5 * CHUNK_BYTES)
    assert [halves.chunk_on_device(of_chunk(number)) for number in range(5)] == chunks


def test_a_reset_while_chunks_come_leaves_nothing_behind(halves: Halves, chunks: list[bytes]) -> None:
    context = halves.request("r")
    halves.look_up_until_found(context)
    halves.begin_load(context, BLOCK_IDS)
    halves.manager.reset_cache()
    host = halves.manager.primary_tier.get_kv_memoryview().cast("B")
    host[:] = bytes(len(host))  # it is others' now
    host.release()
    assert [halves.chunk_on_device(of_chunk(number)) for number in range(5)] == chunks
    halves.worker.wait({1})
    assert halves.look_up_until_found(halves.request("another")) == ["HIT"] * 5
    halves.end_step()
    halves.tier.drain_jobs()
    halves.end_step()
    assert halves.pinned() == [0] * 5


@pytest.mark.parametrize(
    "why", ["the worker is in another process", "vLLM cannot compute what fails to load"]
)
def test_nothing_is_early_where_it_must_not_be(halves: Halves, chunks: list[bytes], why: str) -> None:
    if why == "the worker is in another process":
        halves.manager._worker = lambda: None
    else:
        halves.manager.enabled = False
    context = halves.request("r")
    assert halves.look_up_until_found(context) == ["HIT_PENDING"] * 5


def test_what_was_counted_as_there_is_not_evicted_for_what_comes(halves: Halves, chunks: list[bytes]) -> None:
    """The host memory is full, of the request's own beginning and of others that may go."""
    halves.fill_host_memory()
    primary = halves.manager.primary_tier
    for key in KEYS[2:]:
        primary._free_chunk(primary._policy.get(key))
        primary._policy.remove(key)
        primary._num_evictable_cache_chunks -= 1
    others = [bytes([number]) * 32 + bytes(4) for number in range(100, 100 + HOST_CHUNKS - 2)]
    stranger = halves.request("stranger")
    assert primary.prepare_store(others, stranger) is not None
    primary.complete_store(others, stranger)
    primary.touch(others, stranger)  # the request's own are the first to go
    context = halves.request("r")
    assert halves.look_up_until_found(context) == ["HIT"] * 5
    halves.begin_load(context, BLOCK_IDS, job_id=2)
    assert halves.finish_load() == set()
    assert [halves.chunk_on_device(of_chunk(number)) for number in range(5)] == chunks
    halves.manager.complete_load(KEYS, context)
    halves.tier.drain_jobs()
    halves.end_step()
    assert halves.pinned() == [0] * 5


def test_a_load_that_breaks_off_keeps_what_it_told_of(
    halves: Halves, chunks: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = halves.tier._store.load

    def breaks_off(*given: Any, loaded_one: Any, **options: Any) -> list[bool]:
        def two(number: int) -> None:
            if number == 2:
                raise RuntimeError("no thread can be started")
            loaded_one(number)

        return load(*given, loaded_one=two, **options)

    monkeypatch.setattr(halves.tier._store, "load", breaks_off)
    context = halves.request("r")
    halves.look_up_until_found(context)
    halves.begin_load(context, BLOCK_IDS)
    assert halves.finish_load() == {*of_chunk(2), *of_chunk(3), *of_chunk(4)}
    assert [halves.chunk_on_device(of_chunk(number)) for number in range(2)] == chunks[:2]
    halves.tier.drain_jobs()
    halves.end_step()
    assert halves.pinned() == [1, 1]
    halves.manager.complete_load(KEYS, context)
    assert halves.pinned() == [0, 0]
    assert halves.manager.take_lost() == {"r": 3 * NAMESPACE.chunk_tokens}
