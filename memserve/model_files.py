"""A Hugging Face model directory: identity, limits and tensor shapes, read without torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memserve.errors import StartupError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
DEFAULT_CONTEXT_TOKENS = 8192
# The limit of the safetensors package.
HEADER_MAX_BYTES = 100 << 20
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A local model directory that has been looked at."""

    path: Path
    max_context_tokens: int
    config: dict[str, Any]

    @property
    def dtype(self) -> str:
        """The weights' dtype as torch names it: the one that the model is served in."""
        return str(self.config.get("dtype") or self.config.get("torch_dtype") or "bfloat16")

    @property
    def head_size(self) -> int:
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"])

    @property
    def layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def kv_heads(self) -> int:
        return int(self.config.get("num_key_value_heads") or self.config["num_attention_heads"])

    @property
    def has_latent_attention(self) -> bool:
        """Whether its KV is one compressed vector a token (MLA) and no K and V of heads."""
        return bool(self.config.get("kv_lora_rank"))

    @property
    def kv_bytes_per_token(self) -> int:
        """Over all layers, keys and values, without quantization."""
        return self.layers * 2 * self.kv_heads * self.head_size * DTYPE_BYTES.get(self.dtype, 2)

    @property
    def name(self) -> str:
        return self.path.name

    def model_digest(self) -> str:
        """sha256 over the weights' and the config's bytes, hex. Reads every weight once, at about 2 GB/s."""
        return _digest([self.path / "config.json", *_weights(self.path)])

    def tokenizer_digest(self) -> str:
        """sha256 over what turns messages into token ids, hex. A gateway and its workers must agree on it."""
        return _digest([self.path / name for name in TOKENIZER_FILES if (self.path / name).is_file()])

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every weight, from the safetensors headers. Empty when the directory has no weights."""
        shapes: dict[str, tuple[int, ...]] = {}
        for file in _weights(self.path):
            for name, entry in read_safetensors_header(file).items():
                shapes[name] = tuple(entry["shape"])
        return shapes


def open_model(path: Path, max_context_tokens: int = 0) -> ModelFiles:
    """Look at the model directory `path`.

    max_context_tokens: the longest prompt and answer to serve; 0 means the model's own limit, at most 8192.
    Raises StartupError when something that serving needs is missing.
    """
    if not path.is_dir():
        raise StartupError(f"model directory {path} does not exist; give a directory or a Hugging Face name with --model")
    for name in ("config.json", "tokenizer.json"):
        if not (path / name).is_file():
            raise StartupError(f"model directory {path} has no {name}; memserve needs a Hugging Face model with a fast tokenizer")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise StartupError(f"{path / 'config.json'} is not JSON: {error}") from None
    limit = int(config.get("max_position_embeddings") or DEFAULT_CONTEXT_TOKENS)
    if max_context_tokens > limit:
        raise StartupError(f"max_context_tokens is {max_context_tokens}, but the model {path.name} takes at most {limit}")
    return ModelFiles(path, max_context_tokens or min(limit, DEFAULT_CONTEXT_TOKENS), config)


def safetensors_header_bytes(file: Path) -> int:
    """The length that a safetensors file announces for its header, without reading the header.

    Raises ValueError when no header of this length is in the file. Source: the format's description in the safetensors README.
    """
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
    if not 2 <= size <= min(HEADER_MAX_BYTES, file.stat().st_size - 8):
        raise ValueError("not a safetensors file: its header length is impossible")
    return size


def read_safetensors_header(file: Path) -> dict[str, dict[str, Any]]:
    """Tensor name to {dtype, shape, data_offsets}, of one safetensors file. Raises ValueError when the file is not one."""
    size = safetensors_header_bytes(file)
    with file.open("rb") as stream:
        stream.seek(8)
        header = json.loads(stream.read(size), object_pairs_hook=_without_repeats)
    if not isinstance(header, dict):
        raise ValueError("not a safetensors file: its header is not an object")
    header.pop("__metadata__", None)
    return header


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ in which of two entries of one name they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("not a safetensors file: its header has a name twice")
    return found


def _weights(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors"))


def _digest(files: list[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256")
        whole.update(f"{file.name}\0{content.hexdigest()}\n".encode())
    return whole.hexdigest()
