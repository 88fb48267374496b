"""A Hugging Face model directory: identity, limits and tensor shapes, read without torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memserve.errors import StartupError
from memserve.model.by_transformers import asked

# All files that transformers looks at. config.json may name the tokenizer's class.
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
# Names for the number of experts, from vLLM's `ModelConfig.get_num_experts`.
EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
# What transformers takes for a model that names none.
DEFAULT_ROPE_THETA = 10_000.0
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A local model directory that has been looked at."""

    path: Path
    max_context_tokens: int
    config: dict[str, Any]
    sizes: dict[str, Any] = field(default_factory=dict)
    """The text model's sizes by the names of config.json, where they do not stand at the top of `config`."""

    @property
    def dtype(self) -> str:
        """The weights' dtype as torch names it. The model is served in it."""
        for config in (self.config, self.sizes):
            if dtype := config.get("dtype") or config.get("torch_dtype"):
                return str(dtype)
        return "bfloat16"

    @property
    def architecture(self) -> str:
        """The first named architecture; "" where the configuration has none, which `check_model` refuses."""
        named = self.config.get("architectures")
        first = named[0] if isinstance(named, list) and named else ""
        return first if isinstance(first, str) else ""

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding. A token id at or over this number ends the engine."""
        return int(self._size("vocab_size"))

    @property
    def own_context_tokens(self) -> int:
        """The longest prompt and answer that the model was made for. 0: its configuration does not say."""
        limit = self._size("max_position_embeddings")
        return limit if isinstance(limit, int) else 0

    @property
    def head_size(self) -> int:
        return int(self._size("head_dim") or self._size("hidden_size") // self._size("num_attention_heads"))

    @property
    def hidden_size(self) -> int:
        """The width of an embedding."""
        return int(self._size("hidden_size"))

    @property
    def layers(self) -> int:
        return int(self._size("num_hidden_layers"))

    @property
    def kv_heads(self) -> int:
        return int(self._size("num_key_value_heads") or self._size("num_attention_heads"))

    @property
    def has_latent_attention(self) -> bool:
        """Whether a token's KV is one compressed vector (MLA), and not K and V of heads."""
        return bool(self._size("kv_lora_rank"))

    @property
    def has_experts(self) -> bool:
        """Whether the layers are mixtures of experts, by any family's name for the number of experts."""
        return any(
            isinstance(config.get(name), int) and config[name] > 1
            for config in (self.config, self.sizes)
            for name in EXPERTS
        )

    @property
    def rope(self) -> dict[str, Any]:
        """The rope parameters by transformers 5's names. Keys of one rope are worth nothing under another."""
        given = self._size("rope_parameters") or self._size("rope_scaling") or {}
        rope = {name: value for name, value in given.items() if name != "type"}
        rope.setdefault("rope_type", given.get("type") or "default")
        rope.setdefault("rope_theta", self._size("rope_theta") or DEFAULT_ROPE_THETA)
        partial = self._size("partial_rotary_factor")
        return rope if partial in (None, 1) else {"partial_rotary_factor": partial, **rope}

    @property
    def no_prefix_reason(self) -> str:
        """Why no KV can be put before a prompt of this model, as far as its configuration says. Empty: it
        can."""
        if self.has_latent_attention:
            return "it has latent attention, whose KV is not K and V of heads"
        window = self._size("sliding_window") and self._size("use_sliding_window") is not False
        kinds = self._size("layer_types") or []
        if any(kind != "full_attention" for kind in kinds) or (window and not kinds):
            return "not all of its layers attend to the whole prompt"
        return ""

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all layers, without quantization."""
        return self.layers * 2 * self.kv_heads * self.head_size * DTYPE_BYTES.get(self.dtype, 2)

    @property
    def name(self) -> str:
        return self.path.name

    def model_digest(self) -> str:
        """sha256 over the weights' and the config's bytes, hex. Reads every weight once, at about 2 GB/s."""
        return _digest([self.path / "config.json", *_weights(self.path)])

    def tokenizer_digest(self) -> str:
        """sha256 over all files that decide about token ids, hex.

        A gateway and its workers must agree on it.
        """
        files = [self.path / name for name in TOKENIZER_FILES if (self.path / name).is_file()]
        return _digest([*files, *sorted((self.path / TEMPLATES_FOLDER).glob("*.jinja"))])

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight by name, from the safetensors headers. Empty without weights."""
        shapes: dict[str, tuple[int, ...]] = {}
        for file in _weights(self.path):
            for name, entry in read_safetensors_header(file).items():
                shapes[name] = tuple(entry["shape"])
        return shapes

    def checked_weights(self) -> int:
        """The number of files of weights. Raises StartupError for a file that is damaged or missing.

        A file is whole when its header and its length agree.
        """
        for file in _weights(self.path):
            try:
                header = read_safetensors_header(file)
                end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
                whole = 8 + safetensors_header_bytes(file) + end == file.stat().st_size
            except (ValueError, KeyError, TypeError, IndexError, RecursionError):
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
        """None: the configuration does not have it."""
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
    """Sizes that stand in a `text_config`, have another name in the family, or are the family's defaults.

    Raises StartupError.
    """
    sizes = asked("sizes", path, _digest([path / "config.json"]))
    missing = [
        name
        for name in NEEDED_SIZES
        if not isinstance(sizes.get(name), int) and name != "max_position_embeddings"
    ]
    if missing:
        raise StartupError(
            f"{path / 'config.json'} describes no text model that memserve serves: it has no "
            f"{', '.join(missing)}"
        )
    return sizes


def json_object(file: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """The object that a JSON file holds. Raises StartupError that names the file.

    missing_ok: whether a missing file counts as an empty object.
    """
    if missing_ok and not file.is_file():
        return {}
    try:
        value = json.loads(text_of(file))
    except (ValueError, RecursionError) as error:
        raise StartupError(f"{file} is not JSON: {error}{pointer_hint(file)}") from None
    if not isinstance(value, dict):
        raise StartupError(f"{file} must hold an object, not {type(value).__name__}")
    return value


def text_of(file: Path) -> str:
    """Raises StartupError that names the file."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise StartupError(f"{file} is not UTF-8") from None
    except OSError as error:
        raise StartupError(f"{file}: {error.strerror}") from None


def template_text(file: Path, name: str, max_bytes: int) -> str:
    """The text of a template's file. Raises StartupError that calls the file `name`."""
    try:
        if not file.is_file():
            raise StartupError(f"{name}: {'is no file' if file.exists() else 'does not exist'}")
        with file.open("rb") as stream:
            content = stream.read(max_bytes + 1)
        text = content.decode()
    except UnicodeDecodeError:
        raise StartupError(f"{name}: is not UTF-8") from None
    except OSError as error:
        raise StartupError(f"{name}: {error.strerror}") from None
    if len(content) > max_bytes:
        raise StartupError(f"{name}: has more than {max_bytes} bytes")
    return text


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
    """The entries {dtype, shape, data_offsets} of a safetensors file by tensor name.

    Raises ValueError for another kind of file.
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
    """Raises ValueError for a name that stands twice. Readers differ in the entry that they take."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("not a safetensors file: its header has a name twice")
    return entries


def _weights(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors"))


def _digest(files: list[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256")
        whole.update(f"{file.name}\0{content.hexdigest()}\n".encode())
    return whole.hexdigest()
