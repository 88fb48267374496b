"""The client's two halves against a real gateway: the same calls, the same values, the same failures."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from memserve.client import (
    AsyncClient,
    CallFailed,
    Client,
    Event,
    FinishReason,
    Memory,
    Message,
    Module,
    ModuleKind,
    RecallOutcome,
    Role,
    Route,
    Sampling,
    Slo,
    TextDelta,
    wait_until_ready,
)
from tests.contract.scripted_worker import Script
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.running import TIMEOUT_S, RunningGateway, model_directory, open_gateway, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREEDY = Sampling(max_tokens=3)
Caller = Callable[..., Awaitable[Any]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    model = model_directory(tmp_path_factory.mktemp("model"))
    async with open_gateway(tmp_path_factory.mktemp("gateway"), model, recall_timeout_ms=10_000) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", params=["sync", "async"])
async def call(request: pytest.FixtureRequest, gateway: RunningGateway) -> AsyncIterator[Caller]:
    """Calls a method of the client by name: of Client on a thread, or of AsyncClient."""
    if request.param == "async":
        async with AsyncClient(gateway.address, timeout_s=TIMEOUT_S) as client:
            yield lambda name, *arguments, **options: attrgetter(name)(client)(*arguments, **options)
    else:
        with Client(gateway.address, timeout_s=TIMEOUT_S) as blocking:
            yield lambda name, *arguments, **options: asyncio.to_thread(
                attrgetter(name)(blocking), *arguments, **options
            )


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    """One of the test's own."""
    return f"n{zlib.crc32(request.node.name.encode())}"


async def failure_of(call: Awaitable[Any]) -> CallFailed:
    with pytest.raises(CallFailed) as failed:
        await call
    return failed.value


async def test_an_answer_is_whole_with_its_receipt(call: Caller) -> None:
    answer = await call(
        "generate", "hello", sampling=Sampling(max_tokens=3, logprobs=True), slo=Slo(ttft_ms=60_000)
    )
    assert answer.text == " t501 t502 t503"
    assert answer.token_ids == (501, 502, 503)
    assert answer.logprobs == (-0.5, -0.5, -0.5)
    assert answer.route.worker_id == "w0"
    assert answer.usage.finish_reason is FinishReason.LENGTH
    assert answer.usage.slo_met


async def test_a_conversation_is_sent_turn_by_turn(call: Caller, gateway: RunningGateway) -> None:
    talk = [
        Message(Role.SYSTEM, "Be brief."),
        Message(Role.USER, "a"),
        Message(Role.ASSISTANT, "b"),
        Message(Role.USER, "c"),
    ]
    await call("generate", talk, sampling=GREEDY)
    assert list(gateway.workers[0].requests[-1].token_ids) == gateway.parts.tokenizer.encode(talk)


async def test_memories_are_remembered_found_used_and_forgotten(call: Caller, namespace: str) -> None:
    remembered = await call(
        "remember",
        namespace,
        "The code of Alder is 7731.",
        source="book",
        keywords=["alder"],
        memory_id="m:1",
    )
    stored = remembered.memory
    assert (remembered.created, remembered.findings, remembered.surprise) == (True, (), None)
    assert stored == Memory(
        "m:1",
        namespace,
        "The code of Alder is 7731.",
        "book",
        ("alder",),
        stored.created_s,
        updated_s=stored.created_s,
        author=stored.author,
    )
    assert await call("get_memory", namespace, "m:1") == stored
    (hit,) = await call("search", [namespace], "code of Alder")
    assert hit.memory == stored
    assert hit.dense_score is not None
    assert hit.bm25_score is not None
    answer = await call(
        "generate", "What is the code of Alder?", namespaces=[namespace], recall_limit=1, sampling=GREEDY
    )
    assert answer.route.recall_outcome is RecallOutcome.FOUND
    assert [passage.memory for passage in answer.route.passages] == [stored]
    assert (await call("namespaces"))[namespace] == 1
    await call("forget", namespace, "m:1")
    assert (await failure_of(call("get_memory", namespace, "m:1"))).code is grpc.StatusCode.NOT_FOUND
    assert await call("search", [namespace], "code of Alder") == []


async def test_modules_are_published_listed_and_used(
    call: Caller, gateway: RunningGateway, namespace: str, tmp_path: Path
) -> None:
    folder = write_files(
        tmp_path / "lora", {**lora_files(gateway.parts.model.tensor_shapes()), "README.md": b"not sent"}
    )
    progress: list[tuple[int, int]] = []
    version = await call(
        "modules.publish", namespace, folder, progress=lambda sent, total: progress.append((sent, total))
    )
    assert (version.module, version.version, version.kind, version.rank, version.target_modules) == (
        namespace,
        1,
        "lora",
        4,
        ("q_proj",),
    )
    assert progress[-1][0] == progress[-1][1] > 0
    assert version.moves_logits
    assert await call("modules.version", f"{namespace}@1") == version
    assert await call("modules.publish", namespace, folder, expected_digest=version.digest) == version
    alias = await call("modules.promote", namespace, 1, expected_revision=0)
    module = await call("modules.get", namespace)
    assert module == Module(namespace, ModuleKind.LORA, 1, 1, (alias,))
    assert module in await call("modules.all")
    answer = await call("generate", "hello", module=namespace, sampling=GREEDY)
    assert [(used.name, used.version, used.digest) for used in answer.route.modules] == [
        (namespace, 1, version.digest)
    ]


