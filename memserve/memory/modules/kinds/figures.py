"""Figures of a module's weights, in numpy: norm, sparsity, effective rank.

All sums are in float64, so that finite weights never give an infinite figure. A large matrix is read slice by
slice, so that the memory for it is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from memserve.domain import WeightFigures

NEARLY_ZERO = 1e-3
SLICE_ENTRIES = 1 << 20
# A singular value below this share of the largest possible singular value is a rounding error.
ROUNDING = 1e-13

Matrix = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]


@dataclass(slots=True)
class _Sums:
    squares: float = 0.0
    entries: int = 0
    nearly_zero: int = 0
    effective_ranks: list[float] = field(default_factory=list)

    def figures(self) -> WeightFigures:
        ranks = self.effective_ranks
        return WeightFigures(
            delta_norm=float(np.sqrt(self.squares)),
            sparsity=self.nearly_zero / self.entries if self.entries else 0.0,
            effective_rank=sum(ranks) / len(ranks) if ranks else 0.0,
        )


def lora_figures(pairs: Iterable[tuple[Matrix, Matrix]], scale: float) -> WeightFigures:
    """Figures of the deltas scale * B @ A. No delta is held in memory as a whole.

    pairs: for each layer A [rank, in] and B [out, rank].
    Returns a delta_norm of 0 when every delta is only rounding error.
    """
    sums = _Sums()
    for a, b in pairs:
        singular = _delta_singular_values(a.astype(np.float64), b.astype(np.float64), scale)
        sums.squares += float(singular @ singular)
        sums.entries += b.shape[0] * a.shape[1]
        sums.nearly_zero += _nearly_zero_of_product(b, a) if singular.any() else b.shape[0] * a.shape[1]
        _add_effective_rank(sums, singular)
    return sums.figures()


def model_figures(tensors: Iterable[Matrix]) -> WeightFigures:
    """Figures of a whole model's weights.

    tensors: of one or two dimensions. The effective rank is the mean over the matrices that are not zero.
    """
    sums = _Sums()
    for tensor in tensors:
        flat = tensor.reshape(-1)
        largest = float(np.abs(flat).max())
        sums.entries += flat.size
        if largest == 0:
            sums.nearly_zero += flat.size
            continue
        for first in range(0, flat.size, SLICE_ENTRIES):
            part = flat[first : first + SLICE_ENTRIES].astype(np.float64)
            sums.squares += float(part @ part)
            sums.nearly_zero += int((np.abs(part) < NEARLY_ZERO * largest).sum())
        if tensor.ndim == 2:
            _add_effective_rank(sums, _singular_values(tensor, largest))
    return sums.figures()


def _delta_singular_values(a: Doubles, b: Doubles, scale: float) -> Doubles:
    """The singular values of scale * B @ A.

    Only a matrix of at most [rank, rank] is decomposed: the product of the triangles of both sides' QR.
    """
    core = scale * _triangle(b) @ _triangle(a.T).T
    singular = np.linalg.svd(core, compute_uv=False).astype(np.float64)
    most = abs(scale) * float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return np.where(singular > ROUNDING * most, singular, 0.0)


def _triangle(matrix: Doubles) -> Matrix:
    return np.linalg.qr(matrix, mode="reduced").R


def _nearly_zero_of_product(b: Matrix, a: Matrix) -> int:
    """How many entries of B @ A are under a thousandth of the largest entry. Neither side is zero.

    The product is computed twice: for its largest entry, and for the count. The whole product would take
    more memory than the module.
    """
    # Both sides are scaled to a largest entry of 1, so that float32 cannot overflow. The scale does not
    # change the count.
    b32 = (b / np.abs(b).max()).astype(np.float32)
    a32 = (a / np.abs(a).max()).astype(np.float32)
    rows = max(1, SLICE_ENTRIES // a.shape[1])
    starts = range(0, b.shape[0], rows)
    largest = max(float(np.abs(b32[first : first + rows] @ a32).max()) for first in starts)
    return sum(
        int((np.abs(b32[first : first + rows] @ a32) < NEARLY_ZERO * largest).sum()) for first in starts
    )


def _singular_values(matrix: Matrix, largest: float) -> Doubles:
    """The singular values of matrix / largest, from the Gram matrix of the shorter side."""
    long = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    gram = np.zeros((long.shape[1], long.shape[1]))
    rows = max(1, SLICE_ENTRIES // long.shape[1])
    for first in range(0, long.shape[0], rows):
        part = long[first : first + rows].astype(np.float64) / largest
        gram += part.T @ part
    singular: Doubles = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))
    return singular


def _add_effective_rank(sums: _Sums, singular: Doubles) -> None:
    """Add exp of the entropy of the normalised singular values. A zero matrix has no effective rank.

    Source: Roy & Vetterli 2007, "The effective rank".
    """
    present = singular[singular > 0]
    if present.size:
        shares = present / present.sum()
        sums.effective_ranks.append(float(np.exp(-(shares * np.log(shares)).sum())))
