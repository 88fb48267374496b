"""A model with the shape of a 0.5B model, and LoRA adapters that fit it, all with random weights.

The model costs as much arithmetic as a real model. Its answers have no meaning.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from loadtests.harness.engines import SHAPE
from memserve.demo import MODEL_DIR
from memserve.model.files import TOKENIZER_FILES

# The demo model's vocabulary and tokenizer.
VOCAB_SIZE = 3072
HIDDEN, INTERMEDIATE, KV_WIDTH = 896, 4864, 128
# A layer's linear maps: name to [out, in].
LINEAR = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV_WIDTH, HIDDEN),
    "self_attn.v_proj": (KV_WIDTH, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}


def copy_demo_tokenizer(folder: Path) -> None:
    """Give a model directory the demo model's tokenizer. The directory has a config of its own."""
    for name in TOKENIZER_FILES:
        if name != "config.json" and (MODEL_DIR / name).is_file():
            shutil.copy(MODEL_DIR / name, folder / name)


def write_model(folder: Path, layers: int) -> Path:
    """Write a model directory with weights in bfloat16 and the demo model's tokenizer.

    layers: the number of layers. The shape has 24.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({**SHAPE, "vocab_size": VOCAB_SIZE, "num_hidden_layers": layers}), encoding="utf-8"
    )
    copy_demo_tokenizer(folder)
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=draw) * 0.02).to(torch.bfloat16)

    weights = {
        "model.embed_tokens.weight": random(VOCAB_SIZE, HIDDEN),
        "model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
    }
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{at}.{norm}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        for name, (rows, columns) in LINEAR.items():
            weights[f"{at}.{name}.weight"] = random(rows, columns)
            if name.endswith(("q_proj", "k_proj", "v_proj")):
                weights[f"{at}.{name}.bias"] = random(rows)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_adapter(folder: Path, layers: int, rank: int, seed: int) -> Path:
    """Write a PEFT LoRA adapter of every linear map, in bfloat16."""
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "",
        "bias": "none",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(name.rpartition(".")[2] for name in LINEAR),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(layers):
        for name, (rows, columns) in LINEAR.items():
            at = f"base_model.model.model.layers.{layer}.{name}"
            weights[f"{at}.lora_A.weight"] = (torch.randn(rank, columns, generator=draw) * 0.03).to(
                torch.bfloat16
            )
            weights[f"{at}.lora_B.weight"] = (torch.randn(rows, rank, generator=draw) * 0.03).to(
                torch.bfloat16
            )
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder
