"""A soft prompt is checked against the base model: it fits, it is finite, and it says what it belongs to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from memserve.client.uploads import kind_of_folder
from memserve.demo import MODEL_DIR
from memserve.domain import ModuleKind
from memserve.errors import InvalidModule
from memserve.gateway.opening import embedding_shape
from memserve.memory.modules.kinds.files import BaseModel, CheckedModule, EmbeddingShape
from memserve.memory.modules.kinds.lora import check_lora
from memserve.memory.modules.kinds.soft_prompt import (
    CONFIG_FILE,
    ORIGIN_FILE,
    TENSOR,
    WEIGHTS_FILE,
    check_soft_prompt,
    read_rows,
    soft_prompt_files,
)
from memserve.model.files import open_model
from tests.gateway.lora_files import write_files

WIDTH = 16
SHAPE = EmbeddingShape(width=WIDTH, dtype="bfloat16", context_tokens=128, base_digest="ab" * 32)
BASE = BaseModel({}, vocab_size=512, max_rank=16, embedding=SHAPE)
DOCUMENT = "cd" * 32


def rows_of(tokens: int = 10, width: int = WIDTH, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(tokens, width)).astype(np.float32)


def files_of(rows: Any = None, **origin: Any) -> dict[str, bytes]:
    files = soft_prompt_files(rows_of() if rows is None else rows, SHAPE.base_digest, [DOCUMENT])
    return {**files, ORIGIN_FILE: json.dumps(json.loads(files[ORIGIN_FILE]) | origin).encode()}


def configured(**fields: Any) -> dict[str, bytes]:
    files = files_of()
    return {**files, CONFIG_FILE: json.dumps(json.loads(files[CONFIG_FILE]) | fields).encode()}


def weighed(**tensors: Any) -> dict[str, bytes]:
    return {**files_of(), WEIGHTS_FILE: save(tensors)}


def checked(folder: Path, files: dict[str, bytes], base: BaseModel = BASE) -> CheckedModule:
    return check_soft_prompt(write_files(folder, files), base)


def test_a_sound_soft_prompt_has_its_positions_and_figures(tmp_path: Path) -> None:
    found = checked(tmp_path, files_of())
    assert (found.kind, found.prefix_tokens, found.rank, len(found.digest)) == (
        ModuleKind.SOFT_PROMPT, 10, 0, 64,
    )  # fmt: skip
    assert found.figures.delta_norm == pytest.approx(float(np.linalg.norm(rows_of())), rel=1e-4)
    assert json.loads(found.rewritten[ORIGIN_FILE])["documents"] == [DOCUMENT]


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    contents = [
        files_of(),
        configured(peft_version="0.21", prompt_tuning_init="RANDOM", num_layers=2, modules_to_save=None),
        files_of(rows_of(seed=1)),
        files_of(documents=[]),
    ]
    digests = [checked(tmp_path / str(at), files).digest for at, files in enumerate(contents)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_what_peft_saves_is_taken(tmp_path: Path) -> None:
    from peft import PromptTuningConfig

    config = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=10, num_layers=2, num_attention_heads=2, token_dim=WIDTH
    )
    config.save_pretrained(tmp_path)
    saved = (tmp_path / CONFIG_FILE).read_bytes()
    assert checked(tmp_path / "copy", {**files_of(), CONFIG_FILE: saved}).prefix_tokens == 10


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_are_those_that_torch_makes(tmp_path: Path, dtype: str) -> None:
    import torch

    rows = rows_of()
    # Halves between two numbers of bfloat16, and the smallest numbers.
    rows[0, :6] = np.array([0x3F808000, 0x3F818000, 0x3F808001, 1, 0x00800000, 0xBF808000], np.uint32).view(
        np.float32
    )
    folder = write_files(tmp_path, files_of(rows))
    read = read_rows(folder, WIDTH, dtype, 64)
    wanted = torch.from_numpy(rows).to(getattr(torch, dtype))
    assert read.tokens == 10
    assert read.content == wanted.view(torch.uint8).numpy().tobytes()


nan = rows_of()
nan[3, 1] = np.nan
BROKEN: dict[str, tuple[dict[str, bytes], str, str]] = {
    "no origin": ({CONFIG_FILE: b"{}", WEIGHTS_FILE: b""}, ORIGIN_FILE, "is missing"),
    "another base": (files_of(base_digest="ef" * 32), f"{ORIGIN_FILE}: base_digest", "of another model"),
    "no digest": (files_of(base_digest=3), f"{ORIGIN_FILE}: base_digest", "64 lower-case hex digits"),
    "documents as names": (files_of(documents=["handbook.md"]), f"{ORIGIN_FILE}: documents", "sha256"),
    "too many documents": (files_of(documents=[DOCUMENT] * 1025), f"{ORIGIN_FILE}: documents", "1024"),
    "misspelt": (files_of(document=[]), f"{ORIGIN_FILE}: document", "is not known"),
    "a LoRA's configuration": (configured(peft_type="LORA"), f"{CONFIG_FILE}: peft_type", "PROMPT_TUNING"),
    "another method": (configured(peft_type="P_TUNING"), f"{CONFIG_FILE}: peft_type", "PROMPT_TUNING"),
    "no positions": (configured(num_virtual_tokens=0), f"{CONFIG_FILE}: num_virtual_tokens", "1 to 64"),
    "true positions": (configured(num_virtual_tokens=True), f"{CONFIG_FILE}: num_virtual_tokens", "1 to 64"),
    "over half of the context": (
        files_of(rows_of(65)), f"{CONFIG_FILE}: num_virtual_tokens", "half of the context",
    ),
    "another width by name": (configured(token_dim=8), f"{CONFIG_FILE}: token_dim", "hidden width, 16"),
    "two submodules": (
        configured(num_transformer_submodules=2), f"{CONFIG_FILE}: num_transformer_submodules", "not known",
    ),
    "an encoder": (configured(encoder_hidden_size=9), f"{CONFIG_FILE}: encoder_hidden_size", "not known"),
    "another width": (
        {**files_of(), WEIGHTS_FILE: save({TENSOR: rows_of(width=8)})}, TENSOR, "shape must be [10, 16]",
    ),
    "fewer positions than said": (configured(num_virtual_tokens=12), TENSOR, "shape must be [12, 16]"),
    "NaN": (files_of(nan), TENSOR, "NaN"),
    "beyond bfloat16": (files_of(np.full((2, WIDTH), 3.4e38, np.float32)), TENSOR, "range of bfloat16"),
    "integers": (weighed(prompt_embeddings=np.ones((10, WIDTH), np.int32)), TENSOR, "dtype"),
    "zeros": (files_of(0 * rows_of()), TENSOR, "zero everywhere"),
    "another tensor": (weighed(prompt=rows_of()), WEIGHTS_FILE, "the one tensor"),
    "two tensors": (weighed(a=rows_of(), prompt_embeddings=rows_of()), WEIGHTS_FILE, "the one tensor"),
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


def test_a_base_model_that_takes_no_embeddings_takes_no_soft_prompt(tmp_path: Path) -> None:
    by_tokens = replace(BASE, embedding=replace(SHAPE, refusal="it needs the ids of all tokens"))
    with pytest.raises(InvalidModule, match="ids of all tokens"):
        checked(tmp_path, files_of(), by_tokens)
    with pytest.raises(InvalidModule, match="does not know the base model's embeddings"):
        checked(tmp_path, files_of(), replace(BASE, embedding=None))
    with pytest.raises(InvalidModule, match="served in float8"):
        checked(tmp_path, files_of(), replace(BASE, embedding=replace(SHAPE, dtype="float8")))


def test_the_demo_models_own_shape() -> None:
    model = open_model(MODEL_DIR)
    shape = embedding_shape(model, "ab" * 32)
    assert (shape.width, shape.dtype, shape.refusal) == (model.hidden_size, "float32", "")
    assert model.tensor_shapes()["model.embed_tokens.weight"][1] == shape.width


def test_a_folder_with_an_origin_is_a_soft_prompt_and_no_lora(tmp_path: Path) -> None:
    folder = write_files(tmp_path, files_of())
    assert kind_of_folder(folder) == ModuleKind.SOFT_PROMPT
    (folder / ORIGIN_FILE).unlink()
    assert kind_of_folder(folder) == ModuleKind.LORA
    with pytest.raises(InvalidModule, match="a soft prompt says with it what it belongs to"):
        check_lora(folder, BASE)
