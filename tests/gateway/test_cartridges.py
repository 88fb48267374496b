"""A request with a cartridge: its prompt, its keys, its route and its receipt."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import numpy as np
import pytest

from memserve.domain import Message, ModuleKind, ModuleVersion, Role, Sampling
from memserve.domain.worker_calls import PLACEHOLDER_TOKEN
from memserve.kv.keys import prefix_salt, prompt_keys
from memserve.memory.modules.kinds.cartridge import cartridge_files
from tests.gateway.asking import GREEDY, LONG, failure_of, published
from tests.gateway.fixtures import StartGateway
from tests.gateway.lora_files import write_files
from tests.gateway.running import RunningGateway

TOKENS = 64
PASSES = {
    "sets": [
        {
            "name": "recall",
            "kind": "recall",
            "match": "contains",
            "probes": [{"question": "What?", "answers": ["t501 t502 t503"]}],
        }
    ]
}


async def cartridge(
    gateway: RunningGateway, tmp_path: Path, name: str, seed: int = 0, *, probes: bool = False
) -> ModuleVersion:
    """Published and promoted."""
    model = gateway.parts.model
    shape = (TOKENS, model.layers, 2, model.kv_heads, model.head_size)
    kv = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    files = cartridge_files(kv, model.model_digest(), model.rope)
    if probes:
        files["probes.json"] = json.dumps(PASSES).encode()
    version = await gateway.client.modules.publish(name, write_files(tmp_path / f"{name}-{seed}", files))
    await gateway.client.modules.promote(name, version.version, force=True)
    return version


def behind(gateway: RunningGateway, text: str) -> list[int]:
    turn = gateway.parts.tokenizer.encode_behind([Message(Role.USER, text)])
    return [PLACEHOLDER_TOKEN] * TOKENS + turn


async def test_its_prompt_begins_with_placeholders_and_its_receipt_names_it(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    version = await cartridge(gateway, tmp_path, "book")
    assert (version.kind, version.prefix_tokens) == (ModuleKind.CARTRIDGE, TOKENS)
    answer = await gateway.client.generate("hello", modules="book", sampling=GREEDY)
    [seen] = gateway.workers[0].requests[-1:]
    assert list(seen.token_ids) == behind(gateway, "hello")
    assert [(each.digest, each.kind) for each in seen.modules] == [(version.digest, "cartridge")]
    [used] = answer.route.modules
    assert (used.name, used.version, used.kind) == ("book", 1, ModuleKind.CARTRIDGE)
    assert answer.usage.prompt_tokens == len(seen.token_ids)


async def test_it_leaves_the_context_that_is_left(start_gateway: StartGateway, tmp_path: Path) -> None:
    gateway = await start_gateway(max_context_tokens=160)
    await cartridge(gateway, tmp_path, "book")
    room = 160 - len(behind(gateway, "hello"))
    answer = await gateway.client.generate("hello", modules="book", sampling=Sampling(max_tokens=room))
    assert answer.usage.output_tokens == room
    over = Sampling(max_tokens=room + 1)
    failed = await failure_of(gateway.client.generate("hello", modules="book", sampling=over))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"after a prompt of {160 - room} tokens" in str(failed)
    assert f"at most {room} are left" in str(failed)


async def test_with_a_lora_both_are_in_the_keys_and_two_of_a_kind_are_refused(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    version = await cartridge(gateway, tmp_path, "book")
    await cartridge(gateway, tmp_path, "other", seed=1)
    lora = await published(gateway, tmp_path)
    answer = await gateway.client.generate("hello", module="tone", modules="book", sampling=GREEDY)
    assert {each.digest for each in answer.route.modules} == {lora, version.digest}
    failed = await failure_of(gateway.client.generate("hello", modules=["book", "other"], sampling=GREEDY))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "at most 1 of kind cartridge" in str(failed)


async def test_its_positions_count_as_cached_wherever_it_goes_and_nothing_else_does(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    await cartridge(gateway, tmp_path, "book")
    first = await gateway.client.generate(LONG, modules="book", sampling=GREEDY)
    assert first.route.expected_cached_tokens == TOKENS
    base = await gateway.client.generate(LONG, sampling=GREEDY)
    assert base.route.expected_cached_tokens == 0


async def test_an_other_tenants_or_an_other_cartridges_prompt_has_other_keys() -> None:
    from memserve.domain import KvOrigin

    token_ids = [PLACEHOLDER_TOKEN] * TOKENS + list(range(1, 65))
    origins = [KvOrigin(), KvOrigin(prefix="a" * 64), KvOrigin(prefix="b" * 64), KvOrigin("c" * 64, "a" * 64)]
    keys = [
        key
        for origin in origins
        for salt in ("one", "two")
        for key in prompt_keys(token_ids, 32, origin, salt)
    ]
    assert len(set(keys)) == len(keys)
    assert prefix_salt("one", "a" * 64) != prefix_salt("one", "b" * 64)


async def test_the_gate_asks_the_version_behind_its_positions_and_the_base_without(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    version = await cartridge(gateway, tmp_path, "book", probes=True)
    gateway.workers[0].requests.clear()
    report = await gateway.client.modules.gate("book", version.version)
    assert report.probes_digest
    asked = {bool(each.modules): list(each.token_ids) for each in gateway.workers[0].requests}
    assert asked == {True: behind(gateway, "What?"), False: gateway.token_ids("What?")}


async def test_a_prefix_behind_a_cartridge_is_not_warmed(start_gateway: StartGateway, tmp_path: Path) -> None:
    gateway = await start_gateway()
    await cartridge(gateway, tmp_path, "book")
    with pytest.raises(Exception, match="a cartridge stands before the prompt"):
        await gateway.client.activation.lookup(LONG, module="book")


async def test_a_cartridge_that_does_not_fit_is_refused_with_the_field(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    model = gateway.parts.model
    kv = np.ones((TOKENS, model.layers, 2, model.kv_heads, model.head_size), np.float32)
    files = cartridge_files(kv, model.model_digest(), {**model.rope, "rope_theta": 1.0})
    publishing = gateway.client.modules.publish("book", write_files(tmp_path / "wrong", files))
    assert "cartridge.json: rope" in str(await failure_of(publishing))
