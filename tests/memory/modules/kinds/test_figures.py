"""The figures of a module's weights are those that the whole matrices would give."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from memserve.memory.modules.kinds.figures import lora_figures, model_figures

Matrix = npt.NDArray[np.float32]


def random_matrix(rows: int, columns: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def entropy_rank(matrix: npt.NDArray[np.float64]) -> float:
    singular = np.linalg.svd(matrix, compute_uv=False)
    shares = singular[singular > 1e-12 * singular.max()] / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def test_the_figures_of_a_lora_are_those_of_its_deltas() -> None:
    pairs = [(random_matrix(4, 40, seed), random_matrix(60, 4, seed + 9)) for seed in range(3)]
    deltas = [2.5 * b.astype(np.float64) @ a.astype(np.float64) for a, b in pairs]
    found = lora_figures(pairs, 2.5)
    assert found.delta_norm == pytest.approx(
        math.sqrt(sum(float((delta**2).sum()) for delta in deltas)), rel=1e-6
    )
    assert found.effective_rank == pytest.approx(np.mean([entropy_rank(delta) for delta in deltas]), rel=1e-6)
    nearly_zero = sum(int((np.abs(delta) < np.abs(delta).max() / 1000).sum()) for delta in deltas)
    assert found.sparsity == pytest.approx(nearly_zero / sum(delta.size for delta in deltas), abs=1e-4)


def test_a_lora_wider_than_one_slice_has_the_same_figures() -> None:
    a, b = random_matrix(2, 2048), random_matrix(1100, 2, 1)
    delta = b @ a
    assert lora_figures([(a, b)], 1.0).sparsity == pytest.approx(
        float((np.abs(delta) < np.abs(delta).max() / 1000).mean()), abs=1e-6
    )


def test_the_figures_of_a_model_are_those_of_its_weights() -> None:
    tensors = [random_matrix(30, 50), random_matrix(50, 30, 1), random_matrix(1, 7, 2)[0]]
    tensors[0][:, :10] = 0
    found = model_figures(tensors)
    assert found.delta_norm == pytest.approx(
        math.sqrt(sum(float((tensor.astype(np.float64) ** 2).sum()) for tensor in tensors))
    )
    assert found.effective_rank == pytest.approx(
        np.mean([entropy_rank(tensor.astype(np.float64)) for tensor in tensors[:2]]), rel=1e-6
    )
    nearly_zero = sum(int((np.abs(tensor) < np.abs(tensor).max() / 1000).sum()) for tensor in tensors)
    assert found.sparsity == pytest.approx(nearly_zero / 3007)


def test_the_effective_rank_of_equal_directions_is_their_number() -> None:
    assert model_figures([np.eye(6, 9, dtype=np.float32)]).effective_rank == pytest.approx(6)
    assert lora_figures(
        [(np.eye(3, 9, dtype=np.float32), np.eye(8, 3, dtype=np.float32))], 7.0
    ).effective_rank == pytest.approx(3)


def test_a_rank_above_the_layers_size_is_no_obstacle() -> None:
    a, b = random_matrix(8, 5), random_matrix(3, 8, 1)
    assert lora_figures([(a, b)], 1.0).delta_norm == pytest.approx(float(np.linalg.norm(b @ a)), rel=1e-5)


def test_two_sides_that_cancel_out_have_no_delta() -> None:
    a, b = np.zeros((2, 5), np.float32), np.zeros((4, 2), np.float32)
    a[0], b[:, 1] = 1.5, 0.3
    found = lora_figures([(a, b)], 1.0)
    assert (found.delta_norm, found.sparsity, found.effective_rank) == (0.0, 1.0, 0.0)


def test_zero_weights_have_figures_too() -> None:
    found = model_figures([np.zeros((4, 4), np.float32)])
    assert (found.delta_norm, found.sparsity, found.effective_rank) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("value", [np.finfo(np.float32).max, np.finfo(np.float32).tiny])
def test_the_largest_and_smallest_weights_have_finite_figures(value: np.float32) -> None:
    a, b = np.full((2, 6), value, np.float32), np.full((5, 2), value, np.float32)
    for found in (lora_figures([(a, b)], 1e6), model_figures([a, b])):
        assert all(
            math.isfinite(figure) for figure in (found.delta_norm, found.sparsity, found.effective_rank)
        )
        assert found.delta_norm > 0
