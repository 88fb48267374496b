"""The change that a LoRA makes to one matrix, as two factors, and the best factors of a given rank."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

# An exact SVD of a matrix whose smaller side is larger takes minutes. Such a matrix is factorised by subspace
# iteration.
MAX_EXACT_SVD = 1024
# More columns and more iterations than torch's defaults: a matrix that was merged entry by entry has singular
# values that fall slowly.
OVERSAMPLING = 32
ITERATIONS = 8


@dataclass(frozen=True, slots=True)
class Factors:
    """What a LoRA changes in one matrix: scale * b @ a."""

    a: torch.Tensor
    """[rank, in], float32."""
    b: torch.Tensor
    """[out, rank], float32."""
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return (self.b.shape[0], self.a.shape[1])

    def delta(self) -> torch.Tensor:
        """[out, in]."""
        return self.scale * (self.b @ self.a)


def factorised(merged: Factors | torch.Tensor, rank: int) -> tuple[Factors, float, float]:
    """The best factors of exactly this rank.

    Returns the factors, the Frobenius norm of what they leave out, and that of the whole matrix. The singular
    values are shared evenly between the factors, so that neither is lost in a narrower dtype. A lower rank is
    filled up with zeros.
    """
    return _of_factors(merged, rank) if isinstance(merged, Factors) else _of_matrix(merged, rank)


def _of_factors(merged: Factors, rank: int) -> tuple[Factors, float, float]:
    # b a = Qb (Rb Ra^T) Qa^T: the SVD is of a small matrix, and exact.
    q_b, r_b = torch.linalg.qr(merged.b.double())
    q_a, r_a = torch.linalg.qr(merged.a.double().T)
    u, values, vh = torch.linalg.svd(merged.scale * r_b @ r_a.T, full_matrices=False)
    whole = float(values.norm())
    if merged.rank <= rank:
        return _filled_up(replace(merged, a=merged.a * merged.scale, scale=1.0), rank), 0.0, whole
    factors = _balanced(q_b @ u, values, q_a @ vh.T, rank)
    return _filled_up(factors, rank), float(values[rank:].norm()), whole


def _of_matrix(merged: torch.Tensor, rank: int) -> tuple[Factors, float, float]:
    whole = float(torch.linalg.vector_norm(merged, dtype=torch.float64))
    if min(merged.shape) <= MAX_EXACT_SVD:
        u, values, vh = torch.linalg.svd(merged, full_matrices=False)
        v = vh.T
    else:
        u, values, v = torch.svd_lowrank(merged, q=min(rank + OVERSAMPLING, *merged.shape), niter=ITERATIONS)
    factors = _balanced(u, values, v, rank)
    lost = float(torch.linalg.vector_norm(merged - factors.delta(), dtype=torch.float64))
    return _filled_up(factors, rank), lost, whole


def _balanced(u: torch.Tensor, values: torch.Tensor, v: torch.Tensor, rank: int) -> Factors:
    """The first `rank` singular vectors, each factor with the square root of the singular values."""
    roots = values[:rank].sqrt()
    return Factors((v[:, :rank] * roots).T.float().contiguous(), (u[:, :rank] * roots).float().contiguous())


def _filled_up(factors: Factors, rank: int) -> Factors:
    missing = rank - factors.rank
    pad = torch.nn.functional.pad
    return Factors(
        pad(factors.a, (0, 0, 0, missing)).contiguous(),
        pad(factors.b, (0, missing)).contiguous(),
        factors.scale,
    )
