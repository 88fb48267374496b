"""ActivationService over a real gateway and a real Redis; what a worker would store is put there by the
tests.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from memserve.client import AsyncClient, CallFailed
from memserve.demo import ADAPTERS_DIR, MODEL_DIR
from memserve.domain import Message, Role, Warmth
from memserve.kv.keys import VALUE_PREFIX, block_keys, chunk_keys, member
from memserve.kv.ledger.ledger import Ledger
from memserve.kv.ledger.records import Candidate, Owner, Settled
from memserve.memory.prefixes.memory import PINNED_SHARE
from memserve.pb.v1 import activation_pb2 as pb
from memserve.pb.v1 import activation_pb2_grpc as rpc
from memserve.pb.v1 import inference_pb2
from tests.contract.fake_worker import NAMESPACE
from tests.contract.scripted_worker import BLOCK_TOKENS
from tests.gateway.running import RunningGateway, open_gateway, publish_live
from tests.kv.conftest import servers_of
from tests.kv.redis_server import RedisServer

TEXT = "The code of Amber Lantern is 4071. " * 30
VALUE_BYTES = 500
KEYS = {"anna-key-1": "anna", "bert-key-1": "bert"}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with open_gateway(
        tmp_path, MODEL_DIR, workers=({"worker_id": "w0"}, {"worker_id": "w1"})
    ) as running:
        await running.sees(2)
        yield running


def members(gateway: RunningGateway, text: str, module_digest: str = "") -> list[str]:
    lora = (module_digest, f"modules/{module_digest}") if module_digest else None
    keys = block_keys(gateway.token_ids(text), BLOCK_TOKENS, lora=lora, cache_salt=gateway.cache_salt)
    return [member(NAMESPACE, key) for key in chunk_keys(keys, 1)]


def store(redis: RedisServer, names: Sequence[str], owner: Owner) -> None:
    """As a worker does."""
    servers = servers_of(redis)
    ledger = Ledger(servers, ttl_s=1000)
    parents = ["", *names[:-1]]
    reservation = ledger.reserve(
        [
            Candidate(name, VALUE_BYTES, parent, (n + 1) * BLOCK_TOKENS)
            for n, (name, parent) in enumerate(zip(names, parents, strict=True))
        ],
        owner,
        worth_per_use=1.0,
    )
    for name in reservation.entries:
        redis.client.set(VALUE_PREFIX + name, b"v" * VALUE_BYTES, ex=1000)
    ledger.settle((Settled.STORED, entry) for entry in reservation.entries.values())
    servers.close()


def without_probes(folder: Path) -> Path:
    """A demo adapter: its answers are not asked here."""
    return shutil.copytree(
        ADAPTERS_DIR / "harbour", folder / "adapter", ignore=shutil.ignore_patterns("probes.json")
    )


DEFAULT = Owner("default")


async def test_a_prefix_is_found_where_it_is(gateway: RunningGateway) -> None:
    names = members(gateway, TEXT)
    keys = block_keys(gateway.token_ids(TEXT), BLOCK_TOKENS, lora=None, cache_salt=gateway.cache_salt)
    store(gateway.redis, names[:5], DEFAULT)
    gateway.workers[0].log.store(keys[:4], "GPU")
    gateway.workers[0].log.store(keys[:6], "CPU")
    found = await gateway.client.activation.lookup(TEXT)
    assert found.prompt_tokens == len(gateway.token_ids(TEXT)) and found.chunk_tokens == BLOCK_TOKENS
    assert found.redis_tokens == 5 * BLOCK_TOKENS
    held = {worker.worker_id: (worker.device_tokens, worker.held_tokens) for worker in found.workers}
    assert held == {"w0": (4 * BLOCK_TOKENS, 6 * BLOCK_TOKENS), "w1": (0, 0)}


async def test_other_words_another_module_or_another_tenant_are_another_prefix(tmp_path: Path) -> None:
    keys_file = tmp_path / "keys.json"
    keys_file.write_text('{"anna-key-1": "anna", "bert-key-1": "bert"}', encoding="utf-8")
    async with open_gateway(tmp_path, MODEL_DIR, workers=({},), api_keys_file=keys_file) as gateway:
        anna, bert = (AsyncClient(gateway.address, key) for key in KEYS)
        async with anna, bert:
            salt = gateway.access.tenant("Bearer anna-key-1").cache_salt
            keys = block_keys(gateway.token_ids(TEXT), BLOCK_TOKENS, lora=None, cache_salt=salt)
            store(gateway.redis, [member(NAMESPACE, key) for key in chunk_keys(keys, 1)], Owner("anna"))
            assert (await anna.activation.lookup(TEXT)).redis_tokens == len(keys) * BLOCK_TOKENS
            assert (await anna.activation.lookup("Other " + TEXT)).redis_tokens == 0
            await publish_live(anna, "harbour", without_probes(tmp_path))
            assert (await anna.activation.lookup(TEXT, module="harbour")).redis_tokens == 0
            assert (await bert.activation.lookup(TEXT)).redis_tokens == 0
            assert (await bert.activation.evict(TEXT)).removed_chunks == 0
            assert (await bert.activation.evict_tenant()).removed_chunks == 0
            with pytest.raises(CallFailed, match="0 of its"):
                await bert.activation.pin(TEXT, 60)
            assert (await bert.activation.usage()).stored_bytes == 0
            assert (await anna.activation.usage()).stored_bytes == len(keys) * VALUE_BYTES


async def test_warming_computes_in_steps_and_tells_what_reached_redis(gateway: RunningGateway) -> None:
    text = TEXT * 9
    tokens = len(gateway.token_ids(text))
    names = members(gateway, text)
    store(gateway.redis, names, DEFAULT)  # the fake worker stores nothing
    steps = [step async for step in gateway.client.activation.warm(text)]
    assert [step.computed_tokens for step in steps] == [2048, tokens, tokens]
    assert steps[-1] == Warmth(steps[0].worker_id, tokens, tokens, len(names) * BLOCK_TOKENS, done=True)
    requests = [request for worker in gateway.workers for request in worker.requests]
    assert [len(request.token_ids) for request in requests] == [2048, tokens]
    assert all(
        request.keep and request.tenant == "default" and request.max_tokens == 1 for request in requests
    )
    assert requests[-1].cache_salt == gateway.cache_salt


async def test_warming_ends_with_the_truth_when_nothing_reaches_redis(gateway: RunningGateway) -> None:
    steps = [step async for step in gateway.client.activation.warm(TEXT, worker_id="w1")]
    assert steps[-1].done and steps[-1].stored_tokens == 0 and steps[-1].worker_id == "w1"


async def test_a_pinned_prefix_stays_until_it_is_unpinned(gateway: RunningGateway) -> None:
    names = members(gateway, TEXT)
    with pytest.raises(CallFailed, match="warm it first") as refused:
        await gateway.client.activation.pin(TEXT, 60)
    assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION
    store(gateway.redis, names, DEFAULT)
    assert await gateway.client.activation.pin(TEXT, 60) == len(names) * BLOCK_TOKENS
    assert (await gateway.client.activation.usage()).pinned_bytes == len(names) * VALUE_BYTES
    evicted = await gateway.client.activation.evict(TEXT)
    assert (evicted.removed_chunks, evicted.pinned_chunks) == (0, len(names))
    assert await gateway.client.activation.unpin(TEXT) == len(names) * BLOCK_TOKENS
    assert await gateway.client.activation.unpin(TEXT) == 0
    assert (await gateway.client.activation.evict(TEXT)).removed_chunks == len(names)
    assert (await gateway.client.activation.lookup(TEXT)).redis_tokens == 0
    assert (await gateway.client.activation.usage()).stored_bytes == 0


async def test_pins_are_limited_to_a_share_of_the_quota(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, MODEL_DIR, kv_tenant_quota_bytes=4 * VALUE_BYTES) as gateway:
        names = members(gateway, TEXT)
        assert len(names) > 4 * PINNED_SHARE
        store(gateway.redis, names, DEFAULT)
        with pytest.raises(CallFailed, match="has pinned 0 of 1000 bytes") as refused:
            await gateway.client.activation.pin(TEXT, 60)
        assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        usage = await gateway.client.activation.usage()
        assert (usage.pinned_bytes, usage.tenant_quota_bytes) == (0, 4 * VALUE_BYTES)


async def test_a_module_versions_kv_is_freed_and_no_other(gateway: RunningGateway, tmp_path: Path) -> None:
    module = await publish_live(gateway.client, "harbour", without_probes(tmp_path))
    with_module, without = members(gateway, TEXT, module.digest), members(gateway, TEXT)
    store(gateway.redis, with_module, Owner("default", module.digest))
    store(gateway.redis, without, DEFAULT)
    assert (await gateway.client.activation.lookup(TEXT, module="harbour")).redis_tokens == len(
        with_module
    ) * BLOCK_TOKENS
    assert (await gateway.client.activation.evict_module(module.digest)).removed_chunks == len(with_module)
    assert (await gateway.client.activation.lookup(TEXT, module="harbour")).redis_tokens == 0
    assert (await gateway.client.activation.lookup(TEXT)).redis_tokens == len(without) * BLOCK_TOKENS
    assert (await gateway.client.activation.evict_tenant()).removed_chunks == len(without)


async def test_without_redis_a_lookup_says_so_and_control_is_refused(gateway: RunningGateway) -> None:
    gateway.redis.stop()
    found = await gateway.client.activation.lookup(TEXT)
    assert found.redis_tokens is None and len(found.workers) == 2
    for call in (
        gateway.client.activation.usage(),
        gateway.client.activation.evict(TEXT),
        gateway.client.activation.pin(TEXT, 5),
    ):
        with pytest.raises(CallFailed, match="the KV cache does not answer") as refused:
            await call
        assert refused.value.code is grpc.StatusCode.UNAVAILABLE


def prefix(**fields: Any) -> pb.Prefix:
    user = inference_pb2.Message(role=inference_pb2.ROLE_USER, content="Hello")
    return pb.Prefix(**{"messages": [user], **fields})


USER = inference_pb2.ROLE_USER
BAD_PREFIXES = {
    "nothing": (pb.Prefix(), "INVALID_ARGUMENT", "prefix.messages"),
    "too many messages": (
        prefix(messages=[inference_pb2.Message(role=USER, content="x")] * 1001),
        "INVALID_ARGUMENT",
        "prefix.messages",
    ),
    "no role": (
        prefix(messages=[inference_pb2.Message(content="x")]),
        "INVALID_ARGUMENT",
        "prefix.messages[0].role",
    ),
    "an empty text": (
        prefix(messages=[inference_pb2.Message(role=USER, content=" ")]),
        "INVALID_ARGUMENT",
        "prefix.messages[0].content",
    ),
    "a prompt over the context": (
        prefix(messages=[inference_pb2.Message(role=USER, content="word " * 9000)]),
        "INVALID_ARGUMENT",
        "prefix.messages",
    ),
    "another model": (prefix(model="gpt"), "NOT_FOUND", None),
    "a module that is a path": (prefix(module="../etc"), "INVALID_ARGUMENT", "prefix.module"),
    "a module that does not exist": (prefix(module="nothing"), "NOT_FOUND", None),
}


@pytest.mark.parametrize("case", BAD_PREFIXES)
@pytest.mark.parametrize("call", ["LookupPrefix", "WarmPrefix", "PinPrefix", "UnpinPrefix", "EvictPrefix"])
async def test_a_bad_prefix_is_refused_by_field(gateway: RunningGateway, call: str, case: str) -> None:
    given, code, field = BAD_PREFIXES[case]
    extra = {"duration_s": 60} if call == "PinPrefix" else {}
    await refused(gateway, call, getattr(pb, call + "Request")(prefix=given, **extra), code, field)


@pytest.mark.parametrize(
    ("call", "request_", "code", "field"),
    [
        ("PinPrefix", pb.PinPrefixRequest(prefix=prefix()), "INVALID_ARGUMENT", "duration_s"),
        ("PinPrefix", pb.PinPrefixRequest(prefix=prefix(), duration_s=-1), "INVALID_ARGUMENT", "duration_s"),
        (
            "PinPrefix",
            pb.PinPrefixRequest(prefix=prefix(), duration_s=1 << 40),
            "INVALID_ARGUMENT",
            "duration_s",
        ),
        (
            "WarmPrefix",
            pb.WarmPrefixRequest(prefix=prefix(), worker_id="w" * 65),
            "INVALID_ARGUMENT",
            "worker_id",
        ),
        ("WarmPrefix", pb.WarmPrefixRequest(prefix=prefix(), worker_id="w9"), "UNAVAILABLE", None),
        ("EvictModule", pb.EvictModuleRequest(), "INVALID_ARGUMENT", "module_digest"),
        ("EvictModule", pb.EvictModuleRequest(module_digest="*"), "INVALID_ARGUMENT", "module_digest"),
        ("EvictModule", pb.EvictModuleRequest(module_digest="AB" * 32), "INVALID_ARGUMENT", "module_digest"),
    ],
)
async def test_a_bad_field_is_refused_by_name(
    gateway: RunningGateway, call: str, request_: Any, code: str, field: str | None
) -> None:
    await refused(gateway, call, request_, code, field)


async def refused(gateway: RunningGateway, call: str, request: Any, code: str, field: str | None) -> None:
    async def ask() -> None:
        answer = getattr(rpc.ActivationServiceStub(gateway.channel), call)(request, timeout=20)
        if call == "WarmPrefix":
            assert [response async for response in answer]
        else:
            await answer

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask()
    assert caught.value.code().name == code
    assert dict(caught.value.trailing_metadata() or ()).get("memserve-field") == field
    assert await gateway.is_alive()


async def test_a_system_text_alone_is_a_prefix(gateway: RunningGateway) -> None:
    found = await gateway.client.activation.lookup([Message(Role.SYSTEM, TEXT)])
    assert found.prompt_tokens > 100
