"""What is trained on the base model: one student for each kind that can be distilled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import Tensor

from memserve.domain import ModuleKind, Recipe
from memserve.memory.modules.kinds.files import canonical_json
from memserve.memory.modules.kinds.lora import CONFIG_FILE, WEIGHTS_FILE

LORA_SCALE = 2.0
"""Of a LoRA: lora_alpha by its rank."""
_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Student(Protocol):
    """A module that is being trained. It holds the base model."""

    model: Any
    """A causal model of transformers, with the module applied."""

    def parameters(self) -> dict[str, Tensor]:
        """What is trained, by names that stay the same: float32."""

    def as_base(self) -> AbstractContextManager[object]:
        """Within it the model is the base alone."""

    def files(self) -> dict[str, bytes]:
        """The module as a publisher sends it."""


class LoraStudent:
    """A LoRA on all linear projections of the layers."""

    def __init__(self, base: Any, recipe: Recipe) -> None:
        """base: a causal model of transformers; it is changed in place."""
        from peft import LoraConfig, get_peft_model

        self._dtype = base.dtype
        self._rank = recipe.rank
        names = {name.rsplit(".", 1)[-1] for name, _ in base.named_modules()}
        self._targets = sorted(names & set(_TARGETS))
        config = LoraConfig(
            r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=self._targets, task_type="CAUSAL_LM"
        )
        self._adapted: Any = get_peft_model(base, config)
        for weight in self._trained():
            weight.data = weight.data.float()
        self.model = base

    def parameters(self) -> dict[str, Tensor]:
        return {name: weight for name, weight in self._adapted.named_parameters() if weight.requires_grad}

    def as_base(self) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = self._adapted.disable_adapter()
        return context

    def files(self) -> dict[str, bytes]:
        tensors = {
            name.replace(".default.", "."): weight.detach().to(self._dtype).contiguous()
            for name, weight in self.parameters().items()
        }
        config = {
            "base_model_name_or_path": "",
            "bias": "none",
            "lora_alpha": 2 * self._rank,
            "peft_type": "LORA",
            "r": self._rank,
            "target_modules": self._targets,
            "task_type": "CAUSAL_LM",
            "use_rslora": False,
        }
        return {CONFIG_FILE: canonical_json(config), WEIGHTS_FILE: save(tensors)}

    def _trained(self) -> Iterator[Any]:
        return (weight for weight in self._adapted.parameters() if weight.requires_grad)


STUDENTS: Mapping[ModuleKind, Callable[[Any, Recipe], Student]] = {ModuleKind.LORA: LoraStudent}
"""The kinds that can be distilled."""


def norm(weights: Mapping[str, Tensor]) -> float:
    """The Frobenius norm of all weights together."""
    return float(torch.stack([weight.detach().norm() for weight in weights.values()]).norm())
