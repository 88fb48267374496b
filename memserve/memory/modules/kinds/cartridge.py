"""The check of a cartridge: trained KV that stands at the first positions of a prompt.

The files are those of peft's CARTRIDGE, and `cartridge.json` beside them, which says what the KV belongs to.

Source: Cartridges, Eyuboglu et al. 2025, arXiv 2506.06266.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from memserve.domain import ModuleKind
from memserve.domain.names import is_sha256
from memserve.errors import InvalidModule
from memserve.memory.modules.kinds.figures import model_figures
from memserve.memory.modules.kinds.files import (
    NAME_SHOWN_CHARS,
    BaseModel,
    CheckedModule,
    KvShape,
    TensorFile,
    canonical_json,
    read_json_object,
)

ORIGIN_FILE = "cartridge.json"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PEFT_TENSOR = "prompt_embeddings"
"""[tokens, layers * 2 * KV heads * head size], as peft saves it. Keys are rotated already."""
PLAIN_TENSOR = "kv"
"""[tokens, layers, 2, KV heads, head size], keys before values. The same numbers in the same order."""
DOCUMENTS_MAX = 1024
ORIGIN_FIELDS = ("base_digest", "rope", "documents")
# The fields of adapter_config.json, as peft 0.21's CartridgeConfig writes them, that do not change what the
# saved KV does. The checks read the two others.
_NO_PART_IN_ANSWERS = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "num_attention_heads",
    "num_frozen_tokens",
    "num_layers",
    "peft_version",
    "revision",
    "task_type",
    "token_dim",
}


def cartridge_refusal(base: BaseModel) -> str:
    """Why the base model takes no cartridge; empty where it takes one."""
    if base.kv is None:
        return "this gateway does not know the shape of the base model's KV"
    return f"no cartridge fits the base model: {base.kv.refusal}" if base.kv.refusal else ""


def check_cartridge(folder: Path, base: BaseModel) -> CheckedModule:
    """Check cartridge.json, adapter_config.json and adapter_model.safetensors in `folder`.

    Raises InvalidModule, which names the file, the field or the tensor.
    """
    if refusal := cartridge_refusal(base):
        raise InvalidModule("module", refusal)
    shape = base.kv
    assert shape is not None
    origin = _check_origin(read_json_object(folder / ORIGIN_FILE), shape)
    tokens = _check_config(read_json_object(folder / CONFIG_FILE), shape)
    tensors = TensorFile(folder / WEIGHTS_FILE)
    name = _tensor_name(tensors)
    plain = (tokens, shape.layers, 2, shape.kv_heads, shape.head_size)
    if not tensors.check(name, plain if name == PLAIN_TENSOR else (tokens, int(np.prod(plain[1:])))):
        raise InvalidModule(name, "is zero everywhere")
    config = canonical_json(
        {"num_virtual_tokens": tokens, "peft_type": "CARTRIDGE", "task_type": "CAUSAL_LM"}
    )
    kv = tensors.float32(name).reshape(tokens, 2 * shape.layers, -1)
    return CheckedModule(
        hashlib.sha256(origin + config + tensors.content_digest()).hexdigest(),
        ModuleKind.CARTRIDGE,
        0,
        (),
        model_figures(kv[:, place] for place in range(kv.shape[1])),
        {ORIGIN_FILE: origin, CONFIG_FILE: config},
        prefix_tokens=tokens,
    )


def cartridge_files(
    kv: npt.NDArray[np.float32],
    base_digest: str,
    rope: Mapping[str, Any],
    documents: Sequence[str] = (),
) -> dict[str, bytes]:
    """The files of a cartridge, by name.

    kv: [tokens, layers, 2, KV heads, head size], keys rotated at positions 0 to tokens - 1.
    base_digest, rope: of the model that the KV is for, as `ModelFiles` has them. documents: sha256 of each
    document that the KV was made from, in hexadecimal.
    """
    config = {"num_virtual_tokens": len(kv), "peft_type": "CARTRIDGE", "task_type": "CAUSAL_LM"}
    origin = {"base_digest": base_digest, "rope": dict(rope), "documents": list(documents)}
    flat = np.ascontiguousarray(kv, np.float32).reshape(len(kv), -1)
    return {
        ORIGIN_FILE: canonical_json(origin),
        CONFIG_FILE: canonical_json(config),
        WEIGHTS_FILE: save({PEFT_TENSOR: flat}),
    }


def _check_origin(entries: dict[str, Any], shape: KvShape) -> bytes:
    """Returns the canonical bytes."""
    for name in entries:
        if name not in ORIGIN_FIELDS:
            raise _refused(name[:NAME_SHOWN_CHARS], f"is not known; there are {', '.join(ORIGIN_FIELDS)}")
    digest = entries.get("base_digest")
    if not isinstance(digest, str) or not is_sha256(digest):
        raise _refused("base_digest", "must be the base model's digest, 64 lower-case hex digits")
    if digest != shape.base_digest:
        raise _refused("base_digest", f"is of another model than the served one, {shape.base_digest}")
    if entries.get("rope") != dict(shape.rope):
        raise _refused("rope", f"must be the base model's, {canonical_json(shape.rope).decode()}")
    documents = entries.get("documents", [])
    if not isinstance(documents, list) or len(documents) > DOCUMENTS_MAX:
        raise _refused("documents", f"must be a list of at most {DOCUMENTS_MAX}")
    if not all(isinstance(each, str) and is_sha256(each) for each in documents):
        raise _refused("documents", "must be sha256 digests, 64 lower-case hex digits each")
    return canonical_json({"base_digest": digest, "rope": entries["rope"], "documents": documents})


def _check_config(config: dict[str, Any], shape: KvShape) -> int:
    """Returns how many positions the cartridge takes."""
    if config.get("peft_type") != "CARTRIDGE":
        raise InvalidModule(f"{CONFIG_FILE}: peft_type", "must be CARTRIDGE")
    tokens = config.get("num_virtual_tokens")
    most = shape.context_tokens // 2
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 1 <= tokens <= most:
        raise InvalidModule(
            f"{CONFIG_FILE}: num_virtual_tokens",
            f"must be a whole number from 1 to {most}, half of the context",
        )
    if tokens % shape.block_tokens:
        raise InvalidModule(
            f"{CONFIG_FILE}: num_virtual_tokens",
            f"is {tokens}, and must be a multiple of {shape.block_tokens} (setting block_tokens)",
        )
    for field, value in config.items():
        known = field in _NO_PART_IN_ANSWERS or field in ("peft_type", "num_virtual_tokens")
        one_copy = field == "num_transformer_submodules" and value == 1
        if not known and not one_copy and value not in (None, False, "", [], {}):
            shown = repr(value)[:NAME_SHOWN_CHARS]
            raise InvalidModule(
                f"{CONFIG_FILE}: {field[:NAME_SHOWN_CHARS]}", f"is not known here ({shown}); leave it out"
            )
    return tokens


def _tensor_name(tensors: TensorFile) -> str:
    names = tensors.names
    if names not in ([PEFT_TENSOR], [PLAIN_TENSOR]):
        raise InvalidModule(
            WEIGHTS_FILE,
            f"must hold the one tensor {PEFT_TENSOR} or {PLAIN_TENSOR}, not "
            f"{', '.join(name[:NAME_SHOWN_CHARS] for name in names[:3])}",
        )
    return names[0]


def _refused(field: str, rule: str) -> InvalidModule:
    return InvalidModule(f"{ORIGIN_FILE}: {field}", rule)
