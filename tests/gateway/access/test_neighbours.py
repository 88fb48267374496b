"""One tenant's flood leaves another its turn: at the gateway, whatever the flood is made of."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from memserve.client import AsyncClient
from memserve.domain import Sampling
from memserve.gateway.access.limits import Limits
from memserve.pb.v1 import (
    activation_pb2,
    activation_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    module_pb2,
    module_pb2_grpc,
    status_pb2,
    status_pb2_grpc,
)
from tests.api.refusals import USER, generate, refused, say
from tests.contract.scripted_worker import Script
from tests.gateway.running import TIMEOUT_S, RunningGateway, open_gateway, until

HANGS = Script(hangs_after=1)
ONE_TOKEN = Sampling(max_tokens=1)
HUGE = "word " * 780_000
NOISY, QUIET = "noisy-key", "quiet-key"
AS_NOISY = (("authorization", f"Bearer {NOISY}"),)


@pytest_asyncio.fixture
async def gateway(tmp_path: Path, model_dir: Path) -> AsyncIterator[RunningGateway]:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({NOISY: "noisy", QUIET: "quiet"}), encoding="utf-8")
    async with open_gateway(
        tmp_path, model_dir, workers=[{}, {}], api_keys_file=keys, write_timeout_s=0.5
    ) as running:
        yield running


@pytest_asyncio.fixture
async def quiet(gateway: RunningGateway) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(gateway.address, QUIET, TIMEOUT_S) as client:
        yield client


@pytest_asyncio.fixture
async def noisy(gateway: RunningGateway) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(gateway.address, NOISY, TIMEOUT_S) as client:
        yield client


async def end_of(call: Any) -> grpc.StatusCode:
    """Read what has come of a stream, and how it ended."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    return await call.code()


