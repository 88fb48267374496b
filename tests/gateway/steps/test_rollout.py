"""Routing while another model or limit is rolled out: each worker is asked only what it can answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memserve.domain import Route, Sampling
from tests.contract.fake_worker import FakeWorker
from tests.gateway.asking import GREEDY, UNAVAILABLE, failure_of, published
from tests.gateway.fixtures import StartGateway
from tests.gateway.running import RunningGateway, eventually, until

OTHER = {"worker_id": "new", "model_digest": "ef" * 32}


def excluded(route: Route) -> dict[str, str]:
    return {worker.worker_id: worker.reason for worker in route.excluded}


def joining(gateway: RunningGateway, **fields: Any) -> FakeWorker:
    """A worker that comes later, as one of a roll-out does."""
    return FakeWorker(gateway.redis.url, gateway.parts.model, gateway.settings.modules_root, **fields)


async def knows(gateway: RunningGateway, worker_id: str) -> None:
    workers = gateway.parts.pool.workers
    await until(lambda: worker_id in workers and workers[worker_id].connected)


async def told_of(gateway: RunningGateway, worker_id: str) -> tuple[bool, str]:
    """Whether the status says that it is ready, and what it says of it."""
    workers = (await gateway.client.status()).workers
    return next((worker.ready, worker.limits) for worker in workers if worker.worker_id == worker_id)


async def answered_by(gateway: RunningGateway, worker_id: str) -> bool:
    return (await gateway.client.generate("hello", sampling=GREEDY)).route.worker_id == worker_id


async def test_a_worker_of_another_model_is_asked_only_while_none_of_the_gateways_own_is_there(
    start_gateway: StartGateway,
) -> None:
    """New weights under the old name: new workers come and old ones go before the gateway is replaced."""
    gateway = await start_gateway(workers=[{}])
    own = gateway.workers[0]
    async with joining(gateway, **OTHER):
        await knows(gateway, "new")
        for _ in range(6):
            route = (await gateway.client.generate("hello", sampling=GREEDY)).route
            assert route.worker_id == own.worker_id
            assert "another model" in excluded(route)["new"]
        ready, limits = await told_of(gateway, "new")
        assert not ready
        assert "another model than this gateway (efefefefefef)" in limits
        await own.die()
        await eventually(lambda: answered_by(gateway, "new"))
        route = (await gateway.client.generate("hello", sampling=GREEDY)).route
        assert "another model than this gateway" in route.reason
        assert (await told_of(gateway, "new"))[0]
        await own.listen()
        await eventually(lambda: answered_by(gateway, own.worker_id))


async def test_modules_go_to_workers_of_their_own_model_only(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway(workers=[{}])
    await published(gateway, tmp_path)
    async with joining(gateway, **OTHER):
        await knows(gateway, "new")
        await gateway.workers[0].die()
        await eventually(lambda: answered_by(gateway, "new"))
        failure = await failure_of(gateway.client.generate("hello", module="tone", sampling=GREEDY))
        assert failure.code is UNAVAILABLE, "it may be answered once the roll-out goes on"


async def test_a_request_that_names_the_model_is_not_answered_by_another_one(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(workers=[{"model_name": "bigger", **OTHER}])
    name = gateway.parts.model.name
    failure = await failure_of(gateway.client.generate("hello", model=name, sampling=GREEDY))
    assert failure.code is UNAVAILABLE
    answer = await gateway.client.generate("hello", sampling=GREEDY)
    assert (answer.route.worker_id, answer.route.model) == ("new", "bigger"), "the receipt says which it was"


async def test_a_worker_with_a_shorter_context_gets_what_fits(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{"worker_id": "short", "max_context_tokens": 64}, {}])
    route = (await gateway.client.generate("hello", sampling=Sampling(max_tokens=100))).route
    assert route.worker_id == "w1"
    assert excluded(route) == {"short": "its context has 64 tokens"}
    assert not excluded((await gateway.client.generate("hello", sampling=GREEDY)).route)


async def test_the_status_says_why_a_worker_of_another_tokenizer_is_not_used(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(workers=[{}])
    async with joining(gateway, worker_id="strange", tokenizer_digest="00" * 32):
        await until(lambda: "strange" in gateway.parts.pool.refused)
        assert await told_of(gateway, "strange") == (
            False,
            "not used: it serves another tokenizer than this gateway",
        )
