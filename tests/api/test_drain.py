"""A gateway that stops: it says so at once, takes calls for a while, and loses none that it has begun."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from memserve.api.drain import draining
from memserve.api.entry import entry_of
from memserve.api.grpc.connections import address_of
from memserve.api.grpc.front import open_front
from memserve.api.grpc.probes import LIVE, NOT_SERVING, READY, SERVING, open_probes
from memserve.api.grpc.server import SERVICES, served
from memserve.api.http.app import HttpApi
from memserve.api.http.server import HttpFront, answering, open_http
from memserve.client import AsyncClient, CallFailed, TextDelta
from memserve.domain import Sampling
from memserve.gateway.assembly import services_of
from memserve.pb.v1 import inference_pb2, inference_pb2_grpc, status_pb2, status_pb2_grpc
from tests.contract.scripted_worker import Script
from tests.gateway.fixtures import StartGateway
from tests.gateway.running import RunningGateway

TWO = Sampling(max_tokens=2, min_tokens=2)
RETRY: dict[str, Any] = {
    "maxAttempts": 4,
    "initialBackoff": "0.05s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


@dataclass
class Stopping:
    """A gateway's ports, over the parts of a running one. `stop` begins the stop, `stopped` ends it."""

    port: int
    http: HttpFront
    health: str
    stop: asyncio.Event
    task: asyncio.Task[None]

    async def health_of(self, service: str) -> int:
        async with grpc.aio.insecure_channel(self.health) as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            return int((await health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)).status)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def ports_of(gateway: RunningGateway, **settings: Any) -> AsyncIterator[Stopping]:
    health_port = free_port()
    chosen = gateway.settings.model_copy(
        update={"http_port": 0, "health_port": health_port, "shutdown_grace_s": 5.0, **settings}
    )
    parts, access, stop = replace(gateway.parts, settings=chosen), gateway.access, asyncio.Event()
    ready: asyncio.Future[Stopping] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        async with (
            open_probes(chosen) as probes,
            open_front(chosen, SERVICES) as front,
            open_http(chosen) as http,
        ):
            assert http is not None
            entry, services = entry_of(parts, access), services_of(parts, access)
            stopping = Stopping(front.port, http, f"127.0.0.1:{health_port}", stop, task)
            assert await stopping.health_of(LIVE) == SERVING
            assert await stopping.health_of(READY) == NOT_SERVING, "it starts"
            async with (
                served(front, parts, entry, services),
                answering(http, HttpApi(parts, services, entry).app()),
                draining(chosen, probes, front, http),
            ):
                ready.set_result(stopping)
                await stop.wait()

    task = asyncio.create_task(serve())
    await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        yield ready.result()
    finally:
        stop.set()
        await task


