"""The audit: read in pages whatever its size, bounded, and trimmed only after export or with age, which it
tells itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from memserve.domain import AuditEvent, TrafficShare
from memserve.errors import AuditFull, InvalidField
from memserve.memory.modules.registry.aliases import Change
from memserve.memory.modules.registry.store import ModuleStore
from tests.kv.redis_server import RedisServer
from tests.memory.modules.registry.module_store import ANN, LIVE, VERSION

MIB = 1 << 20
PAGE_BYTES = 2 * MIB
EVENTS = "memserve:module:events:5:alice"


@pytest_asyncio.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[ModuleStore]:
    store = ModuleStore(redis_server.url, audit_days=30, audit_max_bytes=MIB)
    yield store
    await store.close()


async def every_event(store: ModuleStore, after: str = "") -> list[AuditEvent]:
    found: list[AuditEvent] = []
    while page := await store.events("alice", after=after, limit=1000):
        assert sum(len(event.before) + len(event.after) for event in page) <= PAGE_BYTES
        found += page
        after = page[-1].event_id
    return found


async def test_large_events_come_in_pages_and_each_once(redis_server: RedisServer) -> None:
    store = ModuleStore(redis_server.url)
    for number in range(300):
        await store.record("alice", "ann", "note", str(number), after="x" * 30_000)
    assert [event.module for event in await every_event(store)] == [str(number) for number in range(300)]
    assert len(await store.events("alice", limit=7)) == 7
    await store.close()


async def test_one_event_that_is_larger_than_a_page_is_a_page(redis_server: RedisServer) -> None:
    store = ModuleStore(redis_server.url)
    for _ in range(2):
        await store.record("alice", "ann", "note", "m", after="x" * (PAGE_BYTES + 1))
    first = await store.events("alice", limit=10)
    assert len(first) == 1
    assert len(await store.events("alice", after=first[0].event_id, limit=10)) == 1
    await store.close()


async def test_a_history_of_long_reasons_comes_in_pages(redis_server: RedisServer) -> None:
    store = ModuleStore(redis_server.url)
    one = await store.publish("alice", "ann", VERSION)
    for _ in range(200):
        shares = (TrafficShare(one.version, 1.0),)
        await store.set_alias(LIVE, shares, Change("ann", "x" * 20_000), action="promote")
    found, pages = [], 0
    while page := await store.history(LIVE, after=len(found), limit=1000):
        found += page
        pages += 1
    assert [change.revision for change in found] == list(range(1, 201))
    assert pages > 1
    await store.close()


async def fill(store: ModuleStore) -> int:
    """Returns how many events there was room for."""
    for number in range(1000):
        try:
            await store.record("alice", "ann", "note", "m", after="x" * 10_000)
        except AuditFull:
            return number
    raise AssertionError("the audit has no bound")


async def test_a_full_audit_refuses_changes_and_loses_none_of_its_events(
    store: ModuleStore, redis_server: RedisServer
) -> None:
    one = await store.publish("alice", "ann", VERSION)
    two = await store.publish("alice", "ann", replace(VERSION, digest="e" * 64))
    for number in (one.version, two.version):
        await store.set_alias(LIVE, (TrafficShare(number, 1.0),), ANN, action="promote")
    recorded = await fill(store)
    assert 50 < recorded < 200
    assert redis_server.client.memory_usage(EVENTS) < 2 * MIB
    with pytest.raises(AuditFull):
        await store.publish("alice", "ann", replace(VERSION, digest="f" * 64))
    with pytest.raises(AuditFull):
        await store.check_audit("alice")
    await store.check_audit("bob")
    assert (await store.versions("alice", "tone", limit=10))[0][0].version == two.version, (
        "nothing was changed"
    )
    assert [event.action for event in await every_event(store)] == ["publish"] * 2 + ["promote"] * 2 + [
        "note"
    ] * recorded
    await store.rollback(LIVE, Change("ann", "trouble goes on being taken away"))
    await store.publish("bob", "bea", VERSION)


async def test_what_was_exported_and_released_goes_when_room_is_needed_and_the_audit_says_so(
    store: ModuleStore,
) -> None:
    recorded = await fill(store)
    exported = await every_event(store)
    await store.release_audit("alice", "ann", exported[-2].event_id)
    assert (await every_event(store))[0] == exported[0], "room is made when it is needed"
    await store.record("alice", "ann", "note", "after")
    left = await every_event(store)
    assert [event.action for event in left] == ["note", "release_audit", "trim", "note"]
    assert left[0] == exported[-1]
    trim = left[2]
    assert trim.principal == "memserve"
    assert json.loads(trim.before)["events"] == recorded - 1
    assert json.loads(trim.before)["from"] == exported[0].event_id
    assert json.loads(trim.after) == {"why": "released"}
    assert await every_event(store, after=exported[-2].event_id) == left, "an export goes on where it ended"


async def test_only_an_event_that_there_is_can_be_released(store: ModuleStore) -> None:
    for wrong in ("1-1", "", "x", "9" * 30 + "-0"):
        with pytest.raises(InvalidField) as refusal:
            await store.release_audit("alice", "ann", wrong)
        assert refusal.value.field == "through_event_id"


async def test_events_past_their_days_go_and_the_audit_says_so(
    store: ModuleStore, redis_server: RedisServer
) -> None:
    now_ms = int(time.time() * 1000)
    fields = {"at_s": "1", "principal": "ann", "action": "old", "module": "m", "before": "", "after": ""}
    for days in (50, 31, 29):
        redis_server.client.xadd(EVENTS, fields | {"module": str(days)}, id=f"{now_ms - days * 86_400_000}-0")
    await store.record("alice", "ann", "note", "m")
    found = await every_event(store)
    assert [(event.action, event.module) for event in found] == [("old", "29"), ("trim", ""), ("note", "m")]
    assert json.loads(found[1].before)["events"] == 2
    assert json.loads(found[1].after) == {"why": "retention"}
