"""What a gateway remembers of its last routing decisions."""

from __future__ import annotations

import grpc
import pytest
import pytest_asyncio

from memserve.client import AsyncClient, CallFailed
from memserve.domain import RecallOutcome, Route
from memserve.errors import RequestNotKnown
from memserve.gateway.decisions import ANSWERED, UNDER_WAY, Decisions
from tests.gateway.fixtures import StartGateway
from tests.gateway.running import RunningGateway


def route(request_id: str) -> Route:
    return Route(request_id, "tiny", "w0", "why", 1.0, 10, 0, (), RecallOutcome.NOT_ASKED, ())


def test_the_newest_are_kept_each_for_its_own_tenant() -> None:
    decisions = Decisions(kept=2)
    for name in ("a", "b", "c"):
        decisions.routed("t", route(name))
    assert decisions.explain("t", "c").outcome == UNDER_WAY
    decisions.ended("c", "the worker failed")
    decisions.ended("a", "too late to tell")
    assert decisions.explain("t", "c").outcome == "the worker failed"
    for tenant, request_id in (("t", "a"), ("other", "c"), ("t", "never")):
        with pytest.raises(RequestNotKnown, match="last 2 requests"):
            decisions.explain(tenant, request_id)
    assert len(decisions) == 2


@pytest_asyncio.fixture
async def gateway(start_gateway: StartGateway) -> RunningGateway:
    return await start_gateway(workers=[{}, {}])


@pytest_asyncio.fixture
async def client(gateway: RunningGateway) -> AsyncClient:
    return gateway.client


async def test_an_answer_is_explained_term_by_term(gateway: RunningGateway, client: AsyncClient) -> None:
    answer = await client.generate("hello there", max_tokens=3)
    found = await client.explain(answer.route.request_id)
    assert (found.outcome, found.usage, found.route) == (ANSWERED, answer.usage, answer.route)
    assert {each.worker_id for each in found.route.candidates} == set(gateway.parts.pool.workers)
    chosen = next(each for each in found.route.candidates if each.worker_id == answer.route.worker_id)
    assert chosen.ttft_ms == pytest.approx(answer.route.predicted_ttft_ms)
    assert chosen.prefill_ms > 0
    status = await client.status()
    assert status.forecast_mape > 0


async def test_workers_that_could_not_answer_are_told_with_the_reason(
    gateway: RunningGateway, client: AsyncClient
) -> None:
    answer = await client.generate("hello there", max_tokens=3, worker_id="w1")
    assert [(each.worker_id, each.reason) for each in answer.route.excluded] == [
        ("w0", "another worker was asked for")
    ]
    assert [each.worker_id for each in answer.route.candidates] == ["w1"]


async def test_a_request_that_is_not_known_is_not_found(client: AsyncClient) -> None:
    for request_id, code in (
        ("0" * 32, grpc.StatusCode.NOT_FOUND),
        ("", grpc.StatusCode.INVALID_ARGUMENT),
        ("x" * 65, grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(CallFailed) as refusal:
            await client.explain(request_id)
        assert refusal.value.code is code


@pytest.mark.parametrize("policy", ["round_robin", "session_hash", "least_harm"])
async def test_the_policy_is_a_setting(start_gateway: StartGateway, policy: str) -> None:
    gateway = await start_gateway(workers=[{}, {}], routing_policy=policy)
    workers = [
        (await gateway.client.generate(f"hello {number}", max_tokens=2, session="s")).route
        for number in range(4)
    ]
    used = [route.worker_id for route in workers]
    assert workers[0].reason.startswith(policy.replace("_", " "))
    if policy == "round_robin":
        assert used[0] == used[2] != used[1] == used[3]
    if policy == "session_hash":
        assert len(set(used)) == 1
