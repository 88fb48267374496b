"""Modules are checked against the base model, kept by their content, and named once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from memserve.errors import InvalidField, InvalidModule, ModuleConflict, ModuleNotFound, RegistryUnavailable
from memserve.memory.parametric import CheckedLora, ModuleCatalogue, check_lora, check_module_name
from memserve.registry import Registry
from tests.gateway.lora_files import (
    CONFIG_FILE,
    LAYER,
    WEIGHTS_FILE,
    A,
    B,
    broken_files,
    lora_config,
    lora_files,
    lora_tensors,
    put_together,
    taken_apart,
    write_files,
)
from tests.kv.redis_server import RedisServer

SHAPES = {f"{LAYER}.weight": (256, 128), "model.norm.weight": (128,)}
MAX_RANK = 16
BROKEN = broken_files(SHAPES)


def checked(folder: Path, files: dict[str, bytes]) -> CheckedLora:
    return check_lora(write_files(folder, files), SHAPES, MAX_RANK)


@pytest_asyncio.fixture
async def catalogue(tmp_path: Path, own_redis_server: RedisServer) -> AsyncIterator[ModuleCatalogue]:
    registry = Registry(own_redis_server.url)
    yield ModuleCatalogue(tmp_path / "root", registry, SHAPES, MAX_RANK, 1 << 20)
    await registry.close()


async def publish(catalogue: ModuleCatalogue, tenant: str, name: str, files: dict[str, bytes], expected_digest: str = "") -> str:
    upload = catalogue.begin_upload()
    try:
        for file_name, content in files.items():
            upload.append(file_name, content)
        return (await catalogue.register(tenant, catalogue.store(upload, name, expected_digest))).digest
    finally:
        upload.discard()


def test_a_sound_module_has_its_rank_and_targets(tmp_path: Path) -> None:
    found = checked(tmp_path, lora_files(SHAPES))
    assert (found.rank, found.target_modules, len(found.digest)) == (4, ("q_proj",), 64)


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_module_is_refused_by_the_field_at_fault(tmp_path: Path, case: str) -> None:
    files, field = BROKEN[case]
    with pytest.raises(InvalidModule) as refusal:
        checked(tmp_path, files)
    printable = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in refusal.value.field)
    assert printable == field


@pytest.mark.parametrize("case", BROKEN)
def test_what_the_check_lets_through_is_what_safetensors_reads(tmp_path: Path, case: str) -> None:
    folder = write_files(tmp_path, BROKEN[case][0])
    try:
        check_lora(folder, SHAPES, MAX_RANK)
    except InvalidModule:
        return
    load_file(folder / WEIGHTS_FILE)


def test_the_digest_is_of_the_content_not_of_the_files_form(tmp_path: Path) -> None:
    files = lora_files(SHAPES)
    header, body = taken_apart(files[WEIGHTS_FILE])
    reordered = put_together({"__metadata__": {"format": "pt"}, B: header[B], A: header[A]}, body)
    config = json.dumps({"lora_dropout": 0.1, **json.loads(lora_config())}, indent=2).encode()
    assert checked(tmp_path / "1", files).digest == checked(tmp_path / "2", {CONFIG_FILE: config, WEIGHTS_FILE: reordered}).digest


@pytest.mark.parametrize("change", ["weight", "alpha", "rslora", "dtype"])
def test_what_changes_the_answer_changes_the_digest(tmp_path: Path, change: str) -> None:
    tensors = lora_tensors(SHAPES)
    config = lora_config()
    match change:
        case "weight":
            tensors[A][0, 0] += 1
        case "alpha":
            config = lora_config(lora_alpha=16)
        case "rslora":
            config = lora_config(use_rslora=True)
        case "dtype":
            tensors = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    changed = {CONFIG_FILE: config, WEIGHTS_FILE: save(tensors)}
    assert checked(tmp_path / "1", lora_files(SHAPES)).digest != checked(tmp_path / "2", changed).digest


def test_the_kept_config_says_nothing_that_was_not_checked(tmp_path: Path) -> None:
    config = lora_config(auto_mapping={"evil": 1}, base_model_name_or_path="../../etc/passwd", revision="x", target_modules=["all"])
    kept = json.loads(checked(tmp_path, {**lora_files(SHAPES), CONFIG_FILE: config}).config)
    assert set(kept) == {
        "base_model_name_or_path", "bias", "lora_alpha", "peft_type", "r", "target_modules", "task_type", "use_rslora"
    }  # fmt: skip
    assert (kept["base_model_name_or_path"], kept["target_modules"]) == ("", ["q_proj"])


@pytest.mark.parametrize("name", ["a", "0", "tone-v1.2_b", "a" * 64])
def test_a_plain_name_is_fine(name: str) -> None:
    check_module_name("name", name)


@pytest.mark.parametrize("name", ["", "A", ".a", "-a", "a/b", "../a", "a b", "a\n", "é", "a" * 65, "a'", 'a"', "a\0"])
def test_any_other_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidField):
        check_module_name("name", name)


@pytest.mark.parametrize("name", ["", ".", "../adapter_config.json", "/etc/passwd", "adapter_model.bin", "ADAPTER_CONFIG.JSON"])
def test_a_file_that_does_not_belong_to_a_module_is_not_written(catalogue: ModuleCatalogue, name: str) -> None:
    upload = catalogue.begin_upload()
    with pytest.raises(InvalidModule, match="not part of a LoRA"):
        upload.append(name, b"x")
    assert list(upload.folder.iterdir()) == []


def test_an_upload_is_stopped_at_its_limit(catalogue: ModuleCatalogue) -> None:
    upload = catalogue.begin_upload()
    upload.append(WEIGHTS_FILE, bytes(1 << 20))
    with pytest.raises(InvalidModule, match="at most 1048576 bytes"):
        upload.append(CONFIG_FILE, b"x")
    upload.discard()
    assert not upload.folder.exists()


async def test_a_gateway_without_base_weights_takes_no_upload(tmp_path: Path, redis_server: RedisServer) -> None:
    registry = Registry(redis_server.url)
    with pytest.raises(InvalidModule, match="no base model weights"):
        ModuleCatalogue(tmp_path, registry, {}, MAX_RANK, 1 << 20).begin_upload()
    await registry.close()


async def test_a_published_module_lies_under_its_digest_readable_and_complete(catalogue: ModuleCatalogue, tmp_path: Path) -> None:
    digest = await publish(catalogue, "alice", "tone", lora_files(SHAPES))
    kept = tmp_path / "root" / "modules" / digest
    assert sorted(file.name for file in kept.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    assert set(load_file(kept / WEIGHTS_FILE)) == {A, B}
    assert checked(kept, {}).digest == digest
    assert (await catalogue.resolve("alice", "tone")).digest == digest


async def test_publishing_the_same_content_again_gives_the_first_module(catalogue: ModuleCatalogue) -> None:
    files = lora_files(SHAPES)
    await publish(catalogue, "alice", "tone", files)
    first = await catalogue.resolve("alice", "tone")
    await publish(catalogue, "alice", "tone", files)
    assert await catalogue.resolve("alice", "tone") == first


async def test_other_content_under_a_taken_name_is_a_conflict_and_changes_nothing(catalogue: ModuleCatalogue) -> None:
    digest = await publish(catalogue, "alice", "tone", lora_files(SHAPES))
    with pytest.raises(ModuleConflict, match=digest):
        await publish(catalogue, "alice", "tone", lora_files(SHAPES, seed=1))
    assert (await catalogue.resolve("alice", "tone")).digest == digest


async def test_content_with_another_digest_than_expected_gets_no_name(catalogue: ModuleCatalogue, tmp_path: Path) -> None:
    with pytest.raises(InvalidModule, match="digest is"):
        await publish(catalogue, "alice", "tone", lora_files(SHAPES), expected_digest="0" * 64)
    assert not (tmp_path / "root" / "modules").exists()
    with pytest.raises(ModuleNotFound):
        await catalogue.resolve("alice", "tone")


async def test_a_tenants_name_means_nothing_to_another(catalogue: ModuleCatalogue) -> None:
    await publish(catalogue, "alice", "tone", lora_files(SHAPES))
    other = await publish(catalogue, "bob", "tone", lora_files(SHAPES, seed=1))
    assert (await catalogue.resolve("bob", "tone")).digest == other
    assert [module.digest for module in await catalogue.list("bob")] == [other]
    with pytest.raises(ModuleNotFound):
        await catalogue.resolve("carol", "tone")


async def test_a_module_that_safetensors_cannot_read_never_stands_in_for_a_sound_one(catalogue: ModuleCatalogue, tmp_path: Path) -> None:
    sound = lora_files(SHAPES)
    try:
        await publish(catalogue, "mallory", "trap", {**sound, WEIGHTS_FILE: sound[WEIGHTS_FILE] + b"unreadable now"})
    except InvalidModule:
        pass
    digest = await publish(catalogue, "alice", "tone", sound)
    try:
        load_file(tmp_path / "root" / "modules" / digest / WEIGHTS_FILE)
    except SafetensorError as error:
        pytest.fail(f"alice got mallory's file: {error}")


async def test_a_name_resolved_before_still_resolves_while_the_registry_is_gone(
    catalogue: ModuleCatalogue, own_redis_server: RedisServer
) -> None:
    digest = await publish(catalogue, "alice", "tone", lora_files(SHAPES))
    own_redis_server.stop()
    assert (await catalogue.resolve("alice", "tone")).digest == digest
    with pytest.raises(RegistryUnavailable):
        await catalogue.resolve("bob", "tone")
    with pytest.raises(RegistryUnavailable):
        await catalogue.list("alice")


async def test_the_same_content_published_at_once_is_one_module(catalogue: ModuleCatalogue, tmp_path: Path) -> None:
    files = lora_files(SHAPES)
    uploads = [catalogue.begin_upload() for _ in range(6)]
    for upload in uploads:
        for name, content in files.items():
            upload.append(name, content)
    stored = await asyncio.gather(*(asyncio.to_thread(catalogue.store, upload, "tone", "") for upload in uploads))
    registered = await asyncio.gather(*(catalogue.register("alice", module) for module in stored))
    for upload in uploads:
        upload.discard()
    assert len(set(registered)) == 1
    assert [folder.name for folder in (tmp_path / "root" / "modules").iterdir()] == [registered[0].digest]
    assert list((tmp_path / "root" / "staging").iterdir()) == []
