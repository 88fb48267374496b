"""How calls fail, and how they end early."""

from __future__ import annotations

import asyncio
import pickle
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from memserve.client import AsyncClient, CallFailed, Client, Route, UsageError, wait_until_ready
from memserve.client.endpoint import CHANNEL_OPTIONS
from memserve.client.uploads import CHUNK_BYTES
from memserve.pb.v1 import module_pb2
from tests.client.examples import ANSWER_PB, DELTAS_PB, ROUTE_PB
from tests.client.stub_gateway import TIMEOUT_S, Call, Refusal, StubGateway, blocking_call

REFUSED = Refusal(
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    "too much",
    (("memserve-field", "text"), ("retry-after-s", "1.5")),
)


def hang(stub: StubGateway) -> threading.Event:
    """Makes the stub's answers hang after their first event, until what is returned is set."""
    released = threading.Event()

    class Hanging(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield ROUTE_PB
            released.wait(TIMEOUT_S)

    stub.replies["Generate"] = Hanging()
    return released


@pytest.mark.parametrize("name", ["remember", "generate"])
def test_a_failure_names_the_field_and_the_time_to_wait(name: str, ask: Call, stub: StubGateway) -> None:
    stub.replies = {"Remember": [REFUSED], "Generate": [ROUTE_PB, REFUSED]}
    with pytest.raises(CallFailed) as failed:
        ask(name, *(("n", "t") if name == "remember" else ("q",)))
    failure = failed.value
    assert (failure.code, failure.detail) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")
    assert (failure.field, failure.retry_after_s) == ("text", 1.5)
    assert str(failure) == "RESOURCE_EXHAUSTED: too much"
    copy = pickle.loads(pickle.dumps(failure))
    assert (copy.code, copy.field, copy.retry_after_s) == (failure.code, "text", 1.5)


def test_an_upload_that_is_refused_as_it_runs_says_why(ask: Call, stub: StubGateway, tmp_path: Path) -> None:
    """Though the next chunk is under way when the answer comes: often enough in this many uploads."""
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(4 * CHUNK_BYTES))
    stub.replies = {
        "GetUpload": [module_pb2.GetUploadResponse(received_bytes=[0, 0])],
        "PublishModule": [REFUSED],
    }
    for _ in range(200):
        with pytest.raises(CallFailed) as failed:
            ask("modules.publish", "tone", tmp_path)
        failure = failed.value
        assert (str(failure), failure.field) == ("RESOURCE_EXHAUSTED: too much", "text")


def test_a_failure_may_name_neither(ask: Call, stub: StubGateway) -> None:
    stub.replies["GetMemory"] = [Refusal(grpc.StatusCode.NOT_FOUND, "gone")]
    with pytest.raises(CallFailed) as failed:
        ask("get_memory", "n", "m")
    assert (failed.value.field, failed.value.retry_after_s) == (None, None)


def test_a_gateway_that_is_not_there_is_unavailable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(CallFailed) as failed:
            blocking_call(address)("status")
        assert failed.value.code is grpc.StatusCode.UNAVAILABLE
        assert not wait_until_ready(address, 0.1)


def test_a_gateway_that_was_away_is_found_within_a_second() -> None:
    """gRPC's own pauses between two tries to connect grow with the time that it was away."""
    options = dict(CHANNEL_OPTIONS)
    assert options["grpc.initial_reconnect_backoff_ms"] <= options["grpc.max_reconnect_backoff_ms"] <= 1000


def test_the_timeout_is_the_calls_deadline(stub: StubGateway) -> None:
    released = hang(stub)

    async def asked() -> None:
        async with AsyncClient(stub.address, timeout_s=0.3) as client:
            await client.generate("q")

    with Client(stub.address, timeout_s=0.3) as client:
        for call in (lambda: client.generate("q"), lambda: asyncio.run(asked())):
            with pytest.raises(CallFailed) as failed:
                call()
            assert failed.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    released.set()


def test_a_stream_can_be_closed_before_its_end(stub: StubGateway) -> None:
    stub.replies["Generate"] = [ROUTE_PB, *DELTAS_PB * 1000]

    async def first() -> Any:
        async with AsyncClient(stub.address, timeout_s=TIMEOUT_S) as client:
            stream = client.stream("q")
            event = await anext(stream)
            await stream.aclose()
            return event

    with Client(stub.address, timeout_s=TIMEOUT_S) as client:
        stream = client.stream("q")
        assert isinstance(next(stream), Route)
        stream.close()
        assert list(stream) == []
    assert isinstance(asyncio.run(first()), Route)


def test_cancelling_a_task_cancels_its_call(stub: StubGateway) -> None:
    released = hang(stub)

    async def cancel() -> None:
        async with AsyncClient(stub.address, timeout_s=TIMEOUT_S) as client:
            task = asyncio.create_task(client.generate("q"))
            while not stub.requests["Generate"]:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancel())
    released.set()


def test_a_closed_client_says_so(stub: StubGateway) -> None:
    client = Client(stub.address)
    client.close()
    client.close()
    for use in (
        client.status,
        client.modules.all,
        lambda: list(client.stream("q")),
        lambda: list(client.backup("b")),
    ):
        with pytest.raises(UsageError, match="closed"):
            use()

    async def asked() -> None:
        waiting = AsyncClient(stub.address)
        await waiting.close()
        await waiting.close()
        for call in (waiting.status(), waiting.generate("q"), waiting.modules.all()):
            with pytest.raises(UsageError, match="closed"):
                await call

    asyncio.run(asked())


def test_an_async_client_works_in_the_loop_that_uses_it(stub: StubGateway) -> None:
    stub.replies["Generate"] = list(ANSWER_PB)
    client = AsyncClient(stub.address, timeout_s=TIMEOUT_S)

    async def ask() -> str:
        return (await client.generate("q")).text

    async def ask_in_many() -> list[str]:
        texts = [await ask()]
        # One loop after the other, and beside this one.
        for _ in range(3):
            texts.append(await asyncio.to_thread(asyncio.run, ask()))
        texts.append(await ask())
        assert len(client._connection._stubs) <= 2
        await client.close()
        return texts

    assert asyncio.run(ask_in_many()) == [" a b"] * 5


def test_one_blocking_client_serves_many_threads(stub: StubGateway) -> None:
    stub.replies["Generate"] = list(ANSWER_PB)
    with Client(stub.address, timeout_s=TIMEOUT_S) as client, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: client.generate("q").text, range(32)))
    assert answers == [" a b"] * 32
