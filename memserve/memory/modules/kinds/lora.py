"""The check of a PEFT LoRA adapter.

An adapter is accepted when it fits the base model, when vLLM applies all of it, and when it changes
something.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memserve.domain import ModuleKind
from memserve.errors import InvalidModule
from memserve.memory.modules.kinds.figures import lora_figures
from memserve.memory.modules.kinds.files import (
    NAME_SHOWN_CHARS,
    BaseModel,
    CheckedModule,
    TensorFile,
    canonical_json,
    read_json_object,
)

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ALPHA_MAX = 1e6
# A delta with a smaller norm is lost in the rounding of the dtypes that models are served in.
DELTA_NORM_LEAST = 1e-6
# The next three tables have the fields of adapter_config.json, as peft 0.21's LoraConfig writes them.
# The fields of the first table do not change what the saved weights do. The names of the weights say where
# they apply. The other fields are checked elsewhere, or matter only in training.
_NO_PART_IN_ANSWERS = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "runtime_config",
    "target_modules",
}
# With these values the adapter is plain LoRA. It is plain LoRA with null, false and empty values too.
_PLAIN_VALUES: dict[str, tuple[Any, ...]] = {
    "task_type": ("CAUSAL_LM",),
    "bias": ("none",),
    "use_rslora": (True,),
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),
}
# With any value that switches one of these fields on, the adapter is more than plain LoRA.
_KNOWN_REFUSED = {
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "loftq_config",
    "lora_bias",
    "lora_ga_config",
    "megatron_config",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
}
_TENSOR = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<side>[AB])\.weight")
# Finds the layer of a tensor, whatever the prefix of the name.
_LAYER = re.compile(r"(?P<layer>\.(?:layers|h)\.\d+\..+?)\.lora_(?P<side>[AB])(?:\.default)?(?:\.weight)?$")
# vLLM drops, or cannot place, adapted layers outside the blocks of the language model. Such layers are
# embeddings, a tied head, a vision tower, and the layers of multi-token prediction.
_IN_BLOCK = re.compile(
    r"(?:(?:model|language_model|transformer|gpt_neox|decoder|backbone)\.)*(?:layers|h)\.\d+\..+"
)


def check_lora(folder: Path, base: BaseModel) -> CheckedModule:
    """Check adapter_config.json and adapter_model.safetensors in `folder`.

    Raises InvalidModule, which names the file, the field or the tensor.
    """
    config = read_json_object(folder / CONFIG_FILE)
    rank = _check_config(config, base.max_rank)
    tensors = TensorFile(folder / WEIGHTS_FILE)
    paths = _check_tensors(tensors, base, rank)
    targets = sorted({path.rsplit(".", 1)[-1] for path in paths})
    rslora = bool(config.get("use_rslora", False))
    scale = config["lora_alpha"] / (math.sqrt(rank) if rslora else rank)
    figures = lora_figures(
        ((tensors.float32(_name(path, "A")), tensors.float32(_name(path, "B"))) for path in paths), scale
    )
    if figures.delta_norm == 0:
        raise InvalidModule(
            WEIGHTS_FILE, "lora_B times lora_A is zero in every layer: the module would change nothing"
        )
    if figures.delta_norm < DELTA_NORM_LEAST:
        rule = (
            f"its delta's norm is {figures.delta_norm:.1e}, below {DELTA_NORM_LEAST:g}: the module would "
            "change nothing"
        )
        raise InvalidModule(WEIGHTS_FILE, rule)
    canonical = canonical_json(
        {
            "base_model_name_or_path": "",
            "bias": "none",
            "lora_alpha": config["lora_alpha"],
            "peft_type": "LORA",
            "r": rank,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_rslora": rslora,
        }
    )
    digest = hashlib.sha256(canonical + tensors.content_digest()).hexdigest()
    return CheckedModule(
        digest,
        ModuleKind.LORA,
        rank,
        tuple(targets),
        figures,
        {CONFIG_FILE: canonical},
        _missing(config, base, paths),
    )


def _check_config(config: dict[str, Any], max_rank: int) -> int:
    """Returns the rank."""
    if config.get("peft_type") == "CARTRIDGE":
        raise InvalidModule("cartridge.json", "is missing: a cartridge says with it what its KV belongs to")
    if config.get("peft_type") == "PROMPT_TUNING":
        raise InvalidModule("soft_prompt.json", "is missing: a soft prompt says with it what it belongs to")
    if config.get("peft_type") != "LORA":
        raise InvalidModule(f"{CONFIG_FILE}: peft_type", "must be LORA")
    rank = config.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= max_rank:
        raise InvalidModule(
            f"{CONFIG_FILE}: r", f"must be a whole number from 1 to {max_rank} (setting max_lora_rank)"
        )
    alpha = config.get("lora_alpha")
    if (
        not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < abs(alpha) <= ALPHA_MAX
    ):  # NaN fails too
        raise InvalidModule(
            f"{CONFIG_FILE}: lora_alpha", f"must be a number other than 0, at most {ALPHA_MAX:g}"
        )
    for field, value in config.items():
        _check_plain(field, value)
    return rank


def _check_plain(field: str, value: Any) -> None:
    """Check that the field leaves the adapter plain LoRA: lora_B times lora_A.

    Raises InvalidModule for a field that makes the adapter more than that, and for an unknown field. With
    such a field the answers could differ from peft's answers.
    """
    if field in _NO_PART_IN_ANSWERS or value is None or value is False or value in ("", [], {}):
        return
    shown = repr(value)[:NAME_SHOWN_CHARS]
    if field == "init_lora_weights" and value not in _PLAIN_VALUES[field]:
        rule = (
            f"{shown} changes the base model's weights as training begins; save it with "
            "path_initial_model_for_weight_conversion"
        )
        raise InvalidModule(f"{CONFIG_FILE}: {field}", rule)
    if field in _PLAIN_VALUES:
        plain = _PLAIN_VALUES[field]
        if value not in plain:
            rule = (
                f"must be one of {', '.join(map(repr, plain))}, not {shown}; merge it into plain LoRA weights"
            )
            raise InvalidModule(f"{CONFIG_FILE}: {field}", rule)
    elif field in _KNOWN_REFUSED:
        raise InvalidModule(
            f"{CONFIG_FILE}: {field}", "is not supported when serving; merge it into plain LoRA weights"
        )
    else:
        rule = (
            f"is not known here ({shown}), and may change what the adapter does; leave it out if it does not"
        )
        raise InvalidModule(f"{CONFIG_FILE}: {field}", rule)


def _check_tensors(tensors: TensorFile, base: BaseModel, rank: int) -> list[str]:
    """Returns the adapted layers' paths, sorted."""
    sides: dict[str, set[str]] = {}
    nonzero: set[tuple[str, str]] = set()
    for name in tensors.names:
        match = _TENSOR.fullmatch(name)
        shape = base.shapes.get(f"{match['path']}.weight") if match else None
        if match is None or shape is None or len(shape) != 2 or not _IN_BLOCK.fullmatch(match["path"]):
            rule = (
                "does not belong to a linear layer of the base model's transformer blocks; it would be "
                "silently ignored"
            )
            if similar := _same_layer(name, base):
                rule = f"has another prefix than the base model's layers: rename it to {similar}"
            raise InvalidModule(name[:NAME_SHOWN_CHARS], rule)
        path, side = match["path"], match["side"]
        if tensors.check(name, (rank, shape[1]) if side == "A" else (shape[0], rank)):
            nonzero.add((path, side))
        sides.setdefault(path, set()).add(side)
    for path, present in sides.items():
        if present != {"A", "B"}:
            raise InvalidModule(path, "has only one of lora_A and lora_B")
    if not any({(path, "A"), (path, "B")} <= nonzero for path in sides):
        raise InvalidModule(
            WEIGHTS_FILE, "lora_A or lora_B is zero in every layer: the module would change nothing"
        )
    return sorted(sides)


