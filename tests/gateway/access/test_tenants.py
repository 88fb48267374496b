"""With API keys a caller is its key's tenant, and no tenant gets anything of another's."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf import message_factory

from memserve.client import AsyncClient, CallFailed
from memserve.domain import Sampling
from memserve.pb.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    memory_pb2,
    memory_pb2_grpc,
    module_pb2,
    module_pb2_grpc,
    status_pb2,
    status_pb2_grpc,
)
from tests.api.refusals import header, refused, say
from tests.contract.scripted_worker import Script
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.running import TIMEOUT_S, RunningGateway, eventually, open_gateway, publish_live, until

KEYS = {"alice-key-1": "alice", "alice-key-2": "alice", "bob-key-1": "bob"}
GREEDY = Sampling(max_tokens=2)
LONG = "the gate of the north tower opens at nine and closes at five " * 12


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps(KEYS), encoding="utf-8")
    return file


@pytest_asyncio.fixture
async def gateway(tmp_path: Path, model_dir: Path, keys_file: Path) -> AsyncIterator[RunningGateway]:
    async with open_gateway(
        tmp_path, model_dir, api_keys_file=keys_file, recall_timeout_ms=10_000
    ) as running:
        yield running


@pytest_asyncio.fixture
async def alice(gateway: RunningGateway) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(gateway.address, "alice-key-1", TIMEOUT_S) as client:
        yield client


@pytest_asyncio.fixture
async def bob(gateway: RunningGateway) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(gateway.address, "bob-key-1", TIMEOUT_S) as client:
        yield client


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(CallFailed) as failed:
        await call
    return failed.value.code


@pytest.mark.parametrize(
    "metadata",
    [(), (("authorization", ""),), (("authorization", "Bearer "),), (("authorization",
     "Bearer nobody's key"),),
     (("authorization", "alice-key-1"),), (("authorization", "Basic alice-key-1"),), (("authorization",
     "Bearer ALICE-KEY-1"),),
     (("x-api-key", "alice-key-1"),), (("authorization", "Bearer " + "k" * 4000),)],
    ids=["none", "empty", "no key", "unknown", "no scheme", "another scheme", "another case",
    "another header", "long"],
)  # fmt: skip
async def test_without_a_valid_key_no_rpc_answers(
    gateway: RunningGateway, metadata: tuple[tuple[str, str], ...]
) -> None:
    options: dict[str, Any] = {"metadata": metadata, "timeout": TIMEOUT_S}
    inference = inference_pb2_grpc.InferenceServiceStub(gateway.channel)
    memory = memory_pb2_grpc.MemoryServiceStub(gateway.channel)
    module = module_pb2_grpc.ModuleServiceStub(gateway.channel)
    calls = [
        inference.Generate(say("hello"), **options),
        inference.Generate(inference_pb2.GenerateRequest(), **options),
        memory.Remember(memory_pb2.RememberRequest(namespace="a", text="b"), **options),
        memory.GetMemory(memory_pb2.GetMemoryRequest(), **options),
        memory.Forget(memory_pb2.ForgetRequest(), **options),
        memory.Search(memory_pb2.SearchRequest(), **options),
        memory.ListNamespaces(memory_pb2.ListNamespacesRequest(), **options),
        module.PublishModule(iter([header("a", {})]), **options),
        *(
            getattr(module, method.name)(message_factory.GetMessageClass(method.input_type)(), **options)
            for method in module_pb2.DESCRIPTOR.services_by_name["ModuleService"].methods
            if method.name != "PublishModule"
        ),
        status_pb2_grpc.StatusServiceStub(gateway.channel).GetStatus(
            status_pb2.GetStatusRequest(), **options
        ),
    ]
    for call in calls:
        found = await refused(call)
        assert found.code is grpc.StatusCode.UNAUTHENTICATED
        assert "authorization: Bearer" in found.detail
    assert not gateway.workers[0].requests
    assert not (gateway.settings.modules_root / "staging").exists()


async def test_two_keys_of_a_tenant_are_one_tenant(gateway: RunningGateway, alice: AsyncClient) -> None:
    await alice.remember("notes", "a text")
    async with AsyncClient(gateway.address, "alice-key-2", TIMEOUT_S) as other:
        assert await other.namespaces() == {"notes": 1}


async def test_a_tenant_sees_nothing_of_anothers_memories(alice: AsyncClient, bob: AsyncClient) -> None:
    stored = await alice.remember("notes", "The code of Alder is 7731.", memory_id="secret")
    assert await bob.namespaces() == {}
    assert await code_of(bob.search(["notes"], "code of Alder")) is grpc.StatusCode.NOT_FOUND
    assert await code_of(bob.get_memory("notes", "secret")) is grpc.StatusCode.NOT_FOUND
    assert await code_of(bob.forget("notes", "secret")) is grpc.StatusCode.NOT_FOUND
    assert await code_of(bob.generate("code of Alder?", namespaces=["notes"])) is grpc.StatusCode.NOT_FOUND
    await bob.remember("notes", "The code of Birch is 1902.", memory_id="secret")
    assert [hit.memory.text for hit in await bob.search(["notes"], "code of Alder 7731")] == [
        "The code of Birch is 1902."
    ]
    await bob.forget("notes", "secret")
    assert await alice.get_memory("notes", "secret") == stored.memory
    assert (await alice.status()).memories == 1
    assert (await bob.status()).memories == 0


async def test_a_tenant_sees_nothing_of_anothers_modules(
    gateway: RunningGateway, alice: AsyncClient, bob: AsyncClient, tmp_path: Path
) -> None:
    shapes = gateway.parts.model.tensor_shapes()
    published = await publish_live(alice, "tone", write_files(tmp_path / "1", lora_files(shapes)))
    assert await bob.modules.all() == []
    assert [event async for event in bob.modules.audit()] == []
    assert (await bob.status()).modules == 0
    assert await code_of(bob.modules.get("tone")) is grpc.StatusCode.NOT_FOUND
    assert await code_of(bob.modules.version("tone@1")) is grpc.StatusCode.NOT_FOUND
    assert await code_of(bob.modules.rollback("tone")) is grpc.StatusCode.NOT_FOUND
    assert await code_of(bob.modules.delete("tone", 1)) is grpc.StatusCode.NOT_FOUND
    assert await code_of(bob.generate("hello", module="tone")) is grpc.StatusCode.NOT_FOUND
    assert await code_of(bob.generate("hello", module=published.digest)) is grpc.StatusCode.NOT_FOUND
    other = await publish_live(bob, "tone", write_files(tmp_path / "2", lora_files(shapes, seed=1)))
    assert other.digest != published.digest
    assert (await alice.generate("hello", module="tone", sampling=GREEDY)).route.modules[
        0
    ].digest == published.digest
    assert (await bob.generate("hello", module="tone", sampling=GREEDY)).route.modules[
        0
    ].digest == other.digest

    async def told_apart() -> bool:
        held = [set((await client.status()).workers[0].modules) for client in (alice, bob)]
        return held == [{published.digest}, {other.digest}]

    await eventually(told_apart)


async def test_tenants_have_different_salts_and_share_no_kv(
    gateway: RunningGateway, alice: AsyncClient, bob: AsyncClient
) -> None:
    await alice.generate(LONG, sampling=GREEDY)
    await until(lambda: gateway.parts.pool.index.held_blocks("w0") > 0)
    again = await alice.generate(LONG, sampling=GREEDY)
    assert again.route.expected_cached_tokens == again.usage.cached.total > 0
    others = await bob.generate(LONG, sampling=GREEDY)
    assert (others.route.expected_cached_tokens, others.usage.cached.total) == (0, 0)
    first, second, third = (request.cache_salt for request in gateway.workers[0].requests)
    assert first == second != third
    assert len(first) == len(third) == 64
    assert "alice" not in first


async def test_a_salt_in_the_metadata_changes_nothing(gateway: RunningGateway) -> None:
    metadata = (
        ("authorization", "Bearer bob-key-1"),
        ("cache-salt", "x"),
        ("tenant", "alice"),
        ("x-memserve-tenant", "alice"),
    )
    request = say("hello", sampling=inference_pb2.Sampling(max_tokens=1))
    stub = inference_pb2_grpc.InferenceServiceStub(gateway.channel)
    async for _ in stub.Generate(request, metadata=metadata, timeout=TIMEOUT_S):
        pass
    assert gateway.workers[0].requests[-1].cache_salt == gateway.access.tenant("Bearer bob-key-1").cache_salt


async def test_a_tenant_at_its_limit_leaves_room_for_another(
    tmp_path: Path, model_dir: Path, keys_file: Path
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        options = {
            "workers": [{"script": Script(hangs_after=0)}],
            "max_inflight_per_tenant": 1,
            "max_inflight": 2,
        }
        gateway = await stack.enter_async_context(
            open_gateway(tmp_path, model_dir, api_keys_file=keys_file, **options)
        )
        alice = await stack.enter_async_context(AsyncClient(gateway.address, "alice-key-1", TIMEOUT_S))
        bob = await stack.enter_async_context(AsyncClient(gateway.address, "bob-key-1", TIMEOUT_S))
        held = alice.stream("hello")
        await anext(held)
        assert await code_of(alice.generate("hello")) is grpc.StatusCode.RESOURCE_EXHAUSTED
        gateway.workers[0].script = Script()
        assert (await bob.generate("hello", sampling=GREEDY)).usage.output_tokens == 2
        await held.aclose()
