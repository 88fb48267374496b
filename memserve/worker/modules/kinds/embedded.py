"""A prompt that begins with embeddings, as vLLM takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memserve.domain import EmbeddedRows
from memserve.kv.keys import prefix_salt

EMBEDDED_TOKENS = "memserve_embedded_tokens"
"""The key under which a request's `extra_args` carry how many positions its soft prompt takes."""


@dataclass(frozen=True, slots=True)
class SoftPrompt:
    """The embeddings of a soft prompt in an engine."""

    digest: str
    rows: EmbeddedRows
    embeddings: Tensor
    """[tokens, hidden width], in the dtype of the model."""

    @property
    def tokens(self) -> int:
        return self.rows.tokens

    def prompt(self, token_ids: Sequence[int], cache_salt: str) -> Any:
        """A prompt of vLLM. token_ids: with placeholders first. cache_salt: the tenant's.

        vLLM takes a row for each position. It embeds the tokens itself: their rows do not count, and are
        zero, as the block keys have them.
        """
        rows = torch.zeros(len(token_ids), self.embeddings.shape[1], dtype=self.embeddings.dtype)
        rows[: self.tokens] = self.embeddings
        return {
            "prompt_embeds": rows,
            "prompt_token_ids": list(token_ids),
            "prompt_is_token_ids": [place >= self.tokens for place in range(len(token_ids))],
            "cache_salt": prefix_salt(cache_salt, self.digest),
        }


def soft_prompt_of(digest: str, rows: EmbeddedRows, width: int, dtype: torch.dtype) -> SoftPrompt:
    """width, dtype: of the engine's embeddings."""
    embeddings = torch.frombuffer(bytearray(rows.content), dtype=dtype).reshape(-1, width)
    return SoftPrompt(digest, rows, embeddings)


def embedded_tokens(extra_args: Mapping[str, Any] | None) -> int:
    """How many positions of a request its soft prompt takes. extra_args: of its SamplingParams."""
    return int((extra_args or {}).get(EMBEDDED_TOKENS, 0))
