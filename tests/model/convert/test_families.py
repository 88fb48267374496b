"""Small random models of several families, written as GGUF and converted, answer as they did before."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from memserve.model.convert import by_torch
from memserve.model.convert.gguf import read_gguf
from memserve.model.files import open_model
from tests.model.convert.tiny_gguf import add_tokenizer, tokens

SIZES = {
    "vocab_size": len(tokens()), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
FALCON = {"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True, "bias": False}
JOINED = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj")
# By transformers' name: GGUF's name, what is not as in SIZES, and sizes that the family does not have.
FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "qwen2": ("qwen2", {}, ()),
    "qwen3": ("qwen3", {"head_dim": 128}, ()),
    "qwen2_moe": ("qwen2moe", EXPERTS, ()),
    "qwen3_moe": ("qwen3moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": True}, ()),
    "starcoder2": ("starcoder2", {}, ()),
    "stablelm": ("stablelm", {"use_qkv_bias": True}, ()),
    "falcon": ("falcon", FALCON, ("num_key_value_heads", "intermediate_size")),
}


def write(model: Any, family: str, architecture: str, path: Path) -> None:
    """As llama.cpp writes a model of a family whose tensors it does not turn around."""
    from transformers.integrations import GGUF_CONFIG_MAPPING

    writer = gguf.GGUFWriter(path, architecture)
    mapping = GGUF_CONFIG_MAPPING[family]
    values = {key: getattr(model.config, name, None) for key, name in mapping.items() if name}
    if family == "falcon":
        values["block_count"] = model.config.num_hidden_layers
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(f"{architecture}.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"{architecture}.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{architecture}.{key}", value)
    add_tokenizer(writer)
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[architecture], model.config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        tensor = weight.numpy()
        stem, dot, kind = name.rpartition(".")
        if model.config.tie_word_embeddings and name.startswith("lm_head."):
            continue
        if joined := JOINED.fullmatch(name):
            parts = {"down": tensor}
            if joined[2] == "gate_up":
                parts = dict(zip(("gate", "up"), np.split(tensor, 2, axis=1), strict=True))
            for part, piece in parts.items():
                writer.add_tensor(f"blk.{joined[1]}.ffn_{part}_exps.weight", np.ascontiguousarray(piece))
            continue
        if "shared_expert_gate" in name:
            tensor = tensor.reshape(-1)
        writer.add_tensor(f"{names.get_name(stem)}{dot}{kind}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_model_answers_as_the_one_that_was_written(tmp_path: Path, family: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    architecture, others, absent = FAMILIES[family]
    sizes = {name: size for name, size in SIZES.items() if name not in absent}
    torch.manual_seed(3)
    original = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **others))
    with torch.no_grad():
        for weight in original.parameters():
            weight.normal_(0, 0.1)
    write(original.eval(), family, architecture, tmp_path / "tiny.gguf")
    target = tmp_path / "model"
    target.mkdir()
    by_torch.convert(read_gguf(tmp_path / "tiny.gguf"), target, "float32", lambda step: None)
    assert open_model(target).checked_weights() == 1
    names = open_model(target).tensor_shapes()
    assert not any(JOINED.fullmatch(name) for name in names), "vLLM reads each expert by a name of its own"
    converted = AutoModelForCausalLM.from_pretrained(target).eval()
    ids = torch.tensor([[5, 9, 200, 31, 7, 77]])
    with torch.no_grad():
        torch.testing.assert_close(converted(ids).logits, original(ids).logits, rtol=1e-4, atol=1e-4)
