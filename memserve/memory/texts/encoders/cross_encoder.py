"""A cross-encoder in numpy: how well a passage answers a query, read together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Encoding

from memserve.errors import StartupError
from memserve.memory.texts.embedder_files import (
    CONFIG_FILE,
    FIRST_POSITION,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    checked_kind,
    require_files,
)
from memserve.memory.texts.encoders.bert import (
    BertEncoder,
    Floats,
    batches_of,
    read_tokenizer,
    read_weights,
    reading,
)
from memserve.model.files import json_object

# Of query, passage and special tokens together. A longer pair costs the gateway more than it brings.
MAX_PAIR_TOKENS = 256
# How long the query may be within the pair: it is cut before the passage is left without room.
QUERY_SHARE = 0.5
_IDENTITY = "torch.nn.modules.linear.Identity"
_SIGMOID = "torch.nn.modules.activation.Sigmoid"


class Reranker(Protocol):
    """Scores passages by reading each with the query. Any number of threads may call it."""

    @property
    def name(self) -> str:
        """For people, on one line."""

    @property
    def identity(self) -> str:
        """16 hex digits over all that the scores depend on."""

    def tokens(self, query: str, texts: Sequence[str]) -> list[int]:
        """How many tokens `score` reads of each pair: what its time is proportional to."""

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """Blocks. Returns a score for each text, in their order; a higher one answers the query better."""


@dataclass(frozen=True, slots=True)
class _Dense:
    weight: Floats  # [outputs, inputs]
    bias: Floats  # [outputs]

    def __call__(self, x: Floats) -> Floats:
        y: Floats = x @ self.weight.T + self.bias
        return y


class CrossEncoder:
    """A BERT, RoBERTa or XLM-RoBERTa that classifies pairs with one label, as sentence-transformers saves it.

    Source: Nogueira and Cho 2019, Passage Re-ranking with BERT.
    """

    def __init__(self, path: Path) -> None:
        """Read the model. Raises StartupError that says what memserve cannot use."""
        require_files(path, "reranker")
        config = json_object(path / CONFIG_FILE)
        kind = checked_kind(path, config, "reranker")
        labels = config.get("id2label")
        if not isinstance(labels, dict) or len(labels) != 1:
            raise StartupError(
                f"{path / CONFIG_FILE}: a reranker has one label, and this model has "
                f"{len(labels) if isinstance(labels, dict) else 2} (id2label)"
            )
        self._reads_segments = _reads_segments(path, kind)
        self._sigmoid = _ends_in_sigmoid(path, config)
        with reading(path, "reranker"):
            weights = read_weights(path)
            self._encoder = BertEncoder(weights, config)
            names = ("pooler.dense", "classifier") if kind == "bert" else _ROBERTA_HEAD
            self._dense, self._out = (
                _Dense(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in names
            )
            self._tokenizer = read_tokenizer(path)
            self.max_tokens = _limit(path, config, kind)
            special = self._tokenizer.num_special_tokens_to_add(is_pair=True)
            self._query_tokens = max(1, int((self.max_tokens - special) * QUERY_SHARE))
            self._queries = read_tokenizer(path)
            self._tokenizer.enable_truncation(self.max_tokens, strategy="only_second")
        if (tokens := self._tokenizer.get_vocab_size()) > self._encoder.words:
            raise StartupError(
                f"reranker {path}: its tokenizer has {tokens} tokens and it knows {self._encoder.words}"
            )
        if self._out.weight.shape != (1, self._dense.weight.shape[0]):
            raise StartupError(f"reranker {path}: its head has the shape {self._out.weight.shape}")
        self.name = path.name
        self.identity = _identity(path, self.max_tokens)

    def tokens(self, query: str, texts: Sequence[str]) -> list[int]:
        return [len(pair.ids) for pair in self._pairs(query, texts)]

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """The passage is cut where the pair is too long. So is the query, at half of the pair."""
        pairs = self._pairs(query, texts)
        scores = np.empty(len(texts), dtype=np.float32)
        for rows in batches_of([len(pair.ids) for pair in pairs]):
            scores[rows] = self._logits([pairs[row] for row in rows])
        if self._sigmoid:
            scores = np.float32(0.5) * (np.float32(1) + np.tanh(scores * np.float32(0.5)))
        return [float(score) for score in scores]

    def _pairs(self, query: str, texts: Sequence[str]) -> list[Encoding]:
        offsets = self._queries.encode(query, add_special_tokens=False).offsets
        if len(offsets) > self._query_tokens:
            query = query[: offsets[self._query_tokens - 1][1]]
        return list(self._tokenizer.encode_batch([(query, text) for text in texts]))

    def _logits(self, pairs: Sequence[Encoding]) -> Floats:
        """[n]."""
        # A model with one token type tells the two by their separators alone.
        known = self._reads_segments and self._encoder.segments > 1
        segments = [pair.type_ids for pair in pairs] if known else None
        hidden, _ = self._encoder.hidden([pair.ids for pair in pairs], segments)
        logits: Floats = self._out(np.tanh(self._dense(hidden[:, 0, :])))[:, 0]
        return logits


_ROBERTA_HEAD = ("classifier.dense", "classifier.out_proj")


def _ends_in_sigmoid(path: Path, config: dict[str, Any]) -> bool:
    """Whether a score is squeezed to 0 … 1, as sentence-transformers does where the model says nothing."""
    newer = config.get("sentence_transformers")
    name = newer.get("activation_fn") if isinstance(newer, dict) else None
    name = name or config.get("sbert_ce_default_activation_function") or _SIGMOID
    if name not in (_IDENTITY, _SIGMOID):
        raise StartupError(
            f"{path / CONFIG_FILE}: the activation function is {name!r}; memserve computes Identity and "
            "Sigmoid"
        )
    return bool(name == _SIGMOID)


def _reads_segments(path: Path, kind: str) -> bool:
    """Whether the model is shown the token types, which its tokenizer says. RoBERTa's do without."""
    names = json_object(path / "tokenizer_config.json", missing_ok=True).get("model_input_names")
    return "token_type_ids" in names if isinstance(names, list) else kind == "bert"


def _limit(path: Path, config: dict[str, Any], kind: str) -> int:
    rules = json_object(path / "tokenizer_config.json", missing_ok=True)
    limit = rules.get("model_max_length")
    positions = int(config["max_position_embeddings"]) - FIRST_POSITION[kind]
    least = min(MAX_PAIR_TOKENS, positions, limit if isinstance(limit, int) and limit > 0 else positions)
    if least < 8:
        raise StartupError(f"reranker {path} reads {least} tokens; a pair needs 8")
    return least


def _identity(path: Path, max_tokens: int) -> str:
    """Reads all weights, at about 1 GB/s."""
    whole = hashlib.sha256()
    for name in (CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE):
        with (path / name).open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    whole.update(repr(max_tokens).encode())
    return whole.hexdigest()[:16]