async def test_a_gateway_that_stops_says_so_takes_calls_for_a_while_and_finishes_streams(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(workers=[{"script": Script(pause_s=0.05)}])
    long = Sampling(max_tokens=40, min_tokens=40)
    async with ports_of(gateway, drain_delay_s=0.6) as ports:
        assert [await ports.health_of(name) for name in (LIVE, READY)] == [SERVING, SERVING]
        address = f"127.0.0.1:{ports.port}"
        async with (
            AsyncClient(address) as busy,
            AsyncClient(address) as late,
            contextlib.aclosing(busy.stream("hello", sampling=long)) as events,
        ):
            await anext(events)
            ports.stop.set()
            await asyncio.sleep(0.1)
            assert [await ports.health_of(name) for name in (LIVE, READY)] == [SERVING, NOT_SERVING]
            assert (await late.generate("hello", sampling=TWO)).usage.output_tokens == 2
            await asyncio.sleep(0.7)
            with pytest.raises(CallFailed) as refused:
                await busy.generate("hello", sampling=TWO)
            assert refused.value.code is grpc.StatusCode.UNAVAILABLE, "another gateway has to take it"
            text = [event async for event in events if isinstance(event, TextDelta)]
        assert sum(len(event.token_ids) for event in text) == 40, "what had begun is finished"
        began_s = time.monotonic()
        await ports.task
        assert time.monotonic() - began_s < 2, "nothing is left to wait for"


async def test_nobody_waits_for_a_watch_that_has_no_end(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    async with ports_of(gateway) as ports, AsyncClient(f"127.0.0.1:{ports.port}") as client:
        events = client.modules.watch()
        watching = asyncio.create_task(anext(events))
        await asyncio.sleep(0.2)
        began_s = time.monotonic()
        ports.stop.set()
        with pytest.raises(CallFailed, match="UNAVAILABLE"):
            await watching
        await ports.task
        assert time.monotonic() - began_s < 2.0


async def test_the_http_port_closes_connections_after_their_answers_while_the_gateway_stops(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    async with ports_of(gateway, drain_delay_s=0.6) as ports:
        url = f"http://127.0.0.1:{ports.http.port}"
        async with httpx.AsyncClient(base_url=url) as client:
            before = await client.get("/ready")
            assert (before.status_code, "connection" in before.headers) == (200, False)
            ports.stop.set()
            await asyncio.sleep(0.1)
            alive, ready, models = [await client.get(path) for path in ("/health", "/ready", "/v1/models")]
        assert (alive.status_code, alive.json()) == (200, {"status": "draining"})
        assert (ready.status_code, ready.headers["x-memserve-reason"]) == (503, "leaving")
        assert models.status_code == 200, "calls are taken still"
        assert {answer.headers["connection"] for answer in (alive, ready, models)} == {"close"}


async def test_no_call_fails_of_clients_that_try_again_while_one_of_two_gateways_stops(
    start_gateway: StartGateway,
) -> None:
    """gRPC's own stop ends calls that are on their way with CANCELLED, which no client sends again."""
    gateway = await start_gateway(workers=[{"script": Script(pause_s=0.02)}])
    ended: Counter[str] = Counter()
    async with ports_of(gateway) as first, ports_of(gateway) as second:
        balanced = {"loadBalancingConfig": [{"round_robin": {}}]}
        config = {**balanced, "methodConfig": [{"name": [{}], "retryPolicy": RETRY}]}
        options = [("grpc.service_config", json.dumps(config)), ("grpc.max_reconnect_backoff_ms", 500)]
        target = f"ipv4:127.0.0.1:{first.port},127.0.0.1:{second.port}"
        async with grpc.aio.insecure_channel(target, options) as channel:
            stub = status_pb2_grpc.StatusServiceStub(channel)
            stopped = asyncio.Event()

            async def ask() -> None:
                while not stopped.is_set():
                    try:
                        await stub.GetStatus(status_pb2.GetStatusRequest(workers_only=True), timeout=10)
                        ended["OK"] += 1
                    except grpc.aio.AioRpcError as error:
                        ended[f"{error.code().name} {error.details()}"] += 1

            answers = inference_pb2_grpc.InferenceServiceStub(channel)
            hello = inference_pb2.GenerateRequest(
                messages=[inference_pb2.Message(role=inference_pb2.ROLE_USER, content="hello")],
                sampling=inference_pb2.Sampling(max_tokens=50, min_tokens=50),
            )

            async def stream() -> None:
                """Answers of a second, so that no connection is ever without a call."""
                while not stopped.is_set():
                    try:
                        events = [event async for event in answers.Generate(hello, timeout=10)]
                        assert events[-1].usage.output_tokens == 50
                        ended["streamed"] += 1
                    except grpc.aio.AioRpcError as error:
                        ended[f"{error.code().name} {error.details()}"] += 1

            async with asyncio.TaskGroup() as group:
                for _ in range(8):
                    group.create_task(ask())
                    group.create_task(stream())
                await asyncio.sleep(0.5)
                first.stop.set()
                await first.task
                await asyncio.sleep(0.3)
                stopped.set()
    assert set(ended) == {"OK", "streamed"}
    assert ended["OK"] > 50


@contextlib.asynccontextmanager
async def balancer(port_of: Callable[[], int]) -> AsyncIterator[str]:
    """Leads each new connection to a port, as a Service of Kubernetes does. Gives its own host:port."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while part := await reader.read(1 << 16):
                writer.write(part)
                await writer.drain()
        writer.close()

    async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port_of())
        await asyncio.gather(copy(reader, back), copy(there, writer))

    server = await asyncio.start_server(lead, "127.0.0.1")
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_client_without_retries_moves_on_behind_a_load_balancer_while_its_stream_finishes(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(workers=[{"script": Script(pause_s=0.05)}])
    long, failed, ended = Sampling(max_tokens=80, min_tokens=80), Counter[str](), 0
    async with (
        ports_of(gateway, drain_delay_s=2.0) as first,
        ports_of(gateway) as second,
        balancer(lambda: second.port if first.stop.is_set() else first.port) as address,
        AsyncClient(address) as client,
        contextlib.aclosing(client.stream("hello", sampling=long)) as events,
    ):
        await anext(events)
        first.stop.set()
        while not first.task.done():
            try:
                await client.modules.all()
                ended += 1
            except CallFailed as error:
                failed[str(error)] += 1
            await asyncio.sleep(0.01)
        text = [event async for event in events if isinstance(event, TextDelta)]
    assert failed == Counter()
    assert ended > 50
    assert sum(len(event.token_ids) for event in text) == 80


def test_a_peer_is_known_by_its_address() -> None:
    assert address_of("ipv4:127.0.0.1:50123") == "127.0.0.1:50123"
    assert address_of("ipv6:%5B::1%5D:50123") == "[::1]:50123"
