"""Gateway to worker with certificates on both sides, and new ones while calls are under way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loadtests.harness.certificates import Trial, expired_of, new_trial
from memserve.demo import MODEL_DIR
from memserve.domain import Sampling
from memserve.domain.worker_calls import (
    BlockEvent,
    StrangeWorker,
    WorkerDied,
    WorkerFailure,
    WorkerRequest,
    WorkerState,
)
from memserve.gateway.workers.calls import GrpcCalls
from memserve.model.files import ModelFiles, open_model
from memserve.tls.live import LiveTls
from tests.contract.fake_worker import CREDENTIAL, FakeWorker
from tests.contract.scripted_worker import PLAIN, Script
from tests.kv.redis_server import RedisServer

TIMEOUT_S = 10.0


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return new_trial(tmp_path / "certs")


@pytest.fixture(scope="module")
def model() -> ModelFiles:
    return open_model(MODEL_DIR, 512)


@contextlib.asynccontextmanager
async def worker(
    redis: RedisServer, model: ModelFiles, folder: Path, tls: LiveTls | None, script: Script | None = None
) -> AsyncIterator[FakeWorker]:
    async with FakeWorker(redis.url, model, folder, tls=tls, script=script or PLAIN) as started:
        yield started


@contextlib.asynccontextmanager
async def gateway(worker: FakeWorker, tls: LiveTls | None) -> AsyncIterator[GrpcCalls]:
    calls = GrpcCalls(worker.lease, CREDENTIAL, tls)
    try:
        yield calls
    finally:
        await calls.close()


async def answer(calls: GrpcCalls) -> str:
    request = WorkerRequest("r", [1, 2, 3], "acme", "salt", Sampling(8))
    return "".join([part.text async for part in calls.generate(request, TIMEOUT_S)])


async def test_gateways_with_a_certificate_are_served_and_nobody_else(
    trial: Trial, tmp_path: Path, shared_redis_server: RedisServer, model: ModelFiles
) -> None:
    other, expired = new_trial(tmp_path / "other"), expired_of(trial, tmp_path / "expired")
    async with worker(shared_redis_server, model, tmp_path, trial.live("internal-worker")) as served:
        for who, tls, failure in (
            ("plaintext", None, WorkerDied),
            ("another authority", other.live("internal-gateway"), WorkerDied),
            ("expired", expired.live("internal-gateway"), WorkerDied),
            ("a worker's certificate", trial.live("internal-worker"), StrangeWorker),
            ("a client's", trial.live("client"), WorkerDied),
            ("Redis's", trial.live("redis"), StrangeWorker),
        ):
            async with gateway(served, tls) as calls:
                with pytest.raises(WorkerFailure) as refused:
                    await answer(calls)
                assert type(refused.value) is failure, who
                with pytest.raises(failure):
                    await calls.set_pace(0.0, TIMEOUT_S)
        assert served.requests == []
        async with gateway(served, trial.live("internal-gateway")) as calls:
            assert await answer(calls)


@pytest.mark.parametrize("part", ["internal-gateway", "redis", "none"])
async def test_a_gateway_takes_nobody_else_for_a_worker(
    trial: Trial,
    tmp_path: Path,
    shared_redis_server: RedisServer,
    model: ModelFiles,
    part: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tls = None if part == "none" else trial.live(part)
    async with (
        worker(shared_redis_server, model, tmp_path, tls) as served,
        gateway(served, trial.live("internal-gateway")) as calls,
    ):
        with caplog.at_level(logging.ERROR):
            for _ in range(3):
                with pytest.raises(WorkerDied):
                    await answer(calls)
        assert served.requests == []
        assert sum("do not accept each other's certificates" in message for message in caplog.messages) == 1


async def test_new_certificates_of_a_new_authority_fail_no_call(
    trial: Trial, tmp_path: Path, shared_redis_server: RedisServer, model: ModelFiles
) -> None:
    """An answer under way ends on the channel before. The stream of states moves, and leaves nothing out."""
    other = new_trial(tmp_path / "other")
    theirs, ours = trial.live("internal-worker"), trial.live("internal-gateway")
    async with (
        worker(shared_redis_server, model, tmp_path, theirs, Script(pause_s=0.1)) as served,
        gateway(served, ours) as calls,
    ):
        events: list[WorkerState | BlockEvent] = []

        async def watch() -> None:
            async for event in calls.watch(0, 0):
                events.append(event)

        watching = asyncio.create_task(watch())
        slow = asyncio.create_task(answer(calls))
        await until(lambda: bool(events) and bool(served.requests))
        trial.become(other)
        assert theirs.look() and ours.look()
        await until(lambda: len(served.watches) == 2)
        assert not slow.done()
        assert await slow == await answer(calls)
        assert len(calls._channels._open) == 1, "the one before is closed"
        seen = [event.sequence for event in events if isinstance(event, BlockEvent)]
        assert seen == sorted(set(seen))
        assert not watching.done()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def until(condition: object) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)
