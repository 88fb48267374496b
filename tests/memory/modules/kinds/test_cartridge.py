"""A cartridge is checked against the base model: it fits, it is finite, and it says what it belongs to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from memserve.client.uploads import kind_of_folder
from memserve.config import Settings
from memserve.demo import MODEL_DIR
from memserve.domain import ModuleKind
from memserve.errors import InvalidModule
from memserve.gateway.opening import kv_shape
from memserve.memory.modules.kinds.cartridge import (
    CONFIG_FILE,
    ORIGIN_FILE,
    PEFT_TENSOR,
    PLAIN_TENSOR,
    WEIGHTS_FILE,
    cartridge_files,
    check_cartridge,
)
from memserve.memory.modules.kinds.files import BaseModel, CheckedModule, KvShape
from memserve.memory.modules.kinds.lora import check_lora
from memserve.model.files import open_model
from tests.gateway.lora_files import write_files

ROPE = {"rope_type": "default", "rope_theta": 20_000.0}
SHAPE = KvShape(
    layers=2, kv_heads=2, head_size=8, context_tokens=256, block_tokens=32, rope=ROPE, base_digest="ab" * 32
)
BASE = BaseModel({}, vocab_size=512, max_rank=16, kv=SHAPE)
DOCUMENT = "cd" * 32


def kv_of(tokens: int = 64, layers: int = 2, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(tokens, layers, 2, 2, 8)).astype(np.float32)


def files_of(kv: Any = None, **origin: Any) -> dict[str, bytes]:
    files = cartridge_files(kv_of() if kv is None else kv, SHAPE.base_digest, ROPE, [DOCUMENT])
    return {**files, ORIGIN_FILE: json.dumps(json.loads(files[ORIGIN_FILE]) | origin).encode()}


def configured(**fields: Any) -> dict[str, bytes]:
    files = files_of()
    return {**files, CONFIG_FILE: json.dumps(json.loads(files[CONFIG_FILE]) | fields).encode()}


def weighed(**tensors: Any) -> dict[str, bytes]:
    return {**files_of(), WEIGHTS_FILE: save(tensors)}


def checked(folder: Path, files: dict[str, bytes], base: BaseModel = BASE) -> CheckedModule:
    return check_cartridge(write_files(folder, files), base)


def test_a_sound_cartridge_has_its_positions_and_figures(tmp_path: Path) -> None:
    found = checked(tmp_path, files_of())
    assert (found.kind, found.prefix_tokens, found.rank, len(found.digest)) == (
        ModuleKind.CARTRIDGE, 64, 0, 64,
    )  # fmt: skip
    assert found.figures.delta_norm == pytest.approx(float(np.linalg.norm(kv_of())), rel=1e-4)
    assert 1 < found.figures.effective_rank <= 16
    assert json.loads(found.rewritten[ORIGIN_FILE])["documents"] == [DOCUMENT]


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    digests = [
        checked(tmp_path / str(number), files).digest
        for number, files in enumerate(
            [
                files_of(),
                configured(peft_version="0.21", num_frozen_tokens=1, num_layers=2, modules_to_save=None),
                files_of(kv_of(seed=1)),
                files_of(documents=[]),
            ]
        )
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_both_forms_are_the_same_numbers(tmp_path: Path) -> None:
    assert np.array_equal(load(files_of()[WEIGHTS_FILE])[PEFT_TENSOR].reshape(kv_of().shape), kv_of())
    found = checked(tmp_path, weighed(**{PLAIN_TENSOR: kv_of()}))
    assert found.prefix_tokens == 64
    assert found.figures == checked(tmp_path / "peft", files_of()).figures


def test_what_peft_saves_is_taken(tmp_path: Path) -> None:
    from peft import CartridgeConfig

    config = CartridgeConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=64, num_layers=2, num_attention_heads=2, token_dim=16
    )
    config.save_pretrained(tmp_path)
    saved = (tmp_path / CONFIG_FILE).read_bytes()
    assert checked(tmp_path / "copy", {**files_of(), CONFIG_FILE: saved}).prefix_tokens == 64


nan = kv_of()
nan[3, 1, 0, 1, 2] = np.nan
BROKEN: dict[str, tuple[dict[str, bytes], str, str]] = {
    "no origin": ({CONFIG_FILE: b"{}", WEIGHTS_FILE: b""}, ORIGIN_FILE, "is missing"),
    "another base": (files_of(base_digest="ef" * 32), f"{ORIGIN_FILE}: base_digest", "of another model"),
    "no digest": (files_of(base_digest=3), f"{ORIGIN_FILE}: base_digest", "64 lower-case hex digits"),
    "another rope": (files_of(rope={**ROPE, "rope_theta": 1e4}), f"{ORIGIN_FILE}: rope", "20000.0"),
    "documents as names": (files_of(documents=["handbook.md"]), f"{ORIGIN_FILE}: documents", "sha256"),
    "too many documents": (files_of(documents=[DOCUMENT] * 1025), f"{ORIGIN_FILE}: documents", "1024"),
    "misspelt": (files_of(document=[]), f"{ORIGIN_FILE}: document", "is not known"),
    "a LoRA's configuration": (configured(peft_type="LORA"), f"{CONFIG_FILE}: peft_type", "CARTRIDGE"),
    "no positions": (configured(num_virtual_tokens=0), f"{CONFIG_FILE}: num_virtual_tokens", "1 to 128"),
    "true positions": (configured(num_virtual_tokens=True), f"{CONFIG_FILE}: num_virtual_tokens", "1 to 128"),
    "half a block": (files_of(kv_of(48)), f"{CONFIG_FILE}: num_virtual_tokens", "a multiple of 32"),
    "over half of the context": (
        files_of(kv_of(160)), f"{CONFIG_FILE}: num_virtual_tokens", "half of the context",
    ),
    "two submodules": (
        configured(num_transformer_submodules=2), f"{CONFIG_FILE}: num_transformer_submodules", "not known",
    ),
    "a projection": (configured(prefix_projection=True), f"{CONFIG_FILE}: prefix_projection", "not known"),
    "another layer count": (files_of(kv_of(layers=3)), PEFT_TENSOR, "shape must be [64, 64]"),
    "fewer positions than said": (configured(num_virtual_tokens=96), PEFT_TENSOR, "shape must be [96, 64]"),
    "heads of another size": (
        weighed(kv=np.ones((64, 2, 2, 1, 16), np.float32)), PLAIN_TENSOR, "shape must be [64, 2, 2, 2, 8]",
    ),
    "NaN": (files_of(nan), PEFT_TENSOR, "NaN"),
    "integers": (weighed(kv=np.ones((64, 2, 2, 2, 8), np.int32)), PLAIN_TENSOR, "dtype"),
    "zeros": (files_of(0 * kv_of()), PEFT_TENSOR, "zero everywhere"),
    "another tensor": (weighed(prompt=kv_of()), WEIGHTS_FILE, "the one tensor"),
    "two tensors": (weighed(kv=kv_of(), prompt_embeddings=kv_of()), WEIGHTS_FILE, "the one tensor"),
    "cut short": ({**files_of(), WEIGHTS_FILE: files_of()[WEIGHTS_FILE][:-9]}, WEIGHTS_FILE, "cut short"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "field", "rule"), BROKEN.values(), ids=BROKEN)
def test_what_does_not_fit_is_refused_by_field_and_rule(
    tmp_path: Path, files: dict[str, bytes], field: str, rule: str
) -> None:
    with pytest.raises(InvalidModule) as refused:
        checked(tmp_path, files)
    assert refused.value.field == field
    assert rule in refused.value.rule


def test_a_base_model_whose_kv_cannot_stand_before_a_prompt_takes_none(tmp_path: Path) -> None:
    window = replace(BASE, kv=replace(SHAPE, refusal="not all of its layers attend to the whole prompt"))
    with pytest.raises(InvalidModule, match="not all of its layers"):
        checked(tmp_path, files_of(), window)
    with pytest.raises(InvalidModule, match="does not know the shape"):
        checked(tmp_path, files_of(), replace(BASE, kv=None))


def test_the_demo_models_own_shape(tmp_path: Path) -> None:
    shape = kv_shape(Settings(), open_model(MODEL_DIR), "ab" * 32)
    assert (shape.layers, shape.kv_heads, shape.head_size, shape.rope, shape.refusal) == (4, 2, 64, ROPE, "")


def test_a_folder_with_an_origin_is_a_cartridge_and_no_lora(tmp_path: Path) -> None:
    folder = write_files(tmp_path, files_of())
    assert kind_of_folder(folder) == ModuleKind.CARTRIDGE
    (folder / ORIGIN_FILE).unlink()
    assert kind_of_folder(folder) == ModuleKind.LORA
    with pytest.raises(InvalidModule, match="a cartridge says with it what its KV belongs to"):
        check_lora(folder, BASE)
