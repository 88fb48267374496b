"""The check of a soft prompt: trained embeddings that stand at the first positions of a prompt.

The files are those of peft's PROMPT_TUNING, and `soft_prompt.json` beside them, which says what the
embeddings belong to.

Source: prompt tuning, Lester et al. 2021, arXiv 2104.08691; SoftCoT, Xu et al. 2025, arXiv 2502.12134.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from memserve.domain import EmbeddedRows, ModuleKind
from memserve.domain.names import is_sha256
from memserve.errors import InvalidModule
from memserve.memory.modules.kinds.figures import model_figures
from memserve.memory.modules.kinds.files import (
    NAME_SHOWN_CHARS,
    BaseModel,
    CheckedModule,
    EmbeddingShape,
    TensorFile,
    canonical_json,
    read_json_object,
)

ORIGIN_FILE = "soft_prompt.json"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TENSOR = "prompt_embeddings"
"""[tokens, hidden width], as peft saves it."""
PEFT_TYPE = "PROMPT_TUNING"
DOCUMENTS_MAX = 1024
ORIGIN_FIELDS = ("base_digest", "documents")
# The fields of adapter_config.json, as peft 0.21's PromptTuningConfig writes them, that do not change what
# the saved embeddings do: how they were begun, and for which model. The checks read the others.
_NO_PART_IN_ANSWERS = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "num_attention_heads",
    "num_layers",
    "peft_version",
    "prompt_tuning_init",
    "prompt_tuning_init_state_dict_path",
    "prompt_tuning_init_text",
    "revision",
    "task_type",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
}
_CHECKED = ("peft_type", "num_virtual_tokens", "token_dim")


def check_soft_prompt(folder: Path, base: BaseModel) -> CheckedModule:
    """Check soft_prompt.json, adapter_config.json and adapter_model.safetensors in `folder`.

    Raises InvalidModule, which names the file, the field or the tensor.
    """
    shape = base.embedding
    if shape is None:
        raise InvalidModule("module", "this gateway does not know the base model's embeddings")
    if shape.refusal:
        raise InvalidModule("module", f"no soft prompt fits the base model: {shape.refusal}")
    origin = _check_origin(read_json_object(folder / ORIGIN_FILE), shape)
    tokens = _check_config(read_json_object(folder / CONFIG_FILE), shape.width, shape.context_tokens // 2)
    tensors = _tensors(folder)
    if not tensors.check(TENSOR, (tokens, shape.width)):
        raise InvalidModule(TENSOR, "is zero everywhere")
    embeddings = tensors.float32(TENSOR)
    _rows(embeddings, shape.dtype)
    config = canonical_json(
        {
            "num_virtual_tokens": tokens,
            "peft_type": PEFT_TYPE,
            "task_type": "CAUSAL_LM",
            "token_dim": shape.width,
        }
    )
    return CheckedModule(
        hashlib.sha256(origin + config + tensors.content_digest()).hexdigest(),
        ModuleKind.SOFT_PROMPT,
        0,
        (),
        model_figures([embeddings]),
        {ORIGIN_FILE: origin, CONFIG_FILE: config},
        prefix_tokens=tokens,
    )


def read_rows(folder: Path, width: int, dtype: str, tokens_max: int) -> EmbeddedRows:
    """The embeddings of a published soft prompt, as engines get them.

    width, dtype: of the model's embeddings. tokens_max: how many positions are taken.
    Raises InvalidModule for files that do not fit.
    """
    tokens = _check_config(read_json_object(folder / CONFIG_FILE), width, tokens_max)
    tensors = _tensors(folder)
    tensors.check(TENSOR, (tokens, width))
    return _rows(tensors.float32(TENSOR), dtype)


def soft_prompt_files(
    embeddings: npt.NDArray[np.float32], base_digest: str, documents: Sequence[str] = ()
) -> dict[str, bytes]:
    """The files of a soft prompt, by name.

    embeddings: [tokens, hidden width]. base_digest: of the model that they are for, as `ModelFiles` has it.
    documents: sha256 of each document that they were made from, in hexadecimal.
    """
    tokens, width = embeddings.shape
    config = {"num_virtual_tokens": tokens, "peft_type": PEFT_TYPE, "task_type": "CAUSAL_LM"}
    return {
        ORIGIN_FILE: canonical_json({"base_digest": base_digest, "documents": list(documents)}),
        CONFIG_FILE: canonical_json({**config, "token_dim": width}),
        WEIGHTS_FILE: save({TENSOR: np.ascontiguousarray(embeddings, np.float32)}),
    }


def _rows(embeddings: npt.NDArray[np.float32], dtype: str) -> EmbeddedRows:
    """embeddings: [tokens, width], finite. Raises InvalidModule where they are not finite in the dtype."""
    if dtype == "bfloat16":
        # To the nearest, halves to the even one, as torch rounds. numpy has no bfloat16.
        bits = embeddings.view(np.uint32)
        rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype("<u2")
        finite, rows = (rounded & 0x7F80) != 0x7F80, rounded.tobytes()
    elif dtype in ("float32", "float16"):
        with np.errstate(over="ignore"):
            cast = embeddings.astype(np.dtype(dtype).newbyteorder("<"))
        finite, rows = np.isfinite(cast), cast.tobytes()
    else:
        raise InvalidModule("module", f"no soft prompt fits a model that is served in {dtype}")
    if not finite.all():
        raise InvalidModule(TENSOR, f"holds values beyond the range of {dtype}")
    return EmbeddedRows(rows, len(rows) // len(embeddings))


def _check_origin(entries: dict[str, Any], shape: EmbeddingShape) -> bytes:
    """Returns the canonical bytes."""
    for name in entries:
        if name not in ORIGIN_FIELDS:
            raise _refused(name[:NAME_SHOWN_CHARS], f"is not known; there are {', '.join(ORIGIN_FIELDS)}")
    digest = entries.get("base_digest")
    if not isinstance(digest, str) or not is_sha256(digest):
        raise _refused("base_digest", "must be the base model's digest, 64 lower-case hex digits")
    if digest != shape.base_digest:
        raise _refused("base_digest", f"is of another model than the served one, {shape.base_digest}")
    documents = entries.get("documents", [])
    if not isinstance(documents, list) or len(documents) > DOCUMENTS_MAX:
        raise _refused("documents", f"must be a list of at most {DOCUMENTS_MAX}")
    if not all(isinstance(each, str) and is_sha256(each) for each in documents):
        raise _refused("documents", "must be sha256 digests, 64 lower-case hex digits each")
    return canonical_json({"base_digest": digest, "documents": documents})


def _check_config(config: dict[str, Any], width: int, tokens_max: int) -> int:
    """Returns how many positions the soft prompt takes."""
    if config.get("peft_type") != PEFT_TYPE:
        raise InvalidModule(f"{CONFIG_FILE}: peft_type", f"must be {PEFT_TYPE}")
    tokens = config.get("num_virtual_tokens")
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 1 <= tokens <= tokens_max:
        raise InvalidModule(
            f"{CONFIG_FILE}: num_virtual_tokens",
            f"must be a whole number from 1 to {tokens_max}, half of the context",
        )
    if config.get("token_dim") not in (None, width):
        raise InvalidModule(f"{CONFIG_FILE}: token_dim", f"must be the base model's hidden width, {width}")
    for field, value in config.items():
        known = field in _NO_PART_IN_ANSWERS or field in _CHECKED
        one_copy = field == "num_transformer_submodules" and value == 1
        if not known and not one_copy and value not in (None, False, "", [], {}):
            shown = repr(value)[:NAME_SHOWN_CHARS]
            raise InvalidModule(
                f"{CONFIG_FILE}: {field[:NAME_SHOWN_CHARS]}", f"is not known here ({shown}); leave it out"
            )
    return tokens


def _tensors(folder: Path) -> TensorFile:
    tensors = TensorFile(folder / WEIGHTS_FILE)
    if tensors.names != [TENSOR]:
        shown = ", ".join(name[:NAME_SHOWN_CHARS] for name in tensors.names[:3])
        raise InvalidModule(WEIGHTS_FILE, f"must hold the one tensor {TENSOR}, not {shown}")
    return tensors


def _refused(field: str, rule: str) -> InvalidModule:
    return InvalidModule(f"{ORIGIN_FILE}: {field}", rule)
