"""What a composition loses, and how much its parents have in common."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch


class Losses:
    """Frobenius norms of what did not fit into the rank, against those of the merged matrices."""

    def __init__(self) -> None:
        self.worst = 0.0
        """Of one matrix, relative."""
        self._lost = self._whole = self._parents = 0.0

    def add(self, lost: float, whole: float, parents: float) -> None:
        """Of one matrix: what was lost, the merged matrix, the largest parent."""
        self.worst = max(self.worst, lost / whole if whole else 0.0)
        self._lost += lost**2
        self._whole += whole**2
        self._parents += parents**2

    @property
    def overall(self) -> float:
        """Of all matrices together, relative."""
        return math.sqrt(self._lost / self._whole) if self._whole else 0.0

    @property
    def changes_nothing(self) -> bool:
        """Whether only rounding is left of the parents."""
        return self._whole <= 1e-12 * self._parents


class Overlaps:
    """Jaccard indices of the parents' cores, over all pairs of parents."""

    def __init__(self) -> None:
        self._indices: list[float] = []
        self._shared = self._covered = 0

    def add(self, cores: Sequence[torch.Tensor | None]) -> None:
        """cores: of one matrix, None for a parent that does not adapt it."""
        for first, second in itertools.combinations(cores, 2):
            shared = int((first & second).sum()) if first is not None and second is not None else 0
            covered = sum(int(core.sum()) for core in (first, second) if core is not None) - shared
            if covered:
                self._indices.append(shared / covered)
                self._shared += shared
                self._covered += covered

    @property
    def mean(self) -> float:
        """Over the matrices."""
        return sum(self._indices) / len(self._indices) if self._indices else 0.0

    @property
    def overall(self) -> float:
        """Over all entries."""
        return self._shared / self._covered if self._covered else 0.0
