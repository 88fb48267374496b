"""BERT-like encoders in numpy, so that a gateway needs no torch."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from memserve.errors import StartupError
from memserve.memory.texts.embedder_files import FIRST_POSITION, TOKENIZER_FILE, WEIGHTS_FILE

Floats = npt.NDArray[np.float32]

# Bounds the largest buffer, [tokens, 4 * width] float32, to 12 MiB for a width of 384.
BATCH_TOKENS = 2048


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


class BertEncoder:
    """A BERT, RoBERTa or XLM-RoBERTa without a head.

    It is immutable after construction, so that any number of threads may call it. The matrix products release
    the GIL. Construction sets numpy's BLAS to one thread, in the whole process: see `use_one_blas_thread`.
    Source: Devlin et al. 2018 (BERT).
    """

    def __init__(self, weights: Mapping[str, Floats], config: Mapping[str, Any]) -> None:
        """weights: as `read_weights` names them. config: checked by `embedder_files`.

        Raises KeyError for a weight that is missing, and ValueError or TypeError for another shape.
        """
        use_one_blas_thread()
        eps = float(config.get("layer_norm_eps", 1e-12))
        first = FIRST_POSITION[config["model_type"]]
        self._words = weights["embeddings.word_embeddings.weight"]
        self._places = weights["embeddings.position_embeddings.weight"][first:]
        self._types = weights["embeddings.token_type_embeddings.weight"]
        # Of texts of one segment, whose embedding can be added to the positions' once.
        self._positions: Floats = self._places + self._types[0]
        self._input_norm = _Norm(
            weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"], eps
        )
        heads = int(config["num_attention_heads"])
        self._layers = [
            _layer(weights, f"encoder.layer.{index}", heads, eps)
            for index in range(int(config["num_hidden_layers"]))
        ]

    @property
    def words(self) -> int:
        """How many tokens it knows."""
        return len(self._words)

    @property
    def segments(self) -> int:
        """How many token types it knows."""
        return len(self._types)

    def hidden(
        self, token_ids: Sequence[Sequence[int]], segments: Sequence[Sequence[int]] | None = None
    ) -> tuple[Floats, Floats]:
        """Encode texts that are padded to one length.

        token_ids: [n][1 to the model's limit].
        segments: the token types, in the shape of token_ids; None: all are 0.
        Returns [n, longest, width], and [n, longest] with 1 for a token and 0 for padding.
        """
        lengths = np.array([len(ids) for ids in token_ids])
        n, longest = len(token_ids), int(lengths.max())
        is_token = np.arange(longest) < lengths[:, None]
        attention_bias = np.where(is_token, np.float32(0), np.float32(-1e9))[:, None, None, :]
        embedded = self._words[_padded(token_ids, longest)]
        if segments is None:
            embedded += self._positions[:longest]
        else:
            embedded += self._places[:longest] + self._types[_padded(segments, longest)]
        x = self._input_norm(embedded)
        width = x.shape[-1]
        x = x.reshape(n * longest, width)
        for layer in self._layers:
            x = _forward(layer, x, attention_bias)
        return x.reshape(n, longest, width), is_token.astype(np.float32)


def read_weights(path: Path) -> dict[str, Floats]:
    """A model's weights as float32, by their names without the prefix of a model with a head."""
    return {
        _plain(name): weight.astype(np.float32, copy=False)
        for name, weight in load_file(path / WEIGHTS_FILE).items()
    }


def read_tokenizer(path: Path) -> Tokenizer:
    """Without padding and without truncation."""
    tokenizer = Tokenizer.from_str((path / TOKENIZER_FILE).read_text(encoding="utf-8"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Raises StartupError for what goes wrong inside. what: such as "embedding model"."""
    try:
        yield
    except StartupError:
        raise
    except (SafetensorError, TypeError, ValueError, OSError) as error:
        raise StartupError(f"{what} {path} cannot be read: {error}") from None
    except KeyError as error:
        raise StartupError(f"{what} {path} has no weight {error}") from None
    except Exception as error:  # tokenizers raises nothing narrower
        raise StartupError(f"{path / TOKENIZER_FILE} is no tokenizer: {error}") from None


def _padded(rows: Sequence[Sequence[int]], longest: int) -> npt.NDArray[np.int64]:
    padded = np.zeros((len(rows), longest), dtype=np.int64)
    for row, ids in enumerate(rows):
        padded[row, : len(ids)] = ids
    return padded


def _plain(name: str) -> str:
    """A weight's name without the prefix that a model with a head puts before it."""
    head, _, rest = name.partition(".")
    return rest if head in FIRST_POSITION else name


def use_one_blas_thread() -> None:
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


def batches_of(lengths: Sequence[int]) -> list[list[int]]:
    """Group rows of like length, so that padding stays small.

    Returns lists of row numbers. A list has at most BATCH_TOKENS tokens, padding included.
    """
    batches: list[list[int]] = []
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if batch and (len(batch) + 1) * lengths[row] > BATCH_TOKENS:
            batches.append(batch)
            batch = []
        batch.append(row)
    if batch:
        batches.append(batch)
    return batches
