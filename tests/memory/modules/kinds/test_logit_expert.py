"""A logit expert is a small model of the base's vocabulary, whose files hold what its config says and nothing
else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save

from memserve.domain import ModuleKind
from memserve.errors import InvalidModule
from memserve.memory.modules.kinds.files import BaseModel, CheckedModule
from memserve.memory.modules.kinds.logit_expert import (
    ANTI_WEIGHTS_FILE,
    CONFIG_FILE,
    EXPERT_CONFIG_FILE,
    WEIGHTS_FILE,
)
from memserve.memory.modules.kinds.table import files_check
from tests.gateway.lora_files import put_together, taken_apart, write_files

BASE = BaseModel({"model.embed_tokens.weight": (40, 32)}, vocab_size=40, max_rank=16)
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0},
    "bos_token_id": 1,
}
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": False}
Tensors = dict[str, npt.NDArray[Any]]


def tensors(config: dict[str, Any], seed: int = 0) -> Tensors:
    """Names and shapes as transformers 5.19 saves them, for hidden 8, inner 12, 2 heads and 1 KV head of
    4.
    """
    layer = {
        "input_layernorm.weight": (8,),
        "post_attention_layernorm.weight": (8,),
        "self_attn.q_proj.weight": (8, 8),
        "self_attn.k_proj.weight": (4, 8),
        "self_attn.v_proj.weight": (4, 8),
        "self_attn.o_proj.weight": (8, 8),
        "mlp.gate_proj.weight": (12, 8),
        "mlp.up_proj.weight": (12, 8),
        "mlp.down_proj.weight": (8, 12),
    }
    if config["model_type"] == "qwen2":
        layer |= {"self_attn.q_proj.bias": (8,), "self_attn.k_proj.bias": (4,), "self_attn.v_proj.bias": (4,)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (40, 8), "model.norm.weight": (8,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (40, 8)
    for number in range(2):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def expert_files(
    config: dict[str, Any] = LLAMA,
    expert: dict[str, Any] | None = None,
    weights: Tensors | None = None,
    anti: Tensors | None = None,
) -> dict[str, bytes]:
    files = {
        EXPERT_CONFIG_FILE: json.dumps(
            {"kind": "logit_expert", "anti_expert": "file" if anti else "base"} if expert is None else expert
        ),
        CONFIG_FILE: json.dumps(config),
    }
    found = {name: text.encode() for name, text in files.items()}
    found[WEIGHTS_FILE] = save(tensors(LLAMA) if weights is None else weights)
    if anti is not None:
        found[ANTI_WEIGHTS_FILE] = save(anti)
    return found


def checked(folder: Path, files: dict[str, bytes]) -> CheckedModule:
    return files_check(ModuleKind.LOGIT_EXPERT)(write_files(folder, files), BASE)


def changed(**changes: npt.NDArray[Any] | None) -> Tensors:
    """The Llama's tensors; `__` in a name stands for a dot. A change to None leaves the tensor out."""
    wanted = {**tensors(LLAMA), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    return {name: tensor for name, tensor in wanted.items() if tensor is not None}


ZERO = {name: np.zeros_like(tensor) for name, tensor in tensors(LLAMA).items()}
SOUND = {
    "a Llama with a tied head, against the base": expert_files(),
    "a Qwen2 with a head and biases": expert_files(QWEN2, weights=tensors(QWEN2)),
    "an anti-expert of its own": expert_files(anti=tensors(LLAMA, seed=1)),
    "no anti-expert": expert_files(expert={"kind": "logit_expert"}),
    "float16": expert_files(
        weights={name: tensor.astype(np.float16) for name, tensor in tensors(LLAMA).items()}
    ),
    "rope as transformers 4 wrote it": expert_files(
        {key: value for key, value in LLAMA.items() if key != "rope_parameters"}
        | {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    ),
}
ROPE = f"{CONFIG_FILE}: rope_parameters"
# Case to files and the field that its refusal must name.
BROKEN: dict[str, tuple[dict[str, bytes], str]] = {
    "no expert config": ({CONFIG_FILE: b"{}"}, EXPERT_CONFIG_FILE),
    "expert config is a list": ({**expert_files(), EXPERT_CONFIG_FILE: b"[]"}, EXPERT_CONFIG_FILE),
    "another kind": (expert_files(expert={"kind": "lora"}), f"{EXPERT_CONFIG_FILE}: kind"),
    "unknown anti-expert": (expert_files(expert={"kind": "logit_expert", "anti_expert": ["x"]}),
    f"{EXPERT_CONFIG_FILE}: "
        "anti_expert"),
    "misspelt entry": (expert_files(expert={"kind": "logit_expert", "antiexpert": "base"}),
    f"{EXPERT_CONFIG_FILE}: "
        "antiexpert"),
    "config is no JSON": ({**expert_files(), CONFIG_FILE: b"{"}, CONFIG_FILE),
    "no weights": ({name: content for name, content in expert_files().items() if name != WEIGHTS_FILE},
    WEIGHTS_FILE),
    "pickle": ({**expert_files(),
    WEIGHTS_FILE: b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94."}, WEIGHTS_FILE),
    "weights cut short": ({**expert_files(), WEIGHTS_FILE: expert_files()[WEIGHTS_FILE][:-4]}, WEIGHTS_FILE),
    "a weight that is missing": (expert_files(weights=changed(model__norm__weight=None)),
    "model.norm.weight"),
    "a weight too many": (expert_files(weights=changed(lm_head__weight=np.ones((40, 8), np.float32))),
    "lm_head.weight"),
    "wrong shape": (expert_files(weights=changed(model__norm__weight=np.ones(9, np.float32))),
    "model.norm.weight"),
    "wrong dtype": (expert_files(weights=changed(model__norm__weight=np.ones(8))), "model.norm.weight"),
    "NaN": (expert_files(weights=changed(model__norm__weight=np.full(8, np.nan, np.float32))),
    "model.norm.weight"),
    "zero": (expert_files(weights=ZERO), WEIGHTS_FILE),
    "an anti-expert that is missing": (expert_files(expert={"kind": "logit_expert", "anti_expert": "file"}),
    ANTI_WEIGHTS_FILE),
    "an anti-expert that is not named": (
        expert_files(expert={"kind": "logit_expert", "anti_expert": "base"}, anti=tensors(LLAMA, seed=1)),
        ANTI_WEIGHTS_FILE
    ),
    "an anti-expert equal to the expert": (expert_files(anti=tensors(LLAMA)), ANTI_WEIGHTS_FILE),
    "an anti-expert of another shape": (expert_files(anti=changed(model__norm__weight=np.ones(9,
    np.float32))), "model.norm.weight"),
    **{
        f"config with {change}": (expert_files({**LLAMA, **change}), f"{CONFIG_FILE}: {next(iter(change))}")
        for change in (
            {"architectures": ["EvilForCausalLM"]},
            {"architectures": ["LlamaForCausalLM", "Qwen2ForCausalLM"]},
            {"architectures": None},
            {"model_type": "qwen2"},
            {"auto_map": {"AutoModelForCausalLM": "evil.Evil"}},
            {"trust_remote_code": True},
            {"quantization_config": {"bits": 4}},
            {"use_sliding_window": True},
            {"layer_types": ["sliding_attention", "full_attention"]},
            {"vocab_size": 41},
            {"vocab_size": None},
            {"hidden_act": "gelu"},
            {"hidden_size": 1 << 30},
            {"hidden_size": 8.0},
            {"num_hidden_layers": 1 << 30},
            {"num_hidden_layers": True},
            {"intermediate_size": 0},
            {"num_attention_heads": 3},
            {"num_key_value_heads": 4},
            {"num_key_value_heads": 3, "num_attention_heads": 4},
            {"head_dim": 3},
            {"head_dim": 512, "num_attention_heads": 64, "hidden_size": 64},
            {"num_hidden_layers": 128, "head_dim": 258},
            {"max_position_embeddings": 0},
            {"rms_norm_eps": float("nan")},
            {"tie_word_embeddings": "yes"},
            {"attention_bias": 1},
        )
    },
    "unknown rope": (expert_files({**LLAMA, "rope_parameters": {"rope_type": "longrope"}}), ROPE),
    "rope with more than belongs to it": (expert_files({**LLAMA, "rope_parameters": {"rope_type": "default",
    "factor": 2.0}}), ROPE),
    "partial rope": (expert_files({**LLAMA, "partial_rotary_factor": 0.5}), ROPE),
    "rope is a list": (expert_files({**LLAMA, "rope_parameters": [1]}), ROPE),
    "rope without its factor": (expert_files({**LLAMA, "rope_parameters": {"rope_type": "linear"}}),
    f"{CONFIG_FILE}: factor"),
}  # fmt: skip


@pytest.mark.parametrize("case", SOUND)
def test_a_sound_expert_passes_and_what_is_kept_has_its_digest(tmp_path: Path, case: str) -> None:
    found = checked(tmp_path, SOUND[case])
    assert (found.kind, found.rank, found.target_modules, len(found.digest)) == (
        ModuleKind.LOGIT_EXPERT,
        0,
        (),
        64,
    )
    assert found.figures.delta_norm > 0
    assert set(found.rewritten) == {EXPERT_CONFIG_FILE, CONFIG_FILE}
    again = checked(tmp_path, found.rewritten)
    assert (again.digest, again.rewritten) == (found.digest, found.rewritten)


def test_sound_experts_have_digests_of_their_own(tmp_path: Path) -> None:
    assert len(
        {checked(tmp_path / str(number), files).digest for number, files in enumerate(SOUND.values())}
    ) == len(SOUND)


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_expert_is_refused_by_the_field_at_fault(tmp_path: Path, case: str) -> None:
    files, field = BROKEN[case]
    with pytest.raises(InvalidModule) as refusal:
        checked(tmp_path, files)
    assert refusal.value.field == field


def test_the_refusal_of_another_vocabulary_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidModule, match="another vocabulary"):
        checked(tmp_path, expert_files({**LLAMA, "vocab_size": 41}))


def test_the_refusal_of_a_config_that_costs_too_much_says_what_it_costs(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidModule,
        match=r"num_hidden_layers: times 2 .* is 66048 elements of KV a token, at most 65536 are taken",
    ):
        checked(
            tmp_path,
            expert_files({**LLAMA, "num_hidden_layers": 64, "head_dim": 258, "num_key_value_heads": 2}),
        )
    with pytest.raises(InvalidModule, match="head_dim: times num_attention_heads is 32768, at most 16384"):
        checked(
            tmp_path, expert_files({**LLAMA, "hidden_size": 64, "num_attention_heads": 64, "head_dim": 512})
        )


def test_the_digest_is_of_the_content_not_of_the_files_form(tmp_path: Path) -> None:
    files = expert_files()
    header, body = taken_apart(files[WEIGHTS_FILE])
    reordered = put_together(
        {"__metadata__": {"format": "pt"}, **dict(sorted(header.items(), reverse=True))}, body
    )
    config = json.dumps(
        {**LLAMA, "head_dim": 4, "use_cache": False, "transformers_version": "0"}, indent=2
    ).encode()
    same = checked(tmp_path / "2", {**files, WEIGHTS_FILE: reordered, CONFIG_FILE: config})
    assert checked(tmp_path / "1", files).digest == same.digest


@pytest.mark.parametrize("change", ["weight", "anti-expert", "config"])
def test_what_changes_the_answer_changes_the_digest(tmp_path: Path, change: str) -> None:
    files = expert_files(anti=tensors(LLAMA, seed=1))
    other = {
        "weight": expert_files(
            weights=changed(model__norm__weight=np.ones(8, np.float32)), anti=tensors(LLAMA, seed=1)
        ),
        "anti-expert": expert_files(anti=tensors(LLAMA, seed=2)),
        "config": expert_files({**LLAMA, "rms_norm_eps": 1e-5}, anti=tensors(LLAMA, seed=1)),
    }[change]
    assert checked(tmp_path / "1", files).digest != checked(tmp_path / "2", other).digest
