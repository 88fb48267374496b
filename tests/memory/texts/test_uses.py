"""Uses and outcomes of memories, in a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from memserve.domain import Memory
from memserve.errors import RegistryUnavailable
from memserve.memory.texts import uses
from memserve.memory.texts.records import memory_key
from memserve.memory.texts.uses import Counted, UseLedger
from tests.kv.redis_server import RedisServer

NOW_S = 1_000_000.0


def memory(name: str, *, namespace: str = "n", strength: float = 1.0) -> Memory:
    return Memory(name, namespace, name, "", (), NOW_S, strength=strength, updated_s=NOW_S)


def key(name: str, tenant: str = "t", namespace: str = "n") -> str:
    return memory_key(tenant, namespace, name)


@pytest_asyncio.fixture
async def ledger(redis_server: RedisServer) -> AsyncIterator[UseLedger]:
    opened = UseLedger(redis_server.url)
    yield opened
    await opened.close()


async def counted(ledger: UseLedger, name: str, tenant: str = "t") -> Counted:
    return (await ledger.read(tenant, [memory(name)])).get(key(name, tenant), Counted())


async def test_uses_add_up_and_survive_the_process(ledger: UseLedger, redis_server: RedisServer) -> None:
    ledger.used("t", [memory("a"), memory("a"), memory("b")], NOW_S)
    await ledger.write()
    ledger.used("t", [memory("a")], NOW_S + 5)
    await ledger.close()
    other = UseLedger(redis_server.url)
    assert await counted(other, "a") == Counted(3, NOW_S + 5)
    assert await counted(other, "b") == Counted(1, NOW_S)
    await other.close()


async def test_an_outcome_moves_the_strength_of_what_was_used_and_of_nothing_else(ledger: UseLedger) -> None:
    both = [memory("right"), memory("wrong"), memory("other")]
    await ledger.record("t", "r1", [key("right")], 1.0, NOW_S)
    await ledger.record("t", "r2", [key("wrong")], 0.0, NOW_S)
    strengths = await ledger.strengths("t", both, NOW_S)
    assert strengths["n", "right"] > strengths["n", "other"] == pytest.approx(1.0)
    assert strengths["n", "wrong"] < 1.0


async def test_an_outcome_that_is_recorded_again_takes_the_place_of_the_first(ledger: UseLedger) -> None:
    await ledger.record("t", "r", [key("a"), key("b")], 1.0, NOW_S)
    await ledger.record("t", "r", [key("b")], 0.25, NOW_S)
    assert await counted(ledger, "a") == Counted(0, 0.0, 0.0, 0)
    assert await counted(ledger, "b") == Counted(0, 0.0, 0.25, 1)


async def test_tenants_with_the_same_names_do_not_meet(ledger: UseLedger) -> None:
    ledger.used("t", [memory("a")], NOW_S)
    await ledger.write()
    await ledger.record("u", "r", [key("a", "u")], 0.0, NOW_S)
    assert (await counted(ledger, "a", "t")).outcomes == 0
    assert (await counted(ledger, "a", "u")).uses == 0


async def test_what_is_erased_has_no_counts_left(ledger: UseLedger) -> None:
    await ledger.record("t", "r", [key("a")], 1.0, NOW_S)
    ledger.used("t", [memory("a")], NOW_S)
    assert await ledger.forget("t", [key("a")]) == 1
    await ledger.write()
    assert await counted(ledger, "a") == Counted()


async def test_what_waits_is_bounded(ledger: UseLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uses, "WAITING_MAX", 2)
    ledger.used("t", [memory(name) for name in "abca"], NOW_S)
    await ledger.write()
    assert [(await counted(ledger, name)).uses for name in "abc"] == [2, 1, 0]


async def test_old_outcomes_leave_and_their_rewards_stay(
    ledger: UseLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uses, "OUTCOMES_MAX", 2)
    for number in range(4):
        await ledger.record("t", f"r{number}", [key("a")], 1.0, NOW_S + number)
    assert (await counted(ledger, "a")).outcomes == 4
    await ledger.record("t", "r3", [key("a")], 0.0, NOW_S + 9)
    assert (await counted(ledger, "a")).rewards == pytest.approx(3.0)


async def test_without_the_registry_strengths_are_those_of_the_writers() -> None:
    ledger = UseLedger("redis://127.0.0.1:1/0")
    assert await ledger.strengths("t", [memory("a", strength=2.0)], NOW_S) == {("n", "a"): pytest.approx(2.0)}
    with pytest.raises(RegistryUnavailable):
        await ledger.record("t", "r", [key("a")], 1.0, NOW_S)
    await ledger.close()


async def test_the_last_read_counts_are_known_without_a_round_trip(ledger: UseLedger) -> None:
    ledger.used("t", [memory("a"), memory("a"), memory("b")], NOW_S)
    await ledger.write()
    both = [memory("a"), memory("b"), memory("c")]
    assert ledger.last_read("t", both) == {}
    await ledger.strengths("t", both, NOW_S)
    assert ledger.last_read("t", both) == {("n", "a"): 2, ("n", "b"): 1}
    assert ledger.last_read("other", both) == {}
    await ledger.forget("t", [key("a")])
    assert ledger.last_read("t", both) == {("n", "b"): 1}


async def test_the_last_read_counts_are_bounded(ledger: UseLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uses, "COUNTS_MAX", 2)
    many = [memory(name) for name in "abc"]
    ledger.used("t", many, NOW_S)
    await ledger.write()
    await ledger.read("t", many)
    assert ledger.last_read("t", many) == {("n", "b"): 1, ("n", "c"): 1}