def _missing(config: dict[str, Any], base: BaseModel, paths: Sequence[str]) -> str:
    """A warning for a file that lacks some of the layers that the configuration names. Empty: no warning.

    The layers may have been lost in training, saving or copying. peft accepts such a file too, with a
    warning, and does not adapt the missing layers.
    """
    named = config.get("target_modules")
    if not isinstance(named, list) or any(
        config.get(field) for field in ("layers_to_transform", "exclude_modules")
    ):
        return ""
    linear = (
        name.removesuffix(".weight")
        for name, shape in base.shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    )
    meant = {
        path
        for path in linear
        if _IN_BLOCK.fullmatch(path) and any(path == name or path.endswith(f".{name}") for name in named)
    }
    left_out = sorted(meant - set(paths))
    if not left_out:
        return ""
    return (
        f"adapts {len(meant) - len(left_out)} of the {len(meant)} layers that target_modules names; "
        f"{left_out[0]} is not in {WEIGHTS_FILE}"
    )


def _name(path: str, side: str) -> str:
    return f"base_model.model.{path}.lora_{side}.weight"


def _same_layer(name: str, base: BaseModel) -> str:
    """The right name for a tensor whose layer the base model has under another prefix.

    Empty when the base model has no such layer, or several.
    """
    found = _LAYER.search(name)
    paths = [
        path
        for path in base.shapes
        if found and path.endswith(f"{found['layer']}.weight") and _IN_BLOCK.fullmatch(path)
    ]
    return _name(paths[0].removesuffix(".weight"), found["side"]) if found and len(paths) == 1 else ""
