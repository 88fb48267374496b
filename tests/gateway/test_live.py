"""The answers under way, with their steps."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from memserve.errors import DeadlineExceeded, Overloaded
from memserve.gateway.live import ANSWERED, CALLER_GONE, INCIDENT, STEPS, UNDER_WAY, LiveRequests, outcome_of
from tests.contract.scripted_worker import Script
from tests.gateway.asking import GREEDY, HANGS, events_of
from tests.gateway.fixtures import StartGateway
from tests.gateway.running import until


def test_a_request_says_its_step_and_the_seconds_in_each() -> None:
    live = LiveRequests()
    with live.request("a") as request:
        request.step(3)
        request.step(7)
        request.step(6)
        [state] = live.under_way("a", time.monotonic() + 5)
        assert (state.step, state.outcome, state.ended_s) == (6, UNDER_WAY, None)
        assert len(state.step_seconds) == len(STEPS) == 8
        assert state.step_seconds[5] == pytest.approx(5, abs=0.5)
        assert state.step_seconds[0] == state.step_seconds[4] == 0
        assert sum(live.by_step().values()) == live.by_step()[6] == 1
    assert live.under_way("a", time.monotonic()) == []
    assert [state.outcome for state in live.ended("a")] == [ANSWERED]


def test_a_tenant_sees_its_own_alone() -> None:
    live = LiveRequests()
    with live.request("a"), live.request("b"):
        assert [state.number for state in live.under_way("a", 0)] == [1]
        assert [state.number for state in live.under_way("b", 0)] == [2]
    assert [state.number for state in live.ended("b")] == [2]
    assert live.ended("c") == []


def test_what_is_kept_of_ended_requests_is_bounded() -> None:
    live = LiveRequests(ended_kept=3, tenants_kept=2)
    for tenant in ("a", "b", "a", "c", "a", "a", "a"):
        with live.request(tenant):
            pass
    assert [state.number for state in live.ended("a")] == [7, 6, 5]
    assert live.ended("b") == [], "the tenant whose request ended longest ago goes"
    assert [state.number for state in live.ended("c")] == [4]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (DeadlineExceeded(), "DeadlineExceeded"),
        (Overloaded("late", "the engines are busy", 1.0), "Overloaded: late"),
        (asyncio.CancelledError(), CALLER_GONE),
        (GeneratorExit(), CALLER_GONE),
        (ValueError("/a/path and <b>what a caller sent</b>"), INCIDENT),
    ],
)
def test_an_outcome_is_a_word_and_never_what_was_sent(error: BaseException, outcome: str) -> None:
    assert outcome_of(error) == outcome
    live = LiveRequests()
    with contextlib.suppress(type(error)), live.request("a"):
        raise error
    assert [state.outcome for state in live.ended("a")] == [outcome]


async def test_the_pipeline_goes_through_its_steps(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{"script": Script(hangs_after=2)}])
    live = gateway.parts.live
    asking = asyncio.create_task(events_of(gateway.client.stream("hello", sampling=GREEDY)))
    await until(lambda: [state.step for state in live.under_way("default", time.monotonic())] == [8])
    [state] = live.under_way("default", time.monotonic())
    assert (state.worker_id, state.prompt_tokens > 0) == ("w0", True)
    assert all(state.step_seconds[step - 1] > 0 for step in range(2, 9))
    asking.cancel()
    await until(lambda: live.ended("default"))
    assert live.ended("default")[0].outcome == CALLER_GONE
    assert live.ended("default")[0].request_id == state.request_id


async def test_a_request_waits_for_its_worker_in_step_7(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{"script": HANGS}])
    live = gateway.parts.live
    asking = asyncio.create_task(events_of(gateway.client.stream("hello", sampling=GREEDY)))
    await until(lambda: [state.step for state in live.under_way("default", time.monotonic())] == [7])
    [state] = live.under_way("default", time.monotonic() + 9)
    assert state.step_seconds[6] == max(state.step_seconds) > 8
    asking.cancel()
    await until(lambda: live.ended("default"))
    assert live.ended("default")[0].step == 7
