"""What a model is served without is known before its engine starts, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vllm.platforms import current_platform

from memserve.config import Settings
from memserve.domain import ModuleKind
from memserve.domain.kinds import KINDS
from memserve.model.files import ModelFiles
from memserve.worker.modules.kinds.kind import absent_kinds, engine_arguments

LORA, EXPERT, SOFT_PROMPT = ModuleKind.LORA, ModuleKind.LOGIT_EXPERT, ModuleKind.SOFT_PROMPT


def model(architecture: str, **config: Any) -> ModelFiles:
    return ModelFiles(Path("model"), 1024, {"architectures": [architecture], **config})


@pytest.mark.parametrize(
    ("settings", "served", "absent"),
    [
        ({}, model("LlamaForCausalLM"), {}),
        ({"max_loras": 0}, model("LlamaForCausalLM"), {LORA: "setting max_loras is 0"}),
        ({"max_experts": 0}, model("LlamaForCausalLM"), {EXPERT: "setting max_experts is 0"}),
        ({}, model("GPT2LMHeadModel"), {LORA: "vLLM has no LoRA for GPT2LMHeadModel"}),
        (
            {"max_soft_prompts": 0},
            model("LlamaForCausalLM"),
            {SOFT_PROMPT: "setting max_soft_prompts is 0"},
        ),
        (
            {"max_loras": 0},
            model("Gemma4ForCausalLM"),
            {
                LORA: "setting max_loras is 0",
                SOFT_PROMPT: "Gemma4ForCausalLM needs the ids of all tokens",
            },
        ),
    ],
)
def test_the_reason_is_the_first_that_holds(
    settings: dict[str, int], served: ModelFiles, absent: dict[ModuleKind, str]
) -> None:
    assert absent_kinds(Settings.model_validate(settings), served) == absent


def test_a_mixture_of_experts_has_no_lora_on_the_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = model("MixtralForCausalLM", num_local_experts=8)
    for on_cpu in (True, False):
        monkeypatch.setattr(type(current_platform), "is_cpu", lambda self, on_cpu=on_cpu: on_cpu)
        assert (LORA in absent_kinds(Settings(), mixture)) == on_cpu


def test_an_engine_takes_embeddings_only_where_soft_prompts_are_served() -> None:
    """Otherwise nothing in the engine is open to them."""
    for most in (0, 3):
        settings, served = Settings(max_soft_prompts=most), model("LlamaForCausalLM")
        absent = absent_kinds(settings, served)
        added = engine_arguments(settings, [kind for kind in KINDS if kind not in absent])
        assert added.get("enable_prompt_embeds", False) == (most > 0)
