"""What the vector memory wants of an embedding model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from memserve.memory.texts.milvus import Vectors

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one call of an embedder takes at most. One text alone is always taken."""

    texts: int
    bytes: int
    """Of UTF-8, the sum over the texts."""
    bytes_each: int
    """A longer text counts as so long, because the model does not read the rest."""

    def fitting(self, sizes: Sequence[int]) -> int:
        """How many of the first texts go into one call, at least 1 of 1. sizes: in bytes of UTF-8."""
        total = 0
        for number, size in enumerate(sizes[: self.texts]):
            total += min(size, self.bytes_each)
            if number and total > self.bytes:
                return number
        return min(len(sizes), self.texts)


class Embedder(Protocol):
    """An embedding model. Any number of threads may call it."""

    @property
    def name(self) -> str:
        """For people, on one line."""

    @property
    def vectors(self) -> Vectors:
        """Its dimensions, and its identity: a digest of all that the vectors depend on."""

    @property
    def limits(self) -> BatchLimits: ...

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Floats:
        """Blocks. Returns [len(texts), vectors.dim] rows of unit length, in the order of `texts`.

        query: whether the texts are questions.
        Raises EmbedderUnavailable when it cannot embed anything now, and InvalidField when it refuses a text.
        """

    def tokens(self, text: str) -> int:
        """How many tokens of a passage are embedded; an estimate where the model does not say."""
