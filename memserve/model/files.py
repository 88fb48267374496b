"""A Hugging Face model directory: identity, limits and tensor shapes, read without torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memserve.errors import StartupError
from memserve.model.by_transformers import asked

# All that transformers looks at; config.json may name the tokenizer's class.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
)
NEEDED_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)
TEMPLATES_FOLDER = "additional_chat_templates"
DEFAULT_CONTEXT_TOKENS = 8192
# The limit of the safetensors package.
HEADER_MAX_BYTES = 100 << 20
_POINTER = b"version https://git-lfs.github.com/spec/"
# As vLLM's `ModelConfig.get_num_experts` knows them.
EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A local model directory that has been looked at."""

    path: Path
    max_context_tokens: int
    config: dict[str, Any]
    # Of the text model, where they stand elsewhere than at the top of `config`, by the same names.
    sizes: dict[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """The weights' dtype as torch names it: the one that the model is served in."""
        for config in (self.config, self.sizes):
            if found := config.get("dtype") or config.get("torch_dtype"):
                return str(found)
        return "bfloat16"

    @property
    def architecture(self) -> str:
        """ "" where the configuration names none; `check_model` refuses that."""
        return next(iter(self.config.get("architectures") or ()), "")

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding: a token id at or over it ends the engine."""
        return int(self._size("vocab_size"))

    @property
    def head_size(self) -> int:
        return int(self._size("head_dim") or self._size("hidden_size") // self._size("num_attention_heads"))

    @property
    def layers(self) -> int:
        return int(self._size("num_hidden_layers"))

    @property
    def kv_heads(self) -> int:
        return int(self._size("num_key_value_heads") or self._size("num_attention_heads"))

    @property
    def has_latent_attention(self) -> bool:
        """Whether its KV is one compressed vector a token (MLA) and no K and V of heads."""
        return bool(self._size("kv_lora_rank"))

    @property
    def has_experts(self) -> bool:
        """Whether its layers are mixtures of experts, by any family's name for their number."""
        return any(
            isinstance(config.get(name), int) and config[name] > 1
            for config in (self.config, self.sizes)
            for name in EXPERTS
        )

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
        files = [self.path / name for name in TOKENIZER_FILES if (self.path / name).is_file()]
        return _digest([*files, *sorted((self.path / TEMPLATES_FOLDER).glob("*.jinja"))])

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every weight, from the safetensors headers. Empty when the directory has no
        weights.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for file in _weights(self.path):
            for name, entry in read_safetensors_header(file).items():
                shapes[name] = tuple(entry["shape"])
        return shapes

    def checked_weights(self) -> int:
        """How many files of weights there are, all whole by their headers and lengths. Raises
        StartupError.
        """
        for file in _weights(self.path):
            try:
                header = read_safetensors_header(file)
                end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
                whole = 8 + safetensors_header_bytes(file) + end == file.stat().st_size
            except (ValueError, KeyError, TypeError, IndexError):
                whole = False
            if not whole:
                raise StartupError(f"{file} is damaged or cut off{pointer_hint(file)}")
        for index in sorted(self.path.glob("*.safetensors.index.json")):
            shards = json_object(index).get("weight_map")
            for shard in sorted(set(shards.values())) if isinstance(shards, dict) else ():
                if not (self.path / str(shard)).is_file():
                    raise StartupError(f"model directory {self.path} has no {shard}, which {index} names")
        return len(_weights(self.path))

    def _size(self, name: str) -> Any:
        """None: the configuration does not say it."""
        return (self.sizes or self.config).get(name)


def open_model(path: Path, max_context_tokens: int = 0) -> ModelFiles:
    """Look at the model directory `path`.

    max_context_tokens: the longest prompt and answer to serve; 0 means the model's own limit, at most 8192.
    Raises StartupError when something that serving needs is missing.
    """
    if not path.is_dir():
        raise StartupError(
            f"model directory {path} does not exist; give a directory or a Hugging Face name with --model"
        )
    for name in ("config.json", "tokenizer.json"):
        if not (path / name).is_file():
            raise StartupError(
                f"model directory {path} has no {name}; memserve needs a Hugging Face model with a fast "
                "tokenizer"
            )
    config = json_object(path / "config.json")
    sizes = (
        config if all(isinstance(config.get(name), int) for name in NEEDED_SIZES) else _sizes_elsewhere(path)
    )
    limit = int(sizes.get("max_position_embeddings") or DEFAULT_CONTEXT_TOKENS)
    if max_context_tokens > limit:
        raise StartupError(
            f"max_context_tokens is {max_context_tokens}, but the model {path.name} takes at most {limit}"
        )
    return ModelFiles(
        path,
        max_context_tokens or min(limit, DEFAULT_CONTEXT_TOKENS),
        config,
        {} if sizes is config else sizes,
    )


def _sizes_elsewhere(path: Path) -> dict[str, Any]:
    """Those that stand in a `text_config`, have another name in the family, or are its defaults. Raises
    StartupError.
    """
    found = asked("sizes", path, _digest([path / "config.json"]))
    missing = [
        name
        for name in NEEDED_SIZES
        if not isinstance(found.get(name), int) and name != "max_position_embeddings"
    ]
    if missing:
        raise StartupError(
            f"{path / 'config.json'} describes no text model that memserve serves: it has no "
            f"{', '.join(missing)}"
        )
    return found


def json_object(file: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """The object that a JSON file holds; an empty one for a missing file where that may be. Raises
    StartupError, which names the file.
    """
    if missing_ok and not file.is_file():
        return {}
    try:
        found = json.loads(text_of(file))
    except ValueError as error:
        raise StartupError(f"{file} is not JSON: {error}{pointer_hint(file)}") from None
    if not isinstance(found, dict):
        raise StartupError(f"{file} must hold an object, not {type(found).__name__}")
    return found


def text_of(file: Path) -> str:
    """Raises StartupError, which names the file."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise StartupError(f"{file} is not UTF-8") from None
    except OSError as error:
        raise StartupError(f"{file}: {error.strerror}") from None


def pointer_hint(file: Path) -> str:
    """What to do about a file of a repository that was cloned without git-lfs."""
    with file.open("rb") as stream:
        is_pointer = stream.read(len(_POINTER)) == _POINTER
    return "; it is a pointer of git-lfs: run `git lfs pull` in the model's directory" if is_pointer else ""


def safetensors_header_bytes(file: Path) -> int:
    """The length that a safetensors file announces for its header, without reading the header.

    Raises ValueError when no header of this length is in the file. Source: the format's description in the
    safetensors README.
    """
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
    if not 2 <= size <= min(HEADER_MAX_BYTES, file.stat().st_size - 8):
        raise ValueError("not a safetensors file: its header length is impossible")
    return size


def read_safetensors_header(file: Path) -> dict[str, dict[str, Any]]:
    """Tensor name to {dtype, shape, data_offsets}, of one safetensors file. Raises ValueError when the file
    is not one.
    """
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
