"""The log of held blocks: what a gateway that follows it holds is what the engine holds, however often it
reconnects.
"""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from memserve.kv.index import BlockIndex
from tests.contract.block_log import FakeBlockLog
from tests.gateway.running import until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of vLLM and torch, which it imports
    from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch

    from memserve.worker.kv.block_log import LOG_EVENTS, BlockLog, follow_engine_events

Event = tuple[int, str, tuple[bytes, ...]]


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def keys(*numbers: int) -> list[bytes]:
    return [key(number) for number in numbers]


def since(log: Any, sequence: int | None) -> list[Event]:
    """Of the real log or of the fake worker's, in one form."""
    return [
        event if isinstance(event, tuple) else (event.sequence, event.change.value, event.keys)
        for event in log.since(sequence)
    ]


@pytest.fixture(params=[BlockLog, FakeBlockLog])
def log(request: pytest.FixtureRequest) -> Any:
    """Both keep this contract, so that the fake worker's events are those of a real one."""
    return request.param()


async def test_a_follower_without_a_number_gets_all_that_is_held_as_one_reset(log: Any) -> None:
    assert since(log, None) == [(0, "reset", ())]
    log.store(keys(1, 2), "GPU")
    log.store(keys(3), "GPU")
    assert since(log, None) == [(2, "reset", tuple(keys(1, 2, 3)))]


async def test_a_follower_gets_the_changes_after_its_number(log: Any) -> None:
    log.store(keys(1, 2), "GPU")
    log.remove(keys(1), "GPU")
    log.store(keys(3), "GPU")
    stored, removed, again = (
        (1, "stored", tuple(keys(1, 2))),
        (2, "removed", (key(1),)),
        (3, "stored", (key(3),)),
    )
    assert since(log, 0) == [stored, removed, again]
    assert since(log, 2) == [again]
    assert since(log, 3) == []


async def test_a_number_that_was_never_given_gets_a_reset(log: Any) -> None:
    log.store(keys(1), "GPU")
    assert since(log, 7) == [(1, "reset", (key(1),))]


async def test_a_key_is_held_while_any_medium_has_it(log: Any) -> None:
    log.store(keys(1), "GPU")
    log.store(keys(1), "CPU")
    log.remove(keys(1), "GPU")
    assert since(log, None) == [(1, "reset", (key(1),))]
    log.remove(keys(1), "CPU")
    assert since(log, 1) == [(2, "removed", (key(1),))]


async def test_leading_blocks_are_told_by_memory(log: Any) -> None:
    log.store(keys(1, 2, 3), "GPU")
    log.store(keys(1, 2, 3, 4), "CPU")
    log.remove(keys(2), "GPU")
    assert log.leading(keys(1, 2, 3, 4, 5, 6)) == (1, 4)
    assert log.leading(keys(3, 1)) == (2, 2)
    assert log.leading(keys(9)) == log.leading([]) == (0, 0)


async def test_what_changes_nothing_has_no_number(log: Any) -> None:
    log.store(keys(1), "GPU")
    log.changed.clear()
    log.store(keys(1), "GPU")
    log.store([], "GPU")
    log.remove(keys(2), "GPU")
    log.remove(keys(1), "CPU")
    assert log.sequence == 1
    assert not log.changed.is_set()


async def test_a_key_stored_twice_in_one_event_is_one(log: Any) -> None:
    log.store(keys(1, 1), "GPU")
    assert since(log, 0) == [(1, "stored", (key(1),))]


async def test_clearing_is_a_reset_to_nothing_even_when_nothing_was_held(log: Any) -> None:
    log.clear()
    log.store(keys(1), "GPU")
    log.clear()
    assert since(log, 0) == [(1, "reset", ()), (2, "stored", (key(1),)), (3, "reset", ())]


