"""Records of newer versions, and broken ones, in the registry: what is there is used, what cannot be read
ends nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.domain import WorkerLease
from memserve.errors import UnreadableRecord
from memserve.memory.modules.registry.records import (
    read_alias,
    read_alias_change,
    read_canary,
    read_event,
    read_module,
    read_preload,
    read_version,
)
from memserve.registry.leases import Registry, lease_key, read_lease
from tests.kv.redis_server import RedisServer

LEASE = WorkerLease("w0", "127.0.0.1:1", "127.0.0.1:2", 7, "tiny", "md", "td", "ns", 32, 1, 8192, 8, 1.5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
VERSION = {
    "version": 1,
    "module": "tone",
    "digest": "d" * 64,
    "kind": "lora",
    "base_digest": "",
    "rank": 8,
    "target_modules": ["q_proj"],
    "size_bytes": 1,
    "created_s": 1.0,
    "author": "ann",
    "parents": [],
    "figures": {"delta_norm": 1.0, "sparsity": 0.0, "effective_rank": 2.0},
    "probes_digest": "",
}
ALIAS = {"name": "live", "targets": [{"version": 1, "weight": 1.0}], "revision": 1, "changed_s": 2.0}
CHANGE = {
    "revision": 1,
    "targets": json.dumps(ALIAS["targets"]),
    "at_s": "2.0",
    "principal": "ann",
    "action": "promote",
    "reason": "",
    "forced": False,
}
# Every record, how it is read, and fields without which it cannot be.
RECORDS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "lease": (asdict(LEASE), read_lease, "address"),
    "version": (VERSION, lambda text: read_version([text, None, None, None]), "digest"),
    "alias": (ALIAS, read_alias, "targets"),
    "alias change": (CHANGE, read_alias_change, "revision"),
    "preload": ({"digest": "d", "kind": "lora", "worker_id": ""}, read_preload, "kind"),
    "canary": (
        {"versions": [2], "revision": 3},
        lambda text: read_canary(('["t", "n", "a"]', text)),
        "versions",
    ),
    "module": (ALIAS, lambda text: read_module(["tone", "lora", "1", 1, [text]]), "name"),
}


@pytest.mark.parametrize("record", RECORDS)
def test_a_field_that_a_newer_version_added_is_ignored(record: str) -> None:
    stored, read, _ = RECORDS[record]
    assert read(json.dumps(stored | {"zone": {"a": [1]}})) == read(json.dumps(stored))


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_that_lacks_what_is_needed_is_said_to_be_unreadable(record: str) -> None:
    stored, read, needed = RECORDS[record]
    with pytest.raises(UnreadableRecord):
        read(json.dumps({name: value for name, value in stored.items() if name != needed}))


@given(st.sampled_from(sorted(RECORDS)), st.data())
def test_whatever_is_in_a_record_it_is_read_or_unreadable(record: str, data: st.DataObject) -> None:
    stored, read, _ = RECORDS[record]
    changed = dict(stored)
    for name in data.draw(st.lists(st.sampled_from(sorted(stored)), min_size=1, max_size=3)):
        changed[name] = data.draw(JSON)
    for text in (json.dumps(changed), json.dumps(data.draw(JSON)), data.draw(st.text(max_size=20))):
        try:
            read(text)
        except UnreadableRecord:
            pass


def test_a_gate_report_that_cannot_be_read_counts_as_none() -> None:
    assert read_version([json.dumps(VERSION), None, '{"passed": true}', "1"]).gate is None


def test_an_event_of_the_audit_is_shown_whatever_it_lacks() -> None:
    event = read_event("t", "1500-0", {"action": "teleport"})
    assert (event.at_s, event.action, event.before) == (1.5, "teleport", "")


@pytest.mark.parametrize(
    "address", ["", "nonsense", "host", "http://a:1/x y", "\x1b[2J", "a:b", "a:123456789"]
)
def test_a_lease_with_an_address_that_is_none_is_unreadable(address: str) -> None:
    with pytest.raises(UnreadableRecord):
        read_lease(json.dumps(asdict(LEASE) | {"address": address}))


async def test_a_lease_that_cannot_be_read_is_left_out_and_said_once(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(redis_server.url)
    await registry.renew_lease(LEASE, 60)
    for name, value in {
        "newer": json.dumps(asdict(LEASE) | {"worker_id": "newer", "address": {"unix": "/x"}}),
        "broken": "{",
        "list": "[]",
    }.items():
        redis_server.client.set(lease_key(name), value)
        redis_server.client.sadd("memserve:workers", name)
    for _ in range(3):
        assert await registry.live_workers() == [LEASE]
    assert len(caplog.records) == 3
    await registry.close()
