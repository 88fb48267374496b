"""The journal against a real redis-server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from memserve.domain import Memory, NamespaceUsage
from memserve.errors import JournalFull, QuotaReached, RegistryUnavailable
from memserve.memory.texts import journal as journal_module
from memserve.memory.texts.journal import PENDING, STATE, Journal
from memserve.memory.texts.journal_entries import Quotas, Write, growth
from memserve.memory.texts.records import tenant_key
from tests.kv.redis_server import RedisServer
from tests.memory.texts.journaled import VECTOR, append, draft, erased, written

TENANT = "acme"


def memory(name: str = "m1", text: str = "a text\nof two lines") -> Memory:
    return Memory(name, "notes", text, "s", ("k", "l"), 1234.5)


@pytest_asyncio.fixture
async def journal(redis_server: RedisServer) -> AsyncIterator[Journal]:
    journal = Journal(redis_server.url, Quotas())
    yield journal
    await journal.close()


async def pending(journal: Journal) -> dict[str, Write]:
    return {write.key: write async for page in journal.pending() for write in page}


@pytest.mark.asyncio
async def test_a_write_comes_back_as_it_was_appended(journal: Journal) -> None:
    write = written(TENANT, memory())
    assert await append(journal, TENANT, write) == 1
    (found,) = (await pending(journal)).values()
    assert found.memory == memory()
    assert found.record is not None and found.record.vector is not None
    assert found.record.vector.tolist() == VECTOR.tolist()
    assert (found.key, found.tenant_key, found.author, found.sequence) == (
        write.key,
        tenant_key(TENANT),
        write.author,
        1,
    )
    assert await journal.counts(TENANT) == {"notes": 1}


@pytest.mark.asyncio
async def test_of_two_writes_of_a_memory_the_later_is_pending_and_both_are_counted(
    journal: Journal, redis_server: RedisServer
) -> None:
    await append(journal, TENANT, written(TENANT, memory()))
    await append(journal, TENANT, erased(TENANT, memory()), -1)
    (found,) = (await pending(journal)).values()
    assert (found.memory, found.sequence) == (None, 2)
    assert await journal.counts(TENANT) == {"notes": 0}
    totals = await journal.totals()
    assert (totals.memories, totals.pending) == (0, 1)
    assert totals.bytes == sum(len(entry) for entry in redis_server.client.hvals(PENDING))


@pytest.mark.asyncio
async def test_a_write_that_came_between_the_look_and_the_append_is_noticed(journal: Journal) -> None:
    write = written(TENANT, memory())
    look = await journal.look(write.key, TENANT, "notes")
    await append(journal, TENANT, written(TENANT, memory(text="another")))
    assert await journal.append(draft(write, look), look.last_sequence) is None
    assert await journal.counts(TENANT) == {"notes": 1}


@pytest.mark.asyncio
async def test_a_write_that_came_and_was_dropped_between_the_look_and_the_append_is_noticed(
    journal: Journal,
) -> None:
    write = written(TENANT, memory())
    look = await journal.look(write.key, TENANT, "notes")
    await append(journal, TENANT, written(TENANT, memory(text="another")))
    assert await journal.drop(list((await pending(journal)).values()), 0.0) == set()
    assert await journal.append(draft(write, look), look.last_sequence) is None
    assert await append(journal, TENANT, write) == 2


@pytest.mark.asyncio
async def test_only_the_write_that_was_verified_is_dropped(
    journal: Journal, redis_server: RedisServer
) -> None:
    await append(journal, TENANT, written(TENANT, memory()))
    verified = list((await pending(journal)).values())
    await append(journal, TENANT, erased(TENANT, memory()), -1)
    assert await journal.drop(verified, 0.0) == set()
    (left,) = (await pending(journal)).values()
    assert left.sequence == 2
    assert await journal.drop([left], 3600.0) == {left.key}
    assert await journal.drop([left], 0.0) == set()
    assert await pending(journal) == {}
    assert redis_server.client.hget(STATE, "bytes") == b"0"


@pytest.mark.asyncio
async def test_a_full_journal_refuses_with_a_time_to_wait(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "MAX_ENTRIES", 2)
    for number in range(2):
        await append(journal, TENANT, written(TENANT, memory(f"m{number}")))
    with pytest.raises(JournalFull) as full:
        await append(journal, TENANT, written(TENANT, memory("m3")))
    assert full.value.retry_after_s > 0
    monkeypatch.setattr(journal_module, "MAX_BYTES", 4096)
    with pytest.raises(JournalFull):
        await append(journal, TENANT, written(TENANT, memory("m1", "x" * 8000)), 0)
    assert await journal.counts(TENANT) == {"notes": 2}


@pytest.mark.asyncio
async def test_counts_are_taken_over_once_however_many_namespaces_there_are(journal: Journal) -> None:
    counts = {(tenant_key(f"t{number % 7}"), f"n{number}"): number for number in range(20_000)}
    held: dict[str, list[NamespaceUsage]] = {}
    for (tenant, name), memories in counts.items():
        held.setdefault(tenant, []).append(NamespaceUsage(name, memories, memories, 9 * memories))
    assert not (await journal.totals()).is_counted
    await journal.take_over(held)
    await journal.take_over(held)
    totals = await journal.totals()
    assert (totals.memories, totals.is_counted) == (sum(range(20_000)), True)
    assert (await journal.counts("t3"))["n10"] == 10
    found = {
        (tenant, name): n async for tenant, names in journal.all_namespaces() for name, n in names.items()
    }
    assert found == counts


@pytest.mark.asyncio
async def test_whether_the_registry_syncs_every_write_is_known(own_redis_server: RedisServer) -> None:
    journal = Journal(own_redis_server.url, Quotas())
    assert await journal.syncs_every_write() is False
    own_redis_server.start_durably()
    assert await journal.syncs_every_write() is True
    own_redis_server.stop()
    with pytest.raises(RegistryUnavailable):
        await journal.syncs_every_write()
    await journal.close()


@pytest.mark.asyncio
async def test_a_tenant_has_a_quota_of_memories_and_of_namespaces(redis_server: RedisServer) -> None:
    journal = Journal(redis_server.url, Quotas(memories=2, namespaces=2))

    async def remember(name: str, namespace: str = "notes", tenant: str = TENANT) -> int | None:
        write = written(tenant, replace(memory(name), namespace=namespace))
        return await append(journal, tenant, write)

    await remember("m1")
    await remember("m2", "others")
    with pytest.raises(
        QuotaReached,
        match=r"memories of the tenant: the quota of 2 is reached \(setting max_memories_per_tenant\)",
    ):
        await remember("m3")
    assert await remember("m1", tenant="another") is not None
    await append(journal, TENANT, erased(TENANT, memory()), -1)
    with pytest.raises(QuotaReached, match="namespaces of the tenant: the quota of 2"):
        await remember("m3", "third")
    assert await remember("m3") is not None
    assert await journal.counts(TENANT) == {"notes": 1, "others": 1}
    await journal.close()


@pytest.mark.asyncio
async def test_many_writes_are_one_call_and_each_has_its_own_outcome(journal: Journal) -> None:
    writes = [written(TENANT, memory(f"m{number}")) for number in range(5)]
    await append(journal, TENANT, written(TENANT, memory("m3")))
    look = await journal.look(writes[0].key, TENANT, "notes")
    drafts = [draft(write, look) for write in writes]
    owner = tenant_key(TENANT)
    assert await journal.append_many(owner, drafts, look.last_sequence, together=True) == [None] * 5
    outcomes = await journal.append_many(owner, drafts, look.last_sequence)
    assert outcomes == [2, 3, 4, None, 5]
    assert await journal.counts(TENANT) == {"notes": 5}
    (usage,) = await journal.usage(TENANT)
    assert (usage.memories, usage.records) == (5, 5)
    assert usage.bytes == sum(growth(None, write.record).bytes for write in writes)
    with pytest.raises(ValueError, match="1 to 128"):
        await journal.append_many(owner, [], 0)


@pytest.mark.asyncio
async def test_a_full_journal_refuses_some_writes_of_a_call(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "MAX_ENTRIES", 2)
    writes = [written(TENANT, memory(f"m{number}")) for number in range(4)]
    look = await journal.look(writes[0].key, TENANT, "notes")
    drafts = [draft(write, look) for write in writes]
    outcomes = await journal.append_many(tenant_key(TENANT), drafts, look.last_sequence)
    assert [type(outcome) for outcome in outcomes] == [int, int, JournalFull, JournalFull]
    assert (await journal.totals()).memories == 2


@pytest.mark.asyncio
async def test_what_memserve_0_1_0_left_is_read_and_counted(
    journal: Journal, redis_server: RedisServer
) -> None:
    """The bytes are those that 0.1.0 wrote."""
    write = written(TENANT, memory())
    fields = {
        "tenant_key": write.tenant_key, "namespace": "notes", "author": "x",
        "memory": {"memory_id": "m1", "namespace": "notes", "text": "a text\nof two lines", "source": "s",
                   "keywords": ["k", "l"], "created_s": 1234.5},
    }  # fmt: skip
    put_entry = b"1 1000.5 " + json.dumps(fields).encode() + b"\n" + VECTOR.tobytes()
    gone = {"tenant_key": write.tenant_key, "namespace": "notes", "author": "y", "memory": None}
    redis = redis_server.client
    redis.hset(PENDING, write.key, put_entry)
    redis.hset(PENDING, "0" * 64, b"2 1000.5 " + json.dumps(gone).encode() + b"\n")
    redis.hset(STATE, mapping={"sequence": 2, "memories": 7, "bytes": 4000, "counted": 1})
    redis.sadd(journal_module.TENANTS, write.tenant_key)
    redis.hset(journal_module.COUNTS + write.tenant_key, mapping={"notes": 7, "empty": 0})
    assert not (await journal.totals()).is_counted
    await journal.upgrade()
    await journal.upgrade()
    totals = await journal.totals()
    assert (totals.is_counted, totals.memories, totals.records) == (True, 7, 7)
    usage = {
        used.namespace: (used.memories, used.records, used.bytes) for used in await journal.usage(TENANT)
    }
    assert usage == {"notes": (7, 7, 7 * 2048), "empty": (0, 0, 0)}
    writes = await pending(journal)
    kept, removed = writes[write.key], writes["0" * 64]
    assert removed.record is None and kept.record is not None
    assert kept.memory == replace(memory(), updated_s=1234.5)
    assert kept.record.vector is not None and kept.record.vector.tolist() == VECTOR.tolist()
    assert await journal.drop([kept, removed], 0.0) == set()
