"""The audit's events in a real Redis: one for every change, read in order, waited for."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from memserve.domain import (
    TrafficShare,
)
from memserve.errors import (
    InvalidField,
)
from memserve.memory.modules.registry.aliases import Change
from memserve.memory.modules.registry.scripts import CONNECTIONS
from memserve.memory.modules.registry.store import ModuleStore
from tests.memory.modules.registry.module_store import (
    BERT,
    LIVE,
    REPORT,
    A,
    B,
    promote,
    publish,
)


async def test_every_change_is_in_the_audit(store: ModuleStore) -> None:
    await publish(store, A, B)
    forced = Change("ann", 'a "b"', forced=True)
    await store.set_alias(LIVE, [TrafficShare(1, 0.5)], forced, action="promote")
    await promote(store, 2)
    await store.rollback(LIVE, BERT)
    await store.keep_gate("alice", "ann", "tone", 1, REPORT)
    await store.preload("alice", "ann", "tone", 1, "w0")
    await store.unload("alice", "ann", "tone", 1, "")
    await store.delete_version("alice", "ann", "tone", 2)
    events = await store.events("alice", limit=100)
    actions = ["publish", "publish", "promote", "promote", "rollback", "gate", "preload", "unload", "delete"]
    assert [event.action for event in events] == actions
    assert {(event.tenant, event.module) for event in events} == {("alice", "tone")}
    assert [event.principal for event in events] == ["ann"] * 4 + ["bert"] + ["ann"] * 4
    assert all(abs(event.at_s - time.time()) < 60 for event in events)
    assert json.loads(events[0].after) == {"version": 1, "digest": A, "kind": "lora", "probes_digest": ""}
    first = json.loads(events[2].after)
    assert (events[2].before, first["targets"], first["reason"]) == (
        "",
        [{"version": 1, "weight": 0.5}],
        'a "b"',
    )
    assert (first["name"], first["revision"], first["forced"]) == ("live", 1, True)
    assert json.loads(events[3].before) == {
        field: first[field] for field in ("name", "targets", "revision", "changed_s")
    }
    assert json.loads(events[5].after)["gate"]["figures"][0]["module"] == 1 / 3
    assert json.loads(events[6].after) == {"version": 1, "worker_id": "w0", "preloaded_on": ["w0"]}
    assert json.loads(events[7].before)["preloaded_on"] == ["w0"]
    assert json.loads(events[7].after)["preloaded_on"] == []
    assert json.loads(events[8].before)["digest"] == B
    assert events[8].after == ""


async def test_events_are_read_in_order_from_any_one_on(store: ModuleStore) -> None:
    assert await store.last_event_id("alice") == "0-0"
    recorded = [
        await store.record("alice", "ann", "compose", "tone", before, '{"é": "/"}')
        for before in ("1", "2", "3")
    ]
    assert await store.events("alice", limit=10) == recorded
    assert await store.events("alice", limit=2) == recorded[:2]
    assert await store.events("alice", after=recorded[1].event_id, limit=10) == recorded[2:]
    assert await store.last_event_id("alice") == recorded[2].event_id
    assert await store.events("alice", after=recorded[2].event_id, limit=10, block_s=0.01) == []
    for malformed in ("x", "1", "$", "1-", "1-99999999999999999999", "-1-1", "1-1\n"):
        with pytest.raises(InvalidField, match="after_event_id"):
            await store.events("alice", after=malformed, limit=1)


async def test_whoever_waits_for_events_gets_the_next_one_and_keeps_nobody_waiting(
    store: ModuleStore,
) -> None:
    after = await store.last_event_id("alice")
    waiting = [
        asyncio.create_task(store.events("alice", after=after, limit=10, block_s=30))
        for _ in range(CONNECTIONS + 4)
    ]
    await asyncio.sleep(0.1)
    await publish(store, A)
    got = await asyncio.gather(*waiting)
    assert {tuple(event.action for event in events) for events in got} == {("publish",)}


async def test_whoever_waits_for_events_can_be_cancelled(store: ModuleStore) -> None:
    for pause_s in (0.0, 0.001, 0.05):
        waiting = asyncio.create_task(store.events("alice", limit=10, block_s=30))
        await asyncio.sleep(pause_s)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert await store.count("alice") == 0
