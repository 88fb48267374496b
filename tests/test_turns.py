"""Tenants take turns at what they share, and threads have a purpose."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.errors import QuotaExceeded
from memserve.turns import FairThreads, Turns, leave_one


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_tenant_with_one_call_waits_for_one_call_of_another_that_has_many() -> None:
    turns, order = Turns("calls", 1), []

    async def call(tenant: str, number: int) -> None:
        async with turns.of(tenant):
            order.append((tenant, number))
            await asyncio.sleep(0)

    noisy = [asyncio.create_task(call("noisy", number)) for number in range(20)]
    await settle()
    done = len(order)
    await call("quiet", 0)
    assert order.index(("quiet", 0)) <= done + 1
    await asyncio.gather(*noisy)
    assert [number for tenant, number in order if tenant == "noisy"] == list(range(20)), (
        "within a tenant, first come, first served"
    )


async def test_tenants_whose_calls_take_as_long_come_round_in_a_ring() -> None:
    turns, order = Turns("calls", 1, now_s=lambda: 0.0), []

    async def call(tenant: str) -> None:
        async with turns.of(tenant):
            order.append(tenant)

    await turns.take("first")
    calls = [asyncio.create_task(call(tenant)) for tenant in "aaabbbc"]
    await settle()
    turns.give("first")
    await asyncio.gather(*calls)
    assert "".join(order) == "abcabab"


async def test_a_tenant_whose_calls_take_ten_times_as_long_gets_a_tenth_as_many_turns() -> None:
    clock = [0.0]
    turns, order = Turns("calls", 1, now_s=lambda: clock[0]), []

    async def call(tenant: str, seconds: float) -> None:
        async with turns.of(tenant):
            order.append(tenant)
            await asyncio.sleep(0)
            clock[0] += seconds

    calls = [asyncio.create_task(call("noisy", 1.0)) for _ in range(20)]
    await settle()
    before = len(order)
    calls += [asyncio.create_task(call("quiet", 0.1)) for _ in range(20)]
    await asyncio.gather(*calls)
    first = order.index("quiet")
    assert first <= before + 1, "who comes anew does not wait for what others are to have"
    last = len(order) - order[::-1].index("quiet")
    assert order[first:last].count("noisy") <= 3, "20 calls of a tenth"
    assert order.count("noisy") == 20


async def test_who_was_away_has_saved_nothing_up() -> None:
    clock = [0.0]
    turns, order = Turns("calls", 1, now_s=lambda: clock[0]), []

    async def call(tenant: str) -> None:
        async with turns.of(tenant):
            order.append(tenant)
            await asyncio.sleep(0)
            clock[0] += 1.0

    await asyncio.gather(*(call("steady") for _ in range(50)))
    order.clear()
    await asyncio.gather(*(call(tenant) for tenant in ["steady"] * 6 + ["anew"] * 6))
    assert order[:8].count("steady") >= 3


async def test_a_free_place_goes_to_the_tenant_that_holds_the_fewest() -> None:
    turns = Turns("calls", 3, now_s=lambda: 0.0)
    for tenant in ("a", "a", "b"):
        await turns.take(tenant)
    waiting = {tenant: asyncio.create_task(turns.take(tenant)) for tenant in ("a", "b")}
    await settle()
    turns.give("a")  # a and b hold one each; a came first
    await settle()
    assert (waiting["a"].done(), waiting["b"].done()) == (True, False)
    turns.give("a")
    await settle()
    assert waiting["b"].done()


async def test_a_place_stays_free_for_others_when_the_share_says_so() -> None:
    turns = Turns("calls", 2, share=leave_one)
    await turns.take("noisy")
    second = asyncio.create_task(turns.take("noisy"))
    await settle()
    assert not second.done()
    await asyncio.wait_for(turns.take("quiet"), 5)
    turns.give("noisy")
    await second


async def test_a_single_place_can_be_held_whatever_the_share() -> None:
    async with Turns("calls", 1, share=leave_one).of("only"):
        pass


async def test_the_share_counts_tenants_that_were_here_lately_and_no_others() -> None:
    clock = [0.0]
    asked: list[int] = []

    def share(places: int, tenants: int) -> int:
        asked.append(tenants)
        return places

    turns = Turns("calls", 8, share=share, now_s=lambda: clock[0])
    for tenant in ("a", "b"):
        async with turns.of(tenant):
            pass
    assert asked[-1] == 2
    clock[0] = 11.0
    async with turns.of("a"):
        assert asked[-1] == 1


async def test_too_many_that_wait_are_refused_and_the_others_keep_their_turn() -> None:
    turns = Turns("calls", 1, waiting_per_tenant=2)
    await turns.take("noisy")
    waiting = [asyncio.create_task(turns.take("noisy")) for _ in range(2)]
    await settle()
    with pytest.raises(QuotaExceeded, match="calls that wait for tenant noisy: the limit of 2"):
        await turns.take("noisy")
    quiet = asyncio.create_task(turns.take("quiet"))
    await settle()
    turns.give("noisy")
    await settle()
    assert quiet.done() != waiting[0].done()
    for _ in range(3):
        turns.give("quiet" if quiet.done() and turns._held["quiet"] else "noisy")
        await settle()
    assert turns.held == 0
    assert turns.waiting("noisy") == 0


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["call", "cancel", "cancel at once", "step"])),
        max_size=60,
    )
)
def test_whatever_is_cancelled_no_place_is_lost_or_given_twice(steps: list[tuple[str, str]]) -> None:
    async def run() -> None:
        turns = Turns("calls", 2, share=leave_one, waiting_per_tenant=100)
        inside = 0
        calls: list[tuple[str, asyncio.Task[None]]] = []

        async def call(tenant: str) -> None:
            nonlocal inside
            async with turns.of(tenant):
                inside += 1
                assert inside <= 2
                try:
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                finally:
                    inside -= 1

        for tenant, step in steps:
            if step == "call":
                calls.append((tenant, asyncio.create_task(call(tenant))))
            elif step == "step":
                await asyncio.sleep(0)
            else:
                task = next((task for name, task in calls if name == tenant and not task.done()), None)
                if task is not None:
                    task.cancel()
                    if step == "cancel":
                        await asyncio.sleep(0)
        for result in await asyncio.gather(*(task for _, task in calls), return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError)
        assert (turns.held, len(turns._waiting)) == (0, 0)

    asyncio.run(run())


async def test_a_stalled_call_of_one_tenant_leaves_a_thread_to_the_others() -> None:
    threads = FairThreads("tests", 2, share=leave_one)
    stall, ran = threading.Event(), []
    stalled = [asyncio.create_task(threads.run("noisy", stall.wait)) for _ in range(5)]
    await settle()
    await asyncio.wait_for(threads.run("quiet", lambda: ran.append("quiet")), 5)
    assert ran == ["quiet"]
    stall.set()
    await asyncio.gather(*stalled)
    threads.close(wait=True)


async def test_work_that_has_begun_keeps_its_turn_when_its_caller_goes() -> None:
    threads = FairThreads("tests", 1)
    stall, ran = threading.Event(), []
    begun = asyncio.create_task(threads.run("a", stall.wait))
    await settle()
    behind = asyncio.create_task(threads.run("a", lambda: ran.append("never")))
    await settle()
    begun.cancel()
    behind.cancel()
    await asyncio.gather(begun, behind, return_exceptions=True)
    assert threads.turns.held == 1, "the thread is still at it"
    stall.set()
    await asyncio.wait_for(threads.run("a", lambda: ran.append("after")), 5)
    assert ran == ["after"]
    threads.close(wait=True)


async def test_what_fails_on_a_thread_fails_for_its_caller_and_gives_its_turn_back() -> None:
    threads = FairThreads("tests", 1)
    with pytest.raises(ZeroDivisionError):
        await threads.run("a", lambda: 1 // 0)
    await asyncio.wait_for(threads.run("a", lambda: None), 5)
    threads.close(wait=True)