async def test_a_folder_without_its_files_fails_before_a_byte_is_sent(call: Caller, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json"):
        await call("modules.publish", "nothing", tmp_path)


async def test_status_tells_of_workers_and_stores(call: Caller, gateway: RunningGateway) -> None:
    status = await call("status")
    assert (status.model, status.redis_ok, status.vector_store_ok, status.max_context_tokens) == (
        "tiny-demo",
        True,
        True,
        8192,
    )
    assert [(worker.worker_id, worker.address, worker.ready) for worker in status.workers] == [
        ("w0", gateway.workers[0].address, True)
    ]


async def test_a_failure_names_the_field_and_the_time_to_wait(call: Caller) -> None:
    failure = await failure_of(call("generate", "hello", sampling=Sampling(max_tokens=-1)))
    assert (failure.code, failure.field, failure.retry_after_s) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "sampling.max_tokens",
        None,
    )
    assert str(failure).startswith("INVALID_ARGUMENT: sampling.max_tokens: ")
    failure = await failure_of(call("generate", "hello", worker_id="nobody"))
    assert (failure.code, failure.field, failure.retry_after_s) == (grpc.StatusCode.UNAVAILABLE, None, 2.0)


async def test_the_timeout_is_the_calls_deadline(gateway: RunningGateway) -> None:
    def blocking() -> None:
        with Client(gateway.address, timeout_s=0.3) as client:
            client.generate("hello")

    gateway.workers[0].script = Script(hangs_after=1)
    cancelled = len(gateway.workers[0].cancelled)
    try:
        assert (await failure_of(asyncio.to_thread(blocking))).code is grpc.StatusCode.DEADLINE_EXCEEDED
        async with AsyncClient(gateway.address, timeout_s=0.3) as client:
            assert (await failure_of(client.generate("hello"))).code is grpc.StatusCode.DEADLINE_EXCEEDED
    finally:
        gateway.workers[0].script = Script()
    await until(lambda: gateway.parts.inflight.total == 0)
    # The next test counts from here.
    await until(lambda: len(gateway.workers[0].cancelled) == cancelled + 2)


async def test_closing_a_stream_cancels_the_call(gateway: RunningGateway) -> None:
    def first_two() -> list[Event]:
        with Client(gateway.address, timeout_s=TIMEOUT_S) as client:
            stream = client.stream("hello")
            events = [next(stream), next(stream)]
            stream.close()
            return events

    gateway.workers[0].script = Script(hangs_after=1)
    cancelled = len(gateway.workers[0].cancelled)
    try:
        assert [type(event) for event in await asyncio.to_thread(first_two)] == [Route, TextDelta]
        await until(lambda: len(gateway.workers[0].cancelled) == cancelled + 1)
        async with AsyncClient(gateway.address, timeout_s=TIMEOUT_S) as client:
            heard = len(gateway.workers[0].requests)
            task = asyncio.create_task(client.generate("hello"))
            await until(lambda: len(gateway.workers[0].requests) > heard)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: len(gateway.workers[0].cancelled) == cancelled + 2)
    finally:
        gateway.workers[0].script = Script()


async def test_waiting_ends_when_so_many_workers_are_ready(gateway: RunningGateway) -> None:
    assert await asyncio.to_thread(wait_until_ready, gateway.address, TIMEOUT_S)
    assert not await asyncio.to_thread(wait_until_ready, gateway.address, 0.1, 2)


async def test_waiting_for_certain_workers_ends_when_no_others_are_seen(gateway: RunningGateway) -> None:
    async with AsyncClient(gateway.address, timeout_s=TIMEOUT_S) as client:
        [worker] = (await client.status()).workers
    assert await asyncio.to_thread(wait_until_ready, gateway.address, TIMEOUT_S, only={worker.worker_id})
    assert not await asyncio.to_thread(wait_until_ready, gateway.address, 0.1, only={"w-new"})
    assert not await asyncio.to_thread(
        wait_until_ready, gateway.address, 0.1, only={worker.worker_id, "w-new"}
    )


async def test_one_name_of_a_namespace_is_searched_and_one_keyword_is_kept(
    call: Caller, namespace: str
) -> None:
    stored = (await call("remember", namespace, "The code of Alder is 7731.", keywords="alder")).memory
    assert stored.keywords == ("alder",)
    assert [hit.memory for hit in await call("search", namespace, "alder")] == [stored]
    answer = await call(
        "generate", {"role": "user", "content": "Which code?"}, namespaces=namespace, sampling=GREEDY
    )
    assert answer.route.recall_outcome is RecallOutcome.FOUND
