"""The check of a logit expert.

A logit expert is a small causal language model. Its logits shift the logits of the served model while the
served model decodes: base + alpha * (expert - anti-expert).

Source: proxy tuning, Liu et al. 2024, arXiv 2401.08565.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from memserve.domain import ModuleKind
from memserve.errors import InvalidModule
from memserve.memory.modules.kinds.figures import model_figures
from memserve.memory.modules.kinds.files import (
    NAME_SHOWN_CHARS,
    BaseModel,
    CheckedModule,
    TensorFile,
    canonical_json,
    read_json_object,
)

EXPERT_CONFIG_FILE = "expert_config.json"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
ANTI_WEIGHTS_FILE = "anti_model.safetensors"
# Limits for an expert: the elements of its KV for one token, keys and values of all layers together, and the
# elements of its queries for one token, all heads together.
KV_ELEMENTS_PER_TOKEN_MAX = 1 << 16
QUERY_ELEMENTS_MAX = 1 << 14
# What is subtracted from the expert's logits: nothing, the served model's logits, or the logits of a second
# set of weights.
ANTI_EXPERTS = ("none", "base", "file")
MODEL_TYPES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
# Rope type to the parameters that it needs beside rope_theta.
ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
# Entries of config.json that run code, or that change the arithmetic in a way that the expert's loader does
# not know.
UNSUPPORTED = (
    "auto_map",
    "custom_pipelines",
    "trust_remote_code",
    "quantization_config",
    "use_sliding_window",
)


def check_logit_expert(folder: Path, base: BaseModel) -> CheckedModule:
    """Check the expert's files in `folder`.

    Raises InvalidModule, which names the file, the field or the tensor.
    """
    expert = _check_expert_config(read_json_object(folder / EXPERT_CONFIG_FILE))
    config = _check_config(read_json_object(folder / CONFIG_FILE), base)
    shapes = _tensor_shapes(config)
    tensors = _check_tensors(folder / WEIGHTS_FILE, shapes)
    contents = tensors.content_digest()
    anti_file = folder / ANTI_WEIGHTS_FILE
    if expert["anti_expert"] == "file":
        anti = _check_tensors(anti_file, shapes).content_digest()
        if anti == contents:
            raise InvalidModule(
                ANTI_WEIGHTS_FILE, f"is equal to {WEIGHTS_FILE}: the module would change nothing"
            )
        contents += anti
    elif anti_file.exists():
        raise InvalidModule(
            ANTI_WEIGHTS_FILE, f'is there, but anti_expert in {EXPERT_CONFIG_FILE} is not "file"'
        )
    figures = model_figures(tensors.float32(name) for name in tensors.names)
    rewritten = {EXPERT_CONFIG_FILE: canonical_json(expert), CONFIG_FILE: canonical_json(config)}
    digest = hashlib.sha256(canonical_json({"expert": expert, "config": config}) + contents).hexdigest()
    return CheckedModule(digest, ModuleKind.LOGIT_EXPERT, 0, (), figures, rewritten)


def _check_expert_config(entries: dict[str, Any]) -> dict[str, str]:
    kind = str(ModuleKind.LOGIT_EXPERT)
    if entries.get("kind") != kind:
        raise InvalidModule(f"{EXPERT_CONFIG_FILE}: kind", f'must be "{kind}"')
    anti_expert = entries.get("anti_expert", "none")
    if anti_expert not in ANTI_EXPERTS:
        raise InvalidModule(f"{EXPERT_CONFIG_FILE}: anti_expert", f"must be one of {', '.join(ANTI_EXPERTS)}")
    for name in entries:
        if name not in ("kind", "anti_expert"):
            raise InvalidModule(
                f"{EXPERT_CONFIG_FILE}: {name[:NAME_SHOWN_CHARS]}",
                "is not known; there are kind and anti_expert",
            )
    return {"kind": kind, "anti_expert": anti_expert}


def _check_config(entries: dict[str, Any], base: BaseModel) -> dict[str, Any]:
    """The canonical config.

    It has only the entries that decide the arithmetic. Every value is checked, and defaults are written out.
    """
    architectures = entries.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else None
    if not isinstance(architecture, str) or architecture not in MODEL_TYPES:
        raise _refused("architectures", f"must be one of {', '.join(MODEL_TYPES)}")
    for name in UNSUPPORTED:
        if entries.get(name):
            raise _refused(name, "is not supported in a logit expert")
    layer_types = entries.get("layer_types") or []
    if not isinstance(layer_types, list) or any(layer_type != "full_attention" for layer_type in layer_types):
        raise _refused("layer_types", "must all be full_attention")
    if entries.get("model_type", MODEL_TYPES[architecture]) != MODEL_TYPES[architecture]:
        raise _refused("model_type", f"must be {MODEL_TYPES[architecture]} for {architecture}")
    vocab_size = _whole(entries, "vocab_size", 1, 1 << 20)
    if vocab_size != base.vocab_size:
        raise _refused(
            "vocab_size", f"is {vocab_size}: another vocabulary than the base model's {base.vocab_size}"
        )
    if entries.get("hidden_act", "silu") != "silu":
        raise _refused("hidden_act", "must be silu")
    hidden, heads, kv_heads, head_dim = _attention_shape(entries)
    layers = _whole(entries, "num_hidden_layers", 1, 128)
    kv_elements = layers * 2 * kv_heads * head_dim
    if kv_elements > KV_ELEMENTS_PER_TOKEN_MAX:
        taken = f"at most {KV_ELEMENTS_PER_TOKEN_MAX} are taken"
        rule = f"times 2 * num_key_value_heads * head_dim is {kv_elements} elements of KV a token, {taken}"
        raise _refused("num_hidden_layers", rule)
    llama = architecture == "LlamaForCausalLM"
    return {
        "architectures": [architecture],
        "model_type": MODEL_TYPES[architecture],
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": _whole(entries, "intermediate_size", 1, 1 << 16),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": _whole(entries, "max_position_embeddings", 1, 1 << 20),
        "rms_norm_eps": _number(entries, "rms_norm_eps", 1.0, 1e-6),
        "rope_parameters": _rope_parameters(entries),
        "tie_word_embeddings": _flag(entries, "tie_word_embeddings"),
        **({name: _flag(entries, name) for name in ("attention_bias", "mlp_bias")} if llama else {}),
    }


def _attention_shape(entries: dict[str, Any]) -> tuple[int, int, int, int]:
    """The hidden size, the attention heads, the KV heads, and the size of a head."""
    hidden = _whole(entries, "hidden_size", 1, 4096)
    heads = _whole(entries, "num_attention_heads", 1, 128)
    kv_heads = _whole(entries, "num_key_value_heads", 1, heads, heads)
    if hidden % heads:
        raise _refused("num_attention_heads", f"must divide hidden_size, which is {hidden}")
    if heads % kv_heads:
        raise _refused("num_key_value_heads", f"must divide num_attention_heads, which is {heads}")
    head_dim = _whole(entries, "head_dim", 2, 512, hidden // heads)
    if head_dim % 2:
        raise _refused("head_dim", "must be even")
    if heads * head_dim > QUERY_ELEMENTS_MAX:
        rule = f"times num_attention_heads is {heads * head_dim}, at most {QUERY_ELEMENTS_MAX} is taken"
        raise _refused("head_dim", rule)
    return hidden, heads, kv_heads, head_dim


def _rope_parameters(entries: dict[str, Any]) -> dict[str, Any]:
    """The canonical rope parameters.

    transformers 5 writes `rope_parameters`. Earlier versions write `rope_theta` and `rope_scaling`. A config
    with both is read by its `rope_scaling`.
    """
    given = entries.get("rope_scaling") or entries.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise _refused("rope_parameters", "must be an object")
    rope_type = given.get("rope_type") or given.get("type") or "default"
    if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
        raise _refused("rope_parameters", f"rope_type must be one of {', '.join(ROPE_TYPES)}")
    foreign = set(given) - {"rope_type", "type", "rope_theta", *ROPE_TYPES[rope_type]}
    if foreign or entries.get("partial_rotary_factor") not in (None, 1):
        name = min(foreign, default="partial_rotary_factor")[:NAME_SHOWN_CHARS]
        raise _refused("rope_parameters", f"{name} does not belong to rope type {rope_type}")
    theta = _number({"rope_theta": entries.get("rope_theta"), **given}, "rope_theta", 1e12, 10_000.0)
    return {
        "rope_type": rope_type,
        "rope_theta": theta,
        **{name: _number(given, name, 1e9) for name in ROPE_TYPES[rope_type]},
    }


def _tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name to shape of every weight, as transformers 5 saves a Llama or a Qwen2. A tied head is not saved."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    qwen2 = config["model_type"] == "qwen2"
    qkv_bias, o_bias = qwen2 or config["attention_bias"], not qwen2 and config["attention_bias"]
    mlp_bias = not qwen2 and config["mlp_bias"]
    linear_layers = {
        "self_attn.q_proj": (queries, hidden, qkv_bias),
        "self_attn.k_proj": (keys, hidden, qkv_bias),
        "self_attn.v_proj": (keys, hidden, qkv_bias),
        "self_attn.o_proj": (hidden, queries, o_bias),
        "mlp.gate_proj": (inner, hidden, mlp_bias),
        "mlp.up_proj": (inner, hidden, mlp_bias),
        "mlp.down_proj": (hidden, inner, mlp_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        shapes[f"{block}.input_layernorm.weight"] = (hidden,)
        shapes[f"{block}.post_attention_layernorm.weight"] = (hidden,)
        for name, (out_size, in_size, bias) in linear_layers.items():
            shapes[f"{block}.{name}.weight"] = (out_size, in_size)
            if bias:
                shapes[f"{block}.{name}.bias"] = (out_size,)
    return shapes


def _check_tensors(file: Path, shapes: dict[str, tuple[int, ...]]) -> TensorFile:
    tensors = TensorFile(file)
    names = tensors.names
    for name in names:
        if name not in shapes:
            raise InvalidModule(
                name[:NAME_SHOWN_CHARS],
                f"in {file.name} is not a weight of the model that {CONFIG_FILE} describes",
            )
    missing = min(shapes.keys() - set(names), default=None)
    if missing is not None:
        raise InvalidModule(missing, f"is missing in {file.name}")
    nonzero = [tensors.check(name, shapes[name]) for name in names]
    if not any(nonzero):
        raise InvalidModule(file.name, "is zero in every weight")
    return tensors


def _whole(entries: dict[str, Any], name: str, least: int, most: int, default: int | None = None) -> int:
    value = entries.get(name)
    if value is None and default is not None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _refused(name, f"must be a whole number from {least} to {most}")
    return value


def _number(entries: dict[str, Any], name: str, most: float, default: float | None = None) -> float:
    value = entries.get(name)
    if value is None and default is not None:
        value = default
    if (
        not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= most
    ):  # NaN fails too
        raise _refused(name, f"must be a number above 0, at most {most:g}")
    # A whole number keeps its type: original_max_position_embeddings counts tokens.
    return value


def _flag(entries: dict[str, Any], name: str) -> bool:
    value = entries.get(name, False)
    if not isinstance(value, bool):
        raise _refused(name, "must be true or false")
    return value


def _refused(field: str, rule: str) -> InvalidModule:
    return InvalidModule(f"{CONFIG_FILE}: {field}", rule)
