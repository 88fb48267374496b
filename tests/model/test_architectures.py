"""The list of architectures is the installed vLLM's, less what memserve cannot serve."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memserve.errors import StartupError
from memserve.model.architectures import (
    BY_TOKENS,
    SERVED,
    TRIED,
    WITH_LORA,
    check_architecture,
    no_embeddings_reason,
    no_lora_reason,
)

# Recurrent layers, or nothing but GPU kernels of their own, or more than text.
LEFT_OUT = """
BailingMoeV2_5ForCausalLM BailingMoeV3ForCausalLM DeepseekV4ForCausalLM FalconH1ForCausalLM
FalconMambaForCausalLM Glm5NextForCausalLM
GraniteMoeHybridForCausalLM HCXVisionV2ForCausalLM InklingForCausalLM InklingForConditionalGeneration
JambaForCausalLM
KimiLinearForCausalLM Lfm2ForCausalLM Lfm2MoeForCausalLM Mamba2ForCausalLM MambaForCausalLM
MiniMaxM3SparseForCausalLM
MuseGlimmerForCausalLM NemotronHForCausalLM NemotronHPuzzleForCausalLM OlmoHybridForCausalLM
Qwen3NextForCausalLM Qwen3_5ForCausalLM
Qwen3_5MoeForCausalLM Qwen4ExpForCausalLM Zamba2ForCausalLM
"""


def test_the_list_is_vllms() -> None:
    """A new vLLM brings new ones: each is to be looked at."""
    asks = (
        "from vllm.model_executor.models import registry as r; "
        "by_transformers = [name for name, (_, made) in r._TRANSFORMERS_SUPPORTED_MODELS.items() if "
        "'MultiModal' not in made]; "
        "print('names:', *r._TEXT_GENERATION_MODELS, *by_transformers)"
    )
    said = subprocess.run(
        [sys.executable, "-c", asks], capture_output=True, text=True, check=True, encoding="utf-8"
    ).stdout
    names = set(next(line for line in said.splitlines() if line.startswith("names:")).split()[1:])
    left_out = set(LEFT_OUT.split())
    assert names == SERVED | left_out
    assert not SERVED & left_out
    assert TRIED <= SERVED


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"architectures": []},
        {"architectures": None},
        {"architectures": "LlamaForCausalLM"},
        {"architectures": [1]},
    ],
)
def test_a_config_without_an_architecture_is_told_how_to_get_one(config: dict[str, Any]) -> None:
    with pytest.raises(StartupError, match="save the model with transformers' save_pretrained"):
        check_architecture(config, Path("config.json"))


@pytest.mark.parametrize(
    "name", ["FalconH1ForCausalLM", "MambaForCausalLM", "T5ForConditionalGeneration", "BertModel"]
)
def test_what_is_not_served_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(StartupError, match=f"serves no {name}.*Served .* are .* Llama, "):
        check_architecture({"architectures": [name]}, Path("config.json"))


def test_a_model_of_text_and_images_is_told_why() -> None:
    with pytest.raises(
        StartupError, match="serves no Gemma3ForConditionalGeneration, which takes more than text"
    ):
        check_architecture(
            {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {}}, Path("config.json")
        )


def test_lora_is_where_vllm_has_it() -> None:
    assert no_lora_reason("LlamaForCausalLM") == ""
    assert no_lora_reason("GPT2LMHeadModel") == "vLLM has no LoRA for GPT2LMHeadModel"
    assert "GPT2LMHeadModel" in SERVED - WITH_LORA


def test_embeddings_are_taken_where_no_layer_reads_token_ids() -> None:
    assert BY_TOKENS <= SERVED
    assert no_embeddings_reason("LlamaForCausalLM") == ""
    assert "ids of all tokens" in no_embeddings_reason("Gemma3nForCausalLM")