async def test_a_change_wakes_who_waits(log: Any) -> None:
    waiting = asyncio.create_task(log.changed.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    log.store(keys(1), "GPU")
    await asyncio.wait_for(waiting, 5)


async def test_a_follower_that_is_too_far_behind_gets_a_reset() -> None:
    log = BlockLog()
    for number in range(LOG_EVENTS + 1):
        log.store(keys(number), "GPU")
    assert len(since(log, 1)) == LOG_EVENTS
    ((sequence, change, held),) = since(log, 0)
    assert (sequence, change, len(held)) == (LOG_EVENTS + 1, "reset", LOG_EVENTS + 1)


changes = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["store", "remove"]),
            st.lists(st.integers(0, 7), max_size=4),
            st.sampled_from(["GPU", "CPU"]),
            st.booleans(),
        ),
        st.tuples(st.just("clear"), st.just([]), st.just(""), st.booleans()),
    ),
    max_size=30,
)


@settings(max_examples=100)
@given(changes, st.sampled_from([BlockLog, FakeBlockLog]))
def test_whoever_follows_whenever_holds_what_the_engine_holds(
    steps: list[tuple[str, list[int], str, bool]], kind: Callable[[], Any]
) -> None:
    log, engine = kind(), dict[bytes, set[str]]()
    index, sequence = BlockIndex(), None
    for change, numbers, medium, follows in steps:
        if change == "store":
            log.store(keys(*numbers), medium)
            for each in keys(*numbers):
                engine.setdefault(each, set()).add(medium)
        elif change == "remove":
            log.remove(keys(*numbers), medium)
            for each in keys(*numbers):
                engine.get(each, set()).discard(medium)
        else:
            log.clear()
            engine.clear()
        if follows:
            for number, what, changed in since(log, sequence):
                sequence = number
                {"stored": index.add, "removed": index.remove, "reset": index.reset}[what]("w", changed)
            held = {each for each, media in engine.items() if media}
            assert index.held_blocks("w") == len(held)
            assert all(index.longest_prefix("w", [each]) == 1 for each in held)


# vLLM's publisher


@contextlib.asynccontextmanager
async def followed(endpoint: str, log: BlockLog) -> Any:
    following = asyncio.create_task(follow_engine_events(endpoint, log))
    try:
        yield
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def batch(*events: Any) -> bytes:
    return msgspec.msgpack.Encoder().encode(KVEventBatch(ts=0.0, events=list(events)))


def stored(hashes: Iterable[bytes], medium: str | None = "GPU") -> Any:
    return BlockStored(
        block_hashes=list(hashes),
        parent_block_hash=None,
        token_ids=[],
        block_size=32,
        lora_id=None,
        medium=medium,
        lora_name=None,
    )


async def test_the_engines_events_feed_the_log_and_a_gap_clears_it(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/kv-events"
    socket: Any = zmq.asyncio.Context.instance().socket(zmq.XPUB)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(endpoint)
    log = BlockLog()

    async def send(number: int, *events: Any) -> None:
        await socket.send_multipart([b"", number.to_bytes(8, "big"), batch(*events)])

    async with followed(endpoint, log):
        await asyncio.wait_for(socket.recv(), 20)  # the subscription has arrived
        await send(0, stored(keys(1, 2)), stored(keys(1), "CPU"))
        await send(1, BlockRemoved(block_hashes=keys(1, 2), medium="GPU"))
        await until(lambda: log.sequence >= 2)
        assert since(log, 0) == [(1, "stored", tuple(keys(1, 2))), (2, "removed", (key(2),))]
        await send(2, AllBlocksCleared(), stored(keys(3)))
        await until(lambda: log.sequence >= 4)
        assert since(log, 2) == [(3, "reset", ()), (4, "stored", (key(3),))]
        await send(4, stored(keys(5)))
        await until(lambda: log.sequence >= 6)
        assert since(log, 4) == [(5, "reset", ()), (6, "stored", (key(5),))], (
            "number 3 was lost: what it removed is not known"
        )
    socket.close()