async def test_a_prompt_that_cannot_fit_is_refused_by_its_bytes_and_never_encoded(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[object] = []
    tokenizer = gateway.parts.tokenizer
    monkeypatch.setattr(tokenizer, "encode", encoded.append)
    monkeypatch.setattr(tokenizer, "special_token_in", encoded.append)
    prefix = activation_pb2.Prefix(messages=[inference_pb2.Message(role=USER, content=HUGE)])
    activation = activation_pb2_grpc.ActivationServiceStub(gateway.channel)
    calls = {
        "messages": [generate(gateway.channel, say(HUGE), metadata=AS_NOISY)],
        "prefix.messages": [
            activation.LookupPrefix(activation_pb2.LookupPrefixRequest(prefix=prefix), metadata=AS_NOISY),
            activation.WarmPrefix(activation_pb2.WarmPrefixRequest(prefix=prefix), metadata=AS_NOISY),
            activation.PinPrefix(
                activation_pb2.PinPrefixRequest(prefix=prefix, duration_s=1), metadata=AS_NOISY
            ),
            activation.UnpinPrefix(activation_pb2.UnpinPrefixRequest(prefix=prefix), metadata=AS_NOISY),
            activation.EvictPrefix(activation_pb2.EvictPrefixRequest(prefix=prefix), metadata=AS_NOISY),
        ],
    }
    for field, those in calls.items():
        for call in those:
            found = await refused(call)
            assert (found.code, found.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
            assert "hold 3900000 bytes together; no more than" in found.detail
    assert not encoded


async def test_a_stream_that_is_not_read_ends_and_frees_its_place(
    gateway: RunningGateway, quiet: AsyncClient
) -> None:
    # Without probing for bandwidth the window stays at 64 KiB, which the answer does not fit into.
    async with grpc.aio.insecure_channel(gateway.address, options=[("grpc.http2.bdp_probe", 0)]) as channel:
        sampling = inference_pb2.Sampling(max_tokens=7000, logprobs=True)
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        calls = [
            stub.Generate(say(f"hello {number}", sampling=sampling), metadata=AS_NOISY) for number in range(3)
        ]
        for call in calls:
            await call.read()
        await until(lambda: gateway.parts.inflight.total == 3)
        await until(lambda: gateway.parts.inflight.total == 0)
        await until(lambda: not any(worker._running for worker in gateway.workers))
        assert (await quiet.generate("hello", sampling=ONE_TOKEN)).usage.output_tokens == 1
        assert await end_of(calls[0]) is grpc.StatusCode.CANCELLED


async def test_a_watch_that_is_not_read_ends(gateway: RunningGateway) -> None:
    store = gateway.parts.modules.store
    for number in range(40):
        await store.record("noisy", "tester", "test", f"m{number}", after=json.dumps("x" * 20_000))
    unread = gateway.parts.metrics.unread_streams
    async with grpc.aio.insecure_channel(gateway.address, options=[("grpc.http2.bdp_probe", 0)]) as channel:
        call = module_pb2_grpc.ModuleServiceStub(channel).WatchModules(
            module_pb2.WatchModulesRequest(after_event_id="0-0"), metadata=AS_NOISY
        )
        await call.read()
        await until(lambda: unread._value.get() == 1)
        assert await end_of(call) is grpc.StatusCode.CANCELLED


async def test_a_stream_that_is_read_slowly_goes_on(gateway: RunningGateway, noisy: AsyncClient) -> None:
    gateway.workers[0].script = gateway.workers[1].script = Script(pause_s=0.3)
    events = [event async for event in noisy.stream("hello", sampling=Sampling(max_tokens=4))]
    assert len(events) == 6


async def test_while_two_tenants_ask_each_leaves_a_worker_to_the_other(
    gateway: RunningGateway, noisy: AsyncClient, quiet: AsyncClient
) -> None:
    first, second = gateway.workers
    first.script = second.script = HANGS

    async def hold(client: AsyncClient, count: int) -> list[AsyncIterator[object]]:
        streams = [client.stream("hello") for _ in range(count)]
        for stream in streams:
            await anext(stream)
        return streams

    def of(tenant: str) -> list[int]:
        return [sum(request.tenant == tenant for request in worker.requests) for worker in gateway.workers]

    streams = [*await hold(quiet, 1), *await hold(noisy, 12), *await hold(quiet, 3)]
    await until(lambda: sum(of("noisy")) == 12 and sum(of("quiet")) == 4)
    assert sorted(of("noisy")) == [0, 12]
    assert sorted(of("quiet")) == [0, 4]
    assert of("noisy").index(12) != of("quiet").index(4)
    assert len(streams) == 16


async def test_a_tenant_alone_has_all_workers(gateway: RunningGateway, noisy: AsyncClient) -> None:
    for worker in gateway.workers:
        worker.script = HANGS
    streams = [noisy.stream("hello") for _ in range(8)]
    for stream in streams:
        await anext(stream)
    await until(lambda: [len(worker.requests) for worker in gateway.workers] == [4, 4])


async def test_a_cache_that_has_stalled_holds_control_calls_and_no_answers(
    gateway: RunningGateway, noisy: AsyncClient, quiet: AsyncClient
) -> None:
    gateway.redis.pause()
    control = [asyncio.create_task(noisy.activation.usage()) for _ in range(20)]
    try:
        begun_s = time.monotonic()
        assert (await quiet.generate("hello", sampling=ONE_TOKEN)).usage.output_tokens == 1
        assert not any(task.done() for task in control), f"after {time.monotonic() - begun_s} s"
    finally:
        gateway.redis.resume()
        await asyncio.gather(*control, return_exceptions=True)


async def test_what_a_call_costs_counts_its_bytes(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    call = Limits.call

    def spy(self: Limits, rpc: str, tenant: str, received_bytes: int = 0) -> Any:
        sizes.append(received_bytes)
        return call(self, rpc, tenant, received_bytes)

    monkeypatch.setattr(Limits, "call", spy)
    await refused(generate(gateway.channel, say(HUGE), metadata=AS_NOISY))
    await status_pb2_grpc.StatusServiceStub(gateway.channel).GetStatus(
        status_pb2.GetStatusRequest(), metadata=AS_NOISY
    )
    assert sizes[0] > 3_900_000
    assert sizes[1] < 100


@pytest.mark.parametrize("flood", ["health", "reflection", "wrong keys"])
async def test_calls_without_a_key_have_a_pace_and_stop_nobody(
    gateway: RunningGateway, quiet: AsyncClient, flood: str
) -> None:
    async with grpc.aio.insecure_channel(gateway.address) as channel:

        async def call() -> None:
            if flood == "health":
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            elif flood == "reflection":
                asked = reflection_pb2.ServerReflectionRequest(list_services="")
                async for _ in reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                    iter([asked])
                ):
                    pass
            else:
                request = status_pb2.GetStatusRequest()
                metadata = (("authorization", "Bearer nobody's"),)
                await status_pb2_grpc.StatusServiceStub(channel).GetStatus(request, metadata=metadata)

        begun_s = time.monotonic()
        calls = [asyncio.create_task(call()) for _ in range(420)]
        assert (await quiet.generate("hello", sampling=ONE_TOKEN)).usage.output_tokens == 1
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - begun_s >= 4
        refused_for_pace = [
            each
            for each in outcomes
            if getattr(each, "code", lambda: None)() is grpc.StatusCode.RESOURCE_EXHAUSTED
        ]
        assert 0 < len(refused_for_pace) < 250
