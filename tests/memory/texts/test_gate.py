"""Many calls pass a gate, and one may close it to be alone."""

import asyncio

import pytest

from memserve.memory.texts.gate import Gate


async def hold(gate: Gate, entered: asyncio.Event, leave: asyncio.Event) -> None:
    async with gate.inside():
        entered.set()
        await leave.wait()
        async with gate.inside():  # it passes again, also while somebody waits to be alone
            pass


@pytest.mark.asyncio
async def test_one_is_alone_when_all_have_left_and_others_wait_meanwhile() -> None:
    gate, entered, leave, later = Gate("calls"), asyncio.Event(), asyncio.Event(), asyncio.Event()
    leave_later = asyncio.Event()
    leave_later.set()
    first = asyncio.create_task(hold(gate, entered, leave))
    await entered.wait()
    asyncio.get_running_loop().call_later(0.05, leave.set)
    async with gate.alone(5):
        assert first.done() or leave.is_set()
        second = asyncio.create_task(hold(gate, later, leave_later))
        await asyncio.sleep(0.05)
        assert not later.is_set()
    await asyncio.gather(first, second)
    assert later.is_set()


@pytest.mark.asyncio
async def test_a_call_that_stays_keeps_the_gate_open() -> None:
    gate, entered, leave, later = Gate("calls"), asyncio.Event(), asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(hold(gate, entered, leave))
    await entered.wait()
    with pytest.raises(TimeoutError):
        async with gate.alone(0.02):
            raise AssertionError("it is not alone")
    second = asyncio.create_task(hold(gate, later, leave))
    await asyncio.wait_for(later.wait(), 5)
    leave.set()
    await asyncio.gather(first, second)
