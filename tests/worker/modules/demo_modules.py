"""Modules for the tests: the demo's adapters, made weaker or broken, and small experts, in a module store,
under digests of their own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from memserve.demo import ADAPTERS_DIR
from memserve.memory.modules.blobs.store import BlobStore

WEIGHTS = "adapter_model.safetensors"


def put_adapter(
    blobs: BlobStore, name: str, scale: float = 1.0, *, cut_bytes: int = 0, transposed: bool = False
) -> str:
    """Keep a demo adapter whose effect is `scale` times the trained one. Returns its digest, which is of
    these arguments.

    cut_bytes: so many are missing at the end of its weights. transposed: its matrices have the wrong shape.
    """
    digest = hashlib.sha256(f"{name} {scale} {cut_bytes} {transposed}".encode()).hexdigest()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copy(ADAPTERS_DIR / name / "adapter_config.json", folder)
        tensors = load_file(ADAPTERS_DIR / name / WEIGHTS)
        scaled = {key: each * scale if "lora_B" in key else each for key, each in tensors.items()}
        save_file(
            {key: each.T.contiguous() if transposed else each for key, each in scaled.items()},
            folder / WEIGHTS,
        )
        if cut_bytes:
            (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-cut_bytes])
        blobs.put(digest, folder)
    return digest


def put_expert(
    blobs: BlobStore, vocabulary: int, seed: int, *, cut_bytes: int = 0, constant: bool = False
) -> str:
    """Keep a logit expert with random weights. constant: all of its logits are equal, so that it shifts
    nothing. Returns its digest.
    """
    digest = hashlib.sha256(f"expert {vocabulary} {seed} {cut_bytes} {constant}".encode()).hexdigest()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.5,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    if constant:
        torch.nn.init.zeros_(model.lm_head.weight)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        (folder / "expert_config.json").write_text(
            json.dumps({"kind": "logit_expert", "anti_expert": "none"}), encoding="utf-8"
        )
        weights = folder / "model.safetensors"
        if cut_bytes:
            weights.write_bytes(weights.read_bytes()[:-cut_bytes])
        blobs.put(digest, folder)
    return digest
