"""A LoRA that is trained on begins with the weights of an earlier version."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from memserve.errors import InvalidModule
from memserve.worker.training.parent import Parent
from memserve.worker.training.parents import read_parent

_A, _B = ".lora_A.default.weight", ".lora_B.default.weight"


def begin_from(weights: Mapping[str, Tensor], parent: Parent, scale: float) -> None:
    """Give a new LoRA what the parent changes.

    weights: of the new LoRA, by peft's names; what the parent does not adapt stays as it is. scale: the new
    one's lora_alpha / rank. A parent of a lower rank fills the first of the ranks.
    Raises InvalidModule for a parent that adapts what the new one does not, or has a higher rank.
    """
    layers = read_parent(parent)
    places = {
        name.removesuffix(_A).removeprefix("base_model.model."): name.removesuffix(_A)
        for name in weights
        if name.endswith(_A)
    }
    with torch.no_grad():
        for path, factors in layers.items():
            if path not in places:
                raise InvalidModule("parent", f"adapts {path}, which a distilled LoRA does not")
            a, b = weights[places[path] + _A], weights[places[path] + _B]
            rank = factors.rank
            if rank > a.shape[0] or factors.shape != (b.shape[0], a.shape[1]):
                raise InvalidModule("parent", f"its {path} does not fit: rank {rank}, of {a.shape[0]}")
            a[:rank].copy_(factors.a)
            b[:, :rank].copy_(factors.b * (factors.scale / scale))
