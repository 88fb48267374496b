"""The process around the pipeline: health, reflection, metrics, the error table, starting and stopping."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import generate_latest

from memserve import errors
from memserve.api.entry import entry_of
from memserve.api.facts import WITH_RETRY, detail_of
from memserve.api.grpc.errors import STATUS, status_of, trailing_metadata
from memserve.api.grpc.front import open_front
from memserve.api.grpc.server import listen, served
from memserve.client import AsyncClient, CallFailed
from memserve.config import Settings
from memserve.domain import RefusalReason, Sampling
from memserve.errors import MemserveError, StartupError
from memserve.gateway.access.callers import load_access
from memserve.gateway.assembly import open_parts, services_of
from memserve.model.files import open_model
from tests.contract.fake_worker import SALT_KEY, FakeWorker
from tests.contract.scripted_worker import Script
from tests.gateway.fixtures import StartGateway
from tests.gateway.running import RunningGateway, eventually, until

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = [
    f"memserve.v1.{name}Service"
    for name in ("Inference", "Activation", "Memory", "Module", "Lineage", "Status")
]
GREEDY = Sampling(max_tokens=2)


async def health_of(gateway: RunningGateway, service: str) -> int:
    response = await health_pb2_grpc.HealthStub(gateway.channel).Check(
        health_pb2.HealthCheckRequest(service=service), timeout=10
    )
    return int(response.status)


async def test_health_follows_the_workers(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[])

    async def is_serving(expected: int) -> bool:
        return [await health_of(gateway, name) for name in ("", SERVICES[0])] == [expected, expected]

    await eventually(lambda: is_serving(NOT_SERVING))
    async with FakeWorker(gateway.redis.url, gateway.parts.model, gateway.settings.modules_root):
        await eventually(lambda: is_serving(SERVING))
        assert [await health_of(gateway, name) for name in SERVICES[1:]] == [SERVING] * 5
    await eventually(lambda: is_serving(NOT_SERVING))
    assert [await health_of(gateway, name) for name in SERVICES[1:]] == [SERVING] * 5, (
        "the memories need no worker"
    )


async def test_the_port_is_open_before_what_stands_behind_it_and_says_so(
    tmp_path: Path, model_dir: Path, own_redis_server: Any
) -> None:
    settings = Settings(
        data_dir=tmp_path, model=str(model_dir), redis_url=own_redis_server.url, port=0, shutdown_grace_s=0
    )

    async def health(channel: grpc.aio.Channel) -> list[int]:
        stub = health_pb2_grpc.HealthStub(channel)
        return [
            (await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)).status
            for name in ("", *SERVICES)
        ]

    async with (
        open_front(settings, SERVICES) as front,
        grpc.aio.insecure_channel(f"127.0.0.1:{front.port}") as channel,
        AsyncClient(f"127.0.0.1:{front.port}") as client,
    ):
        assert await health(channel) == [NOT_SERVING] * 7
        for call in (
            client.status(),
            client.generate("hello"),
            client.search(["notes"], "hello"),
            client.modules.all(),
        ):
            with pytest.raises(CallFailed, match="starting") as refused:
                await call
            assert refused.value.code is grpc.StatusCode.UNAVAILABLE
            assert refused.value.retry_after_s is not None
        async with open_parts(settings) as parts:
            access = load_access(settings)
            entry, services = entry_of(parts, access), services_of(parts, access)
            async with served(front, parts, entry, services):
                assert (await client.status()).model == parts.model.name
                assert (await health(channel))[2:] == [SERVING] * 5


async def test_the_status_of_the_workers_alone_counts_nothing(start_gateway: StartGateway) -> None:
    """Readiness asks it: 800 namespaces made a start fail for ever."""
    gateway = await start_gateway()
    await gateway.client.remember("notes", "The code of Alder station is 4071.")
    await gateway.sees(1)
    everything, workers = await gateway.client.status(), await gateway.client.status(workers_only=True)
    assert everything.memories == 1
    assert [worker.worker_id for worker in workers.workers if worker.ready] == [gateway.workers[0].worker_id]
    assert (workers.memories, workers.modules, workers.vector_store_ok) == (0, 0, False)


async def test_reflection_lists_the_services_and_their_files(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[])
    stub = reflection_pb2_grpc.ServerReflectionStub(gateway.channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        *(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in SERVICES),
    ]
    listed, *files = [response async for response in stub.ServerReflectionInfo(iter(requests), timeout=10)]
    names = {service.name for service in listed.list_services_response.service}
    assert names == {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert all(file.file_descriptor_response.file_descriptor_proto for file in files)


async def test_the_metrics_count_calls_tokens_and_reroutes(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{"script": Script(fails_with=grpc.StatusCode.UNAVAILABLE)}, {}])
    await gateway.client.generate("hello", sampling=GREEDY)
    with pytest.raises(CallFailed):
        await gateway.client.generate("hello", module="../evil")
    await until(
        lambda: b'code="INVALID_ARGUMENT",rpc="Generate"' in generate_latest(gateway.parts.metrics.registry)
    )
    lines = generate_latest(gateway.parts.metrics.registry).decode().splitlines()
    assert 'memserve_requests_total{code="OK",rpc="Generate"} 1.0' in lines
    assert 'memserve_requests_total{code="INVALID_ARGUMENT",rpc="Generate"} 1.0' in lines
    assert "memserve_output_tokens_total 2.0" in lines
    assert "memserve_rerouted_total 1.0" in lines
    assert "memserve_ttft_seconds_count 1.0" in lines
    assert "memserve_inflight_requests 0.0" in lines


async def test_a_cancelled_call_is_counted_as_cancelled(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(workers=[{"script": Script(hangs_after=0)}])
    stream = gateway.client.stream("hello")
    await anext(stream)
    await stream.aclose()
    await until(
        lambda: (
            b'memserve_requests_total{code="CANCELLED",rpc="Generate"} 1.0'
            in generate_latest(gateway.parts.metrics.registry)
        )
    )


async def test_stopping_lets_answers_under_way_finish(
    tmp_path: Path, model_dir: Path, own_redis_server: Any
) -> None:
    settings = Settings(
        data_dir=tmp_path,
        model=str(model_dir),
        redis_url=own_redis_server.url,
        port=0,
        salt_key=SALT_KEY,
        shutdown_grace_s=20,
    )
    worker = FakeWorker(
        own_redis_server.url, open_model(model_dir), settings.modules_root, script=Script(pause_s=0.02)
    )
    async with worker, open_parts(settings) as parts:
        serving = listen(parts, load_access(settings))
        port = await serving.__aenter__()
        await until(lambda: any(known.connected for known in parts.pool.workers.values()))
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            stream = client.stream("hello", sampling=Sampling(max_tokens=10))
            await anext(stream)
            await anext(stream)
            stopping = asyncio.create_task(serving.__aexit__(None, None, None))
            rest = [event async for event in stream]
            assert len(rest) == 10, "nine more tokens and the usage"
            await stopping
            with pytest.raises(CallFailed) as refused:
                await client.generate("hello")
            assert refused.value.code is grpc.StatusCode.UNAVAILABLE


async def test_a_gateway_without_redis_or_model_says_what_to_set(tmp_path: Path, model_dir: Path) -> None:
    for settings, rule in (
        (Settings(data_dir=tmp_path, model=str(model_dir)), "redis_url"),
        (
            Settings(data_dir=tmp_path, model=str(tmp_path / "none"), redis_url="unix:///nowhere"),
            "does not exist",
        ),
        (
            Settings(
                data_dir=tmp_path, model=str(model_dir), redis_url="unix:///nowhere", max_context_tokens=9000
            ),
            "at most 8192",
        ),
    ):
        with pytest.raises(StartupError, match=rule):
            async with open_parts(settings):
                pass


# The error table


def facts(kind: type[MemserveError] = MemserveError) -> list[type[MemserveError]]:
    return [fact for child in kind.__subclasses__() for fact in (child, *facts(child))]


def test_every_fact_that_can_reach_a_caller_has_a_status() -> None:
    # A worker has a table of its own, and what keeps a process from starting reaches no caller.
    own = {
        fact
        for fact in facts()
        if not fact.__module__.startswith("memserve.worker.") and not issubclass(fact, errors.StartupError)
    }
    assert set(STATUS) == own
    assert grpc.StatusCode.UNKNOWN not in STATUS.values()
    assert grpc.StatusCode.OK not in STATUS.values()


def test_a_fact_that_the_table_has_forgotten_is_unknown() -> None:
    assert status_of(StartupError("no")) is grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize(
    ("fact", "metadata"),
    [
        (errors.InvalidField("sampling.top_p", "rule"), (("memserve-field", "sampling.top_p"),)),
        (errors.InvalidModule("é\r\nx: y\0", "rule"), (("memserve-field", "???x: y?"),)),
        (
            errors.QuotaExceeded("answers", 2, 0.5),
            (("memserve-reason", "quota"), ("retry-after-s", "0.5")),
        ),
        (errors.NoWorker("none"), (("memserve-reason", "no_worker"), ("retry-after-s", "2"))),
        (
            errors.Overloaded("late", "too late", 1.5),
            (("memserve-reason", "late"), ("retry-after-s", "1.5")),
        ),
        (errors.ModuleNotFound("x"), ()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fact_tells_what_a_client_can_act_on_in_the_metadata(
    fact: MemserveError, metadata: tuple[tuple[str, str], ...]
) -> None:
    assert trailing_metadata(fact)[: len(metadata)] == metadata
    assert len(trailing_metadata(fact)) == len(metadata) + bool(metadata)


def rich(fact: MemserveError) -> status_pb2.Status:
    (value,) = (value for key, value in trailing_metadata(fact) if key == "grpc-status-details-bin")
    assert isinstance(value, bytes)
    return status_pb2.Status.FromString(value)


def test_a_refusal_has_its_reason_and_retry_time_as_the_richer_error_model_has_them() -> None:
    status = rich(errors.Overloaded("late", "too late", 1.5))
    assert (status.code, status.message) == (8, "too late; try again in 1.5 s")
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (info.reason, info.domain) == ("LATE", "memserve")
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (1, 500_000_000)


@pytest.mark.parametrize("field", ["sampling.top_p", "weights.\ud800"])
def test_a_field_at_fault_is_in_the_richer_error_model_too(field: str) -> None:
    status = rich(errors.InvalidField(field, "must be at most 1"))
    bad = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(bad)
    assert bad.field_violations[0].field == field.replace("\ud800", "?")
    assert "must be at most 1" in bad.field_violations[0].description


def test_every_refusal_that_may_be_tried_again_has_a_reason_that_clients_know() -> None:
    for kind in WITH_RETRY:
        if kind is not errors.Overloaded:
            assert kind.reason in tuple(RefusalReason.known())


def test_a_detail_is_one_bounded_line() -> None:
    assert detail_of(errors.ModelNotFound("x" * 100_000, "tiny")).startswith("model 'xxx")
    assert len(detail_of(errors.ModelNotFound("x" * 100_000, "tiny"))) < 2000
    assert "\n" not in detail_of(errors.ModelNotFound("a\nb", "tiny"))


async def test_a_gateway_listens_on_ipv6_too(tmp_path: Path, model_dir: Path) -> None:
    settings = Settings(data_dir=tmp_path, model=str(model_dir), host="::1", port=0)
    async with (
        open_front(settings, ["memserve.v1.Test"]) as front,
        grpc.aio.insecure_channel(f"[::1]:{front.port}") as channel,
    ):
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == NOT_SERVING
