"""A LoRA that is trained on begins with what the earlier one changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from memserve.errors import InvalidModule
from memserve.memory.modules.kinds.lora import CONFIG_FILE, WEIGHTS_FILE
from memserve.worker.training.distil.beginning import begin_from
from memserve.worker.training.parent import Parent
from memserve.worker.training.parents import read_parent

PATH = "model.layers.0.self_attn.q_proj"
NAME = f"base_model.model.{PATH}"


def parent(folder: Path, *, rank: int = 2, alpha: int = 8, path: str = PATH) -> Parent:
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(f'{{"lora_alpha": {alpha}, "r": {rank}}}', encoding="utf-8")
    stem = f"base_model.model.{path}"
    weights = {f"{stem}.lora_A.weight": torch.randn(rank, 6), f"{stem}.lora_B.weight": torch.randn(4, rank)}
    save_file(weights, folder / WEIGHTS_FILE)
    return Parent("ab" * 32, folder)


def new(rank: int) -> dict[str, Tensor]:
    """As peft begins: B is zero."""
    return {
        f"{NAME}.lora_A.default.weight": torch.randn(rank, 6),
        f"{NAME}.lora_B.default.weight": torch.zeros(4, rank),
    }


@pytest.mark.parametrize("rank", [2, 5])
def test_the_change_is_the_parents_whatever_its_scale_and_at_a_higher_rank(tmp_path: Path, rank: int) -> None:
    given, weights = parent(tmp_path / "parent"), new(rank)
    begin_from(weights, given, 2.0)
    a, b = weights.values()
    assert torch.allclose(2.0 * b @ a, read_parent(given)[PATH].delta(), atol=1e-6)


def test_a_parent_of_a_higher_rank_or_with_other_matrices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModule, match="rank 2, of 1"):
        begin_from(new(1), parent(tmp_path / "high"), 2.0)
    with pytest.raises(InvalidModule, match="lm_head"):
        begin_from(new(2), parent(tmp_path / "head", path="lm_head"), 2.0)
