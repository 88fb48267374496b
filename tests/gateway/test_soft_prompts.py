"""A request with a soft prompt: its prompt, its keys, its route and its receipt."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import grpc
import numpy as np

from memserve.client import CallFailed
from memserve.domain import KvOrigin, ModuleKind, ModuleVersion
from memserve.domain.worker_calls import PLACEHOLDER_TOKEN
from memserve.gateway.soft_prompts import SoftPromptRows
from memserve.gateway.steps.lookup import CacheLookup, LookedUp
from memserve.memory.modules.kinds.soft_prompt import soft_prompt_files
from tests.api.http.fixtures import http_of
from tests.contract.scripted_worker import BLOCK_TOKENS
from tests.gateway.asking import GREEDY, LONG, failure_of, published
from tests.gateway.fixtures import StartGateway
from tests.gateway.lora_files import write_files
from tests.gateway.running import RunningGateway, eventually
from tests.gateway.test_cartridges import cartridge

TOKENS = 40


async def soft_prompt(
    gateway: RunningGateway, tmp_path: Path, name: str = "style", seed: int = 0
) -> ModuleVersion:
    """Published and promoted."""
    model = gateway.parts.model
    rows = np.random.default_rng(seed).normal(size=(TOKENS, model.hidden_size)).astype(np.float32)
    files = soft_prompt_files(rows, model.model_digest())
    version = await gateway.client.modules.publish(name, write_files(tmp_path / f"{name}-{seed}", files))
    await gateway.client.modules.promote(name, version.version, force=True)
    return version


async def cached(gateway: RunningGateway, *modules: str, module: str = "") -> tuple[int, int]:
    """Tokens of LONG that the gateway expects to be cached, and that the worker had."""
    answer = await gateway.client.generate(LONG, module=module, modules=modules, sampling=GREEDY)
    return answer.route.expected_cached_tokens, answer.usage.cached.total


async def test_its_prompt_begins_with_placeholders_and_its_receipt_names_it(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    version = await soft_prompt(gateway, tmp_path)
    assert (version.kind, version.prefix_tokens) == (ModuleKind.SOFT_PROMPT, TOKENS)
    answer = await gateway.client.generate("hello", modules="style", sampling=GREEDY)
    [seen] = gateway.workers[0].requests[-1:]
    assert list(seen.token_ids)[:TOKENS] == [PLACEHOLDER_TOKEN] * TOKENS
    assert [(each.digest, each.kind) for each in seen.modules] == [(version.digest, "soft_prompt")]
    [used] = answer.route.modules
    assert (used.name, used.version, used.kind) == ("style", 1, ModuleKind.SOFT_PROMPT)
    assert answer.usage.prompt_tokens == len(seen.token_ids)
    assert answer.usage.cached.cartridge == 0


async def test_the_gateway_expects_what_its_worker_has_and_nothing_of_another_prompts(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    """The worker's keys have the embeddings from its own copy of the files."""
    gateway = await start_gateway()
    for seed, name in enumerate(("style", "other")):
        await soft_prompt(gateway, tmp_path, name, seed)
    await published(gateway, tmp_path)
    assert await cached(gateway, "style") == (0, 0)

    async def expected() -> bool:
        return (await cached(gateway, "style"))[0] > TOKENS

    await eventually(expected)
    known, had = await cached(gateway, "style")
    assert known == had
    assert had % BLOCK_TOKENS == 0
    for modules, module in ((["other"], ""), (["style"], "tone"), ([], "")):
        assert await cached(gateway, *modules, module=module) == (0, 0)


async def test_without_its_embeddings_nothing_counts_as_cached(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    version = await soft_prompt(gateway, tmp_path)
    rows = SoftPromptRows(gateway.parts.modules, gateway.parts.background)
    look_up = CacheLookup(gateway.parts.pool, gateway.parts.lookup, gateway.parts.metrics, rows)
    token_ids, tenant = [PLACEHOLDER_TOKEN] * TOKENS + list(range(60)), gateway.access.tenant("")
    known = KvOrigin("", version.digest, TOKENS, is_embedded=True)
    [found] = (await look_up(token_ids, tenant, known)).values()
    assert (len(found.keys), found.supplied_tokens) == (100 // BLOCK_TOKENS, 0)
    gone = KvOrigin("", "0" * 64, TOKENS, is_embedded=True)
    assert list((await look_up(token_ids, tenant, gone)).values()) == [LookedUp()]
    assert await rows.of("default", "0" * 64) is None


async def test_a_request_does_not_wait_for_a_store_that_hangs(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    """The read goes on behind the request, once for all, and later requests find what it has read."""
    gateway = await start_gateway()
    version = await soft_prompt(gateway, tmp_path)
    memory, ends = gateway.parts.modules, Event()
    reads: list[str] = []

    class HangingStore:
        def local(self, digest: str) -> Path:
            reads.append(digest)
            ends.wait(20)
            return memory.blobs.local(digest)

    hanging = SimpleNamespace(base=memory.base, files=memory.files, blobs=HangingStore())
    rows = SoftPromptRows(cast(Any, hanging), gateway.parts.background)
    began_s = time.monotonic()
    assert await asyncio.gather(*(rows.of("default", version.digest) for _ in range(9))) == [None] * 9
    assert time.monotonic() - began_s < 5.0
    ends.set()

    async def is_read() -> bool:
        return await rows.of("default", version.digest) is not None

    await eventually(is_read)
    assert reads == [version.digest]


async def test_beside_a_cartridge_it_is_refused_and_so_is_what_does_not_fit(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    await soft_prompt(gateway, tmp_path)
    await cartridge(gateway, tmp_path, "book")
    failed = await failure_of(gateway.client.generate("hello", modules=["book", "style"], sampling=GREEDY))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "both change the KV" in str(failed)
    files = soft_prompt_files(np.ones((8, 3), np.float32), gateway.parts.model.model_digest())
    wrong = await failure_of(gateway.client.modules.publish("style", write_files(tmp_path / "wrong", files)))
    assert "adapter_config.json: token_dim" in str(wrong)


async def test_it_is_rolled_back_and_deleted_like_a_lora(start_gateway: StartGateway, tmp_path: Path) -> None:
    gateway = await start_gateway()
    first = await soft_prompt(gateway, tmp_path)
    second = await soft_prompt(gateway, tmp_path, seed=1)
    modules = gateway.client.modules
    answers = [await gateway.client.generate("hello", modules="style", sampling=GREEDY)]
    await modules.rollback("style")
    answers.append(await gateway.client.generate("hello", modules="style", sampling=GREEDY))
    assert [answer.route.modules[0].digest for answer in answers] == [second.digest, first.digest]
    await modules.delete("style", second.version)
    gone = gateway.client.generate("hello", modules="style@2", sampling=GREEDY)
    assert isinstance(await failure_of(gone), CallFailed)
    with_prefix = gateway.client.activation.lookup(LONG, module="style")
    assert "stands before the prompt" in str(await failure_of(with_prefix))


async def test_over_http_it_is_a_model_and_one_of_memserves_modules(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    version = await soft_prompt(gateway, tmp_path)
    async with http_of(gateway) as http:
        for fields in ({"model": f"{http.model}:style"}, {"memserve": {"modules": [{"reference": "style"}]}}):
            answered = await http.chat(max_tokens=2, **fields)
            assert answered.status_code == 200, answered.text
            [used] = gateway.workers[0].requests[-1].modules
            assert (used.digest, used.kind) == (version.digest, "soft_prompt")
