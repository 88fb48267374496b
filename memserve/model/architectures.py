"""The architectures that memserve serves, as config.json names them.

They are vLLM's (0.32) architectures that generate text from text alone, and whose whole memory of a prompt is
KV. memserve keeps KV. It keeps no state of a recurrent layer, and nothing that an encoder computes.

`loadtests.models.any_model` compares a model of each common family with transformers. A start says when the
architecture is not one of those. `tests/model/test_architectures.py` compares the list with the installed
vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memserve.errors import StartupError

_WITH_LORA = """
AXK1ForCausalLM AfmoeForCausalLM ApertusForCausalLM ArceeForCausalLM BailingMoeForCausalLM
BailingMoeV2ForCausalLM ChatGLMForConditionalGeneration ChatGLMModel Cohere2ForCausalLM CohereForCausalLM
CwmForCausalLM DeciLMForCausalLM DeepseekForCausalLM DeepseekV2ForCausalLM DeepseekV32ForCausalLM
DeepseekV3ForCausalLM Ernie4_5ForCausalLM Ernie4_5_MoeForCausalLM Exaone4ForCausalLM ExaoneForCausalLM
ExaoneMoEForCausalLM ExaoneMoeForCausalLM FlexOlmoForCausalLM GPTBigCodeForCausalLM GPTNeoXForCausalLM
Gemma2ForCausalLM Gemma3ForCausalLM Gemma4ForCausalLM GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM
Glm4MoeLiteForCausalLM GlmForCausalLM GlmMoeDsaForCausalLM GptOssForCausalLM GraniteForCausalLM
GraniteMoeForCausalLM GraniteMoeSWAForCausalLM GraniteMoeSharedForCausalLM GraniteSWAForCausalLM
HYV3ForCausalLM HYV4ForCausalLM HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM HyperCLOVAXForCausalLM
IQuestCoderForCausalLM InternLM2ForCausalLM InternLM3ForCausalLM Jais2ForCausalLM K2HorizonForCausalLM
LLaMAForCausalLM LagunaForCausalLM Llama4ForCausalLM LlamaForCausalLM LongcatFlashForCausalLM
LongcatFlashNgramForCausalLM MellumForCausalLM MiMoForCausalLM MiniCPM3ForCausalLM MiniCPMForCausalLM
MiniMaxM2ForCausalLM Ministral3ForCausalLM MistralForCausalLM MistralLarge3ForCausalLM MixtralForCausalLM
NanbeigeForCausalLM NemotronForCausalLM OPTForCausalLM Olmo2ForCausalLM Olmo3ForCausalLM OlmoForCausalLM
OlmoeForCausalLM PanguEmbeddedForCausalLM PanguProMoEV2ForCausalLM PanguUltraMoEForCausalLM
Param2MoEForCausalLM Phi3ForCausalLM PhiForCausalLM PhiMoEForCausalLM Plamo3ForCausalLM Qwen2ForCausalLM
Qwen2MoeForCausalLM Qwen3ForCausalLM Qwen3MoeForCausalLM Rnj1ForCausalLM SarvamMLAForCausalLM
SarvamMoEForCausalLM SeedOssForCausalLM SmolLM3ForCausalLM SolarForCausalLM Starcoder2ForCausalLM
TeleChat2ForCausalLM TeleChat3ForCausalLM TeleFLMForCausalLM VaultGemmaForCausalLM
"""
_WITHOUT_LORA = """
BloomForCausalLM Cohere2MoeForCausalLM DbrxForCausalLM FalconForCausalLM GPT2LMHeadModel GPTJForCausalLM
Gemma3nForCausalLM HrmTextForCausalLM IQuestLoopCoderForCausalLM MiMoV2FlashForCausalLM MiMoV2ForCausalLM
OrionForCausalLM StableLmForCausalLM Step1ForCausalLM Step3TextForCausalLM Step3p5ForCausalLM
"""
# These compute something of the token ids themselves, in some layer, or vLLM does not show that they do not.
_BY_TOKENS = """
DeepseekV32ForCausalLM Gemma3nForCausalLM Gemma4ForCausalLM GlmMoeDsaForCausalLM HYV4ForCausalLM
LongcatFlashNgramForCausalLM
"""
# Tried by `loadtests.models.any_model`.
_TRIED = """
Gemma2ForCausalLM Gemma3ForCausalLM GPT2LMHeadModel GPTNeoXForCausalLM LlamaForCausalLM MistralForCausalLM
MixtralForCausalLM Olmo2ForCausalLM OPTForCausalLM Phi3ForCausalLM Qwen2ForCausalLM Qwen3ForCausalLM
Qwen3MoeForCausalLM
"""
WITH_LORA = frozenset(_WITH_LORA.split())
SERVED = WITH_LORA | frozenset(_WITHOUT_LORA.split())
BY_TOKENS = frozenset(_BY_TOKENS.split())
TRIED = frozenset(_TRIED.split())


def check_architecture(config: Mapping[str, Any], file: Path) -> None:
    """Raises StartupError for an architecture that memserve does not serve. It lists the served ones."""
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise StartupError(
            f"{file} names no architecture (`architectures`): save the model with transformers' "
            "save_pretrained"
        )
    if named[0] in SERVED:
        return
    more = ", which takes more than text" if "text_config" in config else ""
    served = ", ".join(sorted(name.removesuffix("ForCausalLM") for name in SERVED))
    raise StartupError(f"{file}: memserve serves no {named[0]}{more}. Served (… ForCausalLM) are {served}")


def no_lora_reason(architecture: str) -> str:
    """Why a model of the architecture is served without LoRA adapters; "" where it is served with them."""
    return "" if architecture in WITH_LORA else f"vLLM has no LoRA for {architecture}"


def no_embeddings_reason(architecture: str) -> str:
    """Why a model of the architecture takes no embeddings in the place of tokens; "" where it takes them."""
    return f"{architecture} needs the ids of all tokens" if architecture in BY_TOKENS else ""
