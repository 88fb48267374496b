"""An embedding model behind an endpoint with OpenAI's API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from memserve.errors import EmbedderUnavailable, InvalidField
from memserve.memory.texts.embedder_files import Prompts
from memserve.memory.texts.encoders.embedder import BatchLimits, Floats
from memserve.memory.texts.encoders.json_endpoint import EndpointFailed, JsonEndpoint
from memserve.memory.texts.milvus import Vectors

DIM_MAX = 8192
# A number of a vector in JSON, with its comma; and what stands around the vectors.
_NUMBER_BYTES, _AROUND_BYTES = 32, 1 << 16
# A memory has 8 KiB at most.
_BATCH_BYTES, _TEXT_BYTES = 1 << 18, 1 << 14


class EndpointEmbedder:
    """Embeds by `POST <url>/embeddings`. Any number of threads may call it.

    `drift` makes it refuse, until it is taken back: the model behind the endpoint is another one then.
    """

    def __init__(
        self, endpoint: JsonEndpoint, model: str, vectors: Vectors, prompts: Prompts, batch_texts: int
    ) -> None:
        self._endpoint = endpoint
        self._prompts = prompts
        self.model = model
        """As the endpoint calls it."""
        self.name = f"{model} ({vectors.embedder[:8]})"
        self.vectors = vectors
        self.limits = BatchLimits(batch_texts, _BATCH_BYTES, _TEXT_BYTES)
        self.drift = ""
        """Why it refuses, for a person. "": it embeds."""

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Floats:
        """As `Embedder.embed`. A text is sent whole: the endpoint cuts or refuses what is too long."""
        if self.drift:
            raise EmbedderUnavailable(self.drift)
        prompt = self._prompts.query if query else self._prompts.passage
        limit = self.limits.texts
        parts = [
            self._batch([prompt + text for text in texts[start : start + limit]], query)
            for start in range(0, len(texts), limit)
        ]
        return np.concatenate([np.empty((0, self.vectors.dim), dtype=np.float32), *parts])

    def tokens(self, text: str) -> int:
        """Reckoned at four bytes a token: the endpoint does not count a text before it embeds it."""
        return max(1, -(-len((self._prompts.passage + text).encode()) // 4))

    def close(self) -> None:
        self._endpoint.close()

    def _batch(self, prompted: list[str], query: bool) -> Floats:
        try:
            return ask(self._endpoint, self.model, prompted, self.vectors.dim)
        except EndpointFailed as failure:
            if failure.of_the_text:
                field = "query" if query else "text"
                raise InvalidField(field, f"the embedding endpoint refuses it ({failure})") from None
            raise EmbedderUnavailable(f"the endpoint of embedder_url: {failure}") from None


def ask(endpoint: JsonEndpoint, model: str, texts: Sequence[str], dim: int) -> Floats:
    """The endpoint's vectors of the texts, scaled to unit length: [len(texts), dim].

    dim: 0 for whatever the endpoint answers.
    Raises EndpointFailed, also for an answer that is not whole, or whose vectors are not what they should be.
    """
    body = {"model": model, "input": list(texts), "encoding_format": "float"}
    most_bytes = _AROUND_BYTES + len(texts) * (dim or DIM_MAX) * _NUMBER_BYTES
    answer = endpoint.post("/embeddings", body, most_bytes)
    rows = _in_order(answer, len(texts))
    dim = dim or len(rows[0])
    if not 1 <= dim <= DIM_MAX or any(len(row) != dim for row in rows):
        found = next((len(row) for row in rows if len(row) != dim), dim)
        raise EndpointFailed(
            f"a vector has {found} numbers, and {dim} are expected (1 to {DIM_MAX}); see embedder_dim",
            again=False,
        )
    try:
        vectors = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise EndpointFailed("a vector has something that is no number", again=False) from None
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not (lengths > 0).all():
        raise EndpointFailed("a vector is not finite or has no length", again=False)
    unit: Floats = (vectors / lengths).astype(np.float32)
    return unit


def _in_order(answer: Any, n: int) -> list[list[Any]]:
    """The vectors by `index`. Raises EndpointFailed."""
    entries = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(entries, list) or len(entries) != n:
        found = len(entries) if isinstance(entries, list) else "no"
        raise EndpointFailed(f"it answers {n} texts with {found} vectors", again=False)
    by_index: dict[int, list[Any]] = {}
    for entry in entries:
        index = entry.get("index") if isinstance(entry, dict) else None
        row = entry.get("embedding") if isinstance(entry, dict) else None
        if not isinstance(row, list) or any(type(number) not in (int, float) for number in row):
            raise EndpointFailed("an entry of its answer has no vector of numbers (float)", again=False)
        if type(index) is not int or index in by_index or not 0 <= index < n:
            raise EndpointFailed("the indexes of its answer are not those of the texts", again=False)
        by_index[index] = row
    return [by_index[index] for index in range(n)]
