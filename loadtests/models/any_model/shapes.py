"""The models: small ones of many architectures and kinds of tokenizer, with random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from loadtests.harness.random_model import copy_demo_tokenizer
from memserve.demo import MODEL_DIR

BYTE_BPE, METASPACE_BPE, UNIGRAM = "byte-level BPE", "BPE with byte fallback", "unigram"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ "
    "raise_exception('System role not supported') }}"
    "{% endif %}{{ '<start_of_turn>' + (message['role'] if message['role'] == 'user' else 'model') + "
    "'\\n' + message['content'] + "
    "'<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' "
    "}}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + "
    "message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
# Of the trained tokenizers.
VOCABULARY = 700
SENTENCES = (
    "The code of the north gate is kept in the harbour, and the watch changes at noon.",
    "Où est la clé du phare ? Sie liegt unter dem Stein am Fluss.",
    "Amber lanterns light the bridge to the old observatory in winter.",
    "def answer(question): return memory[question]  # 42, 1907, 3.14",
    "日本の灯台は北にあります。钥匙在桥下。",
)
# Wide enough that the likeliest token is rarely tied, and that what was asked long ago changes the answer.
INITIALIZER_RANGE = 0.12
# Gemma multiplies embeddings by the root of its width: as large as others', they would hide what the layers
# add.
GEMMA_EMBEDDING = 0.125
LONG = {"max_position_embeddings": 2048}
SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    **LONG,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Shape:
    """A model. architecture: the class in transformers. targets: of the LoRA, () where memserve must say that
    it has none.

    embedding: its weights' scale. refused: what the refusal names; "": it is served.
    """

    name: str
    architecture: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str = BYTE_BPE
    template: str = CHATML
    targets: Sequence[str] = (*ATTENTION, *MLP)
    embedding: float = 1.0
    refused: str = ""

    def write(self, folder: Path) -> Path:
        """A model directory, as `save_pretrained` makes it."""
        import transformers

        vocabulary = write_tokenizer(folder, self.tokenizer, self.template)
        model_class = getattr(transformers, self.architecture)
        config = model_class.config_class(
            **{"initializer_range": INITIALIZER_RANGE, **self._options(vocabulary)}
        )
        torch.manual_seed(0)
        model = model_class(config).eval().float()
        with torch.no_grad():
            for parameter in model.parameters():
                # Norms and biases are born as ones and zeros, which would hide that one is forgotten.
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
            model.get_input_embeddings().weight.mul_(self.embedding)
        model.save_pretrained(folder)
        return folder

    def _options(self, vocabulary: int) -> dict[str, Any]:
        tokens = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
        if "text_config" in self.options:
            return {
                **self.options,
                "text_config": {
                    **tokens,
                    "initializer_range": INITIALIZER_RANGE,
                    **self.options["text_config"],
                },
            }
        return {**tokens, **self.options}


def write_tokenizer(folder: Path, kind: str, template: str) -> int:
    """Write the tokenizer's files. Returns the vocabulary's size."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    folder.mkdir(parents=True)
    special = [
        "<s>",
        "</s>",
        "<pad>",
        "<unk>",
        "<|im_start|>",
        "<|im_end|>",
        "<start_of_turn>",
        "<end_of_turn>",
        "[INST]",
        "[/INST]",
    ]
    if kind == BYTE_BPE:
        copy_demo_tokenizer(folder)
        return int(json.loads((MODEL_DIR / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    if kind == METASPACE_BPE:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        bytes_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer: Any = trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=[*special, *bytes_tokens], show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=VOCABULARY, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    tokenizer.train_from_iterator(SENTENCES * 20, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return tokenizer.get_vocab_size()


SHAPES = (
    Shape("Llama, tied", "LlamaForCausalLM", {**GROUPED, "tie_word_embeddings": True}),
    Shape(
        "Llama, untied", "LlamaForCausalLM", {**GROUPED, "tie_word_embeddings": False}, METASPACE_BPE, INST
    ),
    Shape("Qwen2", "Qwen2ForCausalLM", GROUPED),
    Shape("Qwen3", "Qwen3ForCausalLM", {**GROUPED, "head_dim": 64}),
    Shape(
        "Mistral, sliding window",
        "MistralForCausalLM",
        {**GROUPED, "sliding_window": 64},
        METASPACE_BPE,
        INST,
    ),
    Shape(
        "Gemma 2",
        "Gemma2ForCausalLM",
        {**GROUPED, "head_dim": 32, "sliding_window": 64, "query_pre_attn_scalar": 32},
        METASPACE_BPE,
        NO_SYSTEM,
        embedding=GEMMA_EMBEDDING,
    ),
    Shape(
        "Gemma 3, text",
        "Gemma3ForCausalLM",
        {
            **GROUPED,
            "head_dim": 32,
            "sliding_window": 64,
            "query_pre_attn_scalar": 32,
            "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
        },
        METASPACE_BPE,
        NO_SYSTEM,
        embedding=GEMMA_EMBEDDING,
    ),
    Shape(
        "Gemma 3, with images",
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {**GROUPED, "head_dim": 32, "sliding_window": 64, "query_pre_attn_scalar": 32},
            "vision_config": {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
        },
        METASPACE_BPE,
        NO_SYSTEM,
        refused="Gemma3ForConditionalGeneration",
    ),
    Shape("Phi-3", "Phi3ForCausalLM", GROUPED, targets=("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    Shape("GPT-NeoX", "GPTNeoXForCausalLM", SIZES, targets=("query_key_value", "dense")),
    Shape(
        "GPT-2",
        "GPT2LMHeadModel",
        {"n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 2048},
        targets=(),
    ),
    Shape(
        "OPT",
        "OPTForCausalLM",
        {
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "ffn_dim": 192,
            "word_embed_proj_dim": 128,
            **LONG,
        },
        targets=("q_proj", "v_proj", "out_proj", "fc1"),
    ),
    Shape(
        "Mixtral",
        "MixtralForCausalLM",
        {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
        METASPACE_BPE,
        INST,
        targets=(),
    ),
    Shape(
        "Qwen3, experts",
        "Qwen3MoeForCausalLM",
        {**GROUPED, "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
        targets=(),
    ),
    Shape("OLMo 2", "Olmo2ForCausalLM", GROUPED, UNIGRAM),
    Shape(
        "Falcon-H1",
        "FalconH1ForCausalLM",
        {**GROUPED, "mamba_d_ssm": 128, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16},
        refused="FalconH1ForCausalLM",
    ),
    Shape(
        "Mamba",
        "MambaForCausalLM",
        {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
        refused="MambaForCausalLM",
    ),
)
